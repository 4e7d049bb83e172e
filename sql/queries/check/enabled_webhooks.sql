-- Read the enabled webhooks, page by page. The columns are cast, because relay.webhooks may be a view over other types.
--
-- Locks:      none.
-- Index:      webhooks_pkey.
-- Parameters: $1 bigint  ids above it
--             $2 bigint  most rows
-- Returns:    id, url, signing_secret, event, project_id. A view may have nulls in the last two.
SELECT w.id::bigint AS id, w.url::text AS url, w.signing_secret::text AS signing_secret, w.event::text AS event,
       w.project_id::bigint AS project_id
  FROM relay.webhooks w
 WHERE w.enabled
   AND w.id > $1::bigint
 ORDER BY w.id
 LIMIT $2
