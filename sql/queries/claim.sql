-- Claim: take the next pending rows in order of id and stamp them with our epoch; tell the webhooks to call.
--
-- Rows of projects whose webhooks are full ($5) are parked instead, once, so that they cost nothing while they wait.
-- The first subquery is materialized: a plain IN (SELECT … LIMIT) may be run again and claim more than $3. Of the rows
-- that it locks, as many are claimed as have no more text than $6, and one in any case: lengths are known without
-- reading the texts. The locks of the others end with the statement. Texts come once for each row, and webhooks once
-- for each project and event. Statistics may be of another hour: id + 0 is the expression of outbox_pending and of no
-- other index, and OFFSET 0 keeps the webhooks apart, to be found by project. Their columns are cast: relay.webhooks
-- may be a view over columns of other types, and become one while the statement is prepared. A URL or a secret that is
-- far too long is not read whole: the daemon refuses it.
--
-- Locks:      the rows, FOR UPDATE SKIP LOCKED: nobody is waited for. Meant for synchronous_commit = off: when the
--             server crashes our session dies too, and a claim that was lost was not acted upon.
-- Index:      outbox_pending from $1 on, outbox_pkey for the update (heap-only), webhooks_project.
-- Parameters: $1 bigint    cursor: only ids above it
--             $2 bigint[]  epochs of dead instances: their rows are taken over
--             $3 bigint    most rows
--             $4 bigint    our epoch
--             $5 bigint[]  projects to park
--             $6 bigint    most bytes of text
-- Returns:    one row for each claimed or parked row (is_webhook false), and one for each webhook of theirs (is_webhook true:
--             id, project_id, event, url and signing_secret). previous is claimed_by before: a dead instance that had the
--             row in hand, 0 for one forgotten, null for none. seen: how many rows were looked at; more than there are
--             when their texts were too much. cut: one of the texts is longer than 8 KiB.
WITH next AS MATERIALIZED (
    SELECT o.id,
           o.claimed_by AS previous,
           o.project_id = ANY ($5) AS park,
           least(octet_length(o.user_agent), 8192) + least(octet_length(o.user_id), 8192)
               + least(octet_length(o.ip), 8192) + least(octet_length(o.trace_id), 8192)
               + least(coalesce(octet_length(o.provider_default_model), 0), 8192) AS bytes
      FROM relay.outbox o
     WHERE o.done_at IS NULL
       AND NOT o.parked
       AND o.id + 0 > $1
       AND (o.claimed_by IS NULL OR o.claimed_by = 0 OR o.claimed_by = ANY ($2))
     ORDER BY o.id + 0
     LIMIT $3
       FOR UPDATE SKIP LOCKED
), weighed AS MATERIALIZED (
    SELECT n.id, n.previous, n.park,
           sum(CASE WHEN n.park THEN 0 ELSE n.bytes END)
               OVER (ORDER BY n.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
      FROM next n
), claimed AS (
    UPDATE relay.outbox o
       SET claimed_by = CASE WHEN w.park THEN o.claimed_by ELSE $4 END,
           parked = w.park
      FROM weighed w
     WHERE o.id = w.id
       AND (w.bytes_before IS NULL OR w.bytes_before <= $6)
    RETURNING o.id, w.park, w.previous, o.event, o.project_id, o.prompt_id, o.result, o.finished_at, o.duration_ms,
              o.prompt_tokens, o.completion_tokens, o.total_tokens, o.cached, o.provider_id,
              o.webhook_id AS only_webhook_id,
              CASE WHEN w.park THEN '' ELSE relay.cut_text(o.user_id) END AS user_id,
              CASE WHEN w.park THEN '' ELSE relay.cut_text(o.ip) END AS ip,
              CASE WHEN w.park THEN '' ELSE relay.cut_text(o.user_agent) END AS user_agent,
              CASE WHEN NOT w.park THEN relay.cut_text(o.provider_default_model) END AS provider_default_model,
              greatest(octet_length(o.user_agent), octet_length(o.user_id), octet_length(o.ip),
                       octet_length(o.trace_id), octet_length(o.provider_default_model)) > 8192 AS cut
)
SELECT false AS is_webhook, c.id, c.park, c.previous, c.event, c.project_id, c.prompt_id, c.user_id, c.result,
       c.finished_at, c.duration_ms, c.prompt_tokens, c.completion_tokens, c.total_tokens, c.cached, c.ip, c.user_agent,
       c.provider_id, c.provider_default_model, c.only_webhook_id, c.cut, (SELECT count(*) FROM next) AS seen,
       NULL::text AS url, NULL::text AS signing_secret
  FROM claimed c
 UNION ALL
SELECT true, w.id, NULL, NULL, p.event, p.project_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, w.url, w.signing_secret
  FROM (SELECT DISTINCT c.project_id, c.event
          FROM claimed c
         WHERE NOT c.park) AS p
 CROSS JOIN LATERAL (
        SELECT w.id::bigint AS id, left(w.url::text, 8200) AS url, left(w.signing_secret::text, 8200) AS signing_secret
          FROM relay.webhooks w
         WHERE w.project_id = p.project_id
           AND w.event = p.event
           AND w.enabled
        OFFSET 0
       ) AS w
