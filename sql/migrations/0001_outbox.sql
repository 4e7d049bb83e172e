-- The outbox: the table that the application writes.
--
-- The application inserts a row in the transaction in which it records the execution. It writes nothing else here. The
-- daemon writes the columns claimed_by, previous_owner, done_at, parked and without_call, and deletes rows some time after they are done. No table of
-- this schema has a foreign key to another one. A call log outlives its webhook and its outbox row, and a view over other
-- tables may stand in the place of relay.webhooks.
--
-- Two indexes carry the queue: the pending rows in order of id, and the parked rows by project. A row leaves both indexes
-- when it is done, so neither grows with the history. claimed_by is in no index, so that a claim is a heap-only update;
-- fillfactor leaves room for it in the row's page. Both indexes have the expression id + 0, which the primary key does not
-- have. So the planner cannot take the primary key for a claim. The primary key has the same order, but it also has the
-- whole history, and the statistics may be an hour old.
--
-- A trigger refuses a row that cannot be meant, with the name of the rule as the constraint's name. The table has no CHECK
-- constraints, because Postgres parses and plans each of them anew for every statement that inserts or updates. Ten of them
-- made an insert of one row 2.3 times as long, and each claim and each finish longer by the same time. The trigger costs an insert 3 %
-- for each row, and an update nothing. Who updates a row by hand is not checked.

