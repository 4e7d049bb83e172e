-- Draw a random key and take its advisory lock on this session: the session's sign of life. No other session knows the key
-- before the lock is taken. The key has 52 bits, so that readers of JSON with floating-point numbers keep it. Never waits.
--
-- Locks:      advisory (the key, one bigint), exclusively, for the session.
-- Index:      none.
-- Parameters: none.
-- Returns:    the key, and the process id of this session's backend; no row when another session has that lock, or when
--             the key is 0.
WITH drawn AS MATERIALIZED (
    SELECT ('x' || right(replace(gen_random_uuid()::text, '-', ''), 13))::bit(52)::bigint AS key
)
SELECT d.key, pg_backend_pid()
  FROM drawn d
 WHERE d.key > 0
   AND pg_try_advisory_lock(d.key)
