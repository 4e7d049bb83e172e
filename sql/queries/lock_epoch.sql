-- Hold the liveness lock of an epoch on one more session. Whoever buries needs it exclusively, so an instance lives
-- for as long as any of its sessions does.
--
-- Locks:      advisory (1886415986, epoch), shared, for the session. Never waits.
-- Index:      none.
-- Parameters: $1 integer  epoch
-- Returns:    the process id of this session's backend; null when the lock could not be taken.
SELECT CASE WHEN pg_try_advisory_lock_shared(1886415986, $1) THEN pg_backend_pid() END
