-- The partitions of the call log: a daily partition is made ahead, and dropped when it is old.
--
-- The daemon's role does not own the tables. These functions are all that it may do to them. Each does little and is a
-- transaction of its own, so that it holds no lock for longer than that takes.

-- Postgres writes the bounds of a partition as text, and this function reads them back. So the function sets how dates are
-- written, whatever the session has set.
CREATE FUNCTION relay.make_call_partition(day date) RETURNS boolean
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    SET DateStyle = 'ISO'
    SET TimeZone = 'UTC'
AS $$
DECLARE
    name     text;
    first    timestamptz;
    beyond   timestamptz;
    -- More than so many calls of the day stay in the default partition: moving them would hold up who writes there.
    move_max bigint := 10000;
    strays   bigint;
    today    date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    -- What --retain-calls may keep, and what the daemon makes ahead. A query on the log without a span of time takes five
    -- locks for each partition.
    IF day IS NULL OR NOT day BETWEEN today - 400 AND today + 7 THEN
        RAISE EXCEPTION 'no partition is made for %: days from % to % have one',
            coalesce(day::text, 'null'), today - 400, today + 7
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Make one of another day by hand: CREATE TABLE ... PARTITION OF relay.webhook_calls.';
    END IF;
    name := 'webhook_calls_' || to_char(day, 'YYYYMMDD');
    first := day::timestamp AT TIME ZONE 'UTC';
    beyond := (day + 1)::timestamp AT TIME ZONE 'UTC';
    -- A DBA took the default partition away: without it a call of a day without a partition has nowhere to go.
    IF to_regclass('relay.webhook_calls_default') IS NULL THEN
        CREATE TABLE relay.webhook_calls_default (LIKE relay.webhook_calls INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
        ALTER TABLE relay.webhook_calls_default REPLICA IDENTITY FULL;
        COMMENT ON TABLE relay.webhook_calls_default IS 'Calls of days without a partition; empty in a healthy system.';
        IF (SELECT partdefid = 0 FROM pg_partitioned_table WHERE partrelid = 'relay.webhook_calls'::regclass) THEN
            ALTER TABLE relay.webhook_calls ATTACH PARTITION relay.webhook_calls_default DEFAULT;
        END IF;
    END IF;
    -- Also one that a DBA has detached: its name is taken, and the day's calls go to the default partition.
    IF to_regclass('relay.' || name) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- Made apart and attached: that takes a lock on the parent which lets inserts and reports go on.
    EXECUTE format('CREATE TABLE relay.%I (LIKE relay.webhook_calls INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    -- So that a DBA can delete from it also where a publication has all tables.
    EXECUTE format('ALTER TABLE relay.%I REPLICA IDENTITY FULL', name);
    EXECUTE format('COMMENT ON TABLE relay.%I IS %L', name, format('Calls of %s (UTC).', day));
    -- Calls of the day that came before its partition.
    SELECT count(*)
      INTO strays
      FROM (SELECT FROM relay.webhook_calls_default c
             WHERE c.start_time >= first AND c.start_time < beyond
             LIMIT move_max + 1) AS c;
    IF strays > move_max THEN
        RAISE check_violation USING MESSAGE = format('more than %s calls of %s are in the default partition', move_max, day);
    ELSIF strays > 0 THEN
        -- From here on none is added.
        LOCK TABLE relay.webhook_calls_default IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'WITH moved AS (DELETE FROM relay.webhook_calls_default WHERE start_time >= $1 AND start_time < $2 RETURNING *)
             INSERT INTO relay.%I SELECT * FROM moved', name)
          USING first, beyond;
    END IF;
    EXECUTE format('ALTER TABLE relay.webhook_calls ATTACH PARTITION relay.%I FOR VALUES FROM (%L) TO (%L)',
                   name, first, beyond);
    RETURN true;
EXCEPTION
    -- Too many strays, a partition of a DBA's that has the day already, or another instance that was faster: the calls
    -- have where to go.
    WHEN check_violation OR duplicate_table OR invalid_object_definition THEN RETURN false;
END
$$;

COMMENT ON FUNCTION relay.make_call_partition(date) IS
    'Makes the partition of relay.webhook_calls for a UTC day, of the last 400 or the next 7, unless there is one; whether it did. Calls of that day in the default partition are moved, up to 10,000.';

-- The attached partitions that the daemon made, by their names, and where each really ends. A DBA may have made a partition
-- wider; it then has the name of an old day and calls of today. A partition without an end has none here.
CREATE FUNCTION relay.call_partitions(OUT name text, OUT beyond timestamptz) RETURNS SETOF record
    LANGUAGE sql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    SET DateStyle = 'ISO'
    SET TimeZone = 'UTC'
AS $$
    SELECT c.relname::text,
           substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO [(]''([^'']+)''[)]')::timestamptz
      FROM pg_inherits i
      JOIN pg_class c
        ON c.oid = i.inhrelid
     WHERE i.inhparent = 'relay.webhook_calls'::regclass
       AND c.relnamespace = 'relay'::regnamespace
       AND c.relname ~ '^webhook_calls_[0-9]{8}$'
$$;

COMMENT ON FUNCTION relay.call_partitions() IS
    'The daily partitions of relay.webhook_calls (webhook_calls_YYYYMMDD), and the moment before which each ends.';

CREATE FUNCTION relay.drop_call_partition(name text, before timestamptz) RETURNS boolean
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    IF name IS NULL OR before IS NULL THEN
        RAISE EXCEPTION 'which partition may go, and what ended before when? Neither may be null'
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    -- Only an attached one of ours, and only when all of it is before the limit, and nothing of today or yesterday.
    IF NOT EXISTS (SELECT
                     FROM relay.call_partitions() p
                    WHERE p.name = drop_call_partition.name
                      AND p.beyond <= least(before, now() - interval '1 day')) THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE relay.%I', name);
    UPDATE relay.retention r
       SET dropped = drop_call_partition.name,
           dropped_at = now();
    RETURN true;
END
$$;

COMMENT ON FUNCTION relay.drop_call_partition(text, timestamptz) IS
    'Drops a daily partition of relay.webhook_calls (webhook_calls_YYYYMMDD) that ends before the given time, and notes that in relay.retention; whether it did. Partitions of other names are the DBA''s.';

CREATE FUNCTION relay.delete_stray_calls(before timestamptz, most integer) RETURNS bigint
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    deleted bigint;
    -- Nothing of today or yesterday, whatever is asked for; as relay.drop_call_partition.
    beyond  timestamptz := least(before, now() - interval '1 day');
BEGIN
    IF before IS NULL OR most IS NULL OR most NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'which calls may go? A time is needed, and a number from 1 to 10000'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- A DELETE is refused where a publication has a table without replica identity (one that a DBA made), also one that
    -- finds nothing.
    IF NOT EXISTS (SELECT FROM relay.webhook_calls_default c WHERE c.start_time < beyond) THEN
        RETURN 0;
    END IF;
    DELETE FROM relay.webhook_calls_default c
     WHERE c.ctid = ANY (ARRAY(SELECT s.ctid
                                 FROM relay.webhook_calls_default s
                                WHERE s.start_time < beyond
                                LIMIT most));
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$$;

COMMENT ON FUNCTION relay.delete_stray_calls(timestamptz, integer) IS
    'Deletes calls of the default partition of relay.webhook_calls that started before the given time and more than a day ago, at most so many (10,000); how many.';

REVOKE ALL ON FUNCTION relay.make_call_partition(date) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.call_partitions() FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.drop_call_partition(text, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.delete_stray_calls(timestamptz, integer) FROM PUBLIC;

-- Today and the week to come, so that the log has its partitions before a daemon runs.
DO $$
BEGIN
    PERFORM relay.make_call_partition((now() AT TIME ZONE 'UTC')::date + n) FROM generate_series(0, 7) AS n;
END
$$;
