-- Look for dead instances: tell whose locks no session of a daemon's role holds, mark those dead of which the caller is
-- sure, and tell whose rows may be taken over. The locks are read, not tried: somebody else's session may hold the same
-- lock, and does not count.
--
-- Free locks alone are no proof: an instance that has lost its sessions takes a new epoch within milliseconds, and is
-- not to lose its rows for that. So the caller asks twice, some time apart.
--
-- Locks:      the rows of the dead.
-- Index:      instances is small: one row for each registration that is not cleared away yet. The lock table is read once,
--             and only when there are others.
-- Parameters: $1 bigint    our epoch
--             $2 bigint[]  epochs to mark dead, if their locks are still free
--             $3 integer   process id of this session's backend, as it was when it took its lock
-- Returns:    epoch, its round trip in ms, and state: free (the locks), crashed (the same, and the server has crashed since
--             it registered), buried (just now), dead (marked before, may still have rows), alive; or a single row
--             'elsewhere', when this statement runs on another backend: a pooler has given our session away.
WITH held AS MATERIALIZED (
    SELECT h.class << 32 | h.object AS key
      FROM relay.daemon_locks() AS h
     WHERE h.keys = 1
), listed AS MATERIALIZED (
    SELECT i.epoch, i.round_trip_ms,
           NOT EXISTS (SELECT FROM held h WHERE h.key = ANY (i.locks)) AS free
      FROM relay.instances i
     WHERE i.dead_at IS NULL
       AND i.epoch <> $1
       AND pg_backend_pid() = $3
), buried AS (
    UPDATE relay.instances i
       SET dead_at = now()
      FROM listed l
     WHERE i.epoch = l.epoch
       AND l.free
       AND l.epoch = ANY ($2)
       AND i.dead_at IS NULL
    RETURNING i.epoch, i.round_trip_ms
)
SELECT epoch, round_trip_ms, 'buried' AS state
  FROM buried
 UNION ALL
SELECT l.epoch, l.round_trip_ms,
       CASE WHEN NOT l.free THEN 'alive'
            WHEN EXISTS (SELECT FROM relay.instances_since_crash s WHERE s.epoch = l.epoch) THEN 'free'
            ELSE 'crashed' END
  FROM listed l
 WHERE NOT EXISTS (SELECT FROM buried b WHERE b.epoch = l.epoch)
 UNION ALL
SELECT i.epoch, i.round_trip_ms, 'dead'
  FROM relay.instances i
 WHERE i.dead_at IS NOT NULL
   AND i.cleared_at IS NULL
   AND pg_backend_pid() = $3
 UNION ALL
SELECT $1, 0, 'elsewhere'
 WHERE pg_backend_pid() <> $3
