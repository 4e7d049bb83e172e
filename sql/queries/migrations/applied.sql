-- Read which migrations `migrate` has applied.
--
-- Locks:      none.
-- Index:      migrations_pkey.
-- Parameters: none.
-- Returns:    version, checksum, oldest_daemon; in order of version.
SELECT m.version, m.checksum, m.oldest_daemon
  FROM relay.migrations m
 ORDER BY m.version
