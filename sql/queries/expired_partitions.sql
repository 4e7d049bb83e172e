-- The daily partitions of the call log that end before what is kept begins.
--
-- Locks: none. Index: the catalog's. Parameters: $1 double precision seconds to keep. Returns: names, oldest first.
SELECT p.name
  FROM relay.call_partitions() p
 WHERE p.beyond <= now() - make_interval(secs => $1)
 ORDER BY p.name
