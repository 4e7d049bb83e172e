-- The next migration, as the tests have it: columns of the outbox and of the call log, a table, another text of a function.
--
-- Oldest daemon: {before}

ALTER TABLE relay.outbox
    ADD COLUMN next_note text;

COMMENT ON COLUMN relay.outbox.next_note IS 'A column that the daemon before does not know.';

ALTER TABLE relay.webhook_calls
    ADD COLUMN next_mark boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN relay.webhook_calls.next_mark IS 'A column that the daemon before does not know.';

CREATE TABLE relay.next_notes (
    id    bigint GENERATED ALWAYS AS IDENTITY,
    note  text,
    CONSTRAINT next_notes_pkey PRIMARY KEY (id)
);

COMMENT ON TABLE relay.next_notes IS 'A table that the daemon before does not know.';
COMMENT ON COLUMN relay.next_notes.id IS 'Its key.';
COMMENT ON COLUMN relay.next_notes.note IS 'A text.';

-- The same name, arguments and result.
CREATE OR REPLACE FUNCTION relay.wake() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    NOTIFY promptpal_relay;
    RETURN NULL;
END
$$;
