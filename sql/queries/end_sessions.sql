-- End sessions that are left of an instance's older epochs: they hold the liveness locks of those, shared. (Who looks
-- whether an epoch is dead has its lock for a moment, exclusively.)
--
-- Locks:      none.
-- Index:      none; the views have one row for each lock and each session of the server.
-- Parameters: $1 bigint[]  epochs
--             $2 boolean   only those that are within a statement or a transaction and wait for their client
-- Returns:    how many.
SELECT count(*) FILTER (WHERE pg_terminate_backend(held.pid))
  FROM (SELECT DISTINCT l.pid
          FROM pg_locks l
          JOIN pg_stat_activity a
            ON a.pid = l.pid
         WHERE l.locktype = 'advisory'
           AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
           AND l.classid = 1886415986::oid
           AND l.objid = ANY ($1::bigint[]::oid[])
           AND l.objsubid = 2
           AND l.mode = 'ShareLock'
           AND l.granted
           AND l.pid <> pg_backend_pid()
           AND (NOT $2 OR a.state <> 'idle' AND a.wait_event_type = 'Client')) AS held
