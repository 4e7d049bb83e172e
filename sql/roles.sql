-- Group roles and what they may do. Run by every migrate, after the migrations: it can be repeated, and a role that
-- a DBA made in the meantime gets its privileges then. Roles belong to the whole cluster and need CREATEROLE; where
-- that is missing, a warning says what is to be done.

DO $$
DECLARE
    role    text;
    purpose text;
BEGIN
    FOR role, purpose IN VALUES
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

    -- Inserts events, and owns the webhooks' rows.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'relay_app') THEN
        GRANT USAGE ON SCHEMA relay TO relay_app;
        GRANT SELECT ON relay.outbox, relay.migrations TO relay_app;
        GRANT INSERT (created_at, event, trace_id, project_id, prompt_id, user_id, result, finished_at, duration_ms,
                      prompt_tokens, completion_tokens, total_tokens, cached, ip, user_agent, provider_id,
                      provider_default_model, webhook_id, replay_of)
            ON relay.outbox TO relay_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON relay.webhooks TO relay_app;
        GRANT EXECUTE ON FUNCTION relay.replay(bigint), relay.send_test(bigint), relay.url_problem(text) TO relay_app;
    END IF;

    -- What `run` needs and no more.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'relay_daemon') THEN
        GRANT USAGE ON SCHEMA relay TO relay_daemon;
        GRANT SELECT, DELETE ON relay.outbox TO relay_daemon;
        GRANT UPDATE (claimed_by, done_at, parked) ON relay.outbox TO relay_daemon;
        GRANT SELECT ON relay.webhooks, relay.migrations TO relay_daemon;
        GRANT SELECT, INSERT ON relay.webhook_calls TO relay_daemon;
        GRANT USAGE ON SEQUENCE relay.webhook_calls_id_seq TO relay_daemon;
        GRANT SELECT, INSERT, UPDATE, DELETE ON relay.instances TO relay_daemon;
        GRANT SELECT, INSERT, DELETE ON relay.instances_since_crash TO relay_daemon;
        GRANT SELECT, INSERT, UPDATE (seen_at, steady_since, next_at, completed_at, dropped_at) ON relay.retention TO relay_daemon;
        GRANT EXECUTE ON FUNCTION relay.cut_text(text), relay.cut_long_text(text), relay.make_call_partition(date),
                                  relay.drop_call_partition(text, timestamptz),
                                  relay.delete_stray_calls(timestamptz, integer), relay.call_partitions(),
                                  relay.is_daemon(oid), relay.daemon_locks()
            TO relay_daemon;
    END IF;

    -- Reads everything but signing secrets.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'relay_reader') THEN
        GRANT USAGE ON SCHEMA relay TO relay_reader;
        GRANT SELECT ON relay.outbox, relay.webhook_calls, relay.instances, relay.instances_since_crash, relay.retention,
                        relay.migrations, relay.backlog,
                        relay.in_flight, relay.webhook_health, relay.recent_failures
            TO relay_reader;
        GRANT SELECT (id, project_id, name, description, url, event, enabled, created_at, updated_at)
            ON relay.webhooks TO relay_reader;
        GRANT SELECT ON SEQUENCE relay.webhook_calls_id_seq TO relay_reader;
        GRANT EXECUTE ON FUNCTION relay.url_problem(text), relay.call_by_id(bigint), relay.webhook_health_since(timestamptz),
                                  relay.failures_since(timestamptz, integer), relay.is_daemon(oid), relay.daemon_locks()
            TO relay_reader;
    END IF;
END
$$;
