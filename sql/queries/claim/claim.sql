-- Claim: take the next pending rows in order of id, stamp them with our epoch, and return the webhooks to call.
--
-- The statement parks rows of full projects ($5) instead of claiming them. It does so once for each row, so that these
-- rows cost nothing while they wait.
--
-- * The first subquery is materialized. Postgres may run a plain IN (SELECT … LIMIT) again, and then claims more than
--   $3.
-- * The statement locks rows in order of id. Of these it claims those that have no more text than $6 before them.
--   Postgres knows the length of a text without reading it. The locks of the other rows end with the transaction.
-- * The update takes an array of ids and not a join. A plan that Postgres made while the table had a row or two then
--   reads no more when the table has grown.
-- * Each row's texts come once, and each project's webhooks come once. Both are cut to a length at which the daemon
--   still sees that they are too long.
-- * The expression id + 0 is that of outbox_pending and of outbox_parked. The planner cannot take the primary key for
--   it, even when its statistics are an hour old.
-- * An instance claims only while it is listed and not declared dead. The installation must be as it was, too: a dump may be
--   restored over the database under a running daemon. Postgres checks this once for each statement.
-- * The webhooks' columns are cast. relay.webhooks may be a view over columns of other types, and may become one while
--   the statement is prepared. A view may also return nulls: a webhook without an event is no webhook.
-- * Pauses are read with the webhooks, so a pause holds for every claim that begins after its commit. The planner makes
--   the EXISTS an InitPlan: while no pause is there, the statement reads an empty table once.
-- * An idle claim costs what its parts cost to start. So a row brings its previous owner along in a column, and a function
--   asks for the pauses; subqueries would be started by each claim.
--
-- Locks:      the rows, FOR UPDATE SKIP LOCKED: the statement waits for no session. It is meant for
--             synchronous_commit = off.
--             A crash of the server also ends our session, so no instance has acted upon a claim that was lost.
-- Index:      outbox_pending from $1 on; outbox_pkey for the update, which is heap-only; webhooks_project;
--             pauses_of_a_webhook and pauses_of_a_project in relay.pause_of.
-- Parameters: $1 bigint    cursor: only ids above it
--             $2 bigint[]  epochs of dead instances, whose rows are taken over
--             $3 bigint    most rows
--             $4 bigint    our epoch
--             $5 bigint[]  projects whose rows are parked
--             $6 bigint    bytes of text after which no more rows are claimed
-- Returns:    rows of two kinds:
--             row      a claimed or parked row. cut: its trace_id is longer than 8 KiB. previous_owner: the epoch of the
--                      dead instance that had it in hand, or 0 for a dead instance whose epoch is forgotten, or null.
--             webhook  an enabled webhook of a claimed row's project, for whatever event. paused: null when it may be
--                      called; else whose pause is in force, 'webhook: ' or 'project: ', and its reason. The webhook's
--                      own pause comes first.
WITH next AS MATERIALIZED (
    SELECT o.id,
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
       AND EXISTS (SELECT FROM relay.instances i WHERE i.epoch = $4 AND i.dead_at IS NULL)
       AND EXISTS (SELECT FROM relay.installation n WHERE n.table_oid = 'relay.installation'::regclass)
     ORDER BY o.id + 0
     LIMIT $3
       FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE relay.outbox o
       SET previous_owner = o.claimed_by,
           claimed_by = CASE WHEN o.project_id = ANY ($5) THEN o.claimed_by ELSE $4 END,
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
              o.webhook_id, coalesce(octet_length(o.trace_id) > 8192, false) AS cut, o.previous_owner,
              o.event_id, left(o.trace_id, 128) AS trace_id, left(o.traceparent, 256) AS traceparent
)
SELECT 'row' AS kind, c.id, c.parked, c.event, c.project_id, c.prompt_id, c.user_id, c.result, c.finished_at, c.duration_ms,
       c.prompt_tokens, c.completion_tokens, c.total_tokens, c.cached, c.ip, c.user_agent, c.provider_id,
       c.provider_default_model, c.webhook_id AS only_webhook_id, c.cut, c.previous_owner, NULL::text AS url,
       NULL::text AS signing_secret, c.event_id, c.trace_id, c.traceparent, NULL::text AS paused
  FROM claimed c
 UNION ALL
SELECT 'webhook', w.id::bigint, NULL, w.event::text, w.project_id::bigint, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, left(w.url::text, 8200), left(w.signing_secret::text, 8200),
       NULL, NULL, NULL,
       CASE WHEN (SELECT EXISTS (SELECT FROM relay.pauses)) THEN relay.pause_of(w.id::bigint, w.project_id::bigint) END
  FROM relay.webhooks w
 WHERE w.project_id = ANY (ARRAY(SELECT DISTINCT c.project_id FROM claimed c WHERE NOT c.parked))
   AND w.enabled
   AND w.event IS NOT NULL
