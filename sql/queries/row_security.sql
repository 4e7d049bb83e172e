-- Tables whose rows are filtered for the current user by policies: what the policies hide, the daemon never sees.
--
-- Locks: none. Index: none. Parameters: none. Returns: their names.
SELECT name
  FROM unnest(ARRAY['relay.outbox', 'relay.webhooks', 'relay.webhook_calls']) AS name
 WHERE row_security_active(name)
 ORDER BY name
