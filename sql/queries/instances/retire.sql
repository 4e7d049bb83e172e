-- The end of epochs: of an instance that drained, or that goes on under a new one.
--
-- Locks:      the rows.
-- Index:      instances_pkey.
-- Parameters: $1 bigint[]  epochs
--             $2 boolean   whether no row is left claimed by them
UPDATE relay.instances
   SET dead_at = coalesce(dead_at, now()),
       cleared_at = CASE WHEN $2 THEN now() END
 WHERE epoch = ANY ($1::bigint[])
