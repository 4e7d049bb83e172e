-- Pause a webhook whose endpoint fails, unless the log has a success of it since then.
--
-- Locks:      the pause's row. The session has a lock_timeout.
-- Index:      webhook_calls_bloom and webhook_calls_place, for the partitions of the span; pauses_of_a_webhook.
-- Parameters: $1 bigint       webhook
--             $2 timestamptz  no call that started since then may have succeeded
--             $3 text         reason
-- Returns:    whether the statement has paused it.
SELECT relay.pause_failing_webhook($1, $2, $3)
