-- The lowest id in the outbox; no row when it is empty. Not min(id): planned while the table has a row or two, that
-- reads all of it when it has grown.
--
-- Locks: none. Index: outbox_pkey, one probe. Parameters: none.
SELECT o.id
  FROM relay.outbox o
 ORDER BY o.id
 LIMIT 1
