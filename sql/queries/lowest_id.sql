-- The lowest id in the outbox; null when it is empty.
--
-- Locks: none. Index: outbox_pkey, one probe. Parameters: none.
SELECT min(id)
  FROM relay.outbox
