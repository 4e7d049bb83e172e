-- Drop a daily partition of the call log that is too old to keep, and note that.
--
-- Locks:      ACCESS EXCLUSIVE on relay.webhook_calls, for a moment. The session sets a lock_timeout.
-- Index:      none.
-- Parameters: $1 text         its name
--             $2 timestamptz  the oldest time that is kept
-- Returns:    whether it was dropped.
SELECT relay.drop_call_partition($1, $2)
