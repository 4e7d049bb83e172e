-- Delete calls that have no daily partition and are older than the retention, some at a time.
--
-- Locks:      the rows, which nobody else wants.
-- Index:      none: the default partition is empty in a healthy system.
-- Parameters: $1 timestamptz  what is kept begins then
--             $2 integer      most
-- Returns:    how many.
SELECT relay.delete_stray_calls($1, $2)
