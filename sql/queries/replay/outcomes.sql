-- Count what came of some outbox rows that were inserted lately. The bounds of their ids are for the index: the statement does
-- not look ids up one by one.
--
-- Locks:      none.
-- Index:      webhook_calls_place. Postgres plans it for the values (plan_cache_mode = force_custom_plan).
-- Parameters: $1 bigint[]     outbox ids
--             $2 bigint       the lowest of them
--             $3 bigint       the highest of them
--             $4 timestamptz  their calls started then or later
-- Returns:    kinds of failures, null for success, each with how many calls.
SELECT CASE WHEN NOT c.succeeded THEN c.error_kind END AS kind, count(*)
  FROM relay.webhook_calls c
 WHERE c.outbox_id >= $2
   AND c.outbox_id <= $3
   AND c.start_time >= $4
   AND c.outbox_id + 0 = ANY ($1::bigint[])
 GROUP BY 1
 ORDER BY 1
