-- Claim: take the next pending rows in order of id and stamp them with our epoch; tell the webhooks to call.
--
-- Rows of projects whose webhooks are full ($5) are parked instead, once, so that they cost nothing while they wait.
-- The first subquery is materialized: a plain IN (SELECT … LIMIT) may be run again and claim more than $3. Of the rows
-- that it locks, in their order, as many are claimed as have no more text than $6 before them: lengths are known
-- without reading the texts. The locks of the others end with the statement. An array of ids, not a join: a plan that is
-- made while the table has a row or two reads no more of it when it has grown. Texts come once for each row, webhooks
-- once for each project, both no longer than the daemon needs to see that they are too long. Statistics may be of
-- another hour: id + 0 is the expression of outbox_pending and of no other index. The webhooks' columns are cast:
-- relay.webhooks may be a view over columns of other types, and become one while the statement is prepared. It may have
-- nulls then, too: a webhook without an event is none.
--
-- Locks:      the rows, FOR UPDATE SKIP LOCKED: nobody is waited for. Meant for synchronous_commit = off: when the
--             server crashes our session dies too, and a claim that was lost was not acted upon.
-- Index:      outbox_pending from $1 on, outbox_pkey for the update (heap-only), webhooks_project.
-- Parameters: $1 bigint    cursor: only ids above it
--             $2 bigint[]  epochs of dead instances: their rows are taken over
--             $3 bigint    most rows
--             $4 bigint    our epoch
--             $5 bigint[]  projects to park
--             $6 bigint    bytes of text after which no more rows are claimed
-- Returns:    rows of three kinds:
--             row      claimed or parked. cut: its trace_id is longer than 8 KiB.
--             before   of a row, claimed or not: claimed_by before, where there was one: a dead instance that had the row
--                      in hand, or 0 for one forgotten.
--             webhook  enabled, of a project of these rows, for whatever event.
WITH next AS MATERIALIZED (
    SELECT o.id,
           o.claimed_by,
           CASE WHEN o.project_id = ANY ($5) THEN 0
                ELSE least(octet_length(o.user_id), 8192) + least(octet_length(o.ip), 8192)
                     + least(octet_length(o.user_agent), 8192)
                     + least(coalesce(octet_length(o.provider_default_model), 0), 8192)
           END AS bytes
      FROM relay.outbox o
     WHERE o.done_at IS NULL
       AND NOT o.parked
       AND o.id + 0 > $1
       AND (o.claimed_by IS NULL OR o.claimed_by = 0 OR o.claimed_by = ANY ($2))
     ORDER BY o.id + 0
     LIMIT $3
       FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE relay.outbox o
       SET claimed_by = CASE WHEN o.project_id = ANY ($5) THEN o.claimed_by ELSE $4 END,
           parked = o.project_id = ANY ($5)
     WHERE o.id = ANY (ARRAY(
               SELECT w.id
                 FROM (SELECT n.id, sum(n.bytes) OVER (ROWS UNBOUNDED PRECEDING) - n.bytes AS bytes_before
                         FROM next n) AS w
                WHERE w.bytes_before <= $6))
    RETURNING o.id, o.parked, o.event, o.project_id, o.prompt_id,
              CASE WHEN o.parked THEN '' ELSE left(o.user_id, 8193) END AS user_id,
              o.result, o.finished_at, o.duration_ms, o.prompt_tokens, o.completion_tokens, o.total_tokens, o.cached,
              CASE WHEN o.parked THEN '' ELSE left(o.ip, 8193) END AS ip,
              CASE WHEN o.parked THEN '' ELSE left(o.user_agent, 8193) END AS user_agent,
              o.provider_id,
              CASE WHEN NOT o.parked THEN left(o.provider_default_model, 8193) END AS provider_default_model,
              o.webhook_id, octet_length(o.trace_id) > 8192 AS cut
)
SELECT 'row' AS kind, c.id, c.parked, c.event, c.project_id, c.prompt_id, c.user_id, c.result, c.finished_at, c.duration_ms,
       c.prompt_tokens, c.completion_tokens, c.total_tokens, c.cached, c.ip, c.user_agent, c.provider_id,
       c.provider_default_model, c.webhook_id AS only_webhook_id, c.cut, NULL::bigint AS claimed_by, NULL::text AS url,
       NULL::text AS signing_secret
  FROM claimed c
 UNION ALL
SELECT 'before', n.id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, NULL, n.claimed_by, NULL, NULL
  FROM next n
 WHERE n.claimed_by IS NOT NULL
 UNION ALL
SELECT 'webhook', w.id::bigint, NULL, w.event::text, w.project_id::bigint, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, left(w.url::text, 8200), left(w.signing_secret::text, 8200)
  FROM relay.webhooks w
 WHERE w.project_id = ANY (ARRAY(SELECT DISTINCT c.project_id FROM claimed c WHERE NOT c.parked))
   AND w.enabled
   AND w.event IS NOT NULL
