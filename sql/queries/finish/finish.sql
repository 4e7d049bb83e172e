-- Finish: mark rows done and write their call logs. When the records have too many bytes for one statement,
-- log_calls.sql writes the rest of them in the same transaction.
--
-- The guard decides. The update leaves out a row that is not ours any more (claimed_by) and a row that is done already.
-- A row that is not updated logs nothing here. So no call ever has two records, whoever comes late.
--
-- Locks:      the rows.
-- Index:      outbox_pkey.
-- Parameters: $1 bigint[]  outbox ids
--             $2 bigint    the epoch that has them in hand
--             $3 … $19     calls of these rows, one array a column, in the order of the list below
--             $20 bigint[] those of $1 that have no calls at all. The subquery is hashed: each row costs the same, however
--                          many there are.
-- Returns:    the ids that were marked done.
WITH done AS (
    UPDATE relay.outbox o
       SET done_at = now(),
           without_call = o.id IN (SELECT w.id FROM unnest($20::bigint[]) AS w (id))
     WHERE o.id = ANY ($1)
       AND o.claimed_by = $2
       AND o.done_at IS NULL
    RETURNING o.id, o.project_id, relay.cut_text(o.trace_id) AS trace_id, relay.cut_text(o.user_agent) AS user_agent,
              relay.cut_text(o.ip) AS ip, o.provider_id
), logged AS (
    INSERT INTO relay.webhook_calls (
        outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body, status_code,
        response_headers, response_body, response_bytes, response_truncated, start_time, end_time, is_timeout,
        error_message, error_kind, succeeded, repeated, remote_addr, user_agent, ip, provider_id)
    SELECT c.outbox_id, c.webhook_id, d.project_id, d.trace_id, c.url, c.request_headers::jsonb, c.request_body,
           c.status_code, c.response_headers::jsonb, c.response_body, c.response_bytes, c.response_truncated,
           c.start_time, c.end_time, c.is_timeout, c.error_message, c.error_kind, c.error_kind IS NULL, c.repeated,
           c.remote_addr, d.user_agent, d.ip, d.provider_id
      FROM unnest(
               $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::integer[], $9::text[], $10::text[],
               $11::bigint[], $12::boolean[], $13::timestamptz[], $14::timestamptz[], $15::boolean[], $16::text[],
               $17::text[], $18::boolean[], $19::text[]
           ) AS c (
               outbox_id, webhook_id, url, request_headers, request_body, status_code, response_headers, response_body,
               response_bytes, response_truncated, start_time, end_time, is_timeout, error_message,
               error_kind, repeated, remote_addr)
      JOIN done d
        ON d.id = c.outbox_id
)
SELECT id
  FROM done
