-- Make the partition of the call log for a day, unless there is one.
--
-- Locks:      SHARE UPDATE EXCLUSIVE on relay.webhook_calls, ACCESS EXCLUSIVE on its default partition, for a moment
--             and only when a partition is made. The session sets a lock_timeout.
-- Index:      none.
-- Parameters: $1 integer  days after today (UTC)
-- Returns:    whether it was made.
SELECT relay.make_call_partition((now() AT TIME ZONE 'UTC')::date + $1::integer)
