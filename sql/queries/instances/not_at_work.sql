-- Which of these sessions wait for their client, or are gone. One whose client waits for an answer is cut off then:
-- what was asked, or what was answered, has gone astray. Of a session that we may not see into, or that does not say
-- what it does (track_activities), nothing is told.
--
-- Locks:      none.
-- Index:      none; the view has one row for each session of the server.
-- Parameters: $1 integer[]  process ids of backends
-- Returns:    the ids of those.
SELECT asked.pid
  FROM unnest($1::integer[]) AS asked (pid)
 WHERE NOT EXISTS (
           SELECT
             FROM pg_stat_activity a
            WHERE a.pid = asked.pid
              AND (a.state IS NULL OR a.state = 'disabled'
                   OR a.state = 'active' AND a.wait_event IS DISTINCT FROM 'ClientRead')
       )
