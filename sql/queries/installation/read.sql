-- Tell which database this is, and which one relay.installation was written in.
--
-- Locks:      none.
-- Index:      none: one row.
-- Parameters: none.
-- Returns:    one row: the database's name; its system identifier, its oid, and the oid of relay.installation; the
--             same three as they were written, null when there is no row; the site; whether this is a copy.
SELECT d.datname::text, c.system_identifier, d.oid, 'relay.installation'::regclass::oid, i.system_identifier,
       i.database_oid, i.table_oid, i.site, relay.is_copy()
  FROM pg_control_system() AS c
 CROSS JOIN pg_database d
  LEFT JOIN relay.installation i
    ON i.only_row
 WHERE d.datname = current_database()
