-- List the daily partitions of the call log that end before what is kept begins.
--
-- Locks:      none.
-- Index:      the catalog's.
-- Parameters: $1 timestamptz  what is kept begins then
-- Returns:    names, the oldest first.
SELECT p.name
  FROM relay.call_partitions() p
 WHERE p.beyond <= $1
 ORDER BY p.name
