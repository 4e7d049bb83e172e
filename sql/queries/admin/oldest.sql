-- How old the oldest row is that is not done, by lane. A created_at of the future (the application may write it, and
-- clocks differ) has no age; so the oldest of some rows tells, not the first, which would hide those behind it.
--
-- Locks:      none.
-- Index:      outbox_pending, its first 100 rows; outbox_parked, the first five of each of at most 1,000 projects.
-- Parameters: none.
-- Returns:    seconds in the queue's order, and in the slow lane; 0 when there is none. Never negative.
WITH RECURSIVE lane AS (
    (SELECT o.project_id
       FROM relay.outbox o
      WHERE o.done_at IS NULL
        AND o.parked
      ORDER BY o.project_id, o.id + 0
      LIMIT 1)
    UNION ALL
    SELECT next.project_id
      FROM lane
     CROSS JOIN LATERAL (
            SELECT o.project_id
              FROM relay.outbox o
             WHERE o.done_at IS NULL
               AND o.parked
               AND o.project_id > lane.project_id
             ORDER BY o.project_id, o.id + 0
             LIMIT 1
           ) AS next
), projects AS (
    SELECT project_id
      FROM lane
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
