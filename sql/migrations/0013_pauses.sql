-- The pauses: which webhooks are not called at present.
--
-- A pause names a webhook, or a project with all of its webhooks. The claim reads the pauses, so a pause holds for every
-- claim that begins after its commit. A call that is not made has its row in the call log, with error_kind 'paused', so
-- that people can repeat it later. The table has no foreign key to relay.webhooks, which may be a view.
--
-- The functions for people run with the rights of their owner, inside the caller's own transaction. The daemon pauses by a
-- function of its own, which overrides no pause of a person.

CREATE TABLE relay.pauses (
    webhook_id  bigint,
    project_id  bigint,
    reason      text        NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    created_by  text        NOT NULL DEFAULT session_user,
    until       timestamptz,
    CONSTRAINT pauses_of_a_webhook UNIQUE (webhook_id),
    CONSTRAINT pauses_of_a_project UNIQUE (project_id),
    CONSTRAINT pauses_names_one CHECK (num_nonnulls(webhook_id, project_id) = 1),
    -- Each call that is not made has the reason in its log.
    CONSTRAINT pauses_reason_short CHECK (char_length(reason) <= 1000),
    CONSTRAINT pauses_until_finite CHECK (until > '-infinity' AND until < 'infinity')
);

-- No column is in each row, so there is no primary key. Postgres refuses to update and delete in a published table that
-- has no replica identity.
ALTER TABLE relay.pauses REPLICA IDENTITY FULL;

COMMENT ON TABLE relay.pauses IS
    'Who is not called at present: webhooks, and projects with all of their webhooks. Written by relay.pause_webhook() and its like.';
COMMENT ON COLUMN relay.pauses.webhook_id IS 'The webhook that is not called; null: all of a project. It may be gone.';
COMMENT ON COLUMN relay.pauses.project_id IS 'The project whose webhooks are not called; null: one webhook.';
COMMENT ON COLUMN relay.pauses.reason IS 'Why, for people; at most 1,000 characters. The log of each call that is not made has it.';
COMMENT ON COLUMN relay.pauses.created_at IS 'Since when. A pause that is changed before its end keeps this time.';
COMMENT ON COLUMN relay.pauses.created_by IS 'The login of whoever paused; of a daemon (--pause-failing) promptpal-relay, and its login.';
COMMENT ON COLUMN relay.pauses.until IS 'When the pause ends by itself; null: when somebody resumes.';

-- Which calls are repeated already. Few rows repeat a call, so the index costs an insert of the application nothing.
CREATE INDEX outbox_replay_of ON relay.outbox (replay_of) WHERE replay_of IS NOT NULL;

-- Writes one pause; which of the two ids is null says of what.
CREATE FUNCTION relay.write_pause(webhook bigint, project bigint, why text, ends timestamptz) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    finite_end timestamptz := nullif(ends, 'infinity');
BEGIN
    IF finite_end <= clock_timestamp() THEN
        RAISE EXCEPTION 'a pause until % would be over already', finite_end
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give a time to come, or null: until somebody resumes.';
    ELSIF char_length(why) > 1000 THEN
        RAISE EXCEPTION 'the reason has % characters; a pause keeps at most 1000', char_length(why)
            USING ERRCODE = 'string_data_right_truncation';
    END IF;
    IF webhook IS NOT NULL THEN
        INSERT INTO relay.pauses AS p (webhook_id, reason, until)
        VALUES (webhook, coalesce(why, ''), finite_end)
            ON CONFLICT (webhook_id) DO UPDATE
           SET reason = excluded.reason,
               until = excluded.until,
               created_by = excluded.created_by,
               created_at = CASE WHEN p.until <= now() THEN excluded.created_at ELSE p.created_at END;
    ELSE
        INSERT INTO relay.pauses AS p (project_id, reason, until)
        VALUES (project, coalesce(why, ''), finite_end)
            ON CONFLICT (project_id) DO UPDATE
           SET reason = excluded.reason,
               until = excluded.until,
               created_by = excluded.created_by,
               created_at = CASE WHEN p.until <= now() THEN excluded.created_at ELSE p.created_at END;
    END IF;
END
$$;

COMMENT ON FUNCTION relay.write_pause(bigint, bigint, text, timestamptz) IS
    'Writes a pause; called by relay.pause_webhook() and relay.pause_project().';

