-- Whether another session has the sleep lock exclusively. Inserters hold it shared, and shared locks get along: when
-- the shared lock cannot be had, a sleeping peer has it, and whoever inserts notifies all of us. A lock that is had
-- is freed at the end of this very statement's transaction.
--
-- Locks: advisory (1886415987, 0), shared, tried, for the transaction. Index: none. Parameters: none.
-- Returns: whether a peer sleeps.
SELECT NOT pg_try_advisory_xact_lock_shared(1886415987, 0)
