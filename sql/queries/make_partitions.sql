-- Make the missing daily partitions of the call log.
--
-- Locks:      SHARE UPDATE EXCLUSIVE on relay.webhook_calls, ACCESS EXCLUSIVE on its default partition, for a moment
--             and only when one is made; set a lock_timeout.
-- Index:      none.
-- Parameters: $1 integer  days ahead
-- Returns:    how many were made.
SELECT relay.make_call_partitions($1)
