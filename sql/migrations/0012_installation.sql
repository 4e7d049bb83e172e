-- The installation: which database this is, so that a copy of it is recognised.
--
-- A clone, a restored dump or a subscriber has the rows of the original, pending ones included. A daemon there would send
-- events that the original sends, too. So this row names the database that it was written in, and no daemon runs where the
-- row does not fit. The row fits where three things are as they were: the server's system identifier, the database's oid,
-- and the oid of this table. A dump that is restored over its own database makes the table anew, and so its oid changes.
-- A restart, a crash, VACUUM FULL and a failover to a streaming standby change none of them.
--
-- A physical copy (snapshot, base backup) has all three. There the site tells: a daemon whose --site is not the database's
-- does not run.
--
-- A dump may also be loaded into a database that has the schema already. So the identity is the key: the row of the original
-- can be loaded beside the row of this database, and a row that does not fit tells a copy. A key of one row would refuse
-- it, and the restore would go on with the other tables.
--
-- The first migrate writes the row here. After that only `migrate --accept-copy` and `migrate --site` do.

CREATE TABLE relay.installation (
    system_identifier  bigint      NOT NULL,
    database_oid       oid         NOT NULL,
    table_oid          oid         NOT NULL,
    site               text,
    written_at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT installation_pkey PRIMARY KEY (system_identifier, database_oid, table_oid),
    CONSTRAINT installation_site_is_a_name CHECK (
        length(site) BETWEEN 1 AND 63 AND site COLLATE "C" !~ '[[:cntrl:]]')
);

COMMENT ON TABLE relay.installation IS
    'Which database this is. One row, unless a dump was loaded beside it; a daemon runs only where all rows fit. Written by promptpal-relay migrate.';
COMMENT ON COLUMN relay.installation.system_identifier IS 'Of the server in which this was written, as pg_control_system() has it.';
COMMENT ON COLUMN relay.installation.database_oid IS 'Of the database in which this was written, as pg_database has it.';
COMMENT ON COLUMN relay.installation.table_oid IS 'Of this table when this was written: a dump restored over its own database makes the table anew. 0: migrate --accept-copy has begun and has not ended.';
COMMENT ON COLUMN relay.installation.site IS 'The --site that a daemon must name to run here; null: it names none.';
COMMENT ON COLUMN relay.installation.written_at IS 'When identity or site were last written.';

INSERT INTO relay.installation (system_identifier, database_oid, table_oid)
SELECT c.system_identifier, d.oid, 'relay.installation'::regclass
  FROM pg_control_system() AS c
 CROSS JOIN pg_database d
 WHERE d.datname = current_database();

CREATE TABLE relay.accepted_copies (
    id                     bigint GENERATED ALWAYS AS IDENTITY,
    decision               text        NOT NULL,
    rows_skipped           bigint      NOT NULL DEFAULT 0,
    accepted_by            text        NOT NULL DEFAULT session_user,
    began_at               timestamptz NOT NULL DEFAULT now(),
    accepted_at            timestamptz,
    from_system_identifier bigint,
    from_database_oid      oid,
    from_site              text,
    CONSTRAINT accepted_copies_pkey PRIMARY KEY (id),
    CONSTRAINT accepted_copies_decision_known CHECK (decision IN ('skip', 'deliver'))
);

COMMENT ON TABLE relay.accepted_copies IS
    'Each time that an operator said that daemons may run on this copy, and what became of the rows that were pending.';
COMMENT ON COLUMN relay.accepted_copies.id IS 'In the order of the decisions. Rows from before the copy was made came with it.';
COMMENT ON COLUMN relay.accepted_copies.decision IS 'skip: pending rows were marked done without calls; deliver: they were kept.';
COMMENT ON COLUMN relay.accepted_copies.rows_skipped IS 'Rows of relay.outbox that were marked done without calls: done_at is set, and claimed_by is null.';
COMMENT ON COLUMN relay.accepted_copies.accepted_by IS 'The user who had logged in.';
COMMENT ON COLUMN relay.accepted_copies.began_at IS 'When it began to mark rows done.';
COMMENT ON COLUMN relay.accepted_copies.accepted_at IS 'When the copy was accepted; null: that was interrupted, and no daemon ran.';
COMMENT ON COLUMN relay.accepted_copies.from_system_identifier IS 'What relay.installation had until then; null: it had no row.';
COMMENT ON COLUMN relay.accepted_copies.from_database_oid IS 'What relay.installation had until then; null: it had no row.';
COMMENT ON COLUMN relay.accepted_copies.from_site IS 'What relay.installation had until then.';

-- No row fits nowhere: a copy of some tables only may lack it. One row that does not fit is enough: it came with rows of
-- another database.
--
-- In PL/pgSQL, because a session keeps the plan. The daemon asks often, and Postgres would plan a function in SQL each time.
CREATE FUNCTION relay.is_copy() RETURNS boolean
    LANGUAGE plpgsql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    RETURN (
        SELECT NOT coalesce(bool_and((i.system_identifier, i.database_oid, i.table_oid)
                                         = (c.system_identifier, d.oid, 'relay.installation'::regclass::oid)), false)
          FROM relay.installation i
         CROSS JOIN pg_control_system() AS c
         CROSS JOIN pg_database d
         WHERE d.datname = current_database());
END
$$;

COMMENT ON FUNCTION relay.is_copy() IS
    'Whether this database is a copy that no operator has accepted: no daemon runs here. It cannot tell a physical copy, which has --site for that.';

REVOKE ALL ON FUNCTION relay.is_copy() FROM PUBLIC;
