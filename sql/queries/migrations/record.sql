-- Write down a migration, in its transaction.
--
-- Locks:      none that another session waits for.
-- Index:      migrations_pkey.
-- Parameters: $1 integer  version
--             $2 text     name
--             $3 text     checksum
-- Returns:    nothing.
INSERT INTO relay.migrations (version, name, checksum)
VALUES ($1, $2, $3)
