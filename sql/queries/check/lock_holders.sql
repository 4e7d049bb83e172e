-- Name the sessions that hold one of our advisory locks and should not, or that hold the sleep lock for long. The first
-- kind is a session of no daemon that holds the lock of a living instance, of the retention or of migrate. A
-- transaction that inserts holds the sleep lock for a moment, so the caller asks twice, some time apart. It gives what
-- it got the first time. A session that holds the sleep lock for long keeps the daemon awake.
--
-- Locks:      none.
-- Index:      none; the views have one row for each lock and each session of the server.
-- Parameters: $1 text[]  transactions that were returned before; null: all
-- Returns:    transaction (names the holder: for $1), lock, pid (null: a prepared transaction), login, state (null when we
--             may not see it).
SELECT DISTINCT
       concat_ws(' ', l.pid, l.virtualtransaction, l.classid, l.objid) AS transaction,
       CASE WHEN l.objsubid = 1 THEN 'liveness'
            WHEN l.classid = 1886415987 THEN 'sleep'
            WHEN l.classid = 1886415988 THEN 'migrate'
            ELSE 'retention' END AS lock,
       l.pid, a.usename::text AS login, a.state
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a
    ON a.pid = l.pid
 WHERE l.locktype = 'advisory'
   AND l.granted
   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
   AND CASE WHEN l.objsubid = 1
            THEN EXISTS (SELECT
                           FROM relay.instances i
                          WHERE i.dead_at IS NULL
                            AND l.classid::bigint << 32 | l.objid::bigint = ANY (i.locks))
                 AND NOT coalesce(relay.is_daemon(a.usesysid), false)
            WHEN l.classid = 1886415987
            THEN l.mode = 'ShareLock' OR NOT coalesce(relay.is_daemon(a.usesysid), false)
            WHEN l.classid IN (1886415988, 1886415989)
            THEN NOT coalesce(relay.is_daemon(a.usesysid), false)
                 AND NOT coalesce(has_database_privilege(a.usesysid, current_database(), 'CREATE'), false)
            ELSE false END
   AND l.objid = CASE WHEN l.objsubid = 1 THEN l.objid ELSE 0 END
   AND ($1::text[] IS NULL
        OR concat_ws(' ', l.pid, l.virtualtransaction, l.classid, l.objid) = ANY ($1))
 ORDER BY 2, 3
 LIMIT 20
