-- Read the calls of one outbox row that was inserted lately.
--
-- Locks:      none.
-- Index:      webhook_calls_place.
-- Parameters: $1 bigint       outbox id
--             $2 timestamptz  started then or later
-- Returns:    as whole_calls.sql does, with the JSON; in order of id.
SELECT c.id, c.start_time, c.webhook_id, c.project_id, c.trace_id, c.url, c.status_code, c.error_kind, c.error_message,
       extract(epoch FROM c.end_time - c.start_time)::double precision AS seconds, c.repeated,
       to_jsonb(c)::text AS json
  FROM relay.webhook_calls c
 WHERE c.outbox_id = $1
   AND c.start_time >= $2
 ORDER BY c.id
