-- Take over, under our new epoch, the rows that we had in hand under older ones whose sessions were lost. What somebody
-- else has finished or taken over meanwhile stays theirs. A row that nobody has claimed, or that still has who had it
-- before us, was claimed by us, and that claim was lost: claims are not flushed, and the server has crashed.
--
-- Locks:      the rows; waits for a finish of the old session that is still running.
-- Index:      outbox_pkey.
-- Parameters: $1 bigint[]  outbox ids
--             $2 bigint[]  claimed_by of each before our claim
--             $3 bigint[]  our older epochs
--             $4 bigint    our new epoch
-- Returns:    the ids that are ours now.
UPDATE relay.outbox o
   SET claimed_by = $4
  FROM unnest($1::bigint[], $2::bigint[]) AS held (id, previous)
 WHERE o.id = held.id
   AND (o.claimed_by = ANY ($3) OR o.claimed_by = held.previous OR o.claimed_by IS NULL)
   AND o.done_at IS NULL
RETURNING o.id
