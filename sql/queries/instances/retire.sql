-- End epochs: the instance has drained, or goes on under a new epoch.
--
-- Locks:      the rows.
-- Index:      instances_pkey.
-- Parameters: $1 bigint[]  epochs
--             $2 boolean   whether no row is claimed by them any more
-- Returns:    nothing.
UPDATE relay.instances
   SET dead_at = coalesce(dead_at, now()),
       cleared_at = CASE WHEN $2 THEN now() END
 WHERE epoch = ANY ($1::bigint[])
