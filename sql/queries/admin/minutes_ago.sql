-- A time by Postgres' clock, to be given back to it: as a parameter it is a constant when a query on the call log is
-- planned, and only partitions of the span are locked. now() is none.
--
-- Locks: none. Index: none. Parameters: $1 integer minutes. Returns: the time.
SELECT now() - make_interval(mins => $1)
