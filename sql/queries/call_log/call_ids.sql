-- List the calls of a webhook in a span of time, to repeat them.
--
-- Locks:      none that another session waits for, but one for each partition of the span, and its indexes. The caller asks for a
--             month at a time.
-- Index:      webhook_calls_failures for the failed ones, else webhook_calls_bloom and webhook_calls_place.
-- Parameters: $1 bigint       webhook
--             $2 boolean      only failed ones
--             $3 timestamptz  started then or later
--             $4 timestamptz  started before; null: whenever
--             $5 bigint       most rows
-- Returns:    ids, the oldest call first.
SELECT c.id
  FROM relay.webhook_calls c
 WHERE c.webhook_id = $1
   AND (NOT $2 OR NOT c.succeeded)
   AND c.start_time >= $3
   AND ($4::timestamptz IS NULL OR c.start_time < $4)
 ORDER BY c.start_time, c.id
 LIMIT $5
