-- The end of an instance that drained: it has no rows in hand any more.
--
-- Locks:      the row.
-- Index:      instances_pkey.
-- Parameters: $1 bigint   epoch
--             $2 boolean  whether no row is left claimed by it
UPDATE relay.instances
   SET dead_at = coalesce(dead_at, now()),
       cleared_at = CASE WHEN $2 THEN now() END
 WHERE epoch = $1::bigint
