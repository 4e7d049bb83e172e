-- Tell which backend serves this session. The daemon sends it before it makes any setting, so nothing depends on a
-- setting.
--
-- Locks:      none.
-- Index:      none.
-- Parameters: none.
-- Returns:    the backend's process id.
SELECT pg_catalog.pg_backend_pid()
