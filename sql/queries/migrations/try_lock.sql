-- One migrate at a time on a database. Never waits: a session that waits for a lock holds back vacuum. A session that
-- holds the lock and could not migrate keeps nobody from it.
--
-- Locks: advisory (1886415988, 0), exclusively, for the session. Index: none. Parameters: none.
-- Returns: whether it was taken, or no session has it that may create something.
SELECT pg_try_advisory_lock(1886415988, 0)
       OR NOT EXISTS (SELECT
                        FROM pg_locks l
                        JOIN pg_stat_activity a
                          ON a.pid = l.pid
                       WHERE l.locktype = 'advisory'
                         AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                         AND l.classid = 1886415988
                         AND l.objid = 0
                         AND l.objsubid = 2
                         AND l.granted
                         AND (has_database_privilege(a.usesysid, current_database(), 'CREATE')
                              OR coalesce(has_schema_privilege(a.usesysid, to_regnamespace('relay'), 'CREATE'), false)))
