-- What time it is by the database's clock, and the highest id that the call log has drawn. What a command computes from "an
-- hour ago" is by this clock: that of the machine where it is typed may be wrong.
--
-- Locks: none. Index: none. Parameters: none. Returns: the time, the id.
SELECT clock_timestamp(), coalesce(pg_sequence_last_value('relay.webhook_calls_id_seq'), 0)
