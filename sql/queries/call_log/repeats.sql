-- List the replays of an event to a webhook in a span of time, the oldest first.
--
-- Locks:      none that anybody waits for, but one for each partition of the span, and its indexes. The caller asks for a
--             month at a time.
-- Index:      webhook_calls_replays.
-- Parameters: $1 uuid         event
--             $2 bigint       webhook
--             $3 timestamptz  started then or later
--             $4 timestamptz  started before; null: whenever
--             $5 bigint       most rows
-- Returns:    id, start time, which call it repeats, status, kind of the failure.
SELECT c.id, c.start_time, c.replay_of, c.status_code, c.error_kind
  FROM relay.webhook_calls c
 WHERE c.replay_of IS NOT NULL
   AND c.event_id = $1
   AND c.webhook_id = $2
   AND c.start_time >= $3
   AND ($4::timestamptz IS NULL OR c.start_time < $4)
 ORDER BY c.start_time, c.id
 LIMIT $5
