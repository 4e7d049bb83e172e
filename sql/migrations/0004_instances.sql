-- The instances: which daemons run on this database, and which are dead.
--
-- Each session of an instance draws a random key and holds the advisory lock of that key (one bigint). An instance first
-- takes these locks, and then lists their keys in its row. The first key, that of the listening session, is its epoch.
-- The instance lives while a session of a daemon's login holds one of its locks. When no such session holds one for long
-- enough, a peer writes dead_at. Only the rows of dead epochs are claimed again.
--
-- Any user who can connect may take any advisory lock. Three rules keep such a user harmless:
--
-- * Keys are random, so a stranger cannot take one before the daemon does.
-- * The daemon takes no lock a second time, so a stranger who queues for a lock takes nothing from it.
-- * Only locks of sessions count whose login is a daemon's. The login of a session is visible to all, whatever role the
--   session has set.

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

-- Unlogged, so that a crash of the server, or a failover, empties it. Claims are not flushed, so a crash may lose the last
-- ones of an instance. An instance that relay.instances lists and this table does not may come back and adopt its rows.
-- Until then no instance claims.
CREATE UNLOGGED TABLE relay.instances_since_crash (
    epoch       bigint      NOT NULL,
    CONSTRAINT instances_since_crash_pkey PRIMARY KEY (epoch)
);

COMMENT ON TABLE relay.instances_since_crash IS 'Epochs that registered since the server last crashed: crash recovery empties this table.';
COMMENT ON COLUMN relay.instances_since_crash.epoch IS 'Of relay.instances.';

-- A login that may register an instance. Either it may insert into relay.instances, or it is a member of relay_daemon that
-- does not inherit the role's rights and sets that role.
CREATE FUNCTION relay.is_daemon(login oid) RETURNS boolean
    LANGUAGE sql
    STABLE
    SET search_path = pg_catalog, pg_temp
RETURN has_table_privilege(login, 'relay.instances', 'INSERT')
       OR coalesce(pg_has_role(login, to_regrole('relay_daemon'), 'MEMBER'), false);

COMMENT ON FUNCTION relay.is_daemon(oid) IS
    'Whether a role may be a daemon''s login: only the advisory locks of such sessions count.';

-- The function judges each login once, because the daemon reads the locks often and a stranger may hold as many locks as
-- the server has room for. Sessions that claim are planned without hash joins; these two views have no index, so the
-- function switches hash joins on. It is in PL/pgSQL, because a session keeps the plan.
CREATE FUNCTION relay.daemon_locks() RETURNS TABLE (class bigint, object bigint, keys smallint, mode text, pid integer)
    LANGUAGE plpgsql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    SET enable_hashjoin = on
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
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
END
$$;

COMMENT ON FUNCTION relay.daemon_locks() IS
    'Advisory locks in this database that sessions of daemons'' logins hold. keys is 1 for a lock of one bigint (class has its upper half), 2 for one of two integers.';

REVOKE ALL ON FUNCTION relay.is_daemon(oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.daemon_locks() FROM PUBLIC;
