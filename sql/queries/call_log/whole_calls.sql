-- Read what a person sees of some calls that calls.sql or calls_after.sql has found. The bounds of their ids and times
-- are for the index: the statement does not find ids one by one.
--
-- Locks:      none.
-- Index:      webhook_calls_place. Postgres plans it for the values (plan_cache_mode = force_custom_plan).
-- Parameters: $1 bigint[]     ids
--             $2 bigint       the lowest of them
--             $3 bigint       the highest of them
--             $4 timestamptz  when the first of them started
--             $5 timestamptz  when the last of them started
--             $6 boolean      all columns as JSON, too
-- Returns:    what a person sees of each call, and the JSON; in no order. A call that was dropped meanwhile is left out.
SELECT c.id, c.start_time, c.webhook_id, c.project_id, c.trace_id, c.url, c.status_code, c.error_kind, c.error_message,
       extract(epoch FROM c.end_time - c.start_time)::double precision AS seconds, c.repeated,
       CASE WHEN $6 THEN to_jsonb(c)::text END AS json
  FROM relay.webhook_calls c
 WHERE c.id >= $2
   AND c.id <= $3
   AND c.start_time >= $4
   AND c.start_time <= $5
   AND c.id + 0 = ANY ($1::bigint[])
