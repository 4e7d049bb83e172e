-- Views: the backlog, what is in hand, the health of the webhooks and the last failures, for people.
--
-- Each view is bounded: none reads a whole backlog or the whole history. None depends on relay.webhooks, which a site may
-- replace. A call that was held back for a pause has not failed, so no view counts it.

CREATE VIEW relay.backlog AS
    SELECT project_id,
           count(*)                         AS pending,
           count(*) FILTER (WHERE parked)   AS parked,
           greatest(now() - min(created_at), interval '0')  AS oldest_age
      FROM (
            (SELECT project_id, created_at, parked
               FROM relay.outbox
              WHERE done_at IS NULL AND NOT parked
              ORDER BY id + 0
              LIMIT 100000)
            UNION ALL
            (SELECT project_id, created_at, parked
               FROM relay.outbox
              WHERE done_at IS NULL AND parked
              ORDER BY project_id, id + 0
              LIMIT 100000)
           ) AS pending
     GROUP BY project_id
     ORDER BY pending DESC, project_id;

COMMENT ON VIEW relay.backlog IS
    'Rows that are not done, by project, with the age of the oldest. Counts the first 100,000 pending rows and the first 100,000 parked ones, so its cost does not grow with the backlog.';
COMMENT ON COLUMN relay.backlog.project_id IS 'From the outbox rows.';
COMMENT ON COLUMN relay.backlog.pending IS 'Rows that are not done, parked ones included.';
COMMENT ON COLUMN relay.backlog.parked IS 'Those of them that wait for a slot of a slow webhook.';
COMMENT ON COLUMN relay.backlog.oldest_age IS 'How long ago the oldest was inserted; 0 when created_at is in the future.';

CREATE VIEW relay.in_flight AS
    SELECT o.id, o.project_id, coalesce(o.trace_id, replace(o.event_id::text, '-', '')) AS trace_id, o.created_at,
           o.claimed_by AS epoch, i.host, i.pid,
           i.dead_at IS NOT NULL AS instance_dead
      FROM (
            (SELECT id, project_id, event_id, trace_id, created_at, claimed_by
               FROM relay.outbox
              WHERE done_at IS NULL AND NOT parked
              ORDER BY id + 0
              LIMIT 100000)
            UNION ALL
            (SELECT id, project_id, event_id, trace_id, created_at, claimed_by
               FROM relay.outbox
              WHERE done_at IS NULL AND parked
              ORDER BY project_id, id + 0
              LIMIT 100000)
           ) AS o
      LEFT JOIN relay.instances i ON i.epoch = o.claimed_by
     WHERE o.claimed_by > 0
     ORDER BY o.id;

COMMENT ON VIEW relay.in_flight IS
    'Rows that an instance has in hand, among the first 100,000 pending rows and the first 100,000 parked ones.';
COMMENT ON COLUMN relay.in_flight.id IS 'Of the relay.outbox row.';
COMMENT ON COLUMN relay.in_flight.project_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.in_flight.trace_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.in_flight.created_at IS 'From the outbox row.';
COMMENT ON COLUMN relay.in_flight.epoch IS 'Of the instance that has the row in hand.';
COMMENT ON COLUMN relay.in_flight.host IS 'Where that instance runs.';
COMMENT ON COLUMN relay.in_flight.pid IS 'Its process id there.';
COMMENT ON COLUMN relay.in_flight.instance_dead IS 'It ended, or was found dead: a peer takes the row over.';

-- The views of the call log read functions. Postgres does not take now() for a constant when it plans a query, so a plain
-- view would lock all partitions and their indexes. The functions plan their query with the time, and lock only the
-- partitions of the span.

