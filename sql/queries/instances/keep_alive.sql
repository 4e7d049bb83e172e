-- Let older epochs live on by the lock of one more session. The sessions that kept them alive are about to be closed.
--
-- Locks:      the rows.
-- Index:      instances_pkey.
-- Parameters: $1 bigint[]  epochs
--             $2 bigint    key of the lock that the session holds
-- Returns:    nothing.
UPDATE relay.instances i
   SET locks = i.locks || $2::bigint
 WHERE i.epoch = ANY ($1)
   AND i.dead_at IS NULL
