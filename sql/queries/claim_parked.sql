-- Claim from the slow lane: the oldest parked rows of each given project, as many as it has room for. What is said in
-- claim.sql of id + 0, OFFSET 0, the casts and the bytes of text holds here, too.
--
-- Locks:      the rows, FOR UPDATE SKIP LOCKED. synchronous_commit = off, as for claim.sql.
-- Index:      outbox_parked, a range for each project; outbox_pkey for the update; webhooks_project.
-- Parameters: $1 bigint[]  projects
--             $2 bigint[]  most rows of each, in the same order
--             $3 bigint[]  epochs of dead instances: their rows are taken over
--             $4 bigint    our epoch
--             $5 bigint    most bytes of text
-- Returns:    as claim.sql, park always false.
WITH next AS MATERIALIZED (
    SELECT n.id, n.previous, n.bytes
      FROM unnest($1::bigint[], $2::bigint[]) AS lane (project_id, room)
     CROSS JOIN LATERAL (
            SELECT o.id,
                   o.claimed_by AS previous,
                   least(octet_length(o.user_agent), 8192) + least(octet_length(o.user_id), 8192)
               + least(octet_length(o.ip), 8192) + least(octet_length(o.trace_id), 8192)
               + least(coalesce(octet_length(o.provider_default_model), 0), 8192) AS bytes
              FROM relay.outbox o
             WHERE o.done_at IS NULL
               AND o.parked
               AND o.project_id = lane.project_id
               AND (o.claimed_by IS NULL OR o.claimed_by = 0 OR o.claimed_by = ANY ($3))
             ORDER BY o.id + 0
             LIMIT lane.room
               FOR UPDATE SKIP LOCKED
           ) AS n
), weighed AS MATERIALIZED (
    SELECT n.id, n.previous,
           sum(n.bytes) OVER (ORDER BY n.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
      FROM next n
), claimed AS (
    UPDATE relay.outbox o
       SET claimed_by = $4
      FROM weighed w
     WHERE o.id = w.id
       AND (w.bytes_before IS NULL OR w.bytes_before <= $5)
    RETURNING o.id, w.previous, o.event, o.project_id, o.prompt_id, o.result, o.finished_at, o.duration_ms,
              o.prompt_tokens, o.completion_tokens, o.total_tokens, o.cached, o.provider_id,
              o.webhook_id AS only_webhook_id, relay.cut_text(o.user_id) AS user_id, relay.cut_text(o.ip) AS ip,
              relay.cut_text(o.user_agent) AS user_agent,
              relay.cut_text(o.provider_default_model) AS provider_default_model,
              greatest(octet_length(o.user_agent), octet_length(o.user_id), octet_length(o.ip),
                       octet_length(o.trace_id), octet_length(o.provider_default_model)) > 8192 AS cut
)
SELECT false AS is_webhook, c.id, false AS park, c.previous, c.event, c.project_id, c.prompt_id, c.user_id, c.result,
       c.finished_at, c.duration_ms, c.prompt_tokens, c.completion_tokens, c.total_tokens, c.cached, c.ip, c.user_agent,
       c.provider_id, c.provider_default_model, c.only_webhook_id, c.cut, (SELECT count(*) FROM next) AS seen,
       NULL::text AS url, NULL::text AS signing_secret
  FROM claimed c
 UNION ALL
SELECT true, w.id, NULL, NULL, p.event, p.project_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, w.url, w.signing_secret
  FROM (SELECT DISTINCT c.project_id, c.event
          FROM claimed c) AS p
 CROSS JOIN LATERAL (
        SELECT w.id::bigint AS id, left(w.url::text, 8200) AS url, left(w.signing_secret::text, 8200) AS signing_secret
          FROM relay.webhooks w
         WHERE w.project_id = p.project_id
           AND w.event = p.event
           AND w.enabled
        OFFSET 0
       ) AS w
