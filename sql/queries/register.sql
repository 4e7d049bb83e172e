-- Register an instance: draw an epoch that was never used, take its liveness lock on this session, and list it. The
-- row becomes visible when this statement commits, and the lock is held by then: nobody finds a listed epoch whose
-- lock is not taken yet. Never waits.
--
-- Locks:      advisory (1886415986, epoch), shared, for the session.
-- Index:      instances_pkey, instances_since_crash_pkey.
-- Parameters: $1 text host, $2 integer process id, $3 text version, $4 real round trip in ms
-- Returns:    the epoch, and when the server was started; no row when the lock is taken.
WITH registered AS (
    INSERT INTO relay.instances (epoch, host, pid, version, round_trip_ms)
    SELECT e.epoch, $1, $2, $3, $4
      FROM (SELECT nextval('relay.instances_epoch_seq')::integer AS epoch) AS e
     WHERE pg_try_advisory_lock_shared(1886415986, e.epoch)
    RETURNING epoch
)
INSERT INTO relay.instances_since_crash (epoch)
SELECT epoch
  FROM registered
RETURNING epoch, pg_postmaster_start_time()
