-- Calls above an id that are not known yet, in order of id: as they are recorded, but for those whose ids were drawn
-- by a transaction that committed late.
--
-- Locks:      none.
-- Index:      webhook_calls_place. The plan is made for the values (plan_cache_mode = force_custom_plan).
-- Parameters: $1 bigint            of this webhook; null: of all
--             $2 boolean           only failed ones
--             $3 timestamptz       started then or later
--             $4 timestamptz       started before
--             $5 bigint            ids above it
--             $6 bigint[]          ids that are known
--             $7 bigint            most rows
--             $8 boolean           all columns as JSON, too
-- Returns:    as calls.sql.
SELECT c.id, c.start_time, c.webhook_id, c.project_id, c.trace_id, c.url, c.status_code, c.error_kind, c.error_message,
       extract(epoch FROM c.end_time - c.start_time)::double precision AS seconds, c.repeated,
       CASE WHEN $8 THEN to_jsonb(c)::text END AS json
  FROM relay.webhook_calls c
 WHERE c.start_time >= $3
   AND c.start_time < $4
   AND c.id > $5
   AND ($1::bigint IS NULL OR c.webhook_id = $1)
   AND (NOT $2 OR NOT c.succeeded)
   AND NOT EXISTS (SELECT FROM unnest($6::bigint[]) AS known (id) WHERE known.id = c.id)
 ORDER BY c.id
 LIMIT $7
