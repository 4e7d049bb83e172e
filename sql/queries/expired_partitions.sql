-- The daily partitions of the call log whose whole day is older than the retention.
--
-- Locks: none. Index: the catalog's. Parameters: $1 double precision seconds to keep. Returns: names, oldest first.
SELECT c.relname::text
  FROM pg_inherits i
  JOIN pg_class c
    ON c.oid = i.inhrelid
 WHERE i.inhparent = 'relay.webhook_calls'::regclass
   AND c.relname ~ '^webhook_calls_\d{8}$'
   AND right(c.relname, 8) < to_char((now() - make_interval(secs => $1)) AT TIME ZONE 'UTC', 'YYYYMMDD')
 ORDER BY c.relname
