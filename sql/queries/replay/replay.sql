-- Repeat calls: insert one outbox row for each, in one transaction.
--
-- Locks:      none that another session waits for.
-- Index:      webhook_calls_place, of one partition after the other, once for each call.
-- Parameters: $1 bigint[]  call ids
-- Returns:    the ids of the new outbox rows.
SELECT relay.replay(c.id)
  FROM unnest($1::bigint[]) AS c (id)
