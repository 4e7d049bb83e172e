-- Tell how long ago the retention last did all of its work, in whichever instance.
--
-- Locks:      none.
-- Index:      none; the table has one row.
-- Parameters: none.
-- Returns:    seconds; NaN when that time lies in the future, because a clock was wrong. No row: it is not known.
SELECT CASE WHEN r.completed_at <= now()
            THEN extract(epoch FROM now() - r.completed_at)::double precision
            ELSE 'NaN' END
  FROM relay.retention r
