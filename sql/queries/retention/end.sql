-- Note that a run of the retention has ended, and when the next one is due.
--
-- Locks:      the row.
-- Index:      none; the table has one row.
-- Parameters: $1 boolean           whether the run did all of its work
--             $2 double precision  seconds to the next run
-- Returns:    nothing.
UPDATE relay.retention
   SET completed_at = CASE WHEN $1 THEN now() ELSE completed_at END,
       next_at = now() + make_interval(secs => $2)
