-- The enabled webhooks, page by page.
--
-- Locks:      none.
-- Index:      webhooks_pkey.
-- Parameters: $1 bigint  ids above it
--             $2 bigint  most rows
-- Returns:    id, url, signing_secret.
SELECT w.id, w.url, w.signing_secret
  FROM relay.webhooks w
 WHERE w.enabled
   AND w.id > $1
 ORDER BY w.id
 LIMIT $2
