-- Who holds our advisory locks and should not: the lock of a living instance, of the retention or of migrate in a session
-- that is no daemon's, or the sleep lock for long. The caller asks twice, some time apart, and gives what it got the first time:
-- a transaction that inserts holds the sleep lock for a moment. Where somebody holds it for long, the daemon is kept awake.
--
-- Locks:      none.
-- Index:      none; the views have one row for each lock and each session of the server.
-- Parameters: $1 text[]  transactions that were returned before; null: all
-- Returns:    transaction (names the holder: for $1), lock, pid (null: a prepared transaction), login, state (null when it may
--             not be seen).
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
