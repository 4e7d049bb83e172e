-- Tell whether the schema has relay.installation yet. Works without our schema.
--
-- Locks:      none.
-- Index:      the catalogs'.
-- Parameters: none.
-- Returns:    whether it is there.
SELECT to_regclass('relay.installation') IS NOT NULL
