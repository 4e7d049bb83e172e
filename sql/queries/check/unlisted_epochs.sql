-- Count the pending rows that an instance has in hand which relay.instances does not list. No peer declares such an
-- instance dead, so no daemon takes these rows over. An instance lists itself before its first claim, and is forgotten only
-- when it has no rows. So a statement has deleted the instance's row, or the outbox was copied without it.
--
-- Locks:      none.
-- Index:      outbox_pending and outbox_parked, up to 100,000 rows of each.
-- Parameters: none.
-- Returns:    how many of these rows there are.
SELECT count(*)
  FROM (
        (SELECT o.claimed_by
           FROM relay.outbox o
          WHERE o.done_at IS NULL
            AND NOT o.parked
          ORDER BY o.id + 0
          LIMIT 100000)
        UNION ALL
        (SELECT o.claimed_by
           FROM relay.outbox o
          WHERE o.done_at IS NULL
            AND o.parked
          ORDER BY o.project_id, o.id + 0
          LIMIT 100000)
       ) AS pending
 WHERE pending.claimed_by <> 0
   AND NOT EXISTS (SELECT FROM relay.instances i WHERE i.epoch = pending.claimed_by)
