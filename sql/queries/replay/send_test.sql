-- Send a test event to one webhook.
--
-- Locks:      none that another session waits for.
-- Index:      webhooks_pkey.
-- Parameters: $1 bigint  webhook
-- Returns:    the id of the new outbox row.
SELECT relay.send_test($1)
