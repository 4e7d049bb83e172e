-- End the sessions that are left of an instance's older epochs: they hold the liveness locks of those, shared. (Who
-- looks whether an epoch is dead has its lock for a moment, exclusively.)
--
-- Locks:      none.
-- Index:      none; the view has one row for each lock of the server.
-- Parameters: $1 bigint[]  epochs
-- Returns:    how many.
SELECT count(*) FILTER (WHERE pg_terminate_backend(held.pid))
  FROM (SELECT DISTINCT l.pid
          FROM pg_locks l
         WHERE l.locktype = 'advisory'
           AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
           AND l.classid = 1886415986::oid
           AND l.objid = ANY ($1::bigint[]::oid[])
           AND l.objsubid = 2
           AND l.mode = 'ShareLock'
           AND l.granted
           AND l.pid <> pg_backend_pid()) AS held
