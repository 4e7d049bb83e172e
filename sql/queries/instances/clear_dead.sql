-- Note which dead instances have no rows left, so that claims need not name them any more. Forget the instances that
-- were cleared a week ago.
--
-- The statement reads only the first pending rows and the first parked rows. When there are more, it cannot know, and
-- clears nothing until the backlog is shorter.
--
-- Locks:      the instances' rows.
-- Index:      outbox_pending and outbox_parked, up to 10,000 rows of each.
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
), pending AS MATERIALIZED (
    (SELECT o.claimed_by
       FROM relay.outbox o
      WHERE o.done_at IS NULL
        AND NOT o.parked
      ORDER BY o.id + 0
      LIMIT 10000)
    UNION ALL
    (SELECT o.claimed_by
       FROM relay.outbox o
      WHERE o.done_at IS NULL
        AND o.parked
      ORDER BY o.project_id, o.id + 0
      LIMIT 10000)
)
UPDATE relay.instances i
   SET cleared_at = now()
 WHERE i.dead_at < now() - interval '1 minute'
   AND i.cleared_at IS NULL
   -- Less than one of the two limits: the statement has read all rows.
   AND (SELECT count(*) FROM pending) < 10000
   AND NOT EXISTS (SELECT FROM pending p WHERE p.claimed_by = i.epoch)
RETURNING i.epoch
