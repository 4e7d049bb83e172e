-- End the sessions that are left of an instance's older epochs: sessions of our own login that hold their locks.
-- Sessions of the new epoch go on.
--
-- Locks:      none.
-- Index:      instances_pkey; the views have one row for each lock and each session of the server.
-- Parameters: $1 bigint[]  older epochs
--             $2 bigint[]  keys of the locks of our new sessions
--             $3 boolean   end only sessions that are within a statement or a transaction and wait for their client
-- Returns:    how many sessions were ended.
WITH older AS MATERIALIZED (
    SELECT DISTINCT k.key
      FROM relay.instances i,
           unnest(i.locks) AS k (key)
     WHERE i.epoch = ANY ($1)
       AND k.key <> ALL ($2)
)
SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))
  FROM pg_stat_activity a
 WHERE a.pid IN (SELECT h.pid
                   FROM relay.daemon_locks() AS h
                   JOIN older o
                     ON o.key = h.class << 32 | h.object
                  WHERE h.keys = 1)
   AND a.pid <> pg_backend_pid()
   -- A session of another role may hold the same lock; we may not end it, and the attempt would fail the statement.
   AND a.usename = session_user
   AND (NOT $3 OR a.state <> 'idle' AND a.wait_event_type = 'Client')
