-- Begin a run of the retention, if one is due, and judge Postgres' clock.
--
-- The statement compares the clock with the time that the last run noted. When this process made that run ($1), it
-- subtracts the time that has passed by our own clock. Otherwise it subtracts nothing, so that a time without any run
-- seems a jump, too. The clock has jumped when the difference is more than $5. After a jump the daemon throws nothing away
-- until the clock has been steady for $5. A noted time that lies in the future comes from a clock that was ahead: it is
-- brought back to now.
--
-- Locks:      the row. One run at a time begins (try_lock.sql).
-- Index:      none; the table has one row, and gets it again when it is gone.
-- Parameters: $1 timestamptz       what our last run noted; null: nothing
--             $2 double precision  seconds since then by our own clock
--             $3 double precision  seconds between two runs
--             $4 double precision  seconds to the next try, unless this run ends well
--             $5 double precision  seconds: what is a jump, how long the clock must be steady, how long between two drops
-- Returns:    now       Postgres' clock
--             wait_s    seconds to wait when no run is due, else null
--             off_s     seconds by which the clock is off when it has jumped, else null
--             steady    whether old things may be thrown away
--             may_drop  whether a partition may be dropped
WITH known AS (
    SELECT r.next_at, r.steady_since, r.dropped_at,
           extract(epoch FROM now() - r.seen_at)::double precision
               - CASE WHEN r.seen_at = $1 THEN $2::double precision ELSE 0 END AS off_s
      FROM relay.retention r
), judged AS (
    SELECT abs(k.off_s) > $5 AS jumped,
           k.off_s,
           CASE WHEN k.next_at > now() AND k.next_at <= now() + make_interval(secs => $3)
                THEN extract(epoch FROM k.next_at - now())::double precision END AS wait_s,
           CASE WHEN abs(k.off_s) > $5 THEN now() ELSE least(k.steady_since, now()) END AS steady_since,
           CASE WHEN k.dropped_at > now() THEN now() ELSE k.dropped_at END AS dropped_at
      FROM known k
), noted AS (
    UPDATE relay.retention r
       SET seen_at = now(),
           steady_since = j.steady_since,
           next_at = now() + make_interval(secs => $4),
           completed_at = least(r.completed_at, now()),
           dropped_at = j.dropped_at
      FROM judged j
     WHERE j.wait_s IS NULL
), made AS (
    INSERT INTO relay.retention (next_at)
    SELECT now() + make_interval(secs => $4)
     WHERE NOT EXISTS (SELECT FROM known)
        ON CONFLICT DO NOTHING
    RETURNING seen_at
)
SELECT now() AS now,
       j.wait_s,
       CASE WHEN j.jumped THEN j.off_s END AS off_s,
       j.steady_since <= now() - make_interval(secs => $5) AS steady,
       coalesce(j.dropped_at <= now() - make_interval(secs => $5), true) AS may_drop
  FROM judged j
 UNION ALL
SELECT m.seen_at, NULL, NULL, false, false
  FROM made m
