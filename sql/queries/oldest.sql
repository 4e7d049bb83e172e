-- How old the oldest row is that is not done, by lane.
--
-- Locks:      none.
-- Index:      outbox_pending, its first row; outbox_parked, the first row of each of at most 1,000 projects.
-- Parameters: none.
-- Returns:    seconds in the queue's order, and in the slow lane; 0 when there is none.
WITH RECURSIVE lane AS (
    (SELECT o.project_id, o.created_at
       FROM relay.outbox o
      WHERE o.done_at IS NULL
        AND o.parked
      ORDER BY o.project_id, o.id + 0
      LIMIT 1)
    UNION ALL
    SELECT next.project_id, next.created_at
      FROM lane
     CROSS JOIN LATERAL (
            SELECT o.project_id, o.created_at
              FROM relay.outbox o
             WHERE o.done_at IS NULL
               AND o.parked
               AND o.project_id > lane.project_id
             ORDER BY o.project_id, o.id + 0
             LIMIT 1
           ) AS next
), parked AS (
    SELECT created_at
      FROM lane
     ORDER BY project_id
     LIMIT 1000
)
SELECT coalesce(greatest(extract(epoch FROM now() - (
           SELECT o.created_at
             FROM relay.outbox o
            WHERE o.done_at IS NULL
              AND NOT o.parked
            ORDER BY o.id + 0
            LIMIT 1)), 0), 0)::double precision AS pending,
       coalesce(greatest(extract(epoch FROM now() - (SELECT min(created_at) FROM parked)), 0), 0)::double precision AS parked
