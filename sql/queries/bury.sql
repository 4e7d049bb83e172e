-- Mark the listed instances dead whose liveness lock is free, and tell whose rows may be taken over: those, and the
-- ones that were marked before and may still have rows. The lock is taken for this transaction only, so that of
-- several instances one buries.
--
-- Locks:      advisory (1886415986, epoch) of each listed instance but ours, tried; the rows of the dead.
-- Index:      instances is small: one row for each registration that is not cleared away yet.
-- Parameters: $1 integer  our epoch
-- Returns:    epoch, and whether it was marked just now.
WITH listed AS MATERIALIZED (
    SELECT i.epoch
      FROM relay.instances i
     WHERE i.dead_at IS NULL
       AND i.epoch <> $1
), gone AS MATERIALIZED (
    SELECT epoch
      FROM listed
     WHERE pg_try_advisory_xact_lock(1886415986, epoch)
), buried AS (
    UPDATE relay.instances i
       SET dead_at = now()
      FROM gone
     WHERE i.epoch = gone.epoch
       AND i.dead_at IS NULL
    RETURNING i.epoch
)
SELECT epoch, true AS just_now
  FROM buried
 UNION ALL
SELECT i.epoch, false
  FROM relay.instances i
 WHERE i.dead_at IS NOT NULL
   AND i.cleared_at IS NULL
