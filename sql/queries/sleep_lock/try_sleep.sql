-- Take the sleep lock, if no inserting transaction is open and no peer has it. Whoever inserts while we have it
-- notifies us. Never waits.
--
-- Inserters hold it shared, and shared locks get along: when it cannot be had shared either, somebody has it exclusively,
-- and whoever inserts notifies all of us. If that is a peer, it tells us when it gives the lock up. Somebody else does
-- not, so we must look by ourselves.
--
-- Locks:      advisory (1886415987, 0), exclusively, for the session; or shared, for this transaction.
-- Index:      none. The lock table is read when somebody else has the lock exclusively.
-- Parameters: none.
-- Returns:    taken; inserting (somebody has it shared); peer (a sleeping instance has it); other.
SELECT CASE WHEN pg_try_advisory_lock(1886415987, 0) THEN 'taken'
            WHEN pg_try_advisory_xact_lock_shared(1886415987, 0) THEN 'inserting'
            WHEN EXISTS (SELECT
                           FROM relay.daemon_locks() AS h
                          WHERE h.keys = 2
                            AND h.class = 1886415987
                            AND h.object = 0
                            AND h.mode = 'ExclusiveLock') THEN 'peer'
            ELSE 'other' END
