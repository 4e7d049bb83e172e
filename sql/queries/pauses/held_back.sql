-- List calls that were held back and can be repeated, of a webhook or of those webhooks of a project that are called again.
-- The function relay.held_back_calls has the rule.
--
-- Locks:      none that another session waits for, but one for each partition of the span, and its indexes.
-- Index:      webhook_calls_failures; webhook_calls_replays and outbox_replays for what repeats them; webhooks_pkey or
--             webhooks_project; pauses_of_a_webhook.
-- Parameters: $1 bigint       webhook; null: those of a project
--             $2 bigint       project
--             $3 timestamptz  held back then or later; null: within 31 days
--             $4 integer      most calls
-- Returns:    ids, the oldest call first.
SELECT h.call_id
  FROM relay.held_back_calls($1, $2, least($3::timestamptz - interval '1 hour', now() - interval '31 days'), $4)
       WITH ORDINALITY AS h (call_id, n)
 ORDER BY h.n
