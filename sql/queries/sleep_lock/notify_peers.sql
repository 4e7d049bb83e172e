-- Wake the other instances: there is more to do than we can.
--
-- Locks: the notification queue, at commit. Index: none. Parameters: none.
SELECT pg_notify('promptpal_relay', '')
