-- Read which migrations `migrate` has applied.
--
-- Locks:      none.
-- Index:      migrations_pkey.
-- Parameters: none.
-- Returns:    version, name, checksum; in order of version.
SELECT m.version, m.name, m.checksum
  FROM relay.migrations m
 ORDER BY m.version
