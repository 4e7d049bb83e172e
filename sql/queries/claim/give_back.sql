-- Give back rows that were claimed and whose calls have not begun, and wake a peer that sleeps.
--
-- Locks:      the rows; the notification queue, at commit.
-- Index:      outbox_pkey.
-- Parameters: $1 bigint[]  outbox ids
--             $2 bigint    the epoch that has them in hand
--             $3 bigint[]  those of them that a dead instance had in hand before. Their next calls are repeated ones, and
--                          claimed_by = 0 remembers that.
--             $4 boolean   whether to park them
-- Returns:    how many rows were given back.
WITH given AS (
    UPDATE relay.outbox o
       SET claimed_by = CASE WHEN o.id = ANY ($3) THEN 0 END,
           parked = o.parked OR $4
     WHERE o.id = ANY ($1)
       AND o.claimed_by = $2
       AND o.done_at IS NULL
    RETURNING o.id
), woken AS (
    SELECT pg_notify('promptpal_relay', '') AS sent
)
SELECT count(*)
  FROM given, woken
