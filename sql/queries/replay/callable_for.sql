-- Tell for which project a webhook's calls can be repeated.
--
-- Locks:      relay.webhooks ACCESS SHARE.
-- Index:      webhooks_pkey.
-- Parameters: $1 bigint  webhook
-- Returns:    its project; no row: the webhook is gone or disabled.
SELECT f.project_id
  FROM relay.callable_for($1) AS f (project_id)
