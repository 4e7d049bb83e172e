-- The tables that the examples use besides relay.outbox. They are not part of promptpal-relay: put your own in their places.
--
--     psql "$DATABASE_URL" -f examples/tables.sql

-- The application's: what it records of an execution.
CREATE TABLE executions (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id text NOT NULL
);

-- A receiver's, in its own database: which events it has processed.
CREATE TABLE received_webhooks (
    webhook_id  text        PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT now(),
    event       jsonb       NOT NULL
);
