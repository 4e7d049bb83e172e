-- The bookkeeping: the table in which migrate writes down what it has applied. migrate runs this file before the
-- migrations, each time.
--
-- A daemon that is older than the schema cannot know the files that came after it. So the table says which older daemons
-- work with a migration: migrate copies the line "Oldest daemon" of the file's head into oldest_daemon.
--
-- The owner of a table can put a trigger on it, and the trigger runs with the rights of the user who writes there. A user
-- who may create schemas may have made the schema relay before migrate. So migrate works only in a schema of its own user,
-- of relay_owner or of a superuser.

DO $$
DECLARE
    owner   name;
    strange text;
BEGIN
    -- CREATE SCHEMA IF NOT EXISTS would need CREATE on the database even when the schema is there already.
    IF to_regnamespace('relay') IS NULL THEN
        CREATE SCHEMA relay;
        COMMENT ON SCHEMA relay IS 'promptpal-relay: outbox, webhooks, call log.';
    END IF;
    SELECT pg_get_userbyid(n.nspowner)
      INTO owner
      FROM pg_namespace n
      JOIN pg_roles r
        ON r.oid = n.nspowner
     WHERE n.nspname = 'relay'
       AND NOT r.rolsuper
       AND r.rolname NOT IN (current_user, 'relay_owner');
    IF FOUND THEN
        RAISE EXCEPTION 'the schema relay belongs to %, who could run code with the rights of %', owner, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('Run migrate as %s; or look at what is in the schema, then ALTER SCHEMA relay OWNER TO relay_owner.', owner);
    END IF;
    IF to_regclass('relay.migrations') IS NULL THEN
        CREATE TABLE relay.migrations (
            version        integer     NOT NULL,
            name           text        NOT NULL,
            checksum       text        NOT NULL,
            applied_at     timestamptz NOT NULL DEFAULT now(),
            oldest_daemon  integer,
            CONSTRAINT migrations_pkey PRIMARY KEY (version),
            CONSTRAINT migrations_oldest_daemon_is_older CHECK (oldest_daemon >= 1 AND oldest_daemon < version)
        );
        COMMENT ON TABLE relay.migrations IS 'Migrations that were applied, written by promptpal-relay migrate.';
        COMMENT ON COLUMN relay.migrations.version IS 'Number of the file under sql/migrations.';
        COMMENT ON COLUMN relay.migrations.name IS 'Name of the file.';
        COMMENT ON COLUMN relay.migrations.checksum IS 'SHA-256 of the file; a changed file is refused.';
        COMMENT ON COLUMN relay.migrations.applied_at IS 'When.';
        COMMENT ON COLUMN relay.migrations.oldest_daemon IS 'Daemons whose newest migration is this one or a later one work with the schema, too. Null: only daemons that know the migration do.';
    END IF;
    SELECT CASE WHEN c.relkind <> 'r' THEN 'it is not a table'
                WHEN NOT r.rolsuper AND r.rolname NOT IN (current_user, 'relay_owner') THEN format('it belongs to %s', r.rolname)
                WHEN EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid)
                  OR EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid) THEN 'it has a trigger or a rule' END
      INTO strange
      FROM pg_class c
      JOIN pg_roles r
        ON r.oid = c.relowner
     WHERE c.oid = 'relay.migrations'::regclass;
    IF strange IS NOT NULL THEN
        RAISE EXCEPTION 'relay.migrations is not as migrate made it: %', strange
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Find out which role has changed it, and restore it.';
    END IF;
END
$$;
