-- Tell which cluster this server is of, and on which timeline it writes. Each promotion of a standby begins a timeline with
-- a higher number.
--
-- Locks:      none.
-- Index:      none.
-- Parameters: none.
-- Returns:    the cluster's system identifier, and the timeline as eight hexadecimal digits; null on a standby.
SELECT s.system_identifier,
       CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline
  FROM pg_control_system() AS s
