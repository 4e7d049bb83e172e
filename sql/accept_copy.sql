-- The acceptance: an operator says that daemons may run on this copy, or names the site of this database.
--
-- migrate runs this file last, when it was asked to, and `migrate --print` prints it. Two settings of the session say what
-- was asked: promptpal_relay.accept_copy is skip, deliver or empty, promptpal_relay.site is a name or empty.
--
-- It is a block that commits, so it must be a statement of its own, outside a transaction. Each commit ends a batch of
-- 5,000 ids in order of id. Rows that the application inserts meanwhile are not skipped.
--
-- The first step makes the database a copy of no other: table_oid is 0, which fits nowhere. After that no daemon begins, and
-- the block checks for daemons again. A daemon lists itself first and then reads the identity once more. So either the block
-- finds the daemon, or the daemon finds a copy and ends. The identity is written last. A run that is interrupted before that
-- leaves a copy, also where there was an original, and the operator runs it again.

DO $promptpal_relay_accept$
DECLARE
    decision    text := nullif(current_setting('promptpal_relay.accept_copy', true), '');
    wanted_site text := nullif(current_setting('promptpal_relay.site', true), '');
    is_copy     boolean := relay.is_copy();
    daemon_runs CONSTANT text := 'SELECT EXISTS (SELECT
                                                   FROM relay.daemon_locks() AS h
                                                   JOIN relay.instances i
                                                     ON h.class << 32 | h.object = ANY (i.locks)
                                                  WHERE h.keys = 1)';
    daemon_found boolean;
    before      relay.installation[];
    known       relay.installation;
    origin      relay.installation;
    renamed     boolean;
    accepted    bigint;
    problem     text;
    last_id     bigint;
    after       bigint := 0;
    ids         bigint[];
    batch       bigint;
    skipped     bigint := 0;
BEGIN
    -- The row of this database first, for the site; another one first, for the origin.
    before := ARRAY(SELECT i
                      FROM relay.installation i
                     CROSS JOIN pg_control_system() AS c
                     CROSS JOIN pg_database d
                     WHERE d.datname = current_database()
                     ORDER BY (i.system_identifier, i.database_oid, i.table_oid)
                                  = (c.system_identifier, d.oid, 'relay.installation'::regclass::oid) DESC,
                              -- Of an interrupted run.
                              i.table_oid <> 0,
                              i.written_at);
    known := before[1];
    origin := before[cardinality(before)];
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
        IF NOT renamed THEN
            RETURN;
        END IF;
    ELSIF NOT is_copy AND NOT renamed THEN
        RAISE NOTICE 'this database is no copy: there is nothing to accept, and nothing was changed';
        RETURN;
    END IF;

    -- A daemon of the site until now would make calls that no daemon could record.
    EXECUTE daemon_runs INTO daemon_found;
    IF daemon_found THEN
        RAISE EXCEPTION 'a daemon runs on this database: stop it first; nothing was changed'
            USING ERRCODE = 'object_in_use';
    END IF;
    IF decision IS NULL THEN
        UPDATE relay.installation
           SET site = wanted_site, written_at = now();
    ELSE
        DELETE FROM relay.installation;
        INSERT INTO relay.installation (system_identifier, database_oid, table_oid, site)
        SELECT origin.system_identifier, origin.database_oid, 0, known.site
         WHERE before <> '{}';
        INSERT INTO relay.accepted_copies (decision, from_system_identifier, from_database_oid, from_site)
        VALUES (decision, origin.system_identifier, origin.database_oid, origin.site)
        RETURNING id INTO accepted;
    END IF;
    COMMIT;
    -- A daemon that began meanwhile is listed by now, or reads what was just committed and ends.
    EXECUTE daemon_runs INTO daemon_found;
    IF daemon_found THEN
        DELETE FROM relay.installation;
        INSERT INTO relay.installation
        SELECT b.*
          FROM unnest(before) AS b;
        DELETE FROM relay.accepted_copies a
         WHERE a.id = accepted;
        COMMIT;
        RAISE EXCEPTION 'a daemon runs on this database: stop it first; nothing was changed'
            USING ERRCODE = 'object_in_use';
    END IF;
    IF decision IS NULL THEN
        RETURN;
    END IF;

    last_id := (SELECT max(o.id) FROM relay.outbox o);
    LOOP
        -- What is locked stays as it was checked: no session adds a trigger that would run with our rights.
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
        IF decision = 'skip' THEN
            UPDATE relay.outbox o
               SET done_at = now(), claimed_by = NULL
             WHERE o.id = ANY (ids)
               AND o.done_at IS NULL;
            GET DIAGNOSTICS batch = ROW_COUNT;
            skipped := skipped + batch;
            UPDATE relay.accepted_copies a
               SET rows_skipped = skipped
             WHERE a.id = accepted;
        ELSE
            -- No daemon runs here, so no instance has a row in hand. A claim of an instance that did not come with the copy
            -- would stay for ever: peers declare only listed ones dead. 0 means: a dead one had the row.
            UPDATE relay.outbox o
               SET claimed_by = 0
             WHERE o.id = ANY (ids)
               AND o.done_at IS NULL
               AND o.claimed_by <> 0;
        END IF;
        after := ids[array_upper(ids, 1)];
        COMMIT;
    END LOOP;

    EXECUTE daemon_runs INTO daemon_found;
    IF daemon_found THEN
        RAISE EXCEPTION 'a daemon runs on this database: stop it first, and run this again; until then this database is a copy'
            USING ERRCODE = 'object_in_use';
    END IF;
    DELETE FROM relay.installation;
    INSERT INTO relay.installation (system_identifier, database_oid, table_oid, site)
    SELECT c.system_identifier, d.oid, 'relay.installation'::regclass, coalesce(wanted_site, known.site)
      FROM pg_control_system() AS c
     CROSS JOIN pg_database d
     WHERE d.datname = current_database();
    UPDATE relay.accepted_copies a
       SET accepted_at = clock_timestamp()
     WHERE a.id = accepted;
    RAISE NOTICE 'this database is accepted (%): % pending rows were marked done without calls', decision, skipped;
END
$promptpal_relay_accept$;
