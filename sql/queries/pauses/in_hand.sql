-- List the rows of a webhook or a project that an instance has in hand. What these hold back is recorded when they are done.
-- The statement reads the first pending and the first parked rows, as relay.in_flight does.
--
-- Locks:      none.
-- Index:      outbox_pending and outbox_parked, 100,000 rows of each; webhooks_pkey.
-- Parameters: $1 bigint  webhook; null: those of a project
--             $2 bigint  project
-- Returns:    ids.
SELECT o.id
  FROM (
        (SELECT id, project_id, webhook_id, claimed_by
           FROM relay.outbox
          WHERE done_at IS NULL AND NOT parked
          ORDER BY id + 0
          LIMIT 100000)
        UNION ALL
        (SELECT id, project_id, webhook_id, claimed_by
           FROM relay.outbox
          WHERE done_at IS NULL AND parked
          ORDER BY project_id, id + 0
          LIMIT 100000)
       ) AS o
 WHERE o.claimed_by > 0
   AND o.project_id = coalesce($2::bigint, (SELECT w.project_id::bigint FROM relay.webhooks w WHERE w.id = $1::bigint))
   AND ($1 IS NULL OR o.webhook_id IS NULL OR o.webhook_id = $1)
