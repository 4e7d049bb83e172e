-- Count those of some rows that are not done.
--
-- Locks:      none.
-- Index:      outbox_pkey.
-- Parameters: $1 bigint[]  outbox ids
-- Returns:    how many.
SELECT count(*)
  FROM relay.outbox o
 WHERE o.id = ANY ($1::bigint[])
   AND o.done_at IS NULL
