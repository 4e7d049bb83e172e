-- Write down a migration, in its transaction.
--
-- Locks:      none that another session waits for.
-- Index:      migrations_pkey.
-- Parameters: $1 integer  version
--             $2 text     name
--             $3 text     checksum
--             $4 integer  the oldest daemon that works with it; null: only daemons that know it do
-- Returns:    nothing.
INSERT INTO relay.migrations (version, name, checksum, oldest_daemon)
VALUES ($1, $2, $3, $4)
