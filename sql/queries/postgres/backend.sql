-- Which backend serves this session. Sent before any setting is made, so nothing depends on what is set.
--
-- Locks: none. Index: none. Parameters: none.
-- Returns: the backend's process id.
SELECT pg_catalog.pg_backend_pid()
