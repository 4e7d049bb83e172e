-- Delete pauses that ended by themselves some time ago.
--
-- Locks:      the rows.
-- Index:      none: the table is small.
-- Parameters: $1 timestamptz  pauses that ended before
-- Returns:    how many were deleted.
SELECT relay.delete_ended_pauses($1)
