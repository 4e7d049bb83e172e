-- The lowest and the highest id in the outbox; null when it is empty.
--
-- Locks: none. Index: outbox_pkey, one probe at each end. Parameters: none.
SELECT min(id), max(id)
  FROM relay.outbox