CREATE TABLE relay.outbox (
    id                      bigint GENERATED ALWAYS AS IDENTITY,
    created_at              timestamptz NOT NULL DEFAULT now(),
    event                   text        NOT NULL DEFAULT 'onPromptFinished',
    event_id                uuid        NOT NULL DEFAULT gen_random_uuid(),
    trace_id                text,
    traceparent             text,
    project_id              bigint      NOT NULL,
    prompt_id               bigint      NOT NULL,
    user_id                 text        NOT NULL,
    result                  smallint    NOT NULL,
    finished_at             timestamptz NOT NULL DEFAULT now(),
    duration_ms             bigint      NOT NULL,
    prompt_tokens           integer     NOT NULL,
    completion_tokens       integer     NOT NULL,
    total_tokens            integer,
    cached                  boolean     NOT NULL DEFAULT false,
    ip                      text        NOT NULL DEFAULT '',
    user_agent              text        NOT NULL DEFAULT '',
    provider_id             bigint,
    provider_default_model  text,
    webhook_id              bigint,
    replay_of               bigint,
    claimed_by              bigint,
    previous_owner          bigint,
    done_at                 timestamptz,
    parked                  boolean     NOT NULL DEFAULT false,
    without_call            boolean     NOT NULL DEFAULT false,
    CONSTRAINT outbox_pkey PRIMARY KEY (id)
) WITH (
    fillfactor = 45,
    -- Each row is updated twice and soon deleted: vacuum by count, not by share of the table, and without pauses.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX outbox_pending ON relay.outbox ((id + 0)) WHERE done_at IS NULL AND NOT parked;
CREATE INDEX outbox_parked ON relay.outbox (project_id, (id + 0)) WHERE done_at IS NULL AND parked;
-- Replays that wait. The application's own rows are not in it.
CREATE INDEX outbox_replays ON relay.outbox (event_id, webhook_id) WHERE replay_of IS NOT NULL AND done_at IS NULL;

COMMENT ON TABLE relay.outbox IS
    'Events to deliver. The application inserts in its own transaction; promptpal-relay delivers what is committed and sets done_at.';
COMMENT ON COLUMN relay.outbox.id IS 'Drawn before commit: a lower id can become visible later than a higher one. The application leaves it out, or says DEFAULT.';
COMMENT ON COLUMN relay.outbox.created_at IS 'Start of the inserting transaction.';
COMMENT ON COLUMN relay.outbox.event IS 'The event''s name; onPromptFinished is the only one so far.';
COMMENT ON COLUMN relay.outbox.event_id IS 'Who the event is, for ever: part of the webhook-id of its calls. A replay has that of the event that it repeats.';
COMMENT ON COLUMN relay.outbox.trace_id IS 'Ties the calls of one execution together; null: the event_id without dashes.';
COMMENT ON COLUMN relay.outbox.traceparent IS 'W3C trace context of the execution; each call sends it with a span id of its own. Left out when it is not valid.';
COMMENT ON COLUMN relay.outbox.project_id IS 'Every enabled webhook of this project gets one POST. Payload key projectId.';
COMMENT ON COLUMN relay.outbox.prompt_id IS 'Payload key promptId.';
COMMENT ON COLUMN relay.outbox.user_id IS 'Payload key userId.';
COMMENT ON COLUMN relay.outbox.result IS '0 success, 1 failure. Payload key result.';
COMMENT ON COLUMN relay.outbox.finished_at IS 'When the execution finished. Payload key timestamp, in UTC with whole seconds.';
COMMENT ON COLUMN relay.outbox.duration_ms IS 'Milliseconds that the execution took. Payload key duration.';
COMMENT ON COLUMN relay.outbox.prompt_tokens IS 'Payload key tokens.prompt.';
COMMENT ON COLUMN relay.outbox.completion_tokens IS 'Payload key tokens.completion.';
COMMENT ON COLUMN relay.outbox.total_tokens IS 'Payload key tokens.total; null is the sum of the two.';
COMMENT ON COLUMN relay.outbox.cached IS 'Payload key cached.';
COMMENT ON COLUMN relay.outbox.ip IS 'Of the client that ran the prompt; free text, never parsed. Payload key ip.';
COMMENT ON COLUMN relay.outbox.user_agent IS 'Of the client that ran the prompt; free text, never parsed. Payload key userAgent.';
COMMENT ON COLUMN relay.outbox.provider_id IS 'Payload key providerId, left out when null.';
COMMENT ON COLUMN relay.outbox.provider_default_model IS 'Payload key providerDefaultModel, left out when null.';
COMMENT ON COLUMN relay.outbox.webhook_id IS 'When set, only this webhook of the project is called (replay, test).';
COMMENT ON COLUMN relay.outbox.replay_of IS 'The relay.webhook_calls.id that this row repeats.';
COMMENT ON COLUMN relay.outbox.claimed_by IS 'Epoch of the instance that has the row in hand; 0: none, but a dead one had. Written by the daemon only.';
COMMENT ON COLUMN relay.outbox.previous_owner IS 'claimed_by as it was before the last claim: the epoch of a dead instance, or 0; null: the receivers have seen nothing of the row. Written by the daemon only.';
COMMENT ON COLUMN relay.outbox.done_at IS 'When the row''s calls were recorded; null: not done. Written by the daemon only.';
COMMENT ON COLUMN relay.outbox.parked IS 'The row waits for a slot of a slow webhook of its project, out of the way of the others. Written by the daemon only.';
COMMENT ON COLUMN relay.outbox.without_call IS 'The row is done, and no call was made: it met no enabled webhook of its project, event and webhook_id. Written by the daemon only.';

-- Refuses a row that cannot be meant. The error is the one of a CHECK constraint: SQLSTATE 23514, and the rule's name as the
-- constraint's name. A null gives no answer to a comparison, and so passes: of a column that takes none, Postgres says so
-- itself. The function has no SET clause, because each row would pay for it. Its operators and types name their schema instead, so
-- that no search_path changes what they mean.
--
-- GENERATED ALWAYS refuses an id of the application's own, unless the insert says OVERRIDING SYSTEM VALUE. So the function keeps
-- out the ids that do harm: the claim finds only ids above 0, and beyond 2^53 - 1 programs that read JSON round a number.
-- The payload's timestamp (YYYY-MM-DDThh:mm:ssZ) says years of four digits. Ages are computed from created_at, and of
-- infinity there is none. A zero event_id is a field that a program has not set: all of its events would have one
-- webhook-id, and receivers would drop them as duplicates.
CREATE FUNCTION relay.refuse_invalid_event() RETURNS trigger
    LANGUAGE plpgsql
AS $$
DECLARE
    rule pg_catalog.text := CASE
        WHEN NEW.event OPERATOR(pg_catalog.<>) 'onPromptFinished'
            THEN 'outbox_event_known'
        WHEN NEW.result OPERATOR(pg_catalog.<) 0 OR NEW.result OPERATOR(pg_catalog.>) 1
            THEN 'outbox_result_known'
        WHEN NEW.duration_ms OPERATOR(pg_catalog.<) 0
            THEN 'outbox_duration_not_negative'
        WHEN NEW.prompt_tokens OPERATOR(pg_catalog.<) 0
            THEN 'outbox_prompt_tokens_not_negative'
        WHEN NEW.completion_tokens OPERATOR(pg_catalog.<) 0
            THEN 'outbox_completion_tokens_not_negative'
        WHEN NEW.total_tokens OPERATOR(pg_catalog.<) 0
            THEN 'outbox_total_tokens_not_negative'
        WHEN NEW.created_at OPERATOR(pg_catalog.<) '1970-01-01 00:00:00+00'
             OR NEW.created_at OPERATOR(pg_catalog.>=) '10000-01-01 00:00:00+00'
            THEN 'outbox_created_at_has_four_digit_year'
        WHEN NEW.finished_at OPERATOR(pg_catalog.<) '1970-01-01 00:00:00+00'
             OR NEW.finished_at OPERATOR(pg_catalog.>=) '10000-01-01 00:00:00+00'
            THEN 'outbox_finished_at_has_four_digit_year'
        WHEN NEW.webhook_id OPERATOR(pg_catalog.<) 1
            THEN 'outbox_webhook_id_positive'
        WHEN NEW.id OPERATOR(pg_catalog.<) 1 OR NEW.id OPERATOR(pg_catalog.>) 9007199254740991
            THEN 'outbox_id_in_range'
        WHEN NEW.event_id OPERATOR(pg_catalog.=) '00000000-0000-0000-0000-000000000000'
            THEN 'outbox_event_id_not_zero'
    END;
BEGIN
    IF rule IS NOT NULL THEN
        RAISE EXCEPTION 'new row for relation "outbox" violates check constraint "%"', rule
            USING ERRCODE = 'check_violation', SCHEMA = 'relay', TABLE = 'outbox', CONSTRAINT = rule,
                  HINT = CASE rule
                             WHEN 'outbox_event_known' THEN 'The only event is onPromptFinished.'
                             WHEN 'outbox_result_known' THEN 'result is 0 (success) or 1 (failure).'
                             WHEN 'outbox_created_at_has_four_digit_year' THEN 'created_at lies in the years 1970 to 9999; leave it out.'
                             WHEN 'outbox_finished_at_has_four_digit_year' THEN 'finished_at lies in the years 1970 to 9999.'
                             WHEN 'outbox_webhook_id_positive' THEN 'webhook_id is positive, or null for all webhooks of the project.'
                             WHEN 'outbox_id_in_range' THEN 'Leave id out: Postgres draws it.'
                             WHEN 'outbox_event_id_not_zero' THEN 'Leave event_id out, or draw one at random for each event.'
                             ELSE 'Durations and numbers of tokens are 0 or more.'
                         END;
    END IF;
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION relay.refuse_invalid_event() IS 'Refuses a row that cannot be meant; called by the trigger outbox_valid.';

CREATE TRIGGER outbox_valid
    BEFORE INSERT ON relay.outbox
    FOR EACH ROW
    EXECUTE FUNCTION relay.refuse_invalid_event();

COMMENT ON TRIGGER outbox_valid ON relay.outbox IS
    'Refuses a row that cannot be meant, as a CHECK constraint would, at a fraction of its cost.';

REVOKE ALL ON FUNCTION relay.refuse_invalid_event() FROM PUBLIC;

-- The daemon takes the application's texts as they are, because an insert must not fail for them. It delivers and logs the
-- first 8 KiB of each. For a short text cut_text is one comparison: Postgres inlines the function, and knows the length
-- without reading the text. A long text goes to a function of its own, which reads only the beginning. Inlined, that work
-- would make each claim and each finish start later. cut_text has no SET clause, because a function with one is never
-- inlined. Its body is parsed when the function is created, so no search_path changes what it means.
CREATE FUNCTION relay.cut_long_text(value text) RETURNS text
    LANGUAGE plpgsql
    STABLE
    PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    bytes bytea   := convert_to(left(value, 8192), 'UTF8');
    most  integer := 8192;
BEGIN
    -- Back to the beginning of a character, whose later bytes are 10xxxxxx.
    WHILE most < length(bytes) AND get_byte(bytes, most) & 192 = 128 LOOP
        most := most - 1;
    END LOOP;
    RETURN convert_from(substr(bytes, 1, most), 'UTF8');
END
$$;

COMMENT ON FUNCTION relay.cut_long_text(text) IS 'The first 8 KiB of a text that is longer; see relay.cut_text.';

CREATE FUNCTION relay.cut_text(value text) RETURNS text
    LANGUAGE sql
    STABLE
    PARALLEL SAFE
RETURN CASE WHEN octet_length(value) > 8192 THEN relay.cut_long_text(value) ELSE value END;

COMMENT ON FUNCTION relay.cut_text(text) IS
    'The first 8 KiB of a text, cut between two characters: what is delivered and logged of the texts in relay.outbox.';

REVOKE ALL ON FUNCTION relay.cut_long_text(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.cut_text(text) FROM PUBLIC;
