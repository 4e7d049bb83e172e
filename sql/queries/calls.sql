-- Calls of a span of time, newest first.
--
-- Locks:      none that anybody waits for, but one for each partition of the span, and its indexes: ask for a month at a time.
-- Index:      webhook_calls_place for the span, webhook_calls_bloom for the webhook, webhook_calls_failures for the
--             failures. The plan is made for the values (plan_cache_mode = force_custom_plan).
-- Parameters: $1 bigint            of this webhook; null: of all
--             $2 boolean           only failed ones
--             $3 timestamptz       started then or later
--             $4 timestamptz       started before
--             $5 bigint            most rows
--             $6 boolean           all columns as JSON, too
-- Returns:    what a person sees of each call, and the JSON.
SELECT c.id, c.start_time, c.webhook_id, c.project_id, c.trace_id, c.url, c.status_code, c.error_kind, c.error_message,
       extract(epoch FROM c.end_time - c.start_time)::double precision AS seconds, c.repeated,
       CASE WHEN $6 THEN to_jsonb(c)::text END AS json
  FROM relay.webhook_calls c
 WHERE c.start_time >= $3
   AND c.start_time < $4
   AND ($1::bigint IS NULL OR c.webhook_id = $1)
   AND (NOT $2 OR NOT c.succeeded)
 ORDER BY c.start_time DESC, c.id DESC
 LIMIT $5
