-- The enabled webhooks, page by page. A view in the place of relay.webhooks may have integers and varchars.
--
-- Locks:      none.
-- Index:      webhooks_pkey.
-- Parameters: $1 bigint  ids above it
--             $2 bigint  most rows
-- Returns:    id, url, signing_secret.
SELECT w.id::bigint, w.url::text, w.signing_secret::text
  FROM relay.webhooks w
 WHERE w.enabled
   AND w.id > $1::bigint
 ORDER BY w.id
 LIMIT $2
