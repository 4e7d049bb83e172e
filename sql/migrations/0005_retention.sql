-- The retention: when the daemon last threw old rows away, and what it dropped.
--
-- The daemon notes this in the database and not in a process, so that neither a reconnection nor a restart brings the next
-- run forward. Postgres' clock decides what is old. The notes show when that clock jumps, and the daemon throws nothing
-- away until the clock has been steady for an hour. The daemon does not believe a noted time that lies in the future.

CREATE TABLE relay.retention (
    only_row      boolean     NOT NULL DEFAULT true,
    seen_at       timestamptz NOT NULL DEFAULT now(),
    steady_since  timestamptz NOT NULL DEFAULT now(),
    next_at       timestamptz NOT NULL DEFAULT now(),
    completed_at  timestamptz NOT NULL DEFAULT now(),
    dropped       text,
    dropped_at    timestamptz,
    CONSTRAINT retention_pkey PRIMARY KEY (only_row),
    CONSTRAINT retention_has_one_row CHECK (only_row)
);

COMMENT ON TABLE relay.retention IS 'When old rows and partitions were last thrown away. One row, written by the daemon''s retention.';
COMMENT ON COLUMN relay.retention.only_row IS 'Always true: there is one row.';
COMMENT ON COLUMN relay.retention.seen_at IS 'Postgres'' clock when the last run began.';
COMMENT ON COLUMN relay.retention.steady_since IS 'Since then that clock has not jumped by more than an hour. Nothing is thrown away before that is an hour ago.';
COMMENT ON COLUMN relay.retention.next_at IS 'When the next run is due.';
COMMENT ON COLUMN relay.retention.completed_at IS 'When a run last did all of its work; at first, when this table was made.';
COMMENT ON COLUMN relay.retention.dropped IS 'The partition of the call log that was dropped last.';
COMMENT ON COLUMN relay.retention.dropped_at IS 'When that was. The next one is not dropped within an hour.';

INSERT INTO relay.retention DEFAULT VALUES;
