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
COMMENT ON COLUMN relay.pauses.created_by IS 'The login that paused; of a daemon (--pause-failing) promptpal-relay, and its login.';
COMMENT ON COLUMN relay.pauses.until IS 'When the pause ends by itself; null: when an operator resumes.';

-- The pause in force of a webhook, for the claim: whose it is ('webhook: ' or 'project: ') and its reason; null: the webhook
-- may be called. The webhook's own pause comes first.
CREATE FUNCTION relay.pause_of(webhook bigint, project bigint) RETURNS text
    LANGUAGE sql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
RETURN coalesce((SELECT 'webhook: ' || p.reason
                   FROM relay.pauses p
                  WHERE p.webhook_id = webhook
                    AND (p.until IS NULL OR p.until > now())),
                (SELECT 'project: ' || p.reason
                   FROM relay.pauses p
                  WHERE p.project_id = project
                    AND (p.until IS NULL OR p.until > now())));

COMMENT ON FUNCTION relay.pause_of(bigint, bigint) IS
    'Why a webhook of a project is not called at present: ''webhook: '' or ''project: '' and the reason of the pause; null: it may be called.';

REVOKE ALL ON FUNCTION relay.pause_of(bigint, bigint) FROM PUBLIC;

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
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give a time to come, or null: until an operator resumes.';
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

-- What can be repeated of the calls that were held back: open failures (relay.open_failures) of the kind 'paused'. A replay
-- that is held back itself is the last call for its event and webhook, and so it is the one that is open. A webhook that is
-- disabled, or belongs to another project by now, gets nothing: relay.replay() refuses its calls.
CREATE FUNCTION relay.held_back_calls(webhook bigint, project bigint, since timestamptz, most integer) RETURNS SETOF bigint
    LANGUAGE plpgsql
    STABLE
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    PERFORM relay.require_own_webhooks();
    RETURN QUERY
        SELECT f.call_id
          FROM relay.webhooks w
         CROSS JOIN LATERAL relay.open_failures_since(held_back_calls.since, 2147483647, w.id::bigint, NULL, 'paused') AS f
         WHERE w.enabled
           AND f.project_id = w.project_id
           AND (w.id = held_back_calls.webhook
                OR (held_back_calls.webhook IS NULL
                    AND w.project_id = held_back_calls.project
                    AND NOT EXISTS (SELECT
                                      FROM relay.pauses p
                                     WHERE p.webhook_id = w.id
                                       AND (p.until IS NULL OR p.until > now()))))
         ORDER BY f.start_time, f.call_id
         LIMIT held_back_calls.most;
END
$$;

COMMENT ON FUNCTION relay.held_back_calls(bigint, bigint, timestamptz, integer) IS
    'Calls since then that were not made for a pause and are open (relay.open_failures), the oldest first, at most so many. Of a webhook, or (null) of those webhooks of a project that are not paused themselves. What relay.replay_failed() takes.';

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
    RETURN (SELECT count(*)
              FROM relay.replay_failed(ARRAY(
                       SELECT h.call_id
                         FROM relay.held_back_calls(resume_webhook.id, NULL, least(paused_since - interval '1 hour', now() - interval '31 days'), 1000) AS h (call_id))));
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
    RETURN (SELECT count(*)
              FROM relay.replay_failed(ARRAY(
                       SELECT h.call_id
                         FROM relay.held_back_calls(NULL, resume_project.id, least(paused_since - interval '1 hour', now() - interval '31 days'), 1000) AS h (call_id))));
END
$$;

COMMENT ON FUNCTION relay.resume_project(bigint, boolean) IS
    'Calls the webhooks of a project again, except those that are paused themselves; see relay.resume_webhook().';

-- For the daemon, with --pause-failing. Each instance knows only its own calls, so the log decides: a webhook that has
-- taken an event of any project since then is not paused. The plan has the time as a constant, as above.
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
REVOKE ALL ON FUNCTION relay.held_back_calls(bigint, bigint, timestamptz, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.resume_webhook(bigint, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.resume_project(bigint, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.pause_failing_webhook(bigint, timestamptz, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.delete_ended_pauses(timestamptz) FROM PUBLIC;
