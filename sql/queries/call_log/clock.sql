-- Tell the time by the database's clock, and the highest id that the call log has drawn. Commands compute "an hour ago"
-- by this clock, because the clock of the operator's machine may be wrong.
--
-- Locks:      none.
-- Index:      none.
-- Parameters: none.
-- Returns:    the time, the id.
SELECT clock_timestamp(), coalesce(pg_sequence_last_value('relay.webhook_calls_id_seq'), 0)
