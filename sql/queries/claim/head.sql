-- Find the head of the queue: the first pending row that a claim would find. Claims nothing.
--
-- An instance that leaves the rows to another one reads it, and sees by the next head whether the other one claims. What claim.sql
-- says of id + 0 is true here, too. A row that another session has locked counts: its claim is not committed yet.
--
-- Locks:      none.
-- Index:      outbox_pending from $1 on. The statement passes the rows in hand before the head.
-- Parameters: $1 bigint    cursor: only ids above it
--             $2 bigint[]  epochs of dead instances, whose rows are taken over
-- Returns:    its id; no row when there is none.
SELECT o.id
  FROM relay.outbox o
 WHERE o.done_at IS NULL
   AND NOT o.parked
   AND o.id + 0 > $1
   AND (o.claimed_by IS NULL OR o.claimed_by = 0 OR o.claimed_by = ANY ($2))
 ORDER BY o.id + 0
 LIMIT 1
