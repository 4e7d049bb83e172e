-- Tell which of these sessions wait for their client, or are gone. When the client of such a session waits for an
-- answer, the network has lost the statement or the answer. The statement tells nothing of a session that we may not
-- see into, or that does not report what it does (track_activities).
--
-- Locks:      none.
-- Index:      none; the view has one row for each session of the server.
-- Parameters: $1 integer[]  process ids of backends
-- Returns:    the process ids of those.
SELECT asked.pid
  FROM unnest($1::integer[]) AS asked (pid)
 WHERE NOT EXISTS (
           SELECT
             FROM pg_stat_activity a
            WHERE a.pid = asked.pid
              AND (a.state IS NULL OR a.state = 'disabled'
                   OR a.state = 'active' AND a.wait_event IS DISTINCT FROM 'ClientRead')
       )
