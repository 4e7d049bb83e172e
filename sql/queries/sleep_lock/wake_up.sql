-- Release the sleep lock: we are awake and claim by ourselves, so no insert needs to notify us.
--
-- Locks:      releases advisory (1886415987, 0).
-- Index:      none.
-- Parameters: none.
-- Returns:    whether we held it.
SELECT pg_advisory_unlock(1886415987, 0)
