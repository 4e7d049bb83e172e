-- Free the sleep lock: we are awake and look by ourselves, nobody needs to notify us.
--
-- Locks: frees advisory (1886415987, 0). Index: none. Parameters: none.
-- Returns: whether it was held.
SELECT pg_advisory_unlock(1886415987, 0)