CREATE FUNCTION relay.webhook_health_since(since timestamptz)
    RETURNS TABLE (webhook_id bigint, calls bigint, failures bigint, timeouts bigint, p50_ms numeric, p95_ms numeric, last_error text)
    LANGUAGE plpgsql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    RETURN QUERY EXECUTE $query$
        SELECT c.webhook_id,
               count(*),
               count(*) FILTER (WHERE NOT c.succeeded),
               count(*) FILTER (WHERE c.is_timeout),
               -- A clock that was put back during a call makes no negative time.
               greatest(round((percentile_cont(0.5) WITHIN GROUP (
                   ORDER BY extract(epoch FROM c.end_time - c.start_time) * 1000))::numeric, 1), 0),
               greatest(round((percentile_cont(0.95) WITHIN GROUP (
                   ORDER BY extract(epoch FROM c.end_time - c.start_time) * 1000))::numeric, 1), 0),
               -- The greatest of pairs, not the first of a sorted list: that would keep all of an hour in memory.
               (max(ARRAY[to_char(c.start_time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'),
                          c.error_kind || ': ' || coalesce(c.error_message, '')])
                   FILTER (WHERE NOT c.succeeded))[2]
          FROM relay.webhook_calls c
         WHERE c.start_time > $1
           AND c.error_kind IS DISTINCT FROM 'paused'
         GROUP BY c.webhook_id
         ORDER BY 3 DESC, c.webhook_id
    $query$ USING since;
END
$$;

COMMENT ON FUNCTION relay.webhook_health_since(timestamptz) IS 'relay.webhook_health, over the time since then.';

CREATE VIEW relay.webhook_health AS
    SELECT h.webhook_id, h.calls, h.failures, h.timeouts, h.p50_ms, h.p95_ms, h.last_error
      FROM relay.webhook_health_since(now() - interval '1 hour') AS h;

COMMENT ON VIEW relay.webhook_health IS
    'By webhook, over the last hour: calls, failures, timeouts, median and 95th percentile of the duration in milliseconds, and the last failure.';
COMMENT ON COLUMN relay.webhook_health.webhook_id IS 'The webhook that was called; it may be gone.';
COMMENT ON COLUMN relay.webhook_health.calls IS 'Calls that started within the last hour.';
COMMENT ON COLUMN relay.webhook_health.failures IS 'Those of them that did not succeed.';
COMMENT ON COLUMN relay.webhook_health.timeouts IS 'Those of them that passed --timeout.';
COMMENT ON COLUMN relay.webhook_health.p50_ms IS 'Milliseconds within which half of the calls ended.';
COMMENT ON COLUMN relay.webhook_health.p95_ms IS 'Milliseconds within which 95 of 100 calls ended.';
COMMENT ON COLUMN relay.webhook_health.last_error IS 'Kind and message of the last failure.';

CREATE FUNCTION relay.failures_since(since timestamptz, most integer)
    RETURNS TABLE (call_id bigint, start_time timestamptz, webhook_id bigint, project_id bigint, trace_id text, url text,
                   error_kind text, status_code integer, error_message text, duration interval)
    LANGUAGE plpgsql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    RETURN QUERY EXECUTE $query$
        SELECT c.id, c.start_time, c.webhook_id, c.project_id, c.trace_id, c.url, c.error_kind, c.status_code,
               c.error_message, c.end_time - c.start_time
          FROM relay.webhook_calls c
         WHERE NOT c.succeeded
           AND c.error_kind IS DISTINCT FROM 'paused'
           AND c.start_time > $1
         ORDER BY c.start_time DESC
         LIMIT $2
    $query$ USING since, most;
END
$$;

COMMENT ON FUNCTION relay.failures_since(timestamptz, integer) IS
    'The last failed calls since then, newest first, at most so many; see relay.recent_failures.';

CREATE VIEW relay.recent_failures AS
    SELECT f.call_id, f.start_time, f.webhook_id, f.project_id, f.trace_id, f.url, f.error_kind, f.status_code,
           f.error_message, f.duration
      FROM relay.failures_since(now() - interval '1 day', 1000) AS f;

COMMENT ON VIEW relay.recent_failures IS 'The last 1,000 failed calls of the last day, newest first.';
COMMENT ON COLUMN relay.recent_failures.call_id IS 'Of relay.webhook_calls; what relay.replay() takes.';
COMMENT ON COLUMN relay.recent_failures.start_time IS 'First byte of work.';
COMMENT ON COLUMN relay.recent_failures.webhook_id IS 'The webhook that was called; it may be gone.';
COMMENT ON COLUMN relay.recent_failures.project_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.recent_failures.trace_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.recent_failures.url IS 'The webhook''s URL at the time of the call, without user and password.';
COMMENT ON COLUMN relay.recent_failures.error_kind IS 'As in relay.webhook_calls.';
COMMENT ON COLUMN relay.recent_failures.status_code IS 'Of the answer; null when none was read.';
COMMENT ON COLUMN relay.recent_failures.error_message IS 'What happened, for people.';
COMMENT ON COLUMN relay.recent_failures.duration IS 'From the first byte of work to the last byte read, or the failure.';

CREATE VIEW relay.open_failures AS
    SELECT f.call_id, f.event_id, f.start_time, f.webhook_id, f.project_id, f.trace_id, f.url, f.error_kind, f.status_code,
           f.error_message
      FROM relay.open_failures_since(now() - interval '7 days', 10000) AS f;

COMMENT ON VIEW relay.open_failures IS
    'The last 10,000 failed calls of the last 7 days for whose event and webhook no later call was made and none is pending, newest first. Calls whose webhook is gone, disabled or of another project are among them, although relay.replay_failed() leaves them out. For another span: relay.open_failures_since().';
COMMENT ON COLUMN relay.open_failures.call_id IS 'Of relay.webhook_calls; what relay.replay() takes.';
COMMENT ON COLUMN relay.open_failures.event_id IS 'Of the event that was not delivered.';
COMMENT ON COLUMN relay.open_failures.start_time IS 'First byte of work.';
COMMENT ON COLUMN relay.open_failures.webhook_id IS 'The webhook that was called; it may be gone.';
COMMENT ON COLUMN relay.open_failures.project_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.open_failures.trace_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.open_failures.url IS 'The webhook''s URL at the time of the call, without user and password.';
COMMENT ON COLUMN relay.open_failures.error_kind IS 'As in relay.webhook_calls.';
COMMENT ON COLUMN relay.open_failures.status_code IS 'Of the answer; null when none was read.';
COMMENT ON COLUMN relay.open_failures.error_message IS 'What happened, for people.';

-- The names of webhooks, for people who read the log. A site may put a view in the place of relay.webhooks, and a view runs
-- functions with the rights of the session that reads it. So people read the names by this function, and not from the table.
-- The log must be readable in any case. So the function returns no row where code of others would run, where another session
-- has locked the table, and where the owner of the schema may not read it.
CREATE FUNCTION relay.webhook_names(ids bigint[])
    RETURNS TABLE (webhook_id bigint, project_id bigint, name text, url text, enabled boolean)
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    LOCK TABLE relay.webhooks IN ACCESS SHARE MODE NOWAIT;
    IF NOT EXISTS (SELECT FROM relay.foreign_code('relay.webhooks', false)) THEN
        RETURN QUERY
        SELECT w.id::bigint, w.project_id::bigint, left(w.name::text, 200), left(w.url::text, 2000), w.enabled::boolean
          FROM relay.webhooks w
         WHERE w.id = ANY (webhook_names.ids);
    END IF;
EXCEPTION
    WHEN insufficient_privilege OR lock_not_available THEN NULL;
END
$$;

COMMENT ON FUNCTION relay.webhook_names(bigint[]) IS
    'Project, name, URL and whether it is enabled, of those of these webhooks that are there. No row where relay.webhooks would run code of others, is locked, or may not be read.';

REVOKE ALL ON FUNCTION relay.webhook_names(bigint[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.webhook_health_since(timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.failures_since(timestamptz, integer) FROM PUBLIC;
