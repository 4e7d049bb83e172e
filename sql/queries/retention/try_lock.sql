-- One instance at a time does the retention. Never waits. Somebody else's session that holds the lock keeps nobody from it.
--
-- Locks: advisory (1886415989, 0), exclusively, for the session. Index: none. Parameters: none.
-- Returns: whether it was taken, or no session of a daemon's role has it.
SELECT pg_try_advisory_lock(1886415989, 0)
       OR NOT EXISTS (SELECT
                        FROM relay.daemon_locks() AS h
                       WHERE h.keys = 2
                         AND h.class = 1886415989
                         AND h.object = 0)
