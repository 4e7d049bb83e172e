-- Write more call logs of rows that finish.sql has marked done in this transaction.
--
-- Locks:      none that another session waits for.
-- Index:      outbox_pkey, once for each row.
-- Parameters: $1 bigint[]  outbox ids that finish.sql has returned; calls of other rows are left out
--             $2 … $18     calls, one array a column, in the order of the list below
-- Returns:    nothing.
INSERT INTO relay.webhook_calls (
    outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body, status_code,
    response_headers, response_body, response_bytes, response_truncated, start_time, end_time, is_timeout,
    error_message, error_kind, succeeded, repeated, remote_addr, user_agent, ip, provider_id,
    event_id, replay_of)
SELECT c.outbox_id, c.webhook_id, o.project_id,
       relay.cut_text(coalesce(o.trace_id, replace(o.event_id::text, '-', ''))), c.url, c.request_headers::jsonb, c.request_body,
       c.status_code, c.response_headers::jsonb, c.response_body, c.response_bytes, c.response_truncated,
       c.start_time, c.end_time, c.is_timeout, c.error_message, c.error_kind, c.error_kind IS NULL, c.repeated,
       c.remote_addr, relay.cut_text(o.user_agent), relay.cut_text(o.ip), o.provider_id, o.event_id, o.replay_of
  FROM unnest(
           $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::text[], $9::text[],
           $10::bigint[], $11::boolean[], $12::timestamptz[], $13::timestamptz[], $14::boolean[], $15::text[],
           $16::text[], $17::boolean[], $18::text[]
       ) AS c (
           outbox_id, webhook_id, url, request_headers, request_body, status_code, response_headers, response_body,
           response_bytes, response_truncated, start_time, end_time, is_timeout, error_message,
           error_kind, repeated, remote_addr)
  JOIN relay.outbox o
    ON o.id = c.outbox_id
 WHERE o.id = ANY ($1)
