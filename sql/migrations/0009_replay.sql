-- Replay: people repeat a call, or send a test event.
--
-- Each function inserts an outbox row for one webhook, inside the caller's own transaction. It runs with the rights of
-- its owner, so that the caller needs no right on the tables. A webhook that is gone or disabled is an error: the daemon
-- would mark the row done without a call, and tell nobody.

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
    -- Else the row would be done without a call, and nobody told.
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

REVOKE ALL ON FUNCTION relay.replay(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.send_test(bigint) FROM PUBLIC;
