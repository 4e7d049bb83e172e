-- Report how it goes: which instances run, what waits, who is paused, which webhooks fail. The cost is bounded: the
-- statement reads the first 100,000 pending rows, the first 100,000 parked rows, and the newest 100,000 calls of the last
-- five minutes. It reads all pauses; there are few.
-- Of the rows that are done without a call, it finds those among 100,000 rows. These are the newest 50,000, and the 50,000
-- before them, or before the first pending row where that one is older.
--
-- The locks that sessions hold tell which instances live, not what relay.instances says. A standby has none of these
-- locks. There the statement returns the instances that were not found dead, and says that it is a standby.
--
-- Locks:      none.
-- Index:      outbox_pending, outbox_parked, outbox_pkey, webhook_calls_place. Postgres plans it for the value (plan_cache_mode =
--             force_custom_plan), so that it locks only partitions of the span.
-- Parameters: $1 timestamptz  calls that started after it, and rows that were done after it
-- Returns:    one JSON object.
WITH held AS MATERIALIZED (
    SELECT h.class << 32 | h.object AS key
      FROM relay.daemon_locks() AS h
     WHERE h.keys = 1
), instances AS (
    SELECT i.epoch, i.host, i.pid, i.version, i.started_at,
           (SELECT count(*) FROM relay.in_flight f WHERE f.epoch = i.epoch) AS in_flight
      FROM relay.instances i
     WHERE pg_is_in_recovery() AND i.dead_at IS NULL
        OR EXISTS (SELECT FROM held h WHERE h.key = ANY (i.locks))
     ORDER BY i.epoch
), backlog AS (
    SELECT b.project_id, b.pending, b.parked, extract(epoch FROM b.oldest_age)::double precision AS oldest_age_s
      FROM relay.backlog b
), calls AS (
    SELECT c.webhook_id, c.succeeded, c.is_timeout, c.error_kind, c.error_message, c.start_time,
           -- A clock that was put back during a call makes no negative time.
           greatest(extract(epoch FROM c.end_time - c.start_time)::double precision * 1000, 0) AS ms
      FROM relay.webhook_calls c
     WHERE c.start_time > $1
       -- Held back for a pause: these have not failed.
       AND c.error_kind IS DISTINCT FROM 'paused'
       -- The newest ones: ids grow with time, and the log's first index has them.
       AND c.id > coalesce(pg_sequence_last_value('relay.webhook_calls_id_seq'), 0) - 100000
), pauses AS (
    SELECT p.webhook_id, p.project_id, p.reason, p.created_at, p.created_by, p.until
      FROM relay.pauses p
     WHERE p.until IS NULL OR p.until > now()
), newest AS MATERIALIZED (
    SELECT o.id, o.project_id, o.done_at, o.without_call
      FROM relay.outbox o
     ORDER BY o.id DESC
     LIMIT 50000
), before AS (
    SELECT o.id, o.project_id, o.done_at, o.without_call
      FROM relay.outbox o
     WHERE o.id < least((SELECT min(n.id) FROM newest n),
                        (SELECT p.id
                           FROM relay.outbox p
                          WHERE p.done_at IS NULL
                            AND NOT p.parked
                          ORDER BY p.id + 0
                          LIMIT 1))
     ORDER BY o.id DESC
     LIMIT 50000
), without_call AS (
    SELECT o.project_id, count(*) AS rows, max(o.id) AS last_outbox_id
      FROM (SELECT * FROM newest UNION ALL SELECT * FROM before) AS o
     WHERE o.without_call
       AND o.done_at > $1
     GROUP BY o.project_id
), worst AS (
    SELECT c.webhook_id,
           count(*) AS calls,
           count(*) FILTER (WHERE NOT c.succeeded) AS failures,
           count(*) FILTER (WHERE c.is_timeout) AS timeouts
      FROM calls c
     GROUP BY c.webhook_id
     ORDER BY failures DESC, calls DESC, c.webhook_id
     LIMIT 20
), percentiles AS (
    -- Only of the webhooks that are told: this sorts their calls.
    SELECT c.webhook_id,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY c.ms) AS ms,
           (array_agg(c.error_kind || ': ' || coalesce(c.error_message, '') ORDER BY c.start_time DESC)
               FILTER (WHERE NOT c.succeeded))[1] AS last_error
      FROM calls c
      JOIN worst w
        ON w.webhook_id = c.webhook_id
     GROUP BY c.webhook_id
), webhooks AS (
    SELECT w.webhook_id, w.calls, w.failures, w.timeouts, round(p.ms[1]::numeric, 1) AS p50_ms, round(p.ms[2]::numeric, 1) AS p95_ms,
           p.last_error
      FROM worst w
      JOIN percentiles p
        ON p.webhook_id = w.webhook_id
     ORDER BY w.failures DESC, w.calls DESC, w.webhook_id
)
SELECT jsonb_build_object(
           'standby', pg_is_in_recovery(),
           'pending', (SELECT coalesce(sum(pending), 0) FROM backlog),
           'parked', (SELECT coalesce(sum(parked), 0) FROM backlog),
           'oldest_age_s', (SELECT coalesce(max(oldest_age_s), 0) FROM backlog),
           'in_flight', (SELECT coalesce(sum(in_flight), 0) FROM instances),
           'calls_5min', (SELECT count(*) FROM calls),
           'failures_5min', (SELECT count(*) FROM calls WHERE NOT succeeded),
           'without_call_5min', (SELECT coalesce(sum(rows), 0) FROM without_call),
           'instances', (SELECT coalesce(jsonb_agg(i), '[]') FROM instances i),
           'backlog', (SELECT coalesce(jsonb_agg(b), '[]')
                         FROM (SELECT * FROM backlog ORDER BY pending DESC, project_id LIMIT 20) AS b),
           'paused', (SELECT count(*) FROM pauses),
           'pauses', (SELECT coalesce(jsonb_agg(p), '[]')
                        FROM (SELECT *
                                FROM pauses
                               ORDER BY created_at DESC, webhook_id, project_id
                               LIMIT 20) AS p),
           'webhooks', (SELECT coalesce(jsonb_agg(w), '[]') FROM webhooks w),
           'without_call', (SELECT coalesce(jsonb_agg(u), '[]')
                              FROM (SELECT * FROM without_call ORDER BY rows DESC, project_id LIMIT 20) AS u))::text
