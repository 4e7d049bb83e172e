-- Tell whether an outbox row is done.
--
-- Locks:      none.
-- Index:      outbox_pkey.
-- Parameters: $1 bigint  outbox id
-- Returns:    whether; no row when the outbox row is gone.
SELECT o.done_at IS NOT NULL
  FROM relay.outbox o
 WHERE o.id = $1
