-- Take the sleep lock, if no inserting transaction is open and no peer has it. While we hold it, each insert notifies
-- us. Never waits.
--
-- Inserters hold the lock shared, and several sessions can hold it so. When we cannot have it shared either, a session
-- holds it exclusively, and each insert notifies all relays. A peer that holds it tells us when it gives the lock up.
-- Another holder does not, so then we claim by ourselves.
--
-- Locks:      advisory (1886415987, 0), exclusively, for the session; or shared, for this transaction.
-- Index:      none. The statement reads the lock table when another session holds the lock exclusively.
-- Parameters: none.
-- Returns:    taken; inserting (a session has it shared); peer (a sleeping instance has it); other.
SELECT CASE WHEN pg_try_advisory_lock(1886415987, 0) THEN 'taken'
            WHEN pg_try_advisory_xact_lock_shared(1886415987, 0) THEN 'inserting'
            WHEN EXISTS (SELECT
                           FROM relay.daemon_locks() AS h
                          WHERE h.keys = 2
                            AND h.class = 1886415987
                            AND h.object = 0
                            AND h.mode = 'ExclusiveLock') THEN 'peer'
            ELSE 'other' END
