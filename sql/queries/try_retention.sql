-- One instance at a time does the retention. Never waits.
--
-- Locks: advisory (1886415989, 0), exclusively, for the session. Index: none. Parameters: none.
-- Returns: whether it was taken.
SELECT pg_try_advisory_lock(1886415989, 0)
