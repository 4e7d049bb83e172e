-- Read one call whole.
--
-- Locks:      none that anybody waits for, of one partition after the other.
-- Index:      webhook_calls_place.
-- Parameters: $1 bigint  the call's id
-- Returns:    id, webhook, event, start time, which call it repeats, all columns as JSON; no row: there is no such call.
SELECT c.id, c.webhook_id, c.event_id, c.start_time, c.replay_of, to_jsonb(c)::text AS json
  FROM relay.call_by_id($1) AS c
