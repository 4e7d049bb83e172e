-- Tell a time of some minutes ago by Postgres' clock, to give it back to Postgres as a parameter. A parameter is a
-- constant when Postgres plans a query on the call log, so the query locks only partitions of the span. now() is no
-- constant then.
--
-- Locks:      none.
-- Index:      none.
-- Parameters: $1 integer  minutes
-- Returns:    the time.
SELECT now() - make_interval(mins => $1)
