-- Register an instance. Its sessions hold their locks before, so that no peer finds a listed epoch without locks.
--
-- Locks:      none.
-- Index:      instances_pkey, instances_since_crash_pkey.
-- Parameters: $1 bigint[]  keys of the locks of its sessions; the first one is the epoch
--             $2 text      host
--             $3 integer   process id
--             $4 text      version
--             $5 real      round trip in ms
-- Returns:    when the server was started; no row when the epoch was used before.
WITH registered AS (
    INSERT INTO relay.instances (epoch, locks, host, pid, version, round_trip_ms)
    VALUES (($1::bigint[])[1], $1, $2, $3, $4, $5)
        ON CONFLICT (epoch) DO NOTHING
    RETURNING epoch
)
INSERT INTO relay.instances_since_crash (epoch)
SELECT epoch
  FROM registered
RETURNING pg_postmaster_start_time()
