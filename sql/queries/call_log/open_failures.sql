-- List the open failures of a webhook in a span of time, to repeat them. An open failure is a failed call that no later call
-- has repeated and no pending row is about to repeat.
--
-- Locks:      none that another session waits for, but one for each partition since $2, and its indexes.
-- Index:      webhook_calls_failures; webhook_calls_replays and outbox_replays for what repeats them.
-- Parameters: $1 bigint       webhook
--             $2 timestamptz  started then or later
--             $3 timestamptz  started before; null: whenever
--             $4 integer      most rows
-- Returns:    ids, each with its project, the oldest call first. Of more than $4 calls, the newest.
SELECT f.call_id, f.project_id
  FROM relay.open_failures_since($2, $4, $1, $3) AS f
 ORDER BY f.start_time, f.call_id
