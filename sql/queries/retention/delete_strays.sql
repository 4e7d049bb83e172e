-- Delete some calls that have no daily partition and are older than what is kept.
--
-- Locks:      the rows, which nobody else wants.
-- Index:      none: the default partition is empty in a healthy system.
-- Parameters: $1 timestamptz  what is kept begins then
--             $2 integer      most calls
-- Returns:    how many were deleted.
SELECT relay.delete_stray_calls($1, $2)
