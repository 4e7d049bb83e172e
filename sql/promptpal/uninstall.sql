-- Takes out what install.sql put in. PromptPal's tables are then as they were, and keep the call logs that were mirrored
-- into them; relay.webhooks is the empty table again that it was.
--
--     psql -v ON_ERROR_STOP=1 -v promptpal_schema=public -f sql/promptpal/uninstall.sql app

\if :{?promptpal_schema}
\else
    \set promptpal_schema public
\endif

BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '3s';
DROP TRIGGER IF EXISTS promptpal_relay_feed ON :"promptpal_schema".prompt_calls;
DROP FUNCTION IF EXISTS relay.feed_outbox();
DROP TRIGGER IF EXISTS mirror_calls ON relay.webhook_calls;
DROP FUNCTION IF EXISTS relay.mirror_calls();
DROP FUNCTION IF EXISTS relay.flat_headers(jsonb);
DROP INDEX IF EXISTS :"promptpal_schema".promptpal_relay_webhook_project;

DO $uninstall$
BEGIN
    IF to_regclass('relay.webhooks_before_promptpal') IS NOT NULL THEN
        DROP VIEW relay.webhooks;
        ALTER TABLE relay.webhooks_before_promptpal RENAME TO webhooks;
    END IF;
END
$uninstall$;
COMMIT;
