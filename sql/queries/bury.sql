-- Look for dead instances: tell whose liveness lock is free, mark those dead of which the caller is sure, and tell
-- whose rows may be taken over. The locks are taken for this transaction only, so that of several instances one
-- buries.
--
-- A free lock alone is no proof: an instance that has lost its session takes a new epoch within milliseconds, and is
-- not to lose its rows for that. So the caller asks twice, some time apart.
--
-- Locks:      advisory (1886415986, epoch) of each listed instance but ours, tried; the rows of the dead.
-- Index:      instances is small: one row for each registration that is not cleared away yet.
-- Parameters: $1 integer    our epoch
--             $2 integer[]  epochs to mark dead, if their lock is still free
-- Returns:    epoch, its round trip in ms, and state: free (the lock), crashed (the same, and the server has crashed since
--             it registered), buried (just now), dead (marked before, may still have rows), alive.
WITH listed AS MATERIALIZED (
    SELECT i.epoch, i.round_trip_ms
      FROM relay.instances i
     WHERE i.dead_at IS NULL
       AND i.epoch <> $1
), tried AS MATERIALIZED (
    SELECT epoch, round_trip_ms, pg_try_advisory_xact_lock(1886415986, epoch) AS free
      FROM listed
), buried AS (
    UPDATE relay.instances i
       SET dead_at = now()
      FROM tried t
     WHERE i.epoch = t.epoch
       AND t.free
       AND t.epoch = ANY ($2)
       AND i.dead_at IS NULL
    RETURNING i.epoch, i.round_trip_ms
)
SELECT epoch, round_trip_ms, 'buried' AS state
  FROM buried
 UNION ALL
SELECT t.epoch, t.round_trip_ms,
       CASE WHEN NOT t.free THEN 'alive'
            WHEN EXISTS (SELECT FROM relay.instances_since_crash s WHERE s.epoch = t.epoch) THEN 'free'
            ELSE 'crashed' END
  FROM tried t
 WHERE NOT EXISTS (SELECT FROM buried b WHERE b.epoch = t.epoch)
 UNION ALL
SELECT i.epoch, i.round_trip_ms, 'dead'
  FROM relay.instances i
 WHERE i.dead_at IS NOT NULL
   AND i.cleared_at IS NULL
