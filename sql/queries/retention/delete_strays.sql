-- Delete some calls that have no daily partition and are too old to keep.
--
-- Locks:      the rows, which no other session wants.
-- Index:      none: the default partition is empty in a healthy system.
-- Parameters: $1 timestamptz  the oldest time that is kept
--             $2 integer      most calls
-- Returns:    how many were deleted.
SELECT relay.delete_stray_calls($1, $2)
