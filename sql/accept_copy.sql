-- The acceptance: somebody says that daemons may run on this copy, or names the site of this database.
--
-- migrate runs this file last, when it was asked to, and `migrate --print` prints it. Two settings of the session say what
-- was asked: promptpal_relay.accept_copy is skip, deliver or empty, promptpal_relay.site is a name or empty.
--
-- It is a block that commits, so it must be a statement of its own, outside a transaction. Each commit ends a batch of
-- 5,000 ids in order of id. The identity is written last: until then no daemon runs here, and an interrupted run is run
-- again. Rows that the application inserts meanwhile are not skipped.

DO $promptpal_relay_accept$
DECLARE
    decision    text := nullif(current_setting('promptpal_relay.accept_copy', true), '');
    wanted_site text := nullif(current_setting('promptpal_relay.site', true), '');
    is_copy     boolean := relay.is_copy();
    known       relay.installation;
    renamed     boolean;
    accepted    bigint;
    problem     text;
    last_id     bigint;
    after       bigint := 0;
    ids         bigint[];
    batch       bigint;
    skipped     bigint := 0;
BEGIN
    SELECT i.* INTO known FROM relay.installation i;
    renamed := wanted_site IS DISTINCT FROM known.site AND wanted_site IS NOT NULL;
    IF is_copy AND decision IS NULL THEN
        RAISE EXCEPTION 'this database is a copy: say what becomes of the pending rows'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = '--accept-copy=skip marks them done without calls, --accept-copy=deliver keeps them.';
    ELSIF renamed AND known.site IS NOT NULL AND decision IS NULL THEN
        RAISE EXCEPTION 'the site of this database is "%": say what becomes of the pending rows when it is "%"', known.site, wanted_site
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = '--accept-copy=skip marks them done without calls, --accept-copy=deliver keeps them.';
    ELSIF decision IS NULL THEN
        UPDATE relay.installation
           SET site = wanted_site, written_at = now()
         WHERE renamed;
        RETURN;
    ELSIF NOT is_copy AND NOT renamed THEN
        RAISE NOTICE 'this database is no copy: there is nothing to accept, and nothing was changed';
        RETURN;
    END IF;

    -- A daemon of the site until now would make calls that nobody could record.
    IF EXISTS (SELECT
                 FROM relay.daemon_locks() AS h
                 JOIN relay.instances i
                   ON h.class << 32 | h.object = ANY (i.locks)
                WHERE h.keys = 1) THEN
        RAISE EXCEPTION 'a daemon runs on this database: stop it first'
            USING ERRCODE = 'object_in_use';
    END IF;

    INSERT INTO relay.accepted_copies (decision, from_system_identifier, from_database_oid, from_site)
    VALUES (decision, known.system_identifier, known.database_oid, known.site)
    RETURNING id INTO accepted;
    last_id := CASE decision WHEN 'skip' THEN (SELECT max(o.id) FROM relay.outbox o) END;
    LOOP
        -- What is locked stays as it is looked at: nobody adds a trigger that would run with our rights.
        LOCK TABLE relay.outbox IN ROW EXCLUSIVE MODE;
        SELECT f INTO problem FROM relay.foreign_code('relay.outbox', true) AS f LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'code of others would run: %', problem
                USING ERRCODE = 'insufficient_privilege',
                      HINT = 'Give it to relay_owner (ALTER … OWNER TO relay_owner), or take it out of relay.outbox.';
        END IF;
        ids := ARRAY(SELECT o.id
                       FROM relay.outbox o
                      WHERE o.id > after
                        AND o.id <= last_id
                      ORDER BY o.id
                      LIMIT 5000);
        EXIT WHEN ids = '{}';
        UPDATE relay.outbox o
           SET done_at = now(), claimed_by = NULL
         WHERE o.id = ANY (ids)
           AND o.done_at IS NULL;
        GET DIAGNOSTICS batch = ROW_COUNT;
        skipped := skipped + batch;
        UPDATE relay.accepted_copies a
           SET rows_skipped = skipped
         WHERE a.id = accepted;
        after := ids[array_upper(ids, 1)];
        COMMIT;
    END LOOP;

    INSERT INTO relay.installation AS i (system_identifier, database_oid, table_oid, site)
    SELECT c.system_identifier, d.oid, 'relay.installation'::regclass, coalesce(wanted_site, known.site)
      FROM pg_control_system() AS c
     CROSS JOIN pg_database d
     WHERE d.datname = current_database()
        ON CONFLICT (only_row) DO UPDATE
       SET system_identifier = excluded.system_identifier,
           database_oid = excluded.database_oid,
           table_oid = excluded.table_oid,
           site = excluded.site,
           written_at = now();
    UPDATE relay.accepted_copies a
       SET accepted_at = clock_timestamp()
     WHERE a.id = accepted;
    RAISE NOTICE 'this database is accepted (%): % pending rows were marked done without calls', decision, skipped;
END
$promptpal_relay_accept$;
