-- Tell what was last said about a copy, for `migrate` to report.
--
-- Locks:      none.
-- Index:      accepted_copies_pkey.
-- Parameters: none.
-- Returns:    at most one row: its id, and how many rows were marked done without calls.
SELECT a.id, a.rows_skipped
  FROM relay.accepted_copies a
 WHERE a.accepted_at IS NOT NULL
 ORDER BY a.id DESC
 LIMIT 1
