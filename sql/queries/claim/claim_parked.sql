-- Claim parked rows: the oldest ones of each given project, as many as the project has capacity for. What claim.sql
-- says of id + 0, the array of ids, the casts, the bytes of text and the pauses is true here, too.
--
-- Locks:      the rows, FOR UPDATE SKIP LOCKED. It is meant for synchronous_commit = off, as claim.sql is.
-- Index:      outbox_parked, one range for each project; outbox_pkey for the update; webhooks_project;
--             pauses_of_a_webhook and pauses_of_a_project in relay.pause_of.
-- Parameters: $1 bigint[]  projects
--             $2 bigint[]  most rows of each, in the same order
--             $3 bigint[]  epochs of dead instances, whose rows are taken over
--             $4 bigint    our epoch
--             $5 bigint    bytes of text after which no more rows are claimed
-- Returns:    as claim.sql does; no row is parked any more.
WITH next AS MATERIALIZED (
    SELECT n.id, n.bytes
      FROM unnest($1::bigint[], $2::bigint[]) AS wanted (project_id, capacity)
     CROSS JOIN LATERAL (
            SELECT o.id,
                   least(octet_length(o.user_id), 8192) + least(octet_length(o.ip), 8192)
                   + least(octet_length(o.user_agent), 8192)
                   + least(coalesce(octet_length(o.provider_default_model), 0), 8192) AS bytes
              FROM relay.outbox o
             WHERE o.done_at IS NULL
               AND o.parked
               AND o.project_id = wanted.project_id
               AND (o.claimed_by IS NULL OR o.claimed_by = 0 OR o.claimed_by = ANY ($3))
               AND EXISTS (SELECT FROM relay.instances i WHERE i.epoch = $4 AND i.dead_at IS NULL)
               AND EXISTS (SELECT FROM relay.installation n WHERE n.table_oid = 'relay.installation'::regclass)
             ORDER BY o.id + 0
             LIMIT wanted.capacity
               FOR UPDATE SKIP LOCKED
           ) AS n
), claimed AS (
    UPDATE relay.outbox o
       SET previous_owner = o.claimed_by,
           claimed_by = $4
     WHERE o.id = ANY (ARRAY(
               SELECT w.id
                 FROM (SELECT n.id, sum(n.bytes) OVER (ROWS UNBOUNDED PRECEDING) - n.bytes AS bytes_before
                         FROM next n) AS w
                WHERE w.bytes_before <= $5))
    RETURNING o.id, o.event, o.project_id, o.prompt_id, left(o.user_id, 8193) AS user_id, o.result, o.finished_at,
              o.duration_ms, o.prompt_tokens, o.completion_tokens, o.total_tokens, o.cached, left(o.ip, 8193) AS ip,
              left(o.user_agent, 8193) AS user_agent, o.provider_id,
              left(o.provider_default_model, 8193) AS provider_default_model, o.webhook_id,
              coalesce(octet_length(o.trace_id) > 8192, false) AS cut, o.previous_owner,
              o.event_id, left(o.trace_id, 128) AS trace_id, left(o.traceparent, 256) AS traceparent
)
SELECT 'row' AS kind, c.id, false AS parked, c.event, c.project_id, c.prompt_id, c.user_id, c.result, c.finished_at,
       c.duration_ms, c.prompt_tokens, c.completion_tokens, c.total_tokens, c.cached, c.ip, c.user_agent, c.provider_id,
       c.provider_default_model, c.webhook_id AS only_webhook_id, c.cut, c.previous_owner, NULL::text AS url,
       NULL::text AS signing_secret, c.event_id, c.trace_id, c.traceparent, NULL::text AS paused
  FROM claimed c
 UNION ALL
SELECT 'webhook', w.id::bigint, NULL, w.event::text, w.project_id::bigint, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, left(w.url::text, 8200), left(w.signing_secret::text, 8200),
       NULL, NULL, NULL,
       CASE WHEN (SELECT EXISTS (SELECT FROM relay.pauses)) THEN relay.pause_of(w.id::bigint, w.project_id::bigint) END
  FROM relay.webhooks w
 WHERE w.project_id = ANY (ARRAY(SELECT DISTINCT c.project_id FROM claimed c))
   AND w.enabled
   AND w.event IS NOT NULL
