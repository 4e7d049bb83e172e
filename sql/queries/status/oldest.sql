-- Tell the age of the oldest row that is not done, for the pending rows and for the parked rows. A created_at of the
-- future has no age: the application may write it, and clocks differ. So the statement takes the oldest of some rows.
-- The first row alone, from the future, would hide those behind it.
--
-- Locks:      none.
-- Index:      outbox_pending, its first 100 rows; outbox_parked, the first five of each of at most 1,000 projects.
-- Parameters: none.
-- Returns:    seconds of the pending rows, and of the parked ones; 0 when there is none. Never negative.
WITH RECURSIVE found AS (
    (SELECT o.project_id
       FROM relay.outbox o
      WHERE o.done_at IS NULL
        AND o.parked
      ORDER BY o.project_id, o.id + 0
      LIMIT 1)
    UNION ALL
    SELECT next.project_id
      FROM found
     CROSS JOIN LATERAL (
            SELECT o.project_id
              FROM relay.outbox o
             WHERE o.done_at IS NULL
               AND o.parked
               AND o.project_id > found.project_id
             ORDER BY o.project_id, o.id + 0
             LIMIT 1
           ) AS next
), projects AS (
    SELECT project_id
      FROM found
     ORDER BY project_id
     LIMIT 1000
), parked AS (
    SELECT o.created_at
      FROM projects p
     CROSS JOIN LATERAL (
            SELECT o.created_at
              FROM relay.outbox o
             WHERE o.done_at IS NULL
               AND o.parked
               AND o.project_id = p.project_id
             ORDER BY o.id + 0
             LIMIT 5
           ) AS o
), pending AS (
    SELECT o.created_at
      FROM relay.outbox o
     WHERE o.done_at IS NULL
       AND NOT o.parked
     ORDER BY o.id + 0
     LIMIT 100
)
SELECT coalesce(greatest(extract(epoch FROM now() - (SELECT min(created_at) FROM pending)), 0), 0)::double precision AS pending,
       coalesce(greatest(extract(epoch FROM now() - (SELECT min(created_at) FROM parked)), 0), 0)::double precision AS parked
