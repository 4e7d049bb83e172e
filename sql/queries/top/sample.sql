-- Tell how it goes at this moment, for the live screen, which asks every second. So the cost is small and bounded: the
-- statement reads the newest 10,000 calls of the last minutes, the first 5,000 pending rows and the first 5,000 parked ones.
--
-- The locks that sessions hold tell which instances live, as in status.sql. A standby has none of them.
--
-- Locks:      none that anybody waits for.
-- Index:      outbox_pending, outbox_parked, webhook_calls_place. Postgres plans it for the values (plan_cache_mode =
--             force_custom_plan), so that it locks only partitions of the span.
-- Parameters: $1 timestamptz  calls that started after it are told of
--             $2 timestamptz  rates and durations are of the calls that ended after it
--             $3 bigint       calls with ids above it are told of: 10,000 below the last one
-- Returns:    one JSON object. Calls are counted by spans of five seconds, of which the key is the Unix time of the
--             beginning. covered_s says how many seconds before now the 10,000 calls reach back, $2 at most.
WITH held AS MATERIALIZED (
    SELECT h.class << 32 | h.object AS key
      FROM relay.daemon_locks() AS h
     WHERE h.keys = 1
), instances AS (
    SELECT i.host, i.pid, i.version, extract(epoch FROM clock_timestamp() - i.started_at)::double precision AS age_s
      FROM relay.instances i
     WHERE pg_is_in_recovery() AND i.dead_at IS NULL
        OR EXISTS (SELECT FROM held h WHERE h.key = ANY (i.locks))
     ORDER BY i.started_at, i.epoch
     LIMIT 20
), pending AS MATERIALIZED (
    SELECT o.project_id, o.created_at, o.claimed_by > 0 AS in_hand
      FROM relay.outbox o
     WHERE o.done_at IS NULL
       AND NOT o.parked
     ORDER BY o.id + 0
     LIMIT 5000
), parked AS MATERIALIZED (
    SELECT o.project_id, o.created_at, o.claimed_by > 0 AS in_hand
      FROM relay.outbox o
     WHERE o.done_at IS NULL
       AND o.parked
     ORDER BY o.project_id, o.id + 0
     LIMIT 5000
), projects AS (
    SELECT r.project_id, count(*) FILTER (WHERE r.in_hand) AS in_hand, count(*) FILTER (WHERE r.in_hand IS NOT TRUE) AS waiting
      FROM (SELECT * FROM pending UNION ALL SELECT * FROM parked) AS r
     GROUP BY r.project_id
     ORDER BY count(*) DESC, r.project_id
     LIMIT 500
), recent AS MATERIALIZED (
    SELECT c.id, c.webhook_id, c.project_id, c.succeeded, c.status_code, c.error_kind, c.start_time, c.end_time,
           -- A clock that was put back during a call makes no negative time.
           greatest(extract(epoch FROM c.end_time - c.start_time), 0)::double precision AS seconds,
           c.end_time > $2 AS is_new,
           CASE WHEN NOT c.succeeded THEN left(c.error_message, 300) END AS message
      FROM relay.webhook_calls c
     WHERE c.start_time > $1
       AND c.id > $3
), calls AS (
    -- Calls that were held back for a pause were not made.
    SELECT *
      FROM recent r
     WHERE r.error_kind IS DISTINCT FROM 'paused'
), spans AS (
    SELECT floor(extract(epoch FROM r.end_time) / 5)::bigint * 5 AS key, count(*) AS calls,
           count(*) FILTER (WHERE NOT r.succeeded) AS failed
      FROM calls r
     GROUP BY 1
), failures AS (
    SELECT r.id, r.webhook_id, r.start_time, r.seconds, r.status_code, r.error_kind, r.message
      FROM calls r
     WHERE NOT r.succeeded
     ORDER BY r.start_time DESC, r.id DESC
     LIMIT 50
), webhooks AS (
    SELECT r.webhook_id, max(r.project_id) AS project_id, count(*) FILTER (WHERE r.is_new) AS calls,
           count(*) FILTER (WHERE r.is_new AND NOT r.succeeded) AS failed,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY r.seconds) FILTER (WHERE r.is_new) AS percentiles,
           max(r.id) AS last_call, max(r.id) FILTER (WHERE NOT r.succeeded) AS last_failure
      FROM calls r
     GROUP BY r.webhook_id
     ORDER BY bool_or(NOT r.succeeded) DESC, calls DESC, r.webhook_id
     LIMIT 500
), pauses AS (
    SELECT p.webhook_id, p.project_id
      FROM relay.pauses p
     WHERE p.until IS NULL OR p.until > now()
)
SELECT jsonb_build_object(
           'now', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'HH24:MI:SS'),
           'now_s', extract(epoch FROM clock_timestamp())::double precision,
           'standby', pg_is_in_recovery(),
           'covered_s', (SELECT CASE WHEN count(*) FILTER (WHERE is_new) >= 9900
                                     THEN extract(epoch FROM clock_timestamp() - min(end_time) FILTER (WHERE is_new))
                                     ELSE extract(epoch FROM clock_timestamp() - $2) END
                           FROM recent)::double precision,
           'calls', (SELECT count(*) FROM calls WHERE is_new),
           'failed', (SELECT count(*) FROM calls WHERE is_new AND NOT succeeded),
           'pending', (SELECT count(*) FROM pending),
           'parked', (SELECT count(*) FROM parked),
           'in_hand', (SELECT count(*) FROM pending WHERE in_hand) + (SELECT count(*) FROM parked WHERE in_hand),
           'pending_age_s', (SELECT greatest(extract(epoch FROM clock_timestamp() - min(created_at)), 0) FROM pending HAVING count(*) > 0),
           'parked_age_s', (SELECT greatest(extract(epoch FROM clock_timestamp() - min(created_at)), 0) FROM parked HAVING count(*) > 0),
           'instances', (SELECT coalesce(jsonb_agg(i), '[]') FROM instances i),
           'projects', (SELECT coalesce(jsonb_agg(p), '[]') FROM projects p),
           'spans', (SELECT coalesce(jsonb_agg(s), '[]') FROM spans s),
           'paused', (SELECT count(*) FROM pauses),
           'pauses', (SELECT coalesce(jsonb_agg(p), '[]')
                        FROM (SELECT * FROM pauses ORDER BY webhook_id, project_id LIMIT 500) AS p),
           'webhooks', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                                   'webhook_id', w.webhook_id, 'project_id', w.project_id, 'calls', w.calls, 'failed', w.failed,
                                   'p50_s', w.percentiles[1], 'p95_s', w.percentiles[2], 'last_call', w.last_call,
                                   'last_failure', w.last_failure, 'status_code', l.status_code, 'error_kind', l.error_kind,
                                   'message', l.message)), '[]')
                          FROM webhooks w
                          LEFT JOIN calls l
                            ON l.id = w.last_failure),
           'failures', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                                   'id', f.id, 'webhook_id', f.webhook_id,
                                   'start', to_char(f.start_time AT TIME ZONE 'UTC', 'HH24:MI:SS'), 'seconds', f.seconds,
                                   'status_code', f.status_code, 'error_kind', f.error_kind, 'message', f.message)
                                   ORDER BY f.start_time DESC, f.id DESC), '[]')
                          FROM failures f))::text
