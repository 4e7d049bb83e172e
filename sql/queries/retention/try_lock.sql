-- Take the lock of the retention: one instance at a time runs it. Never waits. A stranger's session that holds the lock
-- keeps no instance from the retention.
--
-- Locks:      advisory (1886415989, 0), exclusively, for the session.
-- Index:      none. The statement reads the lock table when another session has the lock.
-- Parameters: none.
-- Returns:    whether we took it, or no session of a daemon's login has it.
SELECT pg_try_advisory_lock(1886415989, 0)
       OR NOT EXISTS (SELECT
                        FROM relay.daemon_locks() AS h
                       WHERE h.keys = 2
                         AND h.class = 1886415989
                         AND h.object = 0)
