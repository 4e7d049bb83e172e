-- Finish: mark rows done and write their call logs. When the records have too many bytes for one statement,
-- log_calls.sql writes the rest of them in the same transaction.
--
-- The guard decides. The update leaves out a row that is not ours any more (claimed_by) and a row that is done already. It
-- also leaves out the row of another event (event_id): after TRUNCATE … RESTART IDENTITY Postgres draws the same ids again.
-- A row that is not updated logs nothing here. So no call ever has two records, whichever instance comes late.
--
-- Locks:      the rows.
-- Index:      outbox_pkey.
-- Parameters: $1 bigint[]  outbox ids
--             $2 uuid[]    event_id of each
--             $3 boolean[] whether each has no calls at all
--             $4 bigint    the epoch that has them in hand
--             $5 … $21     calls of these rows, one array a column, in the order of the list below
-- Returns:    the ids that were marked done.
WITH done AS (
    UPDATE relay.outbox o
       SET done_at = now(),
           without_call = ours.without_call
      FROM unnest($1::bigint[], $2::uuid[], $3::boolean[]) AS ours (id, event_id, without_call)
     WHERE o.id = ANY ($1)
       AND o.id = ours.id
       AND o.event_id = ours.event_id
       AND o.claimed_by = $4
       AND o.done_at IS NULL
    RETURNING o.id, o.project_id, relay.cut_text(coalesce(o.trace_id, replace(o.event_id::text, '-', ''))) AS trace_id,
              relay.cut_text(o.user_agent) AS user_agent, relay.cut_text(o.ip) AS ip, o.provider_id, o.event_id, o.replay_of
), logged AS (
    INSERT INTO relay.webhook_calls (
        outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body, status_code,
        response_headers, response_body, response_bytes, response_truncated, start_time, end_time, is_timeout,
        error_message, error_kind, succeeded, repeated, remote_addr, user_agent, ip, provider_id,
        event_id, replay_of)
    SELECT c.outbox_id, c.webhook_id, d.project_id, d.trace_id, c.url, c.request_headers::jsonb, c.request_body,
           c.status_code, c.response_headers::jsonb, c.response_body, c.response_bytes, c.response_truncated,
           c.start_time, c.end_time, c.is_timeout, c.error_message, c.error_kind, c.error_kind IS NULL, c.repeated,
           c.remote_addr, d.user_agent, d.ip, d.provider_id, d.event_id, d.replay_of
      FROM unnest(
               $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::text[], $10::integer[], $11::text[], $12::text[],
               $13::bigint[], $14::boolean[], $15::timestamptz[], $16::timestamptz[], $17::boolean[], $18::text[],
               $19::text[], $20::boolean[], $21::text[]
           ) AS c (
               outbox_id, webhook_id, url, request_headers, request_body, status_code, response_headers, response_body,
               response_bytes, response_truncated, start_time, end_time, is_timeout, error_message,
               error_kind, repeated, remote_addr)
      JOIN done d
        ON d.id = c.outbox_id
)
SELECT id
  FROM done
