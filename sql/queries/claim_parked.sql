-- Claim from the slow lane: the oldest parked rows of each given project, as many as it has room for. id + 0, OFFSET 0
-- and the casts as in claim.sql.
--
-- Locks:      the rows, FOR UPDATE SKIP LOCKED. synchronous_commit = off, as for claim.sql.
-- Index:      outbox_parked, a range for each project; outbox_pkey for the update; webhooks_project.
-- Parameters: $1 bigint[]  projects
--             $2 bigint[]  most rows of each, in the same order
--             $3 bigint[]  epochs of dead instances: their rows are taken over
--             $4 bigint    our epoch
-- Returns:    as claim.sql, park always false.
WITH next AS MATERIALIZED (
    SELECT n.id, n.previous
      FROM unnest($1::bigint[], $2::bigint[]) AS lane (project_id, room)
     CROSS JOIN LATERAL (
            SELECT o.id, o.claimed_by AS previous
              FROM relay.outbox o
             WHERE o.done_at IS NULL
               AND o.parked
               AND o.project_id = lane.project_id
               AND (o.claimed_by IS NULL OR o.claimed_by = 0 OR o.claimed_by = ANY ($3))
             ORDER BY o.id + 0
             LIMIT lane.room
               FOR UPDATE SKIP LOCKED
           ) AS n
), claimed AS (
    UPDATE relay.outbox o
       SET claimed_by = $4
      FROM next
     WHERE o.id = next.id
    RETURNING o.id, next.previous, o.event, o.project_id, o.prompt_id, o.user_id, o.result, o.finished_at,
              o.duration_ms, o.prompt_tokens, o.completion_tokens, o.total_tokens, o.cached, o.ip, o.user_agent,
              o.provider_id, o.provider_default_model, o.webhook_id AS only_webhook_id
)
SELECT c.id, false AS park, c.previous, c.event, c.project_id, c.prompt_id, c.user_id, c.result, c.finished_at,
       c.duration_ms, c.prompt_tokens, c.completion_tokens, c.total_tokens, c.cached, c.ip, c.user_agent,
       c.provider_id, c.provider_default_model, w.id AS webhook_id, w.url, w.signing_secret
  FROM claimed c
  LEFT JOIN LATERAL (
        SELECT w.id::bigint AS id, w.url::text AS url, w.signing_secret::text AS signing_secret
          FROM relay.webhooks w
         WHERE w.project_id = c.project_id
           AND w.event = c.event
           AND w.enabled
           AND (c.only_webhook_id IS NULL OR w.id = c.only_webhook_id)
        OFFSET 0
       ) AS w
    ON true
 ORDER BY c.id, w.id
