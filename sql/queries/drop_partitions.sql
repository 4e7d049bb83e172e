-- Drop the daily partitions of the call log that are older than the retention.
--
-- Locks:      ACCESS EXCLUSIVE on relay.webhook_calls for a moment, only when one is dropped; set a lock_timeout.
-- Index:      none.
-- Parameters: $1 double precision  seconds to keep
-- Returns:    how many were dropped.
SELECT relay.drop_call_partitions(now() - make_interval(secs => $1))
