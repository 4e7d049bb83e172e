-- Puts the relay beside an existing PromptPal database. Run it with psql, in the database that has both, after
-- promptpal-relay migrate, as a superuser, or as a member of relay_owner and of the role that owns PromptPal's tables:
--
--     psql -v ON_ERROR_STOP=1 -f sql/promptpal/install.sql app
--     psql -v ON_ERROR_STOP=1 -v promptpal_schema=public -v feed=on -f sql/promptpal/install.sql app
--
-- It can be run again; uninstall.sql takes it out. It does three things, in one transaction:
--
--   1. It makes relay.webhooks a view of PromptPal's webhooks, without signing secrets. The table that was there must be
--      empty, and stays as relay.webhooks_before_promptpal. While the view is there, Postgres lets no role drop the columns
--      that it reads, or change their types: id, webhook_project, name, description, url, event, enabled, create_time,
--      update_time. To change one, run uninstall.sql, change it, and run this again.
--   2. It mirrors each call log into PromptPal's webhook_calls, in the transaction that records it, except those of
--      webhooks that are gone. The mirror is a second copy, bodies included, and nothing here ever deletes it. It leaves a
--      call out when PromptPal's table refuses the row, when a session has a lock for more than a second, or when a table
--      or column is gone. The server's log then has a warning, and the relay writes its own record. The record waits only
--      while the server has no room on the disk or no memory, as it does without a mirror.
--   3. With feed=on, it inserts an event into relay.outbox for each row that is inserted into PromptPal's prompt_calls. It
--      brings values that the outbox forbids within its bounds: negative counts become 0, any result but 0 is a failure. It
--      passes over rows without project or prompt. When a column is gone, or a session has a lock for more than 0.3 s, the
--      server's log has a warning: the insert is made, and there is no event. When an insert is cancelled, or its
--      statement_timeout ends, while the event is inserted, the insert fails, as anywhere.
--
-- Whose rights are used. The feed runs with the rights of the owner of PromptPal's tables, in sessions that write there
-- anyway. The mirror runs in the daemon's session. Code of that owner must not run there at all, because it could leave
-- statements behind that run with the daemon's rights. So the mirror belongs to relay_owner, which may insert into
-- webhook_calls and read webhooks. It leaves all calls out while webhook_calls would run code of the owner's, by a trigger,
-- default, constraint, index or type (relay.foreign_code). A trigger whose function belongs to a superuser or to
-- relay_owner is no hindrance. Row level security on webhook_calls or webhooks stops the mirror, too. relay_owner then
-- needs BYPASSRLS.
--
-- Before feed=on, stop a PromptPal that sends its webhooks itself. Otherwise each event goes out twice.

\if :{?promptpal_schema}
\else
    \set promptpal_schema public
\endif
\if :{?feed}
\else
    \set feed off
\endif

BEGIN;
-- This comes first: where others may create functions, Postgres must not find theirs instead of its own.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL row_security = off;
SET LOCAL client_min_messages = warning;
-- A session that waits for a lock makes others wait. So this fails, and the DBA runs it again when the dump or report is
-- over.
SET LOCAL lock_timeout = '3s';
SELECT set_config('promptpal.schema', :'promptpal_schema', true) AS promptpal_schema,
       set_config('promptpal.feed', :'feed', true) AS feed
\gset

DO $install$
DECLARE
    promptpal text := current_setting('promptpal.schema');
    name      text;
    has_rows  boolean;
    kind      "char" := (SELECT c.relkind FROM pg_class c WHERE c.oid = to_regclass('relay.webhooks'));
    -- Of the schema: relay_owner, unless that could not be made.
    relay_owner name := (SELECT pg_get_userbyid(n.nspowner) FROM pg_namespace n WHERE n.nspname = 'relay');
    -- Of PromptPal's tables.
    table_owner name;
    columns   text;
    problem   text;
