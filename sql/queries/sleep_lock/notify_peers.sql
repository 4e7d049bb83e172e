-- Wake the other instances: there is more to do than we can do.
--
-- Locks:      the notification queue, at commit.
-- Index:      none.
-- Parameters: none.
-- Returns:    nothing.
SELECT pg_notify('promptpal_relay', '')
