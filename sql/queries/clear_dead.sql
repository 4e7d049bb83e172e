-- Note which dead instances have no rows left, so that claims need not name them any more; forget those that were
-- cleared long ago.
--
-- Locks:      the instances' rows.
-- Index:      outbox_pending and outbox_parked, read once for each dead instance that is not cleared: rare.
-- Parameters: none.
-- Returns:    the epochs that were cleared.
WITH forgotten AS (
    DELETE FROM relay.instances i
     WHERE i.cleared_at < now() - interval '7 days'
    RETURNING i.epoch
), unmarked AS (
    DELETE FROM relay.instances_since_crash s
     USING forgotten f
     WHERE s.epoch = f.epoch
)
UPDATE relay.instances i
   SET cleared_at = now()
 WHERE i.dead_at < now() - interval '1 minute'
   AND i.cleared_at IS NULL
   AND NOT EXISTS (SELECT FROM relay.outbox o
                    WHERE o.done_at IS NULL AND NOT o.parked AND o.claimed_by = i.epoch)
   AND NOT EXISTS (SELECT FROM relay.outbox o
                    WHERE o.done_at IS NULL AND o.parked AND o.claimed_by = i.epoch)
RETURNING i.epoch