BEGIN
    IF kind IS NULL THEN
        RAISE EXCEPTION 'there is no relay.webhooks in this database: run promptpal-relay migrate first';
    END IF;
    FOREACH name IN ARRAY ARRAY['webhooks', 'webhook_calls', 'prompt_calls', 'providers'] LOOP
        IF to_regclass(format('%I.%I', promptpal, name)) IS NULL THEN
            RAISE EXCEPTION 'there is no table %.%: say where PromptPal''s tables are with -v promptpal_schema=NAME',
                promptpal, name;
        END IF;
        SELECT CASE WHEN c.relkind NOT IN ('r', 'p') THEN 'it is not a table'
                    WHEN pg_get_userbyid(c.relowner) <> table_owner THEN format('it belongs to %s, the others to %s', c.relowner::regrole, table_owner) END,
               pg_get_userbyid(c.relowner)
          INTO problem, table_owner
          FROM pg_class c
         WHERE c.oid = to_regclass(format('%I.%I', promptpal, name));
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'the relay cannot read %.%: %', promptpal, name, problem
                USING HINT = 'The four tables must be tables of one owner: what runs with the rights of one owner must not be another''s.';
        END IF;
    END LOOP;
    -- The relay's functions name these tables, and run with the rights of relay_owner.
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', promptpal, relay_owner);
    EXECUTE format('GRANT SELECT, UPDATE (id) ON %I.webhooks TO %I', promptpal, relay_owner);
    EXECUTE format('GRANT INSERT ON %I.webhook_calls TO %I', promptpal, relay_owner);
    -- Where a default of the column draws the ids, the mirror draws them.
    name := pg_get_serial_sequence(format('%I.webhook_calls', promptpal), 'id');
    IF name IS NOT NULL THEN
        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I', name, relay_owner);
    END IF;

    -- ---- 1. webhooks
    IF kind = 'r' THEN
        LOCK TABLE relay.webhooks IN ACCESS EXCLUSIVE MODE;
        EXECUTE 'SELECT EXISTS (SELECT FROM relay.webhooks)' INTO has_rows;
        IF has_rows THEN
            RAISE EXCEPTION 'relay.webhooks has rows: move them to %.webhooks, delete them, and run this again', promptpal;
        END IF;
        ALTER TABLE relay.webhooks RENAME TO webhooks_before_promptpal;
    END IF;
    -- No statement can write through a view with a WITH. This view has one, because it reads with its owner's rights. It
    -- names its columns: with a star PromptPal could change none of its own.
    EXECUTE format(
        'CREATE OR REPLACE VIEW relay.webhooks AS
         WITH promptpal AS (
             SELECT id, webhook_project, name, description, url, event, enabled, create_time, update_time
               FROM %I.webhooks)
         SELECT id::bigint, webhook_project::bigint AS project_id, name::text, description::text, url::text,
                event::text, enabled::boolean, NULL::text AS signing_secret, create_time::timestamptz AS created_at,
                update_time::timestamptz AS updated_at
           FROM promptpal', promptpal);
    -- What casts a column to the type that is wanted must not be the owner's.
    SELECT f INTO problem FROM relay.foreign_code('relay.webhooks', false) AS f LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'relay.webhooks would run code of others with the rights of the relay: %', problem;
    END IF;
    COMMENT ON VIEW relay.webhooks IS 'PromptPal''s webhooks, in the form of the table relay.webhooks. Made by sql/promptpal/install.sql.';
    COMMENT ON COLUMN relay.webhooks.id IS 'webhooks.id';
    COMMENT ON COLUMN relay.webhooks.project_id IS 'webhooks.webhook_project';
    COMMENT ON COLUMN relay.webhooks.name IS 'webhooks.name';
    COMMENT ON COLUMN relay.webhooks.description IS 'webhooks.description';
    COMMENT ON COLUMN relay.webhooks.url IS 'webhooks.url';
    COMMENT ON COLUMN relay.webhooks.event IS 'webhooks.event';
    COMMENT ON COLUMN relay.webhooks.enabled IS 'webhooks.enabled';
    COMMENT ON COLUMN relay.webhooks.signing_secret IS 'Always null: PromptPal has none.';
    COMMENT ON COLUMN relay.webhooks.created_at IS 'webhooks.create_time';
    COMMENT ON COLUMN relay.webhooks.updated_at IS 'webhooks.update_time';
    FOREACH name IN ARRAY ARRAY['relay_app', 'relay_daemon', 'relay_reader'] LOOP
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name);
        EXECUTE format('GRANT SELECT ON relay.webhooks TO %I', name);
    END LOOP;
    EXECUTE format('ALTER VIEW relay.webhooks OWNER TO %I', relay_owner);
    -- The claim finds webhooks by project.
    EXECUTE format('CREATE INDEX IF NOT EXISTS promptpal_relay_webhook_project ON %I.webhooks (webhook_project) WHERE enabled',
                   promptpal);

    -- ---- 2. call logs
    SELECT f INTO problem FROM relay.foreign_code(to_regclass(format('%I.webhook_calls', promptpal)), true) AS f LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the mirror would run code of others with the rights of the relay: %', problem
            USING HINT = 'Give that to a superuser or to relay_owner, or take it away.';
    END IF;
    -- What may be null here and not there becomes 0, '' or {}; headers get the type of the column.
    SELECT string_agg(format(CASE WHEN a.attnotnull THEN 'coalesce((%s)::text, %L)::%s' ELSE '(%s)::text::%3$s' END,
                             v.value, v.instead, format_type(a.atttypid, a.atttypmod)),
                      ', ' ORDER BY v.n)
      INTO columns
      FROM (VALUES
            (1,  'trace_id',              'c.trace_id',                                                     ''),
            (2,  'url',                   'c.url',                                                          ''),
            (3,  'request_headers',       'relay.flat_headers(c.request_headers)',                          '{}'),
            (4,  'request_body',          'c.request_body',                                                 ''),
            (5,  'status_code',           'c.status_code',                                                  '0'),
            (6,  'response_headers',      'relay.flat_headers(c.response_headers)',                         '{}'),
            (7,  'response_body',         'c.response_body',                                                ''),
            (8,  'start_time',            'c.start_time',                                                   ''),
            (9,  'end_time',              'c.end_time',                                                     ''),
            (10, 'is_timeout',            'c.is_timeout',                                                   ''),
            (11, 'error_message',         'c.error_message',                                                ''),
            -- Of the call, as PromptPal has it. c.user_agent is that of the client that ran the prompt.
            (12, 'user_agent',            'c.request_headers ->> ''user-agent''',                           ''),
            (13, 'ip',                    'c.ip',                                                           ''),
            (14, 'webhook_call_webhook',  'c.webhook_id',                                                   ''),
            (15, 'webhook_call_provider', 'c.provider_id',                                                  '0'),
            (16, 'create_time',           'c.end_time',                                                     ''),
            (17, 'update_time',           'c.end_time',                                                     '')
           ) AS v (n, col, value, instead)
      JOIN pg_attribute a
        ON a.attrelid = to_regclass(format('%I.webhook_calls', promptpal))
       AND a.attname = v.col;

    CREATE OR REPLACE FUNCTION relay.flat_headers(headers jsonb) RETURNS jsonb
        LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
        SET search_path = pg_catalog, pg_temp
        SET row_security = off
    AS $$
        -- An aggregate over no headers is null, and no headers are an empty object.
        SELECT coalesce(jsonb_object_agg(h.key, CASE jsonb_typeof(h.value)
                            WHEN 'array' THEN (SELECT string_agg(v, ', ') FROM jsonb_array_elements_text(h.value) AS v)
                            ELSE h.value #>> '{}' END),
                        '{}')
          FROM jsonb_each(headers) AS h
    $$;
    COMMENT ON FUNCTION relay.flat_headers(jsonb) IS 'Headers of a call log as an object of strings, as PromptPal has them.';

    EXECUTE format($function$
        CREATE OR REPLACE FUNCTION relay.mirror_calls() RETURNS trigger
            LANGUAGE plpgsql
            SECURITY DEFINER
            SET search_path = pg_catalog, pg_temp
            SET row_security = off
            SET lock_timeout = '1s'
        AS $$
        DECLARE
            present bigint[];
            call_id bigint;
            foreign_code text;
        BEGIN
            BEGIN
                -- Nothing of the tables changes from here on, so what was checked stays so.
                LOCK TABLE %1$I.webhooks IN ACCESS SHARE MODE;
                LOCK TABLE %1$I.webhook_calls IN ROW EXCLUSIVE MODE;
                SELECT f
                  INTO foreign_code
                  FROM (SELECT relay.foreign_code('%1$I.webhook_calls', true)
                         UNION ALL
                        SELECT relay.foreign_code('%1$I.webhooks', false)) AS f (f)
                 LIMIT 1;
                IF FOUND THEN
                    RAISE WARNING 'promptpal-relay: call logs are not mirrored, because that would run code of others with the rights of the relay: %%',
                        foreign_code;
                    RETURN NULL;
                END IF;
                -- Webhooks that are there, kept there until we commit. A session that deletes one is waited for, a second.
                BEGIN
                    present := ARRAY(SELECT w.id FROM %1$I.webhooks w
                                      WHERE w.id = ANY (ARRAY(SELECT DISTINCT n.webhook_id FROM new_calls n)) FOR KEY SHARE);
                EXCEPTION WHEN lock_not_available THEN
                    RAISE WARNING 'promptpal-relay: call logs of webhooks that another session has locked are not mirrored';
                    present := ARRAY(SELECT w.id FROM %1$I.webhooks w
                                      WHERE w.id = ANY (ARRAY(SELECT DISTINCT n.webhook_id FROM new_calls n))
                                        FOR KEY SHARE SKIP LOCKED);
                END;
                BEGIN
                    INSERT INTO %1$I.webhook_calls (%2$s)
                    SELECT %3$s FROM new_calls c WHERE c.webhook_id = ANY (present) ORDER BY c.id;
                EXCEPTION
                    -- Not for one row's sake.
                    WHEN disk_full OR out_of_memory OR lock_not_available THEN RAISE;
                    -- One of them is refused: each by itself.
                    WHEN OTHERS THEN
                        FOR call_id IN SELECT n.id FROM new_calls n WHERE n.webhook_id = ANY (present) ORDER BY n.id LOOP
                            BEGIN
                                INSERT INTO %1$I.webhook_calls (%2$s) SELECT %3$s FROM new_calls c WHERE c.id = call_id;
                            EXCEPTION
                                WHEN disk_full OR out_of_memory OR lock_not_available THEN RAISE;
                                WHEN OTHERS THEN
                                    RAISE WARNING 'promptpal-relay: call log %% is not mirrored: %%', call_id, SQLERRM;
                            END;
                        END LOOP;
                END;
            EXCEPTION
                -- What the server lacks, and the commit may lack, too. It passes, and the relay tries again.
                WHEN disk_full OR out_of_memory THEN RAISE;
                -- Another session has a table locked, or PromptPal has moved on: deliveries do not wait for that.
                WHEN OTHERS THEN
                    RAISE WARNING 'promptpal-relay: call logs %% to %% are not mirrored: %%',
                        (SELECT min(n.id) FROM new_calls n), (SELECT max(n.id) FROM new_calls n), SQLERRM;
            END;
            RETURN NULL;
        END
        $$
        $function$,
        promptpal,
        'trace_id, url, request_headers, request_body, status_code, response_headers, response_body, start_time, end_time,'
        ' is_timeout, error_message, user_agent, ip, webhook_call_webhook, webhook_call_provider, create_time, update_time',
        columns);
    COMMENT ON FUNCTION relay.mirror_calls() IS 'Copies new call logs into PromptPal''s webhook_calls.';
    DROP TRIGGER IF EXISTS mirror_calls ON relay.webhook_calls;
    CREATE TRIGGER mirror_calls
        AFTER INSERT ON relay.webhook_calls
        REFERENCING NEW TABLE AS new_calls
        FOR EACH STATEMENT EXECUTE FUNCTION relay.mirror_calls();
    EXECUTE format('ALTER FUNCTION relay.flat_headers(jsonb) OWNER TO %I', relay_owner);
    EXECUTE format('ALTER FUNCTION relay.mirror_calls() OWNER TO %I', relay_owner);

    -- ---- 3. events
    EXECUTE format('DROP TRIGGER IF EXISTS promptpal_relay_feed ON %I.prompt_calls', promptpal);
    DROP FUNCTION IF EXISTS relay.feed_outbox();
    IF current_setting('promptpal.feed')::boolean THEN
        EXECUTE format($function$
            CREATE FUNCTION relay.feed_outbox() RETURNS trigger
                LANGUAGE plpgsql
                SECURITY DEFINER
                SET search_path = pg_catalog, pg_temp
                SET row_security = off
                SET lock_timeout = '300ms'
            AS $$
            BEGIN
                BEGIN
                -- The owner may have changed since this was made. What another owns may run code.
                IF EXISTS (SELECT
                             FROM pg_class c
                             JOIN pg_roles r
                               ON r.oid = c.relowner
                            WHERE c.oid IN (TG_RELID, '%1$I.providers'::regclass)
                              AND NOT r.rolsuper
                              AND r.rolname <> current_user) THEN
                    RAISE EXCEPTION 'PromptPal''s tables have another owner: run sql/promptpal/install.sql again';
                END IF;
                INSERT INTO relay.outbox (
                    project_id, prompt_id, user_id, result, finished_at, duration_ms, prompt_tokens, completion_tokens,
                    total_tokens, cached, ip, user_agent, provider_id, provider_default_model)
                SELECT c.project_calls, c.prompt_calls, coalesce(c.user_id, ''),
                       CASE WHEN c.result = 0 THEN 0 ELSE 1 END,
                       CASE WHEN c.create_time >= '1970-01-01 00:00:00+00' AND c.create_time < '10000-01-01 00:00:00+00'
                            THEN c.create_time ELSE now() END,
                       greatest(c.duration, 0),
                       least(greatest(c.total_token::numeric - c.response_token, 0), 2147483647),
                       least(greatest(c.response_token::bigint, 0), 2147483647),
                       least(greatest(c.total_token::bigint, 0), 2147483647),
                       coalesce(c.cached, false), coalesce(c.ip, ''), coalesce(c.ua, ''), c.prompt_call_provider,
                       -- PromptPal leaves an empty one out of its payload.
                       nullif(p.default_model, '')
                  FROM new_calls c
                  LEFT JOIN %1$I.providers p
                    ON p.id = c.prompt_call_provider
                 WHERE c.project_calls IS NOT NULL
                   AND c.prompt_calls IS NOT NULL
                 ORDER BY c.id;
                EXCEPTION WHEN OTHERS THEN
                    RAISE WARNING 'promptpal-relay: no event is made of these rows: %%', SQLERRM;
                END;
                RETURN NULL;
            END
            $$
            $function$, promptpal);
        COMMENT ON FUNCTION relay.feed_outbox() IS 'Inserts an event for each new row of PromptPal''s prompt_calls.';
        EXECUTE format(
            'CREATE TRIGGER promptpal_relay_feed AFTER INSERT ON %I.prompt_calls
                 REFERENCING NEW TABLE AS new_calls FOR EACH STATEMENT EXECUTE FUNCTION relay.feed_outbox()', promptpal);
        -- A user who may execute it may put it on a table of their own, and make events of any kind.
        REVOKE ALL ON FUNCTION relay.feed_outbox() FROM PUBLIC;
        -- It reads PromptPal's tables with the rights of their owner, who can make events by inserting into prompt_calls
        -- anyway. It never runs with a superuser's rights. Only a superuser can change a superuser's tables, so there
        -- relay_owner owns the function and reads them.
        IF (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = table_owner) THEN
            EXECUTE format('GRANT SELECT ON %I.providers TO %I', promptpal, relay_owner);
            EXECUTE format('ALTER FUNCTION relay.feed_outbox() OWNER TO %I', relay_owner);
        ELSE
            EXECUTE format('GRANT USAGE ON SCHEMA relay TO %I', table_owner);
            EXECUTE format(
                'GRANT INSERT (project_id, prompt_id, user_id, result, finished_at, duration_ms, prompt_tokens,
                               completion_tokens, total_tokens, cached, ip, user_agent, provider_id, provider_default_model)
                     ON relay.outbox TO %I', table_owner);
            -- Postgres hands a function only to a role that could make it. No other session sees that this one can.
            EXECUTE format('GRANT CREATE ON SCHEMA relay TO %I', table_owner);
            EXECUTE format('ALTER FUNCTION relay.feed_outbox() OWNER TO %I', table_owner);
            IF table_owner <> relay_owner THEN
                EXECUTE format('REVOKE CREATE ON SCHEMA relay FROM %I', table_owner);
            END IF;
        END IF;
    END IF;
    REVOKE ALL ON FUNCTION relay.flat_headers(jsonb) FROM PUBLIC;
    REVOKE ALL ON FUNCTION relay.mirror_calls() FROM PUBLIC;
END
$install$;

COMMIT;
