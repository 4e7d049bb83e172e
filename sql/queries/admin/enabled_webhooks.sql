-- The enabled webhooks, page by page. The casts as in claim.sql.
--
-- Locks:      none.
-- Index:      webhooks_pkey.
-- Parameters: $1 bigint  ids above it
--             $2 bigint  most rows
-- Returns:    id, url, signing_secret.
SELECT w.id::bigint AS id, w.url::text AS url, w.signing_secret::text AS signing_secret
  FROM relay.webhooks w
 WHERE w.enabled
   AND w.id > $1::bigint
 ORDER BY w.id
 LIMIT $2
