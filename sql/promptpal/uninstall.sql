-- Takes out what install.sql put in. PromptPal's tables are then as they were, and keep the call logs that were mirrored
-- into them; relay.webhooks is the empty table again that it was. Run it as the user who ran install.sql.
--
--     psql -v ON_ERROR_STOP=1 -v promptpal_schema=public -f sql/promptpal/uninstall.sql app

\if :{?promptpal_schema}
\else
    \set promptpal_schema public
\endif

BEGIN;
-- As in install.sql.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL row_security = off;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '3s';
SELECT set_config('promptpal.schema', :'promptpal_schema', true) AS promptpal_schema
\gset
DROP TRIGGER IF EXISTS promptpal_relay_feed ON :"promptpal_schema".prompt_calls;
DROP FUNCTION IF EXISTS relay.feed_outbox();
DROP TRIGGER IF EXISTS mirror_calls ON relay.webhook_calls;
DROP FUNCTION IF EXISTS relay.mirror_calls();
DROP FUNCTION IF EXISTS relay.flat_headers(jsonb);
DROP INDEX IF EXISTS :"promptpal_schema".promptpal_relay_webhook_project;

DO $uninstall$
DECLARE
    promptpal   text := current_setting('promptpal.schema');
    relay_owner name := (SELECT pg_get_userbyid(n.nspowner) FROM pg_namespace n WHERE n.nspname = 'relay');
    name        text;
    table_owner name;
    ids         text;
BEGIN
    IF to_regclass('relay.webhooks_before_promptpal') IS NOT NULL THEN
        DROP VIEW relay.webhooks;
        ALTER TABLE relay.webhooks_before_promptpal RENAME TO webhooks;
    END IF;
    FOREACH name IN ARRAY ARRAY['webhooks', 'webhook_calls', 'providers'] LOOP
        SELECT pg_get_userbyid(c.relowner)
          INTO table_owner
          FROM pg_class c
         WHERE c.oid = to_regclass(format('%I.%I', promptpal, name));
        -- An owner keeps what is its own.
        CONTINUE WHEN NOT FOUND OR table_owner = relay_owner;
        EXECUTE format('REVOKE ALL ON %I.%I FROM %I', promptpal, name, relay_owner);
        ids := pg_get_serial_sequence(format('%I.%I', promptpal, name), 'id');
        IF ids IS NOT NULL THEN
            EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM %I', ids, relay_owner);
        END IF;
        EXECUTE format('REVOKE INSERT (project_id, prompt_id, user_id, result, finished_at, duration_ms, prompt_tokens,
                                       completion_tokens, total_tokens, cached, ip, user_agent, provider_id,
                                       provider_default_model) ON relay.outbox FROM %I', table_owner);
        EXECUTE format('REVOKE USAGE ON SCHEMA relay FROM %I', table_owner);
    END LOOP;
    IF (SELECT n.nspowner <> relay_owner::regrole FROM pg_namespace n WHERE n.nspname = promptpal) THEN
        EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM %I', promptpal, relay_owner);
    END IF;
END
$uninstall$;
COMMIT;
