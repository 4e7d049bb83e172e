-- Take the liveness lock of an epoch on this session, which keeps it until it ends. Never waits.
--
-- Locks:      advisory (1886415986, epoch), exclusively, for the session.
-- Index:      none.
-- Parameters: $1 integer  epoch
-- Returns:    whether it was taken.
SELECT pg_try_advisory_lock(1886415986, $1)
