-- Name the session whose transaction has held a lock on a table of ours for longest, for `migrate`, which could not get its
-- lock. The server tells the time only to a role that may read it.
--
-- Locks:      none.
-- Index:      none; the views have one row for each lock and each session of the server.
-- Parameters: none.
-- Returns:    at most one row: pid, login (null for a worker of Postgres' own), what kind of process it is, the seconds since
--             its transaction began (null when we may not see them).
SELECT a.pid, a.usename::text, a.backend_type,
       extract(epoch FROM clock_timestamp() - a.xact_start)::double precision
  FROM pg_stat_activity a
 WHERE a.pid <> pg_backend_pid()
   AND EXISTS (SELECT
                 FROM pg_locks l
                 JOIN pg_class c
                   ON c.oid = l.relation
                WHERE l.pid = a.pid
                  AND l.granted
                  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                  AND c.relnamespace = to_regnamespace('relay'))
 ORDER BY a.xact_start, a.pid
 LIMIT 1
