-- Take a snapshot: which transactions this statement sees, and which it does not.
--
-- Locks:      none.
-- Index:      none.
-- Parameters: none.
-- Returns:    xmin: every transaction below it has ended; xmax: no transaction from it on had begun.
SELECT pg_snapshot_xmin(s)::text::bigint AS xmin,
       pg_snapshot_xmax(s)::text::bigint AS xmax
  FROM pg_current_snapshot() AS s
