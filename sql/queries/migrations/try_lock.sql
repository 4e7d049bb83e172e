-- Take the lock of migrate: one migrate at a time works on a database. Never waits, because a session that waits for a
-- lock holds back vacuum. A session that holds the lock and could not migrate keeps no other session from it.
--
-- Locks:      advisory (1886415988, 0), exclusively, for the session.
-- Index:      none. The statement reads the lock table when another session has the lock.
-- Parameters: none.
-- Returns:    whether we took it, or no session that may create something has it.
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
