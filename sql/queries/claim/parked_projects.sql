-- List the projects that have parked rows. The statement skips from one project to the next.
--
-- Locks:      none.
-- Index:      outbox_parked, one probe for each project: the cost does not grow with the rows.
-- Parameters: $1 bigint  most projects
-- Returns:    project_id, in order.
WITH RECURSIVE found AS (
    (SELECT o.project_id
       FROM relay.outbox o
      WHERE o.done_at IS NULL
        AND o.parked
      ORDER BY o.project_id
      LIMIT 1)
    UNION ALL
    SELECT (SELECT o.project_id
              FROM relay.outbox o
             WHERE o.done_at IS NULL
               AND o.parked
               AND o.project_id > found.project_id
             ORDER BY o.project_id
             LIMIT 1)
      FROM found
     WHERE found.project_id IS NOT NULL
)
SELECT project_id
  FROM found
 WHERE project_id IS NOT NULL
 ORDER BY project_id
 LIMIT $1
