-- The group roles, what they may do, and the owner of the schema.
--
-- Every migrate runs this file after the migrations. It can be repeated, and grants a role that a DBA made in the meantime
-- its privileges. Roles belong to the whole cluster, and making them needs CREATEROLE. A user without it gets a warning
-- that says what to do.

DO $$
DECLARE
    role    text;
    purpose text;
    -- The owner of the schema when this began.
    before  oid := (SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = 'relay');
    command text;
    left_over text;
BEGIN
    FOR role, purpose IN VALUES
        ('relay_owner',  'promptpal-relay: owns the schema relay and its functions. Nobody logs in as it.'),
        ('relay_app',    'promptpal-relay: inserts events, owns the webhooks'' rows.'),
        ('relay_daemon', 'promptpal-relay: what the daemon needs and no more.'),
        ('relay_reader', 'promptpal-relay: reads everything but signing secrets.')
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = role);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXECUTE format('COMMENT ON ROLE %I IS %L', role, purpose);
        EXCEPTION
            -- Another migrate, on another database of this cluster, was faster.
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE WARNING 'role % is missing and % may not create it: as a superuser run CREATE ROLE % NOLOGIN, then migrate again',
                    role, current_user, role;
        END;
    END LOOP;

    -- The functions of the schema run with the rights of their owner. Their owner must not be a superuser, nor a user who
    -- owns other things, so all of it goes to relay_owner. This hands over only what belongs to a superuser, to the
    -- current user or to the schema's owner until now. What others made in the schema keeps their rights, which are less.
    -- A DBA's views stay with the DBA, also one in the place of relay.webhooks: they read other tables with the rights of
    -- their owner. The feed stays with the owner of PromptPal's tables (sql/promptpal/install.sql).
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'relay_owner' AND (rolcanlogin OR rolsuper)) THEN
        RAISE WARNING 'role relay_owner may log in or is a superuser, and owns nothing: run ALTER ROLE relay_owner NOLOGIN NOSUPERUSER, then migrate again';
    ELSIF EXISTS (SELECT FROM pg_roles WHERE rolname = 'relay_owner') THEN
        BEGIN
            -- A user who is no superuser can hand over only to a role that it is a member of, and needs the membership for
            -- the next migrate, too. Before Postgres 16 CREATEROLE is enough to grant it. From 16 on the creator of the role
            -- may grant it.
            IF current_user <> 'relay_owner' AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                BEGIN
                    EXECUTE format('GRANT relay_owner TO %I', current_user);
                EXCEPTION WHEN insufficient_privilege THEN
                    -- Another user may have granted it before.
                    NULL;
                END;
            END IF;
            IF pg_get_userbyid(before) <> 'relay_owner' THEN
                ALTER SCHEMA relay OWNER TO relay_owner;
            END IF;
            FOR command IN
                WITH theirs AS (
                    SELECT r.oid
                      FROM pg_roles r
                     WHERE r.rolname <> 'relay_owner'
                       AND (r.rolsuper OR r.rolname = current_user OR r.oid = before)
                )
                SELECT format('ALTER %s %s OWNER TO relay_owner',
                              CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, c.oid::regclass)
                  FROM pg_class c
                  JOIN theirs t
                    ON t.oid = c.relowner
                 WHERE c.relnamespace = 'relay'::regnamespace
                   AND (c.relkind IN ('r', 'p')
                        OR c.relkind = 'v' AND c.relname IN ('backlog', 'in_flight', 'webhook_health', 'recent_failures', 'open_failures')
                        -- The sequence of a column follows its table.
                        OR c.relkind = 'S' AND NOT EXISTS (SELECT
                                                             FROM pg_depend d
                                                            WHERE d.classid = 'pg_class'::regclass
                                                              AND d.objid = c.oid
                                                              AND d.refclassid = 'pg_class'::regclass
                                                              AND d.deptype IN ('a', 'i')))
                 UNION ALL
                SELECT format('ALTER ROUTINE %s OWNER TO relay_owner', p.oid::regprocedure)
                  FROM pg_proc p
                  JOIN theirs t
                    ON t.oid = p.proowner
                 WHERE p.pronamespace = 'relay'::regnamespace
                   AND p.proname <> 'feed_outbox'
            LOOP
                EXECUTE command;
            END LOOP;
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'the schema relay and its functions stay with %: % (as a superuser run migrate, or GRANT relay_owner TO %, then migrate again)',
                pg_get_userbyid(before), SQLERRM, current_user;
        END;
    END IF;
    SELECT string_agg(format('%s (%s)', f.oid::regprocedure, f.proowner::regrole), ', ' ORDER BY f.oid::regprocedure::text)
      INTO left_over
      FROM pg_proc f
      JOIN pg_roles r
        ON r.oid = f.proowner
     WHERE f.pronamespace = 'relay'::regnamespace
       AND f.prosecdef
       AND r.rolsuper;
    IF left_over IS NOT NULL THEN
        RAISE WARNING 'functions in the schema relay run with the rights of a superuser: %: as a superuser run migrate; if that was done, ALTER FUNCTION … OWNER TO relay_owner, or run sql/promptpal/install.sql again', left_over;
    END IF;

    -- relay.replay also reads a view that a DBA put in the place of relay.webhooks.
    SELECT format('GRANT SELECT ON relay.webhooks TO %s', n.nspowner::regrole)
      INTO command
      FROM pg_class c
      JOIN pg_namespace n
        ON n.oid = c.relnamespace
     WHERE c.oid = 'relay.webhooks'::regclass
       AND NOT has_table_privilege(n.nspowner, c.oid, 'SELECT');
    IF FOUND THEN
        EXECUTE command;
    END IF;

    -- Inserts events, and owns the webhooks' rows.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'relay_app') THEN
        GRANT USAGE ON SCHEMA relay TO relay_app;
        GRANT SELECT ON relay.outbox, relay.migrations, relay.pauses TO relay_app;
        -- The id, too: programs that map objects to rows write DEFAULT there.
        GRANT INSERT (id, created_at, event, event_id, trace_id, traceparent, project_id, prompt_id, user_id, result,
                      finished_at, duration_ms, prompt_tokens, completion_tokens, total_tokens, cached, ip, user_agent, provider_id,
                      provider_default_model, webhook_id, replay_of)
            ON relay.outbox TO relay_app;
        GRANT SELECT ON relay.webhooks TO relay_app;
        -- A write through a view has the rights of the view's owner.
        IF (SELECT c.relkind FROM pg_class c WHERE c.oid = 'relay.webhooks'::regclass) = 'r' THEN
            GRANT INSERT, UPDATE, DELETE ON relay.webhooks TO relay_app;
        END IF;
        GRANT EXECUTE ON FUNCTION relay.replay(bigint), relay.replay_failed(bigint[]), relay.callable_for(bigint),
                                  relay.send_test(bigint), relay.url_problem(text),
                                  relay.secret_problem(text), relay.pause_webhook(bigint, text, timestamptz),
                                  relay.pause_project(bigint, text, timestamptz), relay.resume_webhook(bigint, boolean),
                                  relay.resume_project(bigint, boolean),
                                  relay.held_back_calls(bigint, bigint, timestamptz, integer)
            TO relay_app;
    END IF;

    -- What `run` needs and no more.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'relay_daemon') THEN
        GRANT USAGE ON SCHEMA relay TO relay_daemon;
        GRANT SELECT, DELETE ON relay.outbox TO relay_daemon;
        GRANT UPDATE (claimed_by, previous_owner, done_at, parked, without_call) ON relay.outbox TO relay_daemon;
        GRANT SELECT ON relay.webhooks, relay.migrations, relay.installation, relay.pauses TO relay_daemon;
        GRANT SELECT, INSERT ON relay.webhook_calls TO relay_daemon;
        GRANT USAGE ON SEQUENCE relay.webhook_calls_id_seq TO relay_daemon;
        GRANT SELECT, INSERT, UPDATE, DELETE ON relay.instances TO relay_daemon;
        GRANT SELECT, INSERT, DELETE ON relay.instances_since_crash TO relay_daemon;
        GRANT SELECT, INSERT, UPDATE (seen_at, steady_since, next_at, completed_at, dropped_at) ON relay.retention TO relay_daemon;
        GRANT EXECUTE ON FUNCTION relay.cut_text(text), relay.cut_long_text(text), relay.make_call_partition(date),
                                  relay.drop_call_partition(text, timestamptz),
                                  relay.delete_stray_calls(timestamptz, integer), relay.call_partitions(),
                                  relay.foreign_code(regclass, boolean), relay.is_daemon(oid), relay.daemon_locks(),
                                  relay.is_copy(), relay.pause_failing_webhook(bigint, timestamptz, text),
                                  relay.delete_ended_pauses(timestamptz), relay.pause_of(bigint, bigint)
            TO relay_daemon;
    END IF;

    -- Reads everything but signing secrets.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'relay_reader') THEN
        GRANT USAGE ON SCHEMA relay TO relay_reader;
        GRANT SELECT ON relay.outbox, relay.webhook_calls, relay.instances, relay.instances_since_crash, relay.retention,
                        relay.replays, relay.migrations, relay.installation, relay.accepted_copies, relay.pauses, relay.backlog,
                        relay.in_flight, relay.webhook_health, relay.recent_failures, relay.open_failures
            TO relay_reader;
        GRANT SELECT (id, project_id, name, description, url, event, enabled, created_at, updated_at)
            ON relay.webhooks TO relay_reader;
        GRANT SELECT ON SEQUENCE relay.webhook_calls_id_seq TO relay_reader;
        GRANT EXECUTE ON FUNCTION relay.url_problem(text), relay.call_by_id(bigint), relay.webhook_health_since(timestamptz),
                                  relay.failures_since(timestamptz, integer),
                                  relay.open_failures_since(timestamptz, integer, bigint, timestamptz, text), relay.is_daemon(oid),
                                  relay.daemon_locks(), relay.is_copy(), relay.webhook_names(bigint[])
            TO relay_reader;
    END IF;

    -- Postgres lets everybody read the system identifier, unless a DBA has revoked that.
    FOR role IN
        SELECT r.rolname
          FROM pg_roles r
         WHERE r.rolname IN ('relay_owner', 'relay_daemon', 'relay_reader')
           AND NOT has_function_privilege(r.oid, 'pg_control_system()', 'EXECUTE')
    LOOP
        IF has_function_privilege('pg_control_system()', 'EXECUTE WITH GRANT OPTION') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION pg_control_system() TO %I', role);
        ELSE
            RAISE WARNING 'role % may not ask which server this is: as a superuser run GRANT EXECUTE ON FUNCTION pg_control_system() TO %',
                role, role;
        END IF;
    END LOOP;
END
$$;
