-- Resume a webhook or a project, and tell what there is to know before its calls are repeated. The pause is read as it was
-- before the statement.
--
-- Locks:      the pause's row.
-- Index:      pauses_of_a_webhook, pauses_of_a_project; webhooks_pkey.
-- Parameters: $1 bigint  webhook; null: a project
--             $2 bigint  project
-- Returns:    since when it was paused (null: it was not); when a pause of the webhook's project goes on, that project;
--             whether the webhook is there and enabled (of a project: true).
WITH before AS MATERIALIZED (
    SELECT p.created_at
      FROM relay.pauses p
     WHERE p.webhook_id = $1::bigint OR $1 IS NULL AND p.project_id = $2::bigint
), webhook AS MATERIALIZED (
    SELECT w.project_id::bigint AS project_id, w.enabled
      FROM relay.webhooks w
     WHERE w.id = $1
), resumed AS MATERIALIZED (
    SELECT CASE WHEN $1 IS NOT NULL THEN relay.resume_webhook($1, false) ELSE relay.resume_project($2, false) END AS rows
)
SELECT (SELECT b.created_at FROM before b) AS paused_since,
       (SELECT p.project_id
          FROM webhook w
          JOIN relay.pauses p
            ON p.project_id = w.project_id
         WHERE p.until IS NULL OR p.until > now()) AS paused_project,
       $1 IS NULL OR EXISTS (SELECT FROM webhook w WHERE w.enabled) AS can_be_called
  FROM resumed
