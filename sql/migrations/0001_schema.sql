-- The schema of promptpal-relay.
--
-- What the application writes: relay.outbox (inserts only) and relay.webhooks. What the daemon writes: the columns
-- claimed_by, done_at and parked of relay.outbox, relay.webhook_calls, relay.instances and relay.retention. No foreign keys between
-- them: a call log outlives its webhook, and relay.webhooks may be replaced by a view over other tables; for the
-- same reason no view here depends on it.

-- ---------------------------------------------------------------------------------------------------------------
-- The outbox. The application inserts a row in the transaction in which it records the execution.
--
-- Two indexes carry the queue: the pending rows in order of id, and the parked ones by project. claimed_by is in no
-- index, so that a claim is a heap-only update; fillfactor leaves it room in the page of the row. A row leaves both
-- indexes when it is done, so neither grows with the history. The expression in both keeps the planner from
-- taking the primary key instead, which has the same order and the history, when statistics are of another hour.

CREATE TABLE relay.outbox (
    id                      bigint GENERATED ALWAYS AS IDENTITY,
    created_at              timestamptz NOT NULL DEFAULT now(),
    event                   text        NOT NULL DEFAULT 'onPromptFinished',
    trace_id                text        NOT NULL DEFAULT replace(gen_random_uuid()::text, '-', ''),
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
    done_at                 timestamptz,
    parked                  boolean     NOT NULL DEFAULT false,
    CONSTRAINT outbox_pkey PRIMARY KEY (id),
    CONSTRAINT outbox_event_known CHECK (event = 'onPromptFinished'),
    CONSTRAINT outbox_result_known CHECK (result IN (0, 1)),
    CONSTRAINT outbox_duration_not_negative CHECK (duration_ms >= 0),
    CONSTRAINT outbox_prompt_tokens_not_negative CHECK (prompt_tokens >= 0),
    CONSTRAINT outbox_completion_tokens_not_negative CHECK (completion_tokens >= 0),
    CONSTRAINT outbox_total_tokens_not_negative CHECK (total_tokens >= 0),
    -- Ages are computed from it, and of infinity there is none.
    CONSTRAINT outbox_created_at_has_four_digit_year CHECK (
        created_at >= '1970-01-01 00:00:00+00' AND created_at < '10000-01-01 00:00:00+00'),
    -- What the payload's timestamp (YYYY-MM-DDThh:mm:ssZ) can say; keeps out infinity, too.
    CONSTRAINT outbox_finished_at_has_four_digit_year CHECK (
        finished_at >= '1970-01-01 00:00:00+00' AND finished_at < '10000-01-01 00:00:00+00'),
    CONSTRAINT outbox_webhook_id_positive CHECK (webhook_id > 0)
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

COMMENT ON TABLE relay.outbox IS
    'Events to deliver. The application inserts in its own transaction; promptpal-relay delivers what is committed and sets done_at.';
COMMENT ON COLUMN relay.outbox.id IS 'Drawn before commit: a lower id can become visible later than a higher one. Never written by the application.';
COMMENT ON COLUMN relay.outbox.created_at IS 'Start of the inserting transaction.';
COMMENT ON COLUMN relay.outbox.event IS 'The event''s name; onPromptFinished is the only one so far.';
COMMENT ON COLUMN relay.outbox.trace_id IS 'Ties the calls of one execution together; random unless given.';
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
COMMENT ON COLUMN relay.outbox.done_at IS 'When the row''s calls were recorded; null: not done. Written by the daemon only.';
COMMENT ON COLUMN relay.outbox.parked IS 'The row waits for a place at a slow webhook of its project, out of the way of the others. Written by the daemon only.';

-- The texts that the application gives are taken as they are, because an insert must not fail for them. Of each, the
-- first 8 KiB are delivered and logged. In the usual case cut_text is a comparison: it is inlined, and the length of a
-- long text is known without reading it. Of a long one only the beginning is read, in a function apart: inlined, that
-- would make each claim and each finish slower to begin. cut_text has no settings of its own, which would keep it from
-- being inlined: a body in this form is bound when it is made, and no search_path changes what it means.
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

-- ---------------------------------------------------------------------------------------------------------------
-- Webhooks. The daemon only reads them. The constraint on the secret has the rule of relay.secret_problem() as a pattern
-- of its own: a constraint that called the function would refuse the inserts of roles that may not execute it.

CREATE TABLE relay.webhooks (
    id              bigint GENERATED BY DEFAULT AS IDENTITY,
    project_id      bigint      NOT NULL,
    name            text        NOT NULL DEFAULT '',
    description     text        NOT NULL DEFAULT '',
    url             text        NOT NULL,
    event           text        NOT NULL DEFAULT 'onPromptFinished',
    enabled         boolean     NOT NULL DEFAULT true,
    signing_secret  text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT webhooks_pkey PRIMARY KEY (id),
    -- Keys of 24 to 64 bytes in base64 (32 to 88 characters), separated by white space.
    CONSTRAINT webhooks_signing_secret_can_sign CHECK (
        octet_length(signing_secret) <= 8192
        AND signing_secret ~ (
            E'^[ \t\n\f\r]*(?:(?:whsec_)?'
            || '(?:(?:[A-Za-z0-9+/]{4}){8,21}(?:[A-Za-z0-9+/][AQgw]==)?|(?:[A-Za-z0-9+/]{4}){8,20}[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)'
            || E'(?:[ \t\n\f\r]+|$))+$'))
);

CREATE INDEX webhooks_project ON relay.webhooks (project_id) WHERE enabled;

COMMENT ON TABLE relay.webhooks IS
    'Endpoints by project. May be replaced by a view with these columns; the daemon only reads it.';
COMMENT ON COLUMN relay.webhooks.id IS 'Named by relay.webhook_calls.webhook_id.';
COMMENT ON COLUMN relay.webhooks.project_id IS 'The project whose events go there.';
COMMENT ON COLUMN relay.webhooks.name IS 'For people.';
COMMENT ON COLUMN relay.webhooks.description IS 'For people.';
COMMENT ON COLUMN relay.webhooks.url IS 'http or https. One that cannot be called gives a logged call with error_kind bad_url.';
COMMENT ON COLUMN relay.webhooks.event IS 'Only events of this name go there.';
COMMENT ON COLUMN relay.webhooks.enabled IS 'Read when a row is claimed: only enabled webhooks are called.';
COMMENT ON COLUMN relay.webhooks.signing_secret IS 'Standard Webhooks secret (whsec_ and 24 to 64 bytes in base64), or several separated by spaces while they are exchanged; when set, calls are signed. Not readable by relay_reader.';
COMMENT ON COLUMN relay.webhooks.created_at IS 'For people.';
COMMENT ON COLUMN relay.webhooks.updated_at IS 'For people; kept by whoever updates the row.';

-- ---------------------------------------------------------------------------------------------------------------
-- The call log, one row a call, partitioned by UTC day of start_time. It is written at the pace of the queue, and
-- each B-tree on it would cost as much as the whole queue operation: block-range indexes find a call by id, time,
-- outbox row, trace and webhook at nearly no cost, a partial index the failures of a webhook. start_time is in the
-- second, too: it is in the order of the blocks, and only with such a column does the planner believe that a range of
-- blocks is found, not all of them.

CREATE SEQUENCE relay.webhook_calls_id_seq AS bigint;

CREATE TABLE relay.webhook_calls (
    id                  bigint      NOT NULL DEFAULT nextval('relay.webhook_calls_id_seq'),
    outbox_id           bigint      NOT NULL,
    webhook_id          bigint      NOT NULL,
    project_id          bigint      NOT NULL,
    trace_id            text        NOT NULL,
    url                 text        NOT NULL,
    request_headers     jsonb       NOT NULL,
    request_body        text        NOT NULL,
    status_code         integer,
    response_headers    jsonb,
    response_body       text,
    response_bytes      bigint      NOT NULL,
    response_truncated  boolean     NOT NULL,
    start_time          timestamptz NOT NULL,
    end_time            timestamptz NOT NULL,
    is_timeout          boolean     NOT NULL,
    error_message       text,
    error_kind          text,
    succeeded           boolean     NOT NULL,
    repeated            boolean     NOT NULL,
    remote_addr         text,
    user_agent          text        NOT NULL,
    ip                  text        NOT NULL,
    provider_id         bigint,
    CONSTRAINT webhook_calls_error_kind_known CHECK (error_kind IN (
        'bad_url', 'blocked_address', 'dns', 'connect', 'tls', 'timeout', 'protocol', 'http_status', 'interrupted',
        'internal'))
) PARTITION BY RANGE (start_time);

ALTER SEQUENCE relay.webhook_calls_id_seq OWNED BY relay.webhook_calls.id;

-- Where a call goes whose day has no partition: a missing partition never loses a log. The log has no key, and rows are
-- deleted here: where a publication has all tables, Postgres refuses that without a replica identity. Full costs nothing
-- until a row is deleted. Each partition has it (it is not inherited).
CREATE TABLE relay.webhook_calls_default PARTITION OF relay.webhook_calls DEFAULT;
ALTER TABLE relay.webhook_calls_default REPLICA IDENTITY FULL;

CREATE INDEX webhook_calls_place ON relay.webhook_calls
    USING brin (id, start_time, outbox_id) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX webhook_calls_bloom ON relay.webhook_calls
    USING brin (start_time, trace_id text_bloom_ops, webhook_id int8_bloom_ops) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX webhook_calls_failures ON relay.webhook_calls (webhook_id, start_time) WHERE NOT succeeded;

COMMENT ON TABLE relay.webhook_calls IS
    'The call log: one row for each call, written in the transaction that marks its outbox row done. Partitioned by UTC day of start_time.';
COMMENT ON TABLE relay.webhook_calls_default IS 'Calls of days without a partition; empty in a healthy system.';
COMMENT ON COLUMN relay.webhook_calls.id IS 'Grows with time; what relay.replay() takes.';
COMMENT ON COLUMN relay.webhook_calls.outbox_id IS 'The relay.outbox row; that row is deleted some time after it is done.';
COMMENT ON COLUMN relay.webhook_calls.webhook_id IS 'The webhook that was called; it may be gone.';
COMMENT ON COLUMN relay.webhook_calls.project_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.webhook_calls.trace_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.webhook_calls.url IS 'The webhook''s URL at the time of the call, without user and password.';
COMMENT ON COLUMN relay.webhook_calls.request_headers IS 'The headers that went out: an object with lower-case names, an array for a name that came twice; {} when nothing was sent. Never a secret.';
COMMENT ON COLUMN relay.webhook_calls.request_body IS 'The payload.';
COMMENT ON COLUMN relay.webhook_calls.status_code IS 'Of the answer; null when none was read.';
COMMENT ON COLUMN relay.webhook_calls.response_headers IS 'Of the answer, in the form of request_headers.';
COMMENT ON COLUMN relay.webhook_calls.response_body IS 'Of the answer, cut at --max-response-body; bytes that are no UTF-8 text, and NUL, are replaced by U+FFFD. Of an answer that is no HTTP, what came instead; of bad chunks, the rest as it came.';
COMMENT ON COLUMN relay.webhook_calls.response_bytes IS 'Bytes of the answer''s body that came over the wire before reading stopped; of an answer that is no HTTP, all bytes.';
COMMENT ON COLUMN relay.webhook_calls.response_truncated IS 'response_body is less than what the endpoint sent or meant to send.';
COMMENT ON COLUMN relay.webhook_calls.start_time IS 'First byte of work: before the name was resolved.';
COMMENT ON COLUMN relay.webhook_calls.end_time IS 'Last byte read, or the failure.';
COMMENT ON COLUMN relay.webhook_calls.is_timeout IS 'The call passed --timeout; with a status when one had been read.';
COMMENT ON COLUMN relay.webhook_calls.error_message IS 'What happened, for people; also set for a success with a flaw.';
COMMENT ON COLUMN relay.webhook_calls.error_kind IS 'Null for a success; else bad_url, blocked_address, dns, connect, tls, timeout, protocol, http_status, interrupted or internal.';
COMMENT ON COLUMN relay.webhook_calls.succeeded IS 'A 2xx within the time limit.';
COMMENT ON COLUMN relay.webhook_calls.repeated IS 'An instance that died had the row in hand before: the receiver may have seen this call already.';
COMMENT ON COLUMN relay.webhook_calls.remote_addr IS 'Address and port that the socket was connected to.';
COMMENT ON COLUMN relay.webhook_calls.user_agent IS 'From the outbox row: of the client that ran the prompt.';
COMMENT ON COLUMN relay.webhook_calls.ip IS 'From the outbox row: of the client that ran the prompt.';
COMMENT ON COLUMN relay.webhook_calls.provider_id IS 'From the outbox row.';

-- ---------------------------------------------------------------------------------------------------------------
-- Daemons. Each session of an instance draws a random key and holds the advisory lock of that key (one bigint). The row
-- lists the keys, and is written after the locks are taken. The first key, that of the listening session, is the epoch.
-- An instance lives while a session of a daemon's role holds one of its locks. When none does for long enough, a peer
-- writes dead_at, and only rows of dead epochs are claimed again.
--
-- Anybody who can connect may take any advisory lock. So keys are random: nobody can take them before us. No lock is
-- taken a second time, so somebody who queues for it takes nothing from us. And only the locks of sessions count whose
-- login is a daemon's. Others see who has logged in to a session, whatever role it has set.

CREATE TABLE relay.instances (
    epoch       bigint      NOT NULL,
    locks       bigint[]    NOT NULL,
    host        text        NOT NULL,
    pid         integer     NOT NULL,
    version     text        NOT NULL,
    round_trip_ms real      NOT NULL DEFAULT 0,
    started_at  timestamptz NOT NULL DEFAULT now(),
    dead_at     timestamptz,
    cleared_at  timestamptz,
    CONSTRAINT instances_pkey PRIMARY KEY (epoch),
    -- 0 in relay.outbox.claimed_by means: none, but a dead one had the row.
    CONSTRAINT instances_epoch_positive CHECK (epoch > 0)
);

COMMENT ON TABLE relay.instances IS 'Daemons that ran or run on this database, one row for each time that one registered.';
COMMENT ON COLUMN relay.instances.epoch IS 'Random, below 2^52, never used twice; relay.outbox.claimed_by names it.';
COMMENT ON COLUMN relay.instances.locks IS 'Keys of the advisory locks of its sessions. It lives while a session of a daemon''s role holds one of them.';
COMMENT ON COLUMN relay.instances.host IS 'Host name of the daemon.';
COMMENT ON COLUMN relay.instances.pid IS 'Its process id there.';
COMMENT ON COLUMN relay.instances.version IS 'Version of the program.';
COMMENT ON COLUMN relay.instances.round_trip_ms IS 'How far it is from Postgres; one that is far gets more time to come back when it has lost its sessions.';
COMMENT ON COLUMN relay.instances.started_at IS 'When it registered this epoch.';
COMMENT ON COLUMN relay.instances.dead_at IS 'When it ended, or was found dead; null: it lives.';
COMMENT ON COLUMN relay.instances.cleared_at IS 'No row is claimed by this epoch any more; null on a dead one: its rows are being taken over.';

-- Unlogged, so that a crash of the server, or a failover, empties it. Claims are not flushed: the last ones of an
-- instance that is listed and not in here may be lost, and while it may come back nobody claims.
CREATE UNLOGGED TABLE relay.instances_since_crash (
    epoch       bigint      NOT NULL,
    CONSTRAINT instances_since_crash_pkey PRIMARY KEY (epoch)
);

COMMENT ON TABLE relay.instances_since_crash IS 'Epochs that registered since the server last crashed: crash recovery empties this table.';
COMMENT ON COLUMN relay.instances_since_crash.epoch IS 'Of relay.instances.';

-- A login that may register an instance: it may insert into relay.instances, or it is a member of relay_daemon that does
-- not inherit its rights and sets that role.
CREATE FUNCTION relay.is_daemon(login oid) RETURNS boolean
    LANGUAGE sql
    STABLE
    SET search_path = pg_catalog, pg_temp
RETURN has_table_privilege(login, 'relay.instances', 'INSERT')
       OR coalesce(pg_has_role(login, to_regrole('relay_daemon'), 'MEMBER'), false);

COMMENT ON FUNCTION relay.is_daemon(oid) IS
    'Whether a role may be a daemon''s login: only the advisory locks of such sessions count.';

-- Each login is judged once: a stranger may hold as many locks as the server has room for, and this is read often. Sessions
-- that claim are planned without hash joins, which are what two views without indexes want.
CREATE FUNCTION relay.daemon_locks() RETURNS TABLE (class bigint, object bigint, keys smallint, mode text, pid integer)
    LANGUAGE sql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET enable_hashjoin = on
BEGIN ATOMIC
    WITH daemons AS MATERIALIZED (
        SELECT a.pid
          FROM pg_stat_activity a
         WHERE a.usesysid IN (SELECT login.usesysid
                                FROM (SELECT DISTINCT b.usesysid
                                        FROM pg_stat_activity b
                                       WHERE b.usesysid IS NOT NULL
                                      OFFSET 0) AS login
                               WHERE relay.is_daemon(login.usesysid))
    )
    SELECT l.classid::bigint, l.objid::bigint, l.objsubid, l.mode, l.pid
      FROM pg_locks l
      JOIN daemons d
        ON d.pid = l.pid
     WHERE l.locktype = 'advisory'
       AND l.granted
       AND l.database = (SELECT b.oid FROM pg_database b WHERE b.datname = current_database());
END;

COMMENT ON FUNCTION relay.daemon_locks() IS
    'Advisory locks in this database that sessions of daemons'' logins hold. keys is 1 for a lock of one bigint (class has its upper half), 2 for one of two integers.';

-- ---------------------------------------------------------------------------------------------------------------
-- When the retention ran, and what it dropped last. It stands here, not in a process, so that neither a reconnection nor a
-- restart runs it earlier, and so that a wrong clock is seen: what is thrown away is thrown away by Postgres' clock, and
-- only after that has gone on for an hour without a jump. Times that lie in the future are not believed.

CREATE TABLE relay.retention (
    only_row      boolean     NOT NULL DEFAULT true,
    seen_at       timestamptz NOT NULL DEFAULT now(),
    steady_since  timestamptz NOT NULL DEFAULT now(),
    next_at       timestamptz NOT NULL DEFAULT now(),
    completed_at  timestamptz NOT NULL DEFAULT now(),
    dropped       text,
    dropped_at    timestamptz,
    CONSTRAINT retention_pkey PRIMARY KEY (only_row),
    CONSTRAINT retention_has_one_row CHECK (only_row)
);

COMMENT ON TABLE relay.retention IS 'When old rows and partitions were last thrown away. One row, written by the daemon''s retention.';
COMMENT ON COLUMN relay.retention.only_row IS 'Always true: there is one row.';
COMMENT ON COLUMN relay.retention.seen_at IS 'Postgres'' clock when the last run began.';
COMMENT ON COLUMN relay.retention.steady_since IS 'Since then that clock has not jumped by more than an hour. Nothing is thrown away before that is an hour ago.';
COMMENT ON COLUMN relay.retention.next_at IS 'When the next run is due.';
COMMENT ON COLUMN relay.retention.completed_at IS 'When a run last did all of its work; at first, when this table was made.';
COMMENT ON COLUMN relay.retention.dropped IS 'The partition of the call log that was dropped last.';
COMMENT ON COLUMN relay.retention.dropped_at IS 'When that was. The next one is not dropped within an hour.';

INSERT INTO relay.retention DEFAULT VALUES;

-- ---------------------------------------------------------------------------------------------------------------
-- The wake-up. A NOTIFY in every inserting transaction would take a cluster-wide lock at commit, so only a sleeping
-- relay is notified: it holds the lock below exclusively while it sleeps. The inserter tries it shared and, when it
-- gets it, keeps it until its transaction ends, so that no relay can fall asleep between the insert and the commit.

CREATE FUNCTION relay.wake() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    PERFORM pg_notify('promptpal_relay', '');
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION relay.wake() IS 'Wakes sleeping relays; called by the trigger outbox_wake.';

CREATE TRIGGER outbox_wake
    AFTER INSERT ON relay.outbox
    FOR EACH STATEMENT
    WHEN (NOT pg_try_advisory_xact_lock_shared(1886415987, 0))
    EXECUTE FUNCTION relay.wake();

COMMENT ON TRIGGER outbox_wake ON relay.outbox IS
    'Notifies only a sleeping relay. Without it rows are found by polling: later, never lost.';

-- ---------------------------------------------------------------------------------------------------------------
-- A call by its id, which says nothing about its day. A query for it would lock all partitions and their indexes until the
-- transaction ends: four locks each, and of a few thousand partitions more than the server has room for. So they are
-- looked at one after the other, newest first, and what was locked in vain is freed with its subtransaction. Ids grow with
-- time, but for clocks that jump: where the first call that a partition has is a later one, it is looked at in the second
-- round only. Measured with 3,650 partitions: the locks of one are held at the end; a call of today takes 30 ms, one of a
-- year ago 80 ms, one that is not there 1.1 s (with 400: 8, 60 and 85 ms).

CREATE FUNCTION relay.call_by_id(call_id bigint) RETURNS SETOF relay.webhook_calls
    LANGUAGE plpgsql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    columns text := (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
                       FROM pg_attribute a
                      WHERE a.attrelid = 'relay.webhook_calls'::regclass
                        AND a.attnum > 0
                        AND NOT a.attisdropped);
    part    text;
    later   boolean;
    denied  boolean := false;
BEGIN
    FOR round IN 1..2 LOOP
        FOR part IN
            WITH RECURSIVE log AS (
                SELECT 'relay.webhook_calls'::regclass::oid AS oid
                UNION ALL
                SELECT i.inhrelid
                  FROM log
                  JOIN pg_inherits i
                    ON i.inhparent = log.oid
            )
            SELECT c.oid::regclass::text
              FROM log
              JOIN pg_class c
                ON c.oid = log.oid
             WHERE c.relkind <> 'p'
             ORDER BY c.oid IN (SELECT partdefid FROM pg_partitioned_table), c.relname DESC, c.oid
        LOOP
            BEGIN
                EXECUTE format('SELECT (SELECT id FROM %s LIMIT 1) > $1', part) INTO later USING call_id;
                -- Null: it is empty.
                IF later = (round = 2) THEN
                    RETURN QUERY EXECUTE format('SELECT %s FROM %s WHERE id = $1', columns, part) USING call_id;
                    IF FOUND THEN
                        RETURN;
                    END IF;
                END IF;
                RAISE SQLSTATE 'PPR01';
            EXCEPTION
                -- In vain; or it was dropped meanwhile.
                WHEN SQLSTATE 'PPR01' OR undefined_table THEN NULL;
                -- Somebody else's, which may be read by way of the table that it is a part of.
                WHEN insufficient_privilege THEN denied := true;
            END;
        END LOOP;
    END LOOP;
    IF denied THEN
        RETURN QUERY EXECUTE format('SELECT %s FROM relay.webhook_calls WHERE id = $1', columns) USING call_id;
    END IF;
END
$$;

COMMENT ON FUNCTION relay.call_by_id(bigint) IS
    'The call of that id, or none. Unlike a query it keeps no lock on all partitions of the log.';

-- ---------------------------------------------------------------------------------------------------------------
-- Postgres runs the functions in views and triggers with the rights of the session that reads or writes, so the owner
-- of such a function can do what that session may do. A SECURITY DEFINER function is no fence against that: what runs
-- inside it can leave deferred triggers, cursors and prepared statements behind for the session. So before the relay
-- reads or writes what others may own, it asks here whose code would run. Trusted are superusers, the owner of the
-- schema relay, and members of that role. Built-in functions are in no list: pg_depend does not name them.
--
-- A view runs the functions that its definition names; its owner can change them at any time. A table runs code only
-- when it is written: rules, triggers, defaults, constraints, indexes, domains. A foreign key of somebody else's runs
-- triggers of that table when a row of ours goes. Policies run nothing: row_security is off, and Postgres refuses.

CREATE FUNCTION relay.foreign_code(relation regclass, written boolean) RETURNS SETOF text
    LANGUAGE sql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    -- The sessions of the daemon have the planner settings of other statements.
    SET enable_seqscan = on
    SET enable_bitmapscan = on
    SET enable_nestloop = on
    SET enable_hashjoin = on
    SET enable_mergejoin = on
AS $$
    WITH RECURSIVE relations AS (
        SELECT relation::oid AS oid
        UNION
        SELECT next.oid
          FROM relations r
         CROSS JOIN LATERAL (
                -- Partitions.
                SELECT i.inhrelid AS oid
                  FROM pg_inherits i
                 WHERE i.inhparent = r.oid
                   AND written
                UNION ALL
                -- What a view or a rule reads and writes. A materialized view runs nothing when it is read.
                SELECT d.refobjid
                  FROM pg_rewrite w
                  JOIN pg_class c
                    ON c.oid = w.ev_class
                   AND c.relkind <> 'm'
                  JOIN pg_depend d
                    ON d.classid = 'pg_rewrite'::regclass
                   AND d.objid = w.oid
                   AND d.refclassid = 'pg_class'::regclass
                 WHERE w.ev_class = r.oid
               ) AS next
    ), known AS MATERIALIZED (
        SELECT c.oid, c.relkind, c.relowner, c.relnamespace = n.oid AS ours, n.nspowner AS trusted,
               pg_has_role(c.relowner, n.nspowner, 'MEMBER') AS is_trusted
          FROM relations r
          JOIN pg_class c
            ON c.oid = r.oid
          JOIN pg_namespace n
            ON n.nspname = 'relay'
    ), parts AS (
        -- Of a view: its definition. Of a table: its rules, which only the owner can make.
        SELECT k.oid, k.trusted, 'pg_rewrite'::regclass::oid AS classid, w.oid AS objid
          FROM known k
          JOIN pg_rewrite w
            ON w.ev_class = k.oid
         WHERE k.relkind <> 'm'
        UNION ALL
        SELECT k.oid, k.trusted, 'pg_trigger'::regclass, t.oid
          FROM known k
          JOIN pg_trigger t
            ON t.tgrelid = k.oid
           AND NOT t.tgisinternal
         WHERE written
        UNION ALL
        -- The rest is the owner's, and is looked at where that is somebody else.
        SELECT k.oid, k.trusted, 'pg_class'::regclass, k.oid
          FROM known k
         WHERE written AND NOT k.is_trusted
        UNION ALL
        SELECT k.oid, k.trusted, 'pg_class'::regclass, i.indexrelid
          FROM known k
          JOIN pg_index i
            ON i.indrelid = k.oid
         WHERE written AND NOT k.is_trusted
        UNION ALL
        SELECT k.oid, k.trusted, d.classid, d.objid
          FROM known k
          JOIN pg_depend d
            ON d.refclassid = 'pg_class'::regclass
           AND d.refobjid = k.oid
           AND d.classid IN ('pg_attrdef'::regclass, 'pg_constraint'::regclass)
           AND d.deptype IN ('a', 'i')
         WHERE written AND NOT k.is_trusted
    ), used AS (
        SELECT p.oid, p.trusted, d.refclassid AS classid, d.refobjid AS objid
          FROM parts p
          JOIN pg_depend d
            ON d.classid = p.classid
           AND d.objid = p.objid
    )
    SELECT format('%s is a view of %s', k.oid::regclass, k.relowner::regrole)
      FROM known k
     WHERE k.relkind = 'v'
       AND NOT k.is_trusted
     UNION
    SELECT format('%s has a rule of %s', k.oid::regclass, k.relowner::regrole)
      FROM known k
      JOIN pg_rewrite w
        ON w.ev_class = k.oid
     WHERE k.relkind NOT IN ('v', 'm')
       AND written
       AND NOT k.is_trusted
     UNION
    SELECT format('%s runs function %s of %s', u.oid::regclass, f.oid::regprocedure, f.proowner::regrole)
      FROM used u
      JOIN pg_proc f
        ON u.classid = 'pg_proc'::regclass
       AND f.oid = u.objid
     WHERE NOT pg_has_role(f.proowner, u.trusted, 'MEMBER')
     UNION
    SELECT format('%s runs operator %s of %s', u.oid::regclass, o.oid::regoperator, o.oprowner::regrole)
      FROM used u
      JOIN pg_operator o
        ON u.classid = 'pg_operator'::regclass
       AND o.oid = u.objid
     WHERE NOT pg_has_role(o.oprowner, u.trusted, 'MEMBER')
     UNION
    SELECT format('%s has type %s of %s', u.oid::regclass, t.oid::regtype, t.typowner::regrole)
      FROM used u
      JOIN pg_type t
        ON u.classid = 'pg_type'::regclass
       AND t.oid = u.objid
     WHERE NOT pg_has_role(t.typowner, u.trusted, 'MEMBER')
     UNION
    SELECT format('%s has a foreign key of table %s of %s', k.oid::regclass, c.oid::regclass, c.relowner::regrole)
      FROM known k
      JOIN pg_constraint f
        ON f.contype = 'f'
       AND f.confrelid = k.oid
      JOIN pg_class c
        ON c.oid = f.conrelid
     WHERE written
       AND k.ours
       AND NOT pg_has_role(c.relowner, k.trusted, 'MEMBER')
     ORDER BY 1
$$;

COMMENT ON FUNCTION relay.foreign_code(regclass, boolean) IS
    'Whose code would run when somebody reads this relation, or writes it too: what does not belong to a superuser, to the owner of the schema relay or to a member of that role. No row: nobody''s.';

-- ---------------------------------------------------------------------------------------------------------------
-- For people: repeat a call, send a test event. Usable inside the caller's own transaction.

CREATE FUNCTION relay.require_own_webhooks() RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    foreign_code text;
BEGIN
    -- A view in its place runs functions with the rights of whoever reads it. What is locked stays as it is looked at.
    LOCK TABLE relay.webhooks IN ACCESS SHARE MODE;
    SELECT f INTO foreign_code FROM relay.foreign_code('relay.webhooks', false) AS f LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'relay.webhooks would run code of others with the rights of the relay: %', foreign_code
            USING ERRCODE = 'insufficient_privilege', HINT = 'Give that to relay_owner, or take it out of relay.webhooks.';
    END IF;
END
$$;

COMMENT ON FUNCTION relay.require_own_webhooks() IS
    'Fails when to read relay.webhooks would run code of others with the caller''s rights; else nobody changes that until the transaction ends.';

CREATE FUNCTION relay.replay(call_id bigint) RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    call    record;
    webhook record;
    payload jsonb;
    new_id  bigint;
BEGIN
    PERFORM relay.require_own_webhooks();
    SELECT c.trace_id, c.webhook_id, c.project_id, c.request_body
      INTO call
      FROM relay.call_by_id(call_id) c;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no call % in relay.webhook_calls', call_id
            USING ERRCODE = 'no_data_found', HINT = 'Calls are kept for --retain-calls (30 days unless set).';
    END IF;
    -- Else the row would be done without a call, and nobody told.
    SELECT w.enabled
      INTO webhook
      FROM relay.webhooks w
     WHERE w.id = call.webhook_id
       AND w.project_id = call.project_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'call % cannot be repeated: project % has no webhook % any more', call_id, call.project_id, call.webhook_id
            USING ERRCODE = 'no_data_found', HINT = 'Make a new webhook; it gets the events to come.';
    ELSIF NOT webhook.enabled THEN
        RAISE EXCEPTION 'call % cannot be repeated: webhook % is disabled', call_id, call.webhook_id
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Only enabled webhooks are called. Enable it first.';
    END IF;
    -- The outbox row may be deleted by now; the payload has everything.
    payload := call.request_body::jsonb;
    INSERT INTO relay.outbox (
        event, trace_id, project_id, prompt_id, user_id, result, finished_at, duration_ms, prompt_tokens,
        completion_tokens, total_tokens, cached, ip, user_agent, provider_id, provider_default_model, webhook_id,
        replay_of)
    VALUES (
        payload ->> 'event', call.trace_id, call.project_id, (payload ->> 'promptId')::bigint, payload ->> 'userId',
        (payload ->> 'result')::smallint, (payload ->> 'timestamp')::timestamptz, (payload ->> 'duration')::bigint,
        (payload #>> '{tokens,prompt}')::integer, (payload #>> '{tokens,completion}')::integer,
        CASE WHEN (payload #>> '{tokens,total}')::bigint
                  <> (payload #>> '{tokens,prompt}')::bigint + (payload #>> '{tokens,completion}')::bigint
             THEN (payload #>> '{tokens,total}')::integer END,
        (payload ->> 'cached')::boolean, payload ->> 'ip', payload ->> 'userAgent',
        (payload ->> 'providerId')::bigint, payload ->> 'providerDefaultModel', call.webhook_id, call_id)
    RETURNING id INTO new_id;
    RETURN new_id;
END
$$;

COMMENT ON FUNCTION relay.replay(bigint) IS
    'Inserts an outbox row that repeats one call, to its webhook only, and returns the row''s id. Fails when that webhook is gone or disabled. Repeated again when it is called again.';

CREATE FUNCTION relay.send_test(webhook_id bigint) RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    webhook record;
    new_id  bigint;
BEGIN
    PERFORM relay.require_own_webhooks();
    SELECT w.id, w.project_id, w.event, w.enabled
      INTO webhook
      FROM relay.webhooks w
     WHERE w.id = send_test.webhook_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no webhook % in relay.webhooks', send_test.webhook_id
            USING ERRCODE = 'no_data_found';
    ELSIF NOT webhook.enabled THEN
        RAISE EXCEPTION 'webhook % is disabled', send_test.webhook_id
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Only enabled webhooks are called. Enable it first.';
    END IF;
    INSERT INTO relay.outbox (
        event, project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens, user_agent,
        webhook_id)
    VALUES (webhook.event, webhook.project_id, 0, 'promptpal-relay test', 0, 0, 0, 0, 'promptpal-relay', webhook.id)
    RETURNING id INTO new_id;
    RETURN new_id;
END
$$;

COMMENT ON FUNCTION relay.send_test(bigint) IS
    'Inserts an outbox row with a test event (prompt 0, user "promptpal-relay test") for one webhook and returns the row''s id.';

-- ---------------------------------------------------------------------------------------------------------------
-- What is wrong with a signing secret, for the application to ask when a webhook is saved: the daemon's rule, in the
-- daemon's words. What it takes, the constraint on relay.webhooks takes, and no more.

CREATE FUNCTION relay.secret_problem(signing_secret text) RETURNS text
    LANGUAGE plpgsql
    IMMUTABLE
    STRICT
    PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    key     text;
    bytes   integer;
    is_some boolean := false;
BEGIN
    IF octet_length(signing_secret) > 8192 THEN
        RETURN 'the webhook''s signing_secret is longer than 8192 bytes';
    END IF;
    FOREACH key IN ARRAY regexp_split_to_array(signing_secret, E'[ \t\n\f\r]+') LOOP
        CONTINUE WHEN key = '';
        is_some := true;
        key := regexp_replace(key, '^whsec_', '');
        -- The bits that the last character has too many are zero: then each key has one form.
        IF key !~ '^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$' THEN
            RETURN 'a key in the webhook''s signing_secret is not base64 after whsec_';
        END IF;
        bytes := length(key) / 4 * 3 - (length(key) - length(rtrim(key, '=')));
        IF bytes NOT BETWEEN 24 AND 64 THEN
            RETURN 'a key in the webhook''s signing_secret has less than 24 or more than 64 bytes; make a new one of 32';
        END IF;
    END LOOP;
    IF NOT is_some THEN
        RETURN 'the webhook''s signing_secret is empty; set it to null for calls without a signature';
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION relay.secret_problem(text) IS
    'What is wrong with a webhook''s signing secret; null when it can sign, and for null: calls without a signature.';

-- ---------------------------------------------------------------------------------------------------------------
-- What is wrong with a URL, for the application to ask when a webhook is saved: the rules that the daemon has before
-- it asks DNS, without the daemon. It reads URLs as browsers do (WHATWG), because the daemon does: any number of
-- slashes, user and password, and every spelling of an IPv4 address (0x7f.1, 2130706433). Where it cannot know, it
-- differs: it does not know --allow-net (an address that only the operator lets through is told as a problem),
-- --https-only, nor the addresses of the relay's machine and of the database, and of names in other scripts than ASCII it knows only that they
-- may be written in wide forms, and what in them is left out.

CREATE FUNCTION relay.url_problem(url text) RETURNS text
    LANGUAGE plpgsql
    IMMUTABLE
    PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    SET standard_conforming_strings = on
AS $$
DECLARE
    -- As the standard says: nothing below the space, nor spaces, around it, and no tabs and line breaks within.
    bare      text := translate(btrim(url, (SELECT string_agg(chr(n), '') FROM generate_series(1, 32) AS n)),
                                E'\t\n\r', '');
    scheme    text := lower(substring(bare FROM '^([A-Za-z][A-Za-z0-9+.-]*):'));
    authority text;
    rest      text;
    host      text;
    port      text;
    parts     text[];
    part      text;
    base      integer;
    number    numeric;
    value     numeric := 0;
    address   inet;
    -- Those of the WHATWG fetch standard, and Redis'.
    bad_ports integer[] := ARRAY[
        0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
        110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531,
        532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060,
        5061, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080];
    bytes     bytea;
    -- Where in an IPv6 address an IPv4 address begins.
    embedded_at integer;
    why       text;
BEGIN
    IF coalesce(bare, '') = '' THEN
        RETURN 'the URL is empty';
    ELSIF octet_length(url) > 8192 THEN
        RETURN 'the URL is longer than 8192 bytes';
    ELSIF scheme IS NULL THEN
        RETURN 'not a URL: it does not begin with https://';
    ELSIF scheme NOT IN ('http', 'https') THEN
        -- Without scheme, what looks like one may be a user, and what follows a password.
        IF url ~ '@|%40|[^\x01-\x7f]' THEN
            RETURN 'the scheme is not http or https';
        END IF;
        RETURN format('the scheme is %s, not http or https', scheme);
    END IF;

    -- Up to the path, and after user and password.
    rest := regexp_replace(substr(bare, length(scheme) + 2), '^[/\\]*', '');
    authority := substring(rest FROM '^[^/\\?#]*');
    rest := regexp_replace(substr(rest, length(authority) + 1), '#.*$', '');
    authority := regexp_replace(authority, '^.*@', '');
    IF authority LIKE '[%' THEN
        host := substring(authority FROM '^\[([^]]*)\]');
        port := substring(authority FROM '^\[[^]]*\](.*)$');
    ELSE
        host := substring(authority FROM '^[^:]*');
        port := substr(authority, length(host) + 1);
    END IF;
    IF host IS NULL THEN
        RETURN 'not a URL: the bracket of the IPv6 address is not closed';
    ELSIF host = '' THEN
        RETURN 'the URL has no host';
    ELSIF port !~ '^(:[0-9]*)?$' OR length(ltrim(port, ':0')) > 5 THEN
        RETURN 'not a URL: the port is no number up to 65535';
    ELSIF coalesce(nullif(ltrim(port, ':0'), ''), '0')::integer > 65535 THEN
        RETURN 'not a URL: the port is no number up to 65535';
    ELSIF nullif(ltrim(port, ':'), '')::integer = ANY (bad_ports) THEN
        RETURN format('port %s cannot be called: it belongs to another protocol', ltrim(port, ':')::integer);
    END IF;

    IF authority LIKE '[%' THEN
        BEGIN
            address := host::inet;
        EXCEPTION WHEN invalid_text_representation THEN
            address := NULL;
        END;
        -- Postgres also reads a prefix length.
        IF address IS NULL OR family(address) <> 6 OR host !~ '^[0-9A-Fa-f:.]+$' THEN
            RETURN 'not a URL: what is in brackets is no IPv6 address';
        END IF;
    ELSE
        IF host LIKE '%\%%' THEN
            BEGIN
                SELECT convert_from(decode(string_agg(
                           CASE WHEN piece[1] ~ '^%.' THEN substr(piece[1], 2)
                                ELSE encode(convert_to(piece[1], 'UTF8'), 'hex') END,
                           '' ORDER BY at), 'hex'), 'UTF8')
                  INTO host
                  FROM regexp_matches(host, '%[0-9A-Fa-f]{2}|.', 'g') WITH ORDINALITY AS found(piece, at);
            EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
                RETURN 'not a URL: the host is no text';
            END;
        END IF;
        IF host ~ '[^\x01-\x7f]' AND getdatabaseencoding() = 'UTF8' THEN
            -- What is not seen is left out (UTS 46): soft hyphens, spaces without width, selectors of variants.
            host := regexp_replace(
                host, '[\u00AD\u034F\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B\u2060-\u2064\u206A-\u206F\u3164'
                      '\uFE00-\uFE0F\uFEFF\uFFA0\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U000E0100-\U000E01EF]',
                '', 'g');
            host := translate(normalize(host, NFKC), U&'\3002', '.');
            -- Joiners and marks of direction belong to other scripts, if to any.
            IF host ~ '[\u200C-\u200F\u2028-\u202E]' AND host ~ '^[\u0001-\u007F\u200C-\u200F\u2028-\u202E]*$' THEN
                RETURN 'not a URL: the host has a character that no host has';
            END IF;
        END IF;
        host := lower(host);
        IF host ~ '[\x01-\x20"#%/:<>?@\\^`{|}\x7f]' OR host ~ '[][]' THEN
            RETURN 'not a URL: the host has a character that no host has';
        END IF;
        parts := string_to_array(regexp_replace(host, '\.$', ''), '.');
        -- A last part that is a number makes it an IPv4 address, or nothing.
        IF parts[cardinality(parts)] ~ '^([0-9]+|0x[0-9a-f]*)$' THEN
            FOR i IN 1 .. cardinality(parts) LOOP
                base := CASE WHEN parts[i] ~ '^0x' THEN 16 WHEN parts[i] ~ '^0.' THEN 8 ELSE 10 END;
                part := ltrim(regexp_replace(parts[i], '^0x', ''), '0');
                IF parts[i] = '' OR i > 4 OR length(part) > 12
                    OR part !~ (CASE base WHEN 16 THEN '^[0-9a-f]*$' WHEN 8 THEN '^[0-7]*$' ELSE '^[0-9]*$' END) THEN
                    RETURN 'not a URL: the host is neither a name nor an IPv4 address';
                END IF;
                number := 0;
                FOR digit IN 1 .. length(part) LOOP
                    number := number * base + strpos('0123456789abcdef', substr(part, digit, 1)) - 1;
                END LOOP;
                -- The last part fills what is left of the four bytes.
                IF number >= (CASE WHEN i < cardinality(parts) THEN 256 ELSE 256 ^ (5 - i) END) THEN
                    RETURN 'not a URL: the host is neither a name nor an IPv4 address';
                END IF;
                value := value + number * CASE WHEN i < cardinality(parts) THEN 256 ^ (4 - i) ELSE 1 END;
            END LOOP;
            address := '0.0.0.0'::inet + value::bigint;
        ELSIF parts[cardinality(parts)] = 'localhost' THEN
            -- Loopback everywhere (RFC 6761).
            address := '127.0.0.1';
        END IF;
    END IF;

    -- Path and query go out encoded, each byte of what no URL has as three. (A host in other scripts does so in its own
    -- way, which is not looked at.)
    port := ltrim(port, ':0');
    IF (length(scheme) + length('://') + octet_length(host)
        + CASE WHEN port IN ('', CASE scheme WHEN 'https' THEN '443' ELSE '80' END) THEN 0 ELSE length(port) + 1 END
        + CASE WHEN rest ~ '^[/\\]' THEN 0 ELSE 1 END
        + 3 * octet_length(convert_to(rest, 'UTF8'))
        - 2 * length(regexp_replace(substring(rest FROM '^[^?]*'), '[^\x21-\x7e]|["<>`{}]', '', 'g'))
        - 2 * length(regexp_replace(coalesce(substring(rest FROM '\?.*$'), ''), '[^\x21-\x7e]|["<>'']', '', 'g'))) > 8192 THEN
        RETURN 'the URL is longer than 8192 bytes when it is encoded';
    END IF;

    -- An IPv6 address that carries an IPv4 address counts as that: mapped, translated, NAT64, 6to4.
    bytes := inet_send(address);
    IF address <<= '::ffff:0:0/96' OR address <<= '::ffff:0:0:0/96' OR address <<= '64:ff9b::/96' THEN
        embedded_at := 12;
    ELSIF address <<= '2002::/16' THEN
        embedded_at := 2;
    END IF;
    IF embedded_at IS NOT NULL THEN
        -- Four bytes of its own come before the address.
        address := array_to_string(ARRAY(
            SELECT get_byte(bytes, 4 + embedded_at + n) FROM generate_series(0, 3) AS n), '.')::inet;
    END IF;
    SELECT special.why
      INTO why
      FROM (VALUES
            ('0.0.0.0/8'::inet,   'this network'),
            ('10.0.0.0/8',        'private'),
            ('100.64.0.0/10',     'shared by a carrier'),
            ('127.0.0.0/8',       'loopback'),
            ('161.26.0.0/16',     'internal to a cloud'),
            ('166.8.0.0/14',      'internal to a cloud'),
            ('168.63.129.16/32',  'internal to a cloud'),
            ('169.254.0.0/16',    'link-local, metadata'),
            ('172.16.0.0/12',     'private'),
            ('192.0.0.0/24',      'protocol assignments'),
            ('192.0.2.0/24',      'documentation'),
            ('192.88.99.0/24',    '6to4 relays'),
            ('192.168.0.0/16',    'private'),
            ('198.18.0.0/15',     'benchmarking'),
            ('198.51.100.0/24',   'documentation'),
            ('203.0.113.0/24',    'documentation'),
            ('224.0.0.0/4',       'multicast'),
            ('240.0.0.0/4',       'reserved'),
            ('2001::/23',         'protocol assignments, Teredo'),
            ('2001:db8::/32',     'documentation'),
            ('3fff::/20',         'documentation')
           ) AS special(net, why)
     WHERE address <<= special.net;
    IF why IS NULL AND family(address) = 6 AND NOT address <<= '2000::/3' THEN
        why := 'not for global use';
    END IF;
    RETURN host(address) || ' may not be called: ' || why;
END
$$;

COMMENT ON FUNCTION relay.url_problem(text) IS
    'What is wrong with a webhook''s URL as far as it can be told without DNS; null when it may work. Knows neither --allow-net nor --https-only, nor the addresses of the relay''s machine.';

-- ---------------------------------------------------------------------------------------------------------------
-- Partitions of the call log. The daemon's role does not own the tables: these functions are all that it may do to
-- them. Each does little and is a transaction of its own, so that no lock is held for longer than that takes.

-- Bounds of partitions are written as text and read back. What they are read as must not be the session's matter.
CREATE FUNCTION relay.make_call_partition(day date) RETURNS boolean
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    SET DateStyle = 'ISO'
    SET TimeZone = 'UTC'
AS $$
DECLARE
    name     text;
    first    timestamptz;
    beyond   timestamptz;
    -- More than so many calls of the day stay in the default partition: moving them would hold up who writes there.
    move_max bigint := 10000;
    strays   bigint;
    today    date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    -- What --retain-calls may keep, and what the daemon makes ahead. Each partition is four locks for whoever asks the
    -- log without a span of time.
    IF day IS NULL OR NOT day BETWEEN today - 400 AND today + 7 THEN
        RAISE EXCEPTION 'no partition is made for %: days from % to % have one',
            coalesce(day::text, 'null'), today - 400, today + 7
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Make one of another day by hand: CREATE TABLE ... PARTITION OF relay.webhook_calls.';
    END IF;
    name := 'webhook_calls_' || to_char(day, 'YYYYMMDD');
    first := day::timestamp AT TIME ZONE 'UTC';
    beyond := (day + 1)::timestamp AT TIME ZONE 'UTC';
    -- Somebody took the default partition away: without it a call of a day without a partition has nowhere to go.
    IF to_regclass('relay.webhook_calls_default') IS NULL THEN
        CREATE TABLE relay.webhook_calls_default (LIKE relay.webhook_calls INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
        ALTER TABLE relay.webhook_calls_default REPLICA IDENTITY FULL;
        COMMENT ON TABLE relay.webhook_calls_default IS 'Calls of days without a partition; empty in a healthy system.';
        IF (SELECT partdefid = 0 FROM pg_partitioned_table WHERE partrelid = 'relay.webhook_calls'::regclass) THEN
            ALTER TABLE relay.webhook_calls ATTACH PARTITION relay.webhook_calls_default DEFAULT;
        END IF;
    END IF;
    -- Also one that a DBA has detached: its name is taken, and the day's calls go to the default partition.
    IF to_regclass('relay.' || name) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- Made apart and attached: that takes a lock on the parent which lets inserts and reports go on.
    EXECUTE format('CREATE TABLE relay.%I (LIKE relay.webhook_calls INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    -- So that a DBA can delete from it also where a publication has all tables.
    EXECUTE format('ALTER TABLE relay.%I REPLICA IDENTITY FULL', name);
    EXECUTE format('COMMENT ON TABLE relay.%I IS %L', name, format('Calls of %s (UTC).', day));
    -- Calls of the day that came before its partition.
    SELECT count(*)
      INTO strays
      FROM (SELECT FROM relay.webhook_calls_default c
             WHERE c.start_time >= first AND c.start_time < beyond
             LIMIT move_max + 1) AS c;
    IF strays > move_max THEN
        RAISE check_violation USING MESSAGE = format('more than %s calls of %s are in the default partition', move_max, day);
    ELSIF strays > 0 THEN
        -- From here on none is added.
        LOCK TABLE relay.webhook_calls_default IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'WITH moved AS (DELETE FROM relay.webhook_calls_default WHERE start_time >= $1 AND start_time < $2 RETURNING *)
             INSERT INTO relay.%I SELECT * FROM moved', name)
          USING first, beyond;
    END IF;
    EXECUTE format('ALTER TABLE relay.webhook_calls ATTACH PARTITION relay.%I FOR VALUES FROM (%L) TO (%L)',
                   name, first, beyond);
    RETURN true;
EXCEPTION
    -- Too many strays, a partition of a DBA's that has the day already, or another instance that was faster: the calls
    -- have where to go.
    WHEN check_violation OR duplicate_table OR invalid_object_definition THEN RETURN false;
END
$$;

COMMENT ON FUNCTION relay.make_call_partition(date) IS
    'Makes the partition of relay.webhook_calls for a UTC day, of the last 400 or the next 7, unless there is one; whether it did. Calls of that day in the default partition are moved, up to 10,000.';

-- Attached partitions of ours, by their names, and where they really end: one that a DBA has made wider may have the name
-- of an old day and calls of today. One without a last moment has none here.
CREATE FUNCTION relay.call_partitions(OUT name text, OUT beyond timestamptz) RETURNS SETOF record
    LANGUAGE sql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    SET DateStyle = 'ISO'
    SET TimeZone = 'UTC'
AS $$
    SELECT c.relname::text,
           substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO [(]''([^'']+)''[)]')::timestamptz
      FROM pg_inherits i
      JOIN pg_class c
        ON c.oid = i.inhrelid
     WHERE i.inhparent = 'relay.webhook_calls'::regclass
       AND c.relnamespace = 'relay'::regnamespace
       AND c.relname ~ '^webhook_calls_[0-9]{8}$'
$$;

COMMENT ON FUNCTION relay.call_partitions() IS
    'The daily partitions of relay.webhook_calls (webhook_calls_YYYYMMDD), and the moment before which each ends.';

CREATE FUNCTION relay.drop_call_partition(name text, before timestamptz) RETURNS boolean
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    IF name IS NULL OR before IS NULL THEN
        RAISE EXCEPTION 'which partition may go, and what ended before when? Neither may be null'
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    -- Only an attached one of ours, and only when all of it is before the limit, and nothing of today or yesterday.
    IF NOT EXISTS (SELECT
                     FROM relay.call_partitions() p
                    WHERE p.name = drop_call_partition.name
                      AND p.beyond <= least(before, now() - interval '1 day')) THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE relay.%I', name);
    UPDATE relay.retention r
       SET dropped = drop_call_partition.name,
           dropped_at = now();
    RETURN true;
END
$$;

COMMENT ON FUNCTION relay.drop_call_partition(text, timestamptz) IS
    'Drops a daily partition of relay.webhook_calls (webhook_calls_YYYYMMDD) that ends before the given time, and notes that in relay.retention; whether it did. Partitions of other names are the DBA''s.';

CREATE FUNCTION relay.delete_stray_calls(before timestamptz, most integer) RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    deleted bigint;
    -- Nothing of today or yesterday, whatever is asked for; as relay.drop_call_partition.
    beyond  timestamptz := least(before, now() - interval '1 day');
BEGIN
    IF before IS NULL OR most IS NULL OR most NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'which calls may go? A time is needed, and a number from 1 to 10000'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- A DELETE is refused where a publication has a table without replica identity (one that a DBA made), also one that
    -- finds nothing.
    IF NOT EXISTS (SELECT FROM relay.webhook_calls_default c WHERE c.start_time < beyond) THEN
        RETURN 0;
    END IF;
    DELETE FROM relay.webhook_calls_default c
     WHERE c.ctid = ANY (ARRAY(SELECT s.ctid
                                 FROM relay.webhook_calls_default s
                                WHERE s.start_time < beyond
                                LIMIT most));
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$$;

COMMENT ON FUNCTION relay.delete_stray_calls(timestamptz, integer) IS
    'Deletes calls of the default partition of relay.webhook_calls that started before the given time and more than a day ago, at most so many (10,000); how many.';

REVOKE ALL ON FUNCTION relay.foreign_code(regclass, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.require_own_webhooks() FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.call_by_id(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.replay(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.send_test(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.secret_problem(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.url_problem(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.wake() FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.is_daemon(oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.daemon_locks() FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.cut_text(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.cut_long_text(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.call_partitions() FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.make_call_partition(date) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.drop_call_partition(text, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.delete_stray_calls(timestamptz, integer) FROM PUBLIC;

DO $$
BEGIN
    PERFORM relay.make_call_partition((now() AT TIME ZONE 'UTC')::date + n) FROM generate_series(0, 7) AS n;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Views for people. Each is bounded: none reads a whole backlog or the whole history.

CREATE VIEW relay.backlog AS
    SELECT project_id,
           count(*)                         AS pending,
           count(*) FILTER (WHERE parked)   AS parked,
           greatest(now() - min(created_at), interval '0')  AS oldest_age
      FROM (
            (SELECT project_id, created_at, parked
               FROM relay.outbox
              WHERE done_at IS NULL AND NOT parked
              ORDER BY id + 0
              LIMIT 100000)
            UNION ALL
            (SELECT project_id, created_at, parked
               FROM relay.outbox
              WHERE done_at IS NULL AND parked
              ORDER BY project_id, id + 0
              LIMIT 100000)
           ) AS pending
     GROUP BY project_id
     ORDER BY pending DESC, project_id;

COMMENT ON VIEW relay.backlog IS
    'Rows that are not done, by project, with the age of the oldest. Counts the first 100,000 rows of each lane, so its cost does not grow with the backlog.';
COMMENT ON COLUMN relay.backlog.project_id IS 'From the outbox rows.';
COMMENT ON COLUMN relay.backlog.pending IS 'Rows that are not done, parked ones included.';
COMMENT ON COLUMN relay.backlog.parked IS 'Those of them that wait for a place at a slow webhook.';
COMMENT ON COLUMN relay.backlog.oldest_age IS 'How long ago the oldest was inserted; 0 when created_at is in the future.';

CREATE VIEW relay.in_flight AS
    SELECT o.id, o.project_id, o.trace_id, o.created_at, o.claimed_by AS epoch, i.host, i.pid,
           i.dead_at IS NOT NULL AS instance_dead
      FROM (
            (SELECT id, project_id, trace_id, created_at, claimed_by
               FROM relay.outbox
              WHERE done_at IS NULL AND NOT parked
              ORDER BY id + 0
              LIMIT 100000)
            UNION ALL
            (SELECT id, project_id, trace_id, created_at, claimed_by
               FROM relay.outbox
              WHERE done_at IS NULL AND parked
              ORDER BY project_id, id + 0
              LIMIT 100000)
           ) AS o
      LEFT JOIN relay.instances i ON i.epoch = o.claimed_by
     WHERE o.claimed_by > 0
     ORDER BY o.id;

COMMENT ON VIEW relay.in_flight IS
    'Rows that an instance has in hand, among the first 100,000 rows of each lane.';
COMMENT ON COLUMN relay.in_flight.id IS 'Of the relay.outbox row.';
COMMENT ON COLUMN relay.in_flight.project_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.in_flight.trace_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.in_flight.created_at IS 'From the outbox row.';
COMMENT ON COLUMN relay.in_flight.epoch IS 'Of the instance that has the row in hand.';
COMMENT ON COLUMN relay.in_flight.host IS 'Where that instance runs.';
COMMENT ON COLUMN relay.in_flight.pid IS 'Its process id there.';
COMMENT ON COLUMN relay.in_flight.instance_dead IS 'It ended, or was found dead: a peer takes the row over.';

-- The log's views are functions beneath: now() is no constant when a query is planned, so a plain view would lock all
-- partitions and their indexes. What is executed here is planned with the time, and touches those of the span.

CREATE FUNCTION relay.webhook_health_since(since timestamptz)
    RETURNS TABLE (webhook_id bigint, calls bigint, failures bigint, timeouts bigint, p50_ms numeric, p95_ms numeric, last_error text)
    LANGUAGE plpgsql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    RETURN QUERY EXECUTE $query$
        SELECT c.webhook_id,
               count(*),
               count(*) FILTER (WHERE NOT c.succeeded),
               count(*) FILTER (WHERE c.is_timeout),
               -- A clock that was put back during a call makes no negative time.
               greatest(round((percentile_cont(0.5) WITHIN GROUP (
                   ORDER BY extract(epoch FROM c.end_time - c.start_time) * 1000))::numeric, 1), 0),
               greatest(round((percentile_cont(0.95) WITHIN GROUP (
                   ORDER BY extract(epoch FROM c.end_time - c.start_time) * 1000))::numeric, 1), 0),
               -- The greatest of pairs, not the first of a sorted list: that would keep all of an hour in memory.
               (max(ARRAY[to_char(c.start_time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'),
                          c.error_kind || ': ' || coalesce(c.error_message, '')])
                   FILTER (WHERE NOT c.succeeded))[2]
          FROM relay.webhook_calls c
         WHERE c.start_time > $1
         GROUP BY c.webhook_id
         ORDER BY 3 DESC, c.webhook_id
    $query$ USING since;
END
$$;

COMMENT ON FUNCTION relay.webhook_health_since(timestamptz) IS 'relay.webhook_health, over the time since then.';

CREATE VIEW relay.webhook_health AS
    SELECT h.webhook_id, h.calls, h.failures, h.timeouts, h.p50_ms, h.p95_ms, h.last_error
      FROM relay.webhook_health_since(now() - interval '1 hour') AS h;

COMMENT ON VIEW relay.webhook_health IS
    'By webhook, over the last hour: calls, failures, timeouts, median and 95th percentile of the duration in milliseconds, and the last failure.';
COMMENT ON COLUMN relay.webhook_health.webhook_id IS 'The webhook that was called; it may be gone.';
COMMENT ON COLUMN relay.webhook_health.calls IS 'Calls that started within the last hour.';
COMMENT ON COLUMN relay.webhook_health.failures IS 'Those of them that did not succeed.';
COMMENT ON COLUMN relay.webhook_health.timeouts IS 'Those of them that passed --timeout.';
COMMENT ON COLUMN relay.webhook_health.p50_ms IS 'Milliseconds within which half of the calls ended.';
COMMENT ON COLUMN relay.webhook_health.p95_ms IS 'Milliseconds within which 95 of 100 calls ended.';
COMMENT ON COLUMN relay.webhook_health.last_error IS 'Kind and message of the last failure.';

CREATE FUNCTION relay.failures_since(since timestamptz, most integer)
    RETURNS TABLE (call_id bigint, start_time timestamptz, webhook_id bigint, project_id bigint, trace_id text, url text,
                   error_kind text, status_code integer, error_message text, duration interval)
    LANGUAGE plpgsql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    RETURN QUERY EXECUTE $query$
        SELECT c.id, c.start_time, c.webhook_id, c.project_id, c.trace_id, c.url, c.error_kind, c.status_code,
               c.error_message, c.end_time - c.start_time
          FROM relay.webhook_calls c
         WHERE NOT c.succeeded
           AND c.start_time > $1
         ORDER BY c.start_time DESC
         LIMIT $2
    $query$ USING since, most;
END
$$;

COMMENT ON FUNCTION relay.failures_since(timestamptz, integer) IS
    'The last failed calls since then, newest first, at most so many; see relay.recent_failures.';

CREATE VIEW relay.recent_failures AS
    SELECT f.call_id, f.start_time, f.webhook_id, f.project_id, f.trace_id, f.url, f.error_kind, f.status_code,
           f.error_message, f.duration
      FROM relay.failures_since(now() - interval '1 day', 1000) AS f;

COMMENT ON VIEW relay.recent_failures IS 'The last 1,000 failed calls of the last day, newest first.';
COMMENT ON COLUMN relay.recent_failures.call_id IS 'Of relay.webhook_calls; what relay.replay() takes.';
COMMENT ON COLUMN relay.recent_failures.start_time IS 'First byte of work.';
COMMENT ON COLUMN relay.recent_failures.webhook_id IS 'The webhook that was called; it may be gone.';
COMMENT ON COLUMN relay.recent_failures.project_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.recent_failures.trace_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.recent_failures.url IS 'The webhook''s URL at the time of the call, without user and password.';
COMMENT ON COLUMN relay.recent_failures.error_kind IS 'As in relay.webhook_calls.';
COMMENT ON COLUMN relay.recent_failures.status_code IS 'Of the answer; null when none was read.';
COMMENT ON COLUMN relay.recent_failures.error_message IS 'What happened, for people.';
COMMENT ON COLUMN relay.recent_failures.duration IS 'From the first byte of work to the last byte read, or the failure.';

REVOKE ALL ON FUNCTION relay.webhook_health_since(timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.failures_since(timestamptz, integer) FROM PUBLIC;
