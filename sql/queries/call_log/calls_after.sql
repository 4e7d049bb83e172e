-- Which calls there are above an id that are not known yet, in order of id: as they are recorded, but for those whose ids
-- were drawn by a transaction that committed late. Ids are drawn when a call is recorded; it may have started long before.
-- Small columns only, as in calls.sql.
--
-- Locks:      none that anybody waits for, but one for each partition of the span, and its indexes: ask for a month.
-- Index:      webhook_calls_place. The plan is made for the values (plan_cache_mode = force_custom_plan).
-- Parameters: $1 bigint            of this webhook; null: of all
--             $2 boolean           only failed ones
--             $3 timestamptz       started then or later
--             $4 bigint            ids above it
--             $5 bigint[]          ids that are known
--             $6 bigint            most rows
-- Returns:    as calls.sql.
SELECT c.id, c.start_time,
       octet_length(c.request_body)::bigint + coalesce(octet_length(c.response_body), 0) + octet_length(c.url)
           + octet_length(c.trace_id) + octet_length(c.user_agent) + coalesce(octet_length(c.error_message), 0) AS bytes
  FROM relay.webhook_calls c
 WHERE c.start_time >= $3
   AND c.id > $4
   AND ($1::bigint IS NULL OR c.webhook_id = $1)
   AND (NOT $2 OR NOT c.succeeded)
   AND NOT EXISTS (SELECT FROM unnest($5::bigint[]) AS known (id) WHERE known.id = c.id)
 ORDER BY c.id
 LIMIT $6
