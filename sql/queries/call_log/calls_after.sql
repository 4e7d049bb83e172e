-- Tell which calls there are above an id that are not known yet, in order of id. A call's id is drawn when the call is
-- recorded, and the call may have started long before. So this is the order in which calls are recorded, except where a
-- transaction drew its ids early and committed late. The statement reads small columns only, as calls.sql does.
--
-- Locks:      none that another session waits for, but one for each partition of the span, and its indexes. The caller asks for a
--             month.
-- Index:      webhook_calls_place. Postgres plans it for the values (plan_cache_mode = force_custom_plan).
-- Parameters: $1 bigint       of this webhook; null: of all
--             $2 boolean      only failed ones
--             $3 timestamptz  started then or later
--             $4 bigint       ids above it
--             $5 bigint[]     ids that are known
--             $6 bigint       most rows
-- Returns:    as calls.sql does.
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
