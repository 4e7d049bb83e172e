-- Claim: take the next pending rows in order of id and stamp them with our epoch; join the webhooks to call.
--
-- Rows of projects whose webhooks are full ($5) are parked instead, once, so that they cost nothing while they wait.
-- The subquery is materialized: a plain IN (SELECT … LIMIT) may be run again and claim more than $3. Statistics may be
-- of another hour: id + 0 is the expression of outbox_pending and of no other index, and OFFSET 0 keeps the webhooks
-- apart, to be found by project for each row. Their columns are cast: relay.webhooks may be a view over columns of other
-- types, and become one while the statement is prepared.
--
-- Locks:      the rows, FOR UPDATE SKIP LOCKED: nobody is waited for. Meant for synchronous_commit = off: when the
--             server crashes our session dies too, and a claim that was lost was not acted upon.
-- Index:      outbox_pending from $1 on, outbox_pkey for the update (heap-only), webhooks_project.
-- Parameters: $1 bigint    cursor: only ids above it
--             $2 bigint[]  epochs of dead instances: their rows are taken over
--             $3 bigint    most rows
--             $4 bigint    our epoch
--             $5 bigint[]  projects to park
-- Returns:    one row for each claimed row and webhook (webhook columns null: nothing to call), one for each parked.
--             previous is claimed_by before: a dead instance that had the row in hand, 0 for one forgotten, null for none.
WITH next AS MATERIALIZED (
    SELECT o.id,
           o.claimed_by AS previous,
           o.project_id = ANY ($5) AS park
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
       SET claimed_by = CASE WHEN next.park THEN o.claimed_by ELSE $4 END,
           parked = next.park
      FROM next
     WHERE o.id = next.id
    RETURNING o.id, next.park, next.previous, o.event, o.project_id, o.prompt_id, o.user_id, o.result, o.finished_at,
              o.duration_ms, o.prompt_tokens, o.completion_tokens, o.total_tokens, o.cached, o.ip, o.user_agent,
              o.provider_id, o.provider_default_model, o.webhook_id AS only_webhook_id
)
SELECT c.id, c.park, c.previous, c.event, c.project_id, c.prompt_id, c.user_id, c.result, c.finished_at,
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
    ON NOT c.park
 ORDER BY c.id, w.id
