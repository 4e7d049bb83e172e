-- Replay: people repeat a call, or send a test event.
--
-- Each function inserts an outbox row for one webhook, inside the caller's own transaction. It runs with the rights of
-- its owner, so that the caller needs no right on the tables. A webhook that is gone or disabled is an error: the daemon
-- would mark the row done without a call, and no message would say so. relay.replay_failed leaves such calls out, and says
-- so.

CREATE FUNCTION relay.replay(call_id bigint) RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    call    record;
    webhook record;
    payload jsonb;
    new_id  bigint;
BEGIN
    PERFORM relay.require_own_webhooks();
    SELECT c.event_id, c.trace_id, c.webhook_id, c.project_id, c.request_body
      INTO call
      FROM relay.call_by_id(call_id) c;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no call % in relay.webhook_calls', call_id
            USING ERRCODE = 'no_data_found', HINT = 'Calls are kept for --retain-calls (30 days unless set).';
    END IF;
    -- Else the row would be done without a call, and no message would say so.
    SELECT w.enabled
      INTO webhook
      FROM relay.webhooks w
     WHERE w.id = call.webhook_id
       AND w.project_id = call.project_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'call % cannot be repeated: project % has no webhook % any more', call_id, call.project_id, call.webhook_id
            USING ERRCODE = 'no_data_found', HINT = 'Make a new webhook; it gets the events to come.';
    ELSIF NOT webhook.enabled THEN
        RAISE EXCEPTION 'call % cannot be repeated: webhook % is disabled', call_id, call.webhook_id
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Only enabled webhooks are called. Enable it first.';
    END IF;
    -- The outbox row may be deleted by now; the payload has everything.
    payload := call.request_body::jsonb;
    INSERT INTO relay.outbox (
        event, event_id, trace_id, project_id, prompt_id, user_id, result, finished_at, duration_ms, prompt_tokens,
        completion_tokens, total_tokens, cached, ip, user_agent, provider_id, provider_default_model, webhook_id,
        replay_of)
    VALUES (
        payload ->> 'event', call.event_id, call.trace_id, call.project_id, (payload ->> 'promptId')::bigint, payload ->> 'userId',
        (payload ->> 'result')::smallint, (payload ->> 'timestamp')::timestamptz, (payload ->> 'duration')::bigint,
        (payload #>> '{tokens,prompt}')::integer, (payload #>> '{tokens,completion}')::integer,
        CASE WHEN (payload #>> '{tokens,total}')::bigint
                  <> (payload #>> '{tokens,prompt}')::bigint + (payload #>> '{tokens,completion}')::bigint
             THEN (payload #>> '{tokens,total}')::integer END,
        (payload ->> 'cached')::boolean, payload ->> 'ip', payload ->> 'userAgent',
        (payload ->> 'providerId')::bigint, payload ->> 'providerDefaultModel', call.webhook_id, call_id)
    RETURNING id INTO new_id;
    RETURN new_id;
END
$$;

COMMENT ON FUNCTION relay.replay(bigint) IS
    'Inserts an outbox row that repeats one call, to its webhook only, and returns the row''s id. Fails when that webhook is gone or disabled. Repeated again when it is called again.';

CREATE FUNCTION relay.send_test(webhook_id bigint) RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    webhook record;
    new_id  bigint;
BEGIN
    PERFORM relay.require_own_webhooks();
    SELECT w.id, w.project_id, w.event, w.enabled
      INTO webhook
      FROM relay.webhooks w
     WHERE w.id = send_test.webhook_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no webhook % in relay.webhooks', send_test.webhook_id
            USING ERRCODE = 'no_data_found';
    ELSIF NOT webhook.enabled THEN
        RAISE EXCEPTION 'webhook % is disabled', send_test.webhook_id
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Only enabled webhooks are called. Enable it first.';
    END IF;
    INSERT INTO relay.outbox (
        event, project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens, user_agent,
        webhook_id)
    VALUES (webhook.event, webhook.project_id, 0, 'promptpal-relay test', 0, 0, 0, 0, 'promptpal-relay', webhook.id)
    RETURNING id INTO new_id;
    RETURN new_id;
END
$$;

COMMENT ON FUNCTION relay.send_test(bigint) IS
    'Inserts an outbox row with a test event (prompt 0, user "promptpal-relay test") for one webhook and returns the row''s id.';

-- Failures that are open: nothing has repeated the call, and nothing is about to. Of several calls for the same event and
-- webhook only the last one can be open, so that each event is repeated once.
--
-- Only replays make a second call for the same event and webhook, so the partial indexes of replays find all later calls,
-- whatever the application has inserted. A plain query would lock all partitions, because now() is no constant when
-- Postgres plans. The statement is planned with the times, and touches the partitions of the span. Each time is a
-- parameter: Postgres computes no time of an expression when it plans. A later call starts later, unless a clock jumps:
-- it may be a day off.
CREATE FUNCTION relay.open_failures_since(since timestamptz, most integer, of_webhook bigint DEFAULT NULL,
                                          before timestamptz DEFAULT NULL, of_kind text DEFAULT NULL)
    RETURNS TABLE (call_id bigint, event_id uuid, start_time timestamptz, webhook_id bigint, project_id bigint,
                   trace_id text, url text, error_kind text, status_code integer, error_message text)
    LANGUAGE plpgsql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    RETURN QUERY EXECUTE $query$
        SELECT c.id, c.event_id, c.start_time, c.webhook_id, c.project_id, c.trace_id, c.url, c.error_kind, c.status_code,
               c.error_message
          FROM relay.webhook_calls c
         WHERE NOT c.succeeded
           AND c.start_time >= $1
           AND ($3 IS NULL OR c.webhook_id = $3)
           AND ($4 IS NULL OR c.start_time < $4)
           AND ($5 IS NULL OR c.error_kind = $5)
           AND NOT EXISTS (SELECT
                             FROM relay.webhook_calls l
                            WHERE l.replay_of IS NOT NULL
                              AND l.event_id = c.event_id
                              AND l.webhook_id = c.webhook_id
                              AND l.id > c.id
                              AND l.start_time >= $6)
           AND NOT EXISTS (SELECT
                             FROM relay.outbox o
                            WHERE o.replay_of IS NOT NULL
                              AND o.done_at IS NULL
                              AND o.event_id = c.event_id
                              AND o.webhook_id = c.webhook_id)
         ORDER BY c.start_time DESC, c.id DESC
         LIMIT $2
    $query$ USING since, most, of_webhook, before, of_kind, since - interval '1 day';
END
$$;

COMMENT ON FUNCTION relay.open_failures_since(timestamptz, integer, bigint, timestamptz, text) IS
    'Failed calls since then that no later call has repeated and no pending row is about to repeat, newest first, at most so many. Of one webhook, started before a time, and of one error_kind, if given. See relay.open_failures.';

-- Whether a later call has repeated one. Planned with the time, as above.
CREATE FUNCTION relay.is_repeated(event uuid, webhook bigint, call_id bigint, since timestamptz) RETURNS boolean
    LANGUAGE plpgsql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    repeated boolean;
BEGIN
    EXECUTE $query$
        SELECT EXISTS (SELECT
                         FROM relay.webhook_calls l
                        WHERE l.replay_of IS NOT NULL
                          AND l.event_id = $1
                          AND l.webhook_id = $2
                          AND l.id > $3
                          AND l.start_time >= $4)
    $query$ INTO repeated USING event, webhook, call_id, since - interval '1 day';
    RETURN repeated;
END
$$;

COMMENT ON FUNCTION relay.is_repeated(uuid, bigint, bigint, timestamptz) IS
    'Whether a call after this one, for the same event and webhook, is in the log.';

-- The projects for whose events a webhook is called: its own project, or none when it is gone or disabled.
CREATE FUNCTION relay.callable_for(webhook bigint) RETURNS SETOF bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    PERFORM relay.require_own_webhooks();
    RETURN QUERY
    SELECT w.project_id
      FROM relay.webhooks w
     WHERE w.id = webhook
       AND w.project_id IS NOT NULL
       AND w.enabled;
END
$$;

COMMENT ON FUNCTION relay.callable_for(bigint) IS
    'The project whose calls of this webhook can be repeated. No row: the webhook is gone or disabled.';

-- The locks of the sessions that repeat failures. A session locks one row for each webhook, and the row's number is the
-- last six bits of the webhook's id. These are locks of rows and not advisory locks: to lock a row takes rights on its
-- table, and any role that can connect may hold an advisory lock.
CREATE TABLE relay.replays (
    slot  bigint NOT NULL,
    CONSTRAINT replays_pkey PRIMARY KEY (slot),
    CONSTRAINT replays_slot_in_range CHECK (slot BETWEEN 0 AND 63)
);

COMMENT ON TABLE relay.replays IS
    'Rows that relay.replay_failed() locks, so that two sessions do not repeat the same call. There are always 64, and no statement changes them.';
COMMENT ON COLUMN relay.replays.slot IS 'The last six bits of a webhook''s id.';

INSERT INTO relay.replays (slot)
SELECT n
  FROM generate_series(0, 63) AS n;

-- Repeats failures that are still open, and says which rows it inserted. Two that run at once repeat each call once: the
-- function locks a row of relay.replays, and checks once more under the lock. It never waits for that lock. It must see what
-- another transaction has committed by then, so it wants read committed.
CREATE FUNCTION relay.replay_failed(call_ids bigint[]) RETURNS SETOF bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    wanted     bigint;
    call       record;
    locked     bigint[] := '{}';
    busy       bigint[] := '{}';
    busy_calls integer := 0;
    uncallable integer := 0;
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'relay.replay_failed needs a transaction that is read committed, this one is %', current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state', HINT = 'BEGIN ISOLATION LEVEL READ COMMITTED.';
    ELSIF cardinality(call_ids) > 1000 THEN
        RAISE EXCEPTION 'relay.replay_failed repeats at most 1000 calls at once, these are %', cardinality(call_ids)
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Take fewer (LIMIT 500), commit, and repeat the statement until it inserts none.';
    ELSIF (SELECT count(*) FROM relay.replays) <> 64 THEN
        -- Without its row a webhook's calls would seem busy for ever.
        RAISE EXCEPTION 'relay.replays lacks some of the 64 rows that migrate inserted'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'INSERT INTO relay.replays SELECT generate_series(0, 63) ON CONFLICT DO NOTHING.';
    END IF;
    PERFORM relay.require_own_webhooks();
    FOREACH wanted IN ARRAY call_ids LOOP
        SELECT c.id, c.event_id, c.webhook_id, c.project_id, c.start_time, c.succeeded
          INTO call
          FROM relay.call_by_id(wanted) c;
        CONTINUE WHEN NOT FOUND
                   OR call.succeeded;
        IF call.webhook_id & 63 <> ALL (locked || busy) THEN
            PERFORM
               FROM relay.replays r
              WHERE r.slot = call.webhook_id & 63
                FOR UPDATE SKIP LOCKED;
            IF FOUND THEN
                locked := locked || (call.webhook_id & 63);
            ELSE
                busy := busy || (call.webhook_id & 63);
            END IF;
        END IF;
        IF call.webhook_id & 63 = ANY (busy) THEN
            busy_calls := busy_calls + 1;
            CONTINUE;
        END IF;
        -- A statement of its own: it sees what was committed before the lock was free.
        CONTINUE WHEN EXISTS (SELECT
                                FROM relay.outbox o
                               WHERE o.replay_of IS NOT NULL
                                 AND o.done_at IS NULL
                                 AND o.event_id = call.event_id
                                 AND o.webhook_id = call.webhook_id)
                   OR relay.is_repeated(call.event_id, call.webhook_id, call.id, call.start_time);
        -- One such call must not stop the others.
        IF NOT EXISTS (SELECT
                         FROM relay.webhooks w
                        WHERE w.id = call.webhook_id
                          AND w.project_id = call.project_id
                          AND w.enabled) THEN
            uncallable := uncallable + 1;
            CONTINUE;
        END IF;
        RETURN NEXT relay.replay(wanted);
    END LOOP;
    IF busy_calls > 0 THEN
        RAISE NOTICE '% calls are left out: another session is repeating calls', busy_calls;
    END IF;
    IF uncallable > 0 THEN
        RAISE NOTICE '% calls are left out: their webhooks are gone, disabled or of another project', uncallable;
    END IF;
END
$$;

COMMENT ON FUNCTION relay.replay_failed(bigint[]) IS
    'Repeats those of these calls, 1,000 at most, that failed and are open (relay.open_failures), and returns the ids of the new outbox rows. Can be called twice, and by two at once. Leaves out what is pending or was repeated, what another session is repeating, and calls whose webhook is gone, disabled or of another project.';

REVOKE ALL ON FUNCTION relay.open_failures_since(timestamptz, integer, bigint, timestamptz, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.is_repeated(uuid, bigint, bigint, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.callable_for(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.replay_failed(bigint[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.replay(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.send_test(bigint) FROM PUBLIC;
