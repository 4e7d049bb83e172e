-- List the rows that are about to repeat an event to a webhook.
--
-- Locks:      none.
-- Index:      outbox_replays.
-- Parameters: $1 uuid    event
--             $2 bigint  webhook
--             $3 bigint  most rows
-- Returns:    ids of the outbox rows, the oldest first.
SELECT o.id
  FROM relay.outbox o
 WHERE o.replay_of IS NOT NULL
   AND o.done_at IS NULL
   AND o.event_id = $1
   AND o.webhook_id = $2
 ORDER BY o.id
 LIMIT $3
