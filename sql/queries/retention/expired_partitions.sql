-- List the daily partitions of the call log that are too old to keep.
--
-- Locks:      none.
-- Index:      the catalog's.
-- Parameters: $1 timestamptz  the oldest time that is kept
-- Returns:    names, the oldest first.
SELECT p.name
  FROM relay.call_partitions() p
 WHERE p.beyond <= $1
 ORDER BY p.name
