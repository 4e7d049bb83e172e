-- Tell what kind of server and database this is. Works without our schema.
--
-- Locks:      none.
-- Index:      none.
-- Parameters: none.
-- Returns:    version number, encoding of the database, whether relay.migrations exists.
SELECT current_setting('server_version_num')::integer,
       pg_encoding_to_char(d.encoding)::text,
       to_regclass('relay.migrations') IS NOT NULL
  FROM pg_database d
 WHERE d.datname = current_database()
