-- Tell which calls a span of time has, the newest first. The statement reads small columns only; whole_calls.sql reads
-- the wanted calls, some at a time.
--
-- Locks:      none that another session waits for, but one for each partition of the span, and its indexes. The caller asks for a
--             month at a time.
-- Index:      webhook_calls_place for the span, webhook_calls_bloom for the webhook, webhook_calls_failures for the
--             failures. Postgres plans it for the values (plan_cache_mode = force_custom_plan).
-- Parameters: $1 bigint       of this webhook; null: of all
--             $2 boolean      only failed ones
--             $3 timestamptz  started then or later
--             $4 timestamptz  started before; null: whenever
--             $5 bigint       most rows
-- Returns:    id, start time, and how many bytes the texts have.
SELECT c.id, c.start_time,
       octet_length(c.request_body)::bigint + coalesce(octet_length(c.response_body), 0) + octet_length(c.url)
           + octet_length(c.trace_id) + octet_length(c.user_agent) + coalesce(octet_length(c.error_message), 0) AS bytes
  FROM relay.webhook_calls c
 WHERE c.start_time >= $3
   AND ($4::timestamptz IS NULL OR c.start_time < $4)
   AND ($1::bigint IS NULL OR c.webhook_id = $1)
   AND (NOT $2 OR NOT c.succeeded)
 ORDER BY c.start_time DESC, c.id DESC
 LIMIT $5
