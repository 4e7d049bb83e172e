-- Where migrate writes down what it has applied. Run before the migrations, each time.

DO $$
BEGIN
    -- Not CREATE SCHEMA IF NOT EXISTS: that wants CREATE on the database even when the schema is there already.
    IF to_regnamespace('relay') IS NULL THEN
        CREATE SCHEMA relay;
        COMMENT ON SCHEMA relay IS 'promptpal-relay: outbox, webhooks, call log.';
    END IF;
    IF to_regclass('relay.migrations') IS NULL THEN
        CREATE TABLE relay.migrations (
            version     integer     NOT NULL,
            name        text        NOT NULL,
            checksum    text        NOT NULL,
            applied_at  timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT migrations_pkey PRIMARY KEY (version)
        );
        COMMENT ON TABLE relay.migrations IS 'Migrations that were applied, written by promptpal-relay migrate.';
        COMMENT ON COLUMN relay.migrations.version IS 'Number of the file under sql/migrations.';
        COMMENT ON COLUMN relay.migrations.name IS 'Name of the file.';
        COMMENT ON COLUMN relay.migrations.checksum IS 'SHA-256 of the file; a changed file is refused.';
        COMMENT ON COLUMN relay.migrations.applied_at IS 'When.';
    END IF;
END
$$;
