-- One migrate at a time on a database. Never waits: a session that waits for a lock holds back vacuum.
--
-- Locks: advisory (1886415988, 0), exclusively, for the session. Index: none. Parameters: none.
-- Returns: whether it was taken.
SELECT pg_try_advisory_lock(1886415988, 0)