CREATE FUNCTION relay.pause_webhook(id bigint, reason text DEFAULT '', until timestamptz DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    IF pause_webhook.id IS NULL THEN
        RAISE EXCEPTION 'no webhook is given' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    -- Who pauses is in a hurry. Where the webhooks cannot be read, the pause is made all the same.
    BEGIN
        PERFORM relay.require_own_webhooks();
        PERFORM FROM relay.webhooks w WHERE w.id = pause_webhook.id;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'there is no webhook % in relay.webhooks', pause_webhook.id
                USING ERRCODE = 'no_data_found';
        END IF;
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE WARNING 'webhook % is paused, and whether there is one is not known: %', pause_webhook.id, SQLERRM;
    END;
    PERFORM relay.write_pause(pause_webhook.id, NULL, pause_webhook.reason, pause_webhook.until);
END
$$;

COMMENT ON FUNCTION relay.pause_webhook(bigint, text, timestamptz) IS
    'Stops calling a webhook, for a reason, until a time or (null) until relay.resume_webhook(). Holds for every claim that begins after the commit; calls that are not made are logged as paused. Of a webhook that is paused already it changes reason and end.';

CREATE FUNCTION relay.pause_project(id bigint, reason text DEFAULT '', until timestamptz DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    IF pause_project.id IS NULL THEN
        RAISE EXCEPTION 'no project is given' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    -- Which projects there are only the application knows. A project without webhooks may get some later.
    BEGIN
        PERFORM relay.require_own_webhooks();
        PERFORM FROM relay.webhooks w WHERE w.project_id = pause_project.id LIMIT 1;
        IF NOT FOUND THEN
            RAISE WARNING 'project % is paused, and has no webhook at present', pause_project.id;
        END IF;
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE WARNING 'project % is paused, and whether it has webhooks is not known: %', pause_project.id, SQLERRM;
    END;
    PERFORM relay.write_pause(NULL, pause_project.id, pause_project.reason, pause_project.until);
END
$$;

COMMENT ON FUNCTION relay.pause_project(bigint, text, timestamptz) IS
    'Stops calling all webhooks of a project, those to come included; see relay.pause_webhook().';

-- A call is held back when it was not made for a pause, and nothing has repeated it: neither a row of the outbox names it,
-- nor is there a later call for the same event and webhook. A replay copies the trace and the payload of what it repeats,
-- so these two tell the event. The row that repeats a call is deleted some time after it is done, and then its own call
-- log is there.
--
-- The plan has the time as a constant, so that Postgres locks only partitions of the span.
CREATE FUNCTION relay.held_back_calls(webhook_id bigint, since timestamptz) RETURNS SETOF bigint
    LANGUAGE plpgsql
    STABLE
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    RETURN QUERY EXECUTE $query$
        WITH held AS MATERIALIZED (
            SELECT c.id, c.trace_id, md5(c.request_body) AS body
              FROM relay.webhook_calls c
             WHERE c.webhook_id = $1
               AND NOT c.succeeded
               AND c.error_kind = 'paused'
               AND c.start_time >= $2
        ), later AS MATERIALIZED (
            SELECT c.trace_id, md5(c.request_body) AS body, max(c.id) AS last_id
              FROM relay.webhook_calls c
             WHERE c.webhook_id = $1
               AND c.start_time >= $2
               AND c.id > (SELECT min(h.id) FROM held h)
             GROUP BY c.trace_id, md5(c.request_body)
        )
        SELECT h.id
          FROM held h
          LEFT JOIN later l
            ON l.trace_id = h.trace_id
           AND l.body = h.body
         WHERE coalesce(l.last_id <= h.id, true)
           AND NOT EXISTS (SELECT FROM relay.outbox o WHERE o.replay_of = h.id)
         ORDER BY h.id
    $query$ USING held_back_calls.webhook_id, held_back_calls.since;
END
$$;

COMMENT ON FUNCTION relay.held_back_calls(bigint, timestamptz) IS
    'Calls of a webhook since then that were not made for a pause, and that nothing has repeated; the oldest first.';

CREATE FUNCTION relay.replay_held_back(call_ids bigint[]) RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    call_id bigint;
    rows    bigint := 0;
BEGIN
    -- With an older snapshot it would not see what another session has repeated meanwhile.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'calls that were held back are repeated in a READ COMMITTED transaction only'
            USING ERRCODE = 'invalid_transaction_state', HINT = 'BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;
    -- One session at a time, until its transaction ends: two that repeat the same calls would each insert them. Nobody else
    -- waits for this lock: it conflicts with itself, and not with reading or writing pauses.
    LOCK TABLE relay.pauses IN SHARE UPDATE EXCLUSIVE MODE;
    FOREACH call_id IN ARRAY call_ids LOOP
        IF NOT EXISTS (SELECT FROM relay.outbox o WHERE o.replay_of = call_id) THEN
            PERFORM relay.replay(call_id);
            rows := rows + 1;
        END IF;
    END LOOP;
    RETURN rows;
END
$$;

COMMENT ON FUNCTION relay.replay_held_back(bigint[]) IS
    'Repeats those of the calls that no row of the outbox repeats yet, and returns how many: it can be run again, and by two at once.';

CREATE FUNCTION relay.resume_webhook(id bigint, replay boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    paused_since timestamptz;
    webhook      record;
BEGIN
    DELETE FROM relay.pauses p
     WHERE p.webhook_id = resume_webhook.id
    RETURNING p.created_at INTO paused_since;
    IF NOT coalesce(replay, false) THEN
        RETURN 0;
    END IF;
    PERFORM relay.require_own_webhooks();
    SELECT w.project_id, w.enabled INTO webhook FROM relay.webhooks w WHERE w.id = resume_webhook.id;
    IF NOT FOUND OR NOT webhook.enabled THEN
        RAISE EXCEPTION 'what was held back of webhook % cannot be repeated: it is gone or disabled', resume_webhook.id
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Only enabled webhooks are called. Enable it first, or resume without replay.';
    ELSIF EXISTS (SELECT
                    FROM relay.pauses p
                   WHERE p.project_id = webhook.project_id
                     AND (p.until IS NULL OR p.until > now())) THEN
        RAISE EXCEPTION 'webhook % is still paused with its project %', resume_webhook.id, webhook.project_id
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Resume the project.';
    END IF;
    RETURN relay.replay_held_back(ARRAY(
        SELECT h.call_id
          FROM relay.held_back_calls(resume_webhook.id, least(paused_since - interval '1 hour', now() - interval '31 days')) AS h (call_id)
         LIMIT 1000));
END
$$;

COMMENT ON FUNCTION relay.resume_webhook(bigint, boolean) IS
    'Calls a webhook again. With replay it also repeats the oldest 1,000 calls that were held back, and returns how many: call it again until that is 0.';

CREATE FUNCTION relay.resume_project(id bigint, replay boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    paused_since timestamptz;
BEGIN
    DELETE FROM relay.pauses p
     WHERE p.project_id = resume_project.id
    RETURNING p.created_at INTO paused_since;
    IF NOT coalesce(replay, false) THEN
        RETURN 0;
    END IF;
    PERFORM relay.require_own_webhooks();
    RETURN relay.replay_held_back(ARRAY(
        SELECT h.call_id
          FROM relay.webhooks w
         CROSS JOIN LATERAL relay.held_back_calls(w.id, least(paused_since - interval '1 hour', now() - interval '31 days')) AS h (call_id)
         WHERE w.project_id = resume_project.id
           AND w.enabled
           AND NOT EXISTS (SELECT
                             FROM relay.pauses p
                            WHERE p.webhook_id = w.id
                              AND (p.until IS NULL OR p.until > now()))
         ORDER BY h.call_id
         LIMIT 1000));
END
$$;

COMMENT ON FUNCTION relay.resume_project(bigint, boolean) IS
    'Calls the webhooks of a project again, except those that are paused themselves; see relay.resume_webhook().';

-- For the daemon, with --pause-failing. Each instance knows only its own calls, so the log decides: a webhook that has
-- taken an event of anybody since then is not paused. The plan has the time as a constant, as above.
CREATE FUNCTION relay.pause_failing_webhook(id bigint, since timestamptz, reason text) RETURNS boolean
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    works boolean;
BEGIN
    EXECUTE 'SELECT EXISTS (SELECT
                              FROM relay.webhook_calls c
                             WHERE c.webhook_id = $1
                               AND c.succeeded
                               AND c.start_time >= $2)'
       INTO works
      USING pause_failing_webhook.id, since;
    IF works THEN
        RETURN false;
    END IF;
    INSERT INTO relay.pauses AS p (webhook_id, reason, created_by)
    VALUES (pause_failing_webhook.id, left(pause_failing_webhook.reason, 1000), 'promptpal-relay as ' || session_user)
        ON CONFLICT (webhook_id) DO UPDATE
       SET reason = excluded.reason,
           until = NULL,
           created_by = excluded.created_by,
           created_at = excluded.created_at
     WHERE p.until <= now();
    RETURN FOUND;
END
$$;

COMMENT ON FUNCTION relay.pause_failing_webhook(bigint, timestamptz, text) IS
    'For the daemon: pauses a webhook of which the log has no success since then. Whether it did; a pause that is there stays as it is.';

CREATE FUNCTION relay.delete_ended_pauses(before timestamptz) RETURNS bigint
    LANGUAGE sql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH ended AS (
        DELETE FROM relay.pauses p
         WHERE p.until < least(delete_ended_pauses.before, now())
        RETURNING p.until
    )
    SELECT count(*)
      FROM ended;
END;

COMMENT ON FUNCTION relay.delete_ended_pauses(timestamptz) IS
    'For the daemon: deletes pauses that ended before then, and returns how many. Never one that has not ended.';

REVOKE ALL ON FUNCTION relay.write_pause(bigint, bigint, text, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.pause_webhook(bigint, text, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.pause_project(bigint, text, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.held_back_calls(bigint, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.replay_held_back(bigint[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.resume_webhook(bigint, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.resume_project(bigint, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.pause_failing_webhook(bigint, timestamptz, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.delete_ended_pauses(timestamptz) FROM PUBLIC;
