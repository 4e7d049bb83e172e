-- Tell whether a daemon runs on this database. Needs the schema of migration 12 or a later one.
--
-- Locks:      none.
-- Index:      none; the statement reads the lock table, and relay.instances has few rows.
-- Parameters: none.
-- Returns:    whether a session of a daemon holds the lock of a listed instance.
SELECT EXISTS (SELECT
                 FROM relay.daemon_locks() AS h
                 JOIN relay.instances i
                   ON h.class << 32 | h.object = ANY (i.locks)
                WHERE h.keys = 1)
