-- Give rows back that were claimed and not started, and wake a peer that sleeps.
--
-- Locks:      the rows; the notification queue, at commit.
-- Index:      outbox_pkey.
-- Parameters: $1 bigint[]  outbox ids
--             $2 bigint    the epoch that has them in hand
-- Returns:    how many were given back.
WITH given AS (
    UPDATE relay.outbox o
       SET claimed_by = NULL
     WHERE o.id = ANY ($1)
       AND o.claimed_by = $2
       AND o.done_at IS NULL
    RETURNING o.id
), woken AS (
    SELECT pg_notify('promptpal_relay', '') AS sent
)
SELECT count(*)
  FROM given, woken
