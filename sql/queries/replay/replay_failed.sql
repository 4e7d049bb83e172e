-- Repeat failures that are still open: insert one outbox row for each, in one transaction.
--
-- Locks:      one row of relay.replays for each webhook, for this transaction; tried, never waited for.
-- Index:      webhook_calls_place, of one partition after the other, once for each call; webhook_calls_replays and
--             outbox_replays.
-- Parameters: $1 bigint[]  call ids, 1,000 at most
-- Returns:    the ids of the new outbox rows; none for a call that is not open any more, that another session is repeating, or
--             whose webhook is gone, disabled or of another project.
SELECT f.id
  FROM relay.replay_failed($1::bigint[]) AS f (id)
