-- Declare instances dead. The statement tells whose locks no session of a daemon's login holds. It marks those of them
-- dead that the caller names, and tells whose rows may be taken over. The statement reads the locks and does not try
-- them: a stranger's session may hold the same lock, and does not count.
--
-- Free locks alone are no proof. An instance that has lost its sessions takes a new epoch within milliseconds, and must
-- not lose its rows. So the caller asks twice, some time apart.
--
-- Locks:      the rows of the dead.
-- Index:      none. relay.instances has one row for each registration that is not forgotten yet. The statement reads
--             the lock table once, and only when there are other instances.
-- Parameters: $1 bigint    our epoch
--             $2 bigint[]  epochs to mark dead, if their locks are still free
--             $3 integer   process id of this session's backend when it took its lock
-- Returns:    epoch, round trip in ms, state, and near. near: the instance is alive, and its host has the name of ours. The state is
--             one of these:
--             alive      a session holds one of its locks
--             free       no session does
--             crashed    no session does, and the server has crashed since the instance registered
--             declared   marked dead by this statement
--             dead       marked dead before; it may still have rows
--             unlisted   our own epoch is not listed any more, or is marked dead, or the database is a copy now: we must not
--                        claim, and register anew
--             elsewhere  the only row, when another backend runs this statement: a pooler has given our session away
WITH held AS MATERIALIZED (
    SELECT h.class << 32 | h.object AS key
      FROM relay.daemon_locks() AS h
     WHERE h.keys = 1
), listed AS MATERIALIZED (
    SELECT i.epoch, i.round_trip_ms,
           i.host = (SELECT own.host FROM relay.instances own WHERE own.epoch = $1) AS near,
           NOT EXISTS (SELECT FROM held h WHERE h.key = ANY (i.locks)) AS free
      FROM relay.instances i
     WHERE i.dead_at IS NULL
       AND i.epoch <> $1
       AND pg_backend_pid() = $3
), declared AS (
    UPDATE relay.instances i
       SET dead_at = now()
      FROM listed l
     WHERE i.epoch = l.epoch
       AND l.free
       AND l.epoch = ANY ($2)
       AND i.dead_at IS NULL
    RETURNING i.epoch, i.round_trip_ms
)
SELECT epoch, round_trip_ms, 'declared' AS state, false AS near
  FROM declared
 UNION ALL
SELECT l.epoch, l.round_trip_ms,
       CASE WHEN NOT l.free THEN 'alive'
            WHEN EXISTS (SELECT FROM relay.instances_since_crash s WHERE s.epoch = l.epoch) THEN 'free'
            ELSE 'crashed' END,
       NOT l.free AND coalesce(l.near, false)
  FROM listed l
 WHERE NOT EXISTS (SELECT FROM declared d WHERE d.epoch = l.epoch)
 UNION ALL
SELECT i.epoch, i.round_trip_ms, 'dead', false
  FROM relay.instances i
 WHERE i.dead_at IS NOT NULL
   AND i.cleared_at IS NULL
   AND pg_backend_pid() = $3
 UNION ALL
SELECT $1, 0, 'elsewhere', false
 WHERE pg_backend_pid() <> $3
 UNION ALL
SELECT $1, 0, 'unlisted', false
 WHERE pg_backend_pid() = $3
   AND (relay.is_copy()
        OR NOT EXISTS (SELECT FROM relay.instances i WHERE i.epoch = $1 AND i.dead_at IS NULL))
