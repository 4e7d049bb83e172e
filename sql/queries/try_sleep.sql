-- Take the sleep lock, if no inserting transaction is open and no peer has it. Whoever inserts while we have it
-- notifies us. Never waits.
--
-- Locks: advisory (1886415987, 0), exclusively, for the session. Index: none. Parameters: none.
-- Returns: whether it was taken.
SELECT pg_try_advisory_lock(1886415987, 0)
