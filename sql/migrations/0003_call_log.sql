-- The call log: one row for each call, partitioned by the UTC day of start_time.
--
-- The daemon writes it at the pace of the queue, and each B-tree on it would cost as much as the whole queue operation.
-- So two block-range indexes find a call by id, time, outbox row, trace and webhook at nearly no cost. One partial B-tree
-- finds the failures of a webhook, and one the calls that repeat another call, which are few. The second block-range index has start_time, too, because that column is in the order of
-- the blocks. Without such a column the planner assumes that a search finds all ranges of blocks.
--
-- No CHECK constraint says which error kinds there are: Postgres would parse it anew for every statement of the daemon, and
-- the daemon has no others.

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
    event_id            uuid        NOT NULL,
    replay_of           bigint
) PARTITION BY RANGE (start_time);

ALTER SEQUENCE relay.webhook_calls_id_seq OWNED BY relay.webhook_calls.id;

-- A call goes here when its day has no partition, so a missing partition never loses a log. The log has no key, and the
-- daemon deletes rows from this partition. Postgres refuses a delete under a publication of all tables when the table has
-- no replica identity. FULL costs nothing until a row is deleted. Partitions do not inherit it, so each one sets it.
CREATE TABLE relay.webhook_calls_default PARTITION OF relay.webhook_calls DEFAULT;
ALTER TABLE relay.webhook_calls_default REPLICA IDENTITY FULL;

CREATE INDEX webhook_calls_place ON relay.webhook_calls
    USING brin (id, start_time, outbox_id) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX webhook_calls_bloom ON relay.webhook_calls
    USING brin (start_time, trace_id text_bloom_ops, webhook_id int8_bloom_ops) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX webhook_calls_failures ON relay.webhook_calls (webhook_id, start_time) WHERE NOT succeeded;
CREATE INDEX webhook_calls_replays ON relay.webhook_calls (event_id, webhook_id) WHERE replay_of IS NOT NULL;

COMMENT ON TABLE relay.webhook_calls IS
    'The call log: one row for each call, written in the transaction that marks its outbox row done. Partitioned by UTC day of start_time.';
COMMENT ON TABLE relay.webhook_calls_default IS 'Calls of days without a partition; empty in a healthy system.';
COMMENT ON COLUMN relay.webhook_calls.id IS 'Grows with time; what relay.replay() takes.';
COMMENT ON COLUMN relay.webhook_calls.outbox_id IS 'The relay.outbox row; that row is deleted some time after it is done.';
COMMENT ON COLUMN relay.webhook_calls.webhook_id IS 'The webhook that was called; it may be gone.';
COMMENT ON COLUMN relay.webhook_calls.project_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.webhook_calls.trace_id IS 'From the outbox row; where that has none, the event_id without dashes.';
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
COMMENT ON COLUMN relay.webhook_calls.error_message IS 'What happened, for people; also set for a success with a flaw, and for a request that was sent twice.';
COMMENT ON COLUMN relay.webhook_calls.error_kind IS 'Null for a success; else bad_url, blocked_address, dns, connect, tls, timeout, protocol, http_status, interrupted, paused or internal.';
COMMENT ON COLUMN relay.webhook_calls.succeeded IS 'A 2xx within the time limit.';
COMMENT ON COLUMN relay.webhook_calls.repeated IS 'An instance that died had the row in hand before: the receiver may have seen this call already.';
COMMENT ON COLUMN relay.webhook_calls.remote_addr IS 'Address and port that the socket was connected to.';
COMMENT ON COLUMN relay.webhook_calls.user_agent IS 'From the outbox row: of the client that ran the prompt.';
COMMENT ON COLUMN relay.webhook_calls.ip IS 'From the outbox row: of the client that ran the prompt.';
COMMENT ON COLUMN relay.webhook_calls.provider_id IS 'From the outbox row.';
COMMENT ON COLUMN relay.webhook_calls.event_id IS 'From the outbox row: the same in every call for the same event, replays included.';
COMMENT ON COLUMN relay.webhook_calls.replay_of IS 'The call that this one repeats; null unless it is a replay.';

-- A call by its id. The id does not say which day the call is of. A plain query would lock all partitions and their indexes
-- until the transaction ends. That is five locks for each partition, and a few thousand partitions need more locks than
-- the server has room for. So the function reads one partition after the other, the newest first. The end of a
-- subtransaction frees the locks of a partition that did not have the call. Ids grow with time unless a clock jumps: when
-- the first call of a partition has a higher id, the function reads that partition in a second round only.
--
-- Measured, with the locks of one partition held at the end:
--
--     partitions   a call of today   a call of a year ago   no such call
--            400              8 ms                  60 ms          85 ms
--          3,650             30 ms                  80 ms          1.1 s
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
                -- A partition of another owner, which may be read by way of the table that it is a part of.
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

REVOKE ALL ON FUNCTION relay.call_by_id(bigint) FROM PUBLIC;
