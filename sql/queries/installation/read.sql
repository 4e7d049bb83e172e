-- Tell which database this is, and which one relay.installation was written in.
--
-- Locks:      none.
-- Index:      none: one row, or a row for each dump that was loaded.
-- Parameters: none.
-- Returns:    one row: the database's name; its system identifier, its oid, and the oid of relay.installation; the
--             same three as they were written, null when there is no row; the site; whether this is a copy. A row that
--             does not fit comes before one that does.
SELECT d.datname::text, c.system_identifier, d.oid, 'relay.installation'::regclass::oid, i.system_identifier,
       i.database_oid, i.table_oid, i.site, relay.is_copy()
  FROM pg_control_system() AS c
 CROSS JOIN pg_database d
  LEFT JOIN LATERAL (
        SELECT r.system_identifier, r.database_oid, r.table_oid, r.site
          FROM relay.installation r
         ORDER BY (r.system_identifier, r.database_oid, r.table_oid)
                      = (c.system_identifier, d.oid, 'relay.installation'::regclass::oid),
                  r.written_at DESC
         LIMIT 1
       ) AS i
    ON true
 WHERE d.datname = current_database()
