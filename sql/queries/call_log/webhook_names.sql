-- Read the names of webhooks. The function guards the reader: relay.webhooks may be a view of another role.
--
-- Locks:      relay.webhooks ACCESS SHARE, and no wait for it.
-- Index:      webhooks_pkey.
-- Parameters: $1 bigint[]  webhooks
-- Returns:    id, project, name, URL, whether it is enabled; no row for a webhook that is gone or whose name cannot be read.
SELECT n.webhook_id, n.project_id, n.name, n.url, n.enabled
  FROM relay.webhook_names($1::bigint[]) AS n
