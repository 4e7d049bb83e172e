-- Take rows in hand over to our new epoch. We had them in hand under older epochs, whose sessions were lost. A row that
-- somebody else has finished or taken over meanwhile stays as it is.
--
-- A server crash may lose our claim, because claims are not flushed. So a row that has no owner, or that still has its
-- previous owner, is ours, too.
--
-- Locks:      the rows. The statement waits for a finish of the old session that still runs.
-- Index:      outbox_pkey.
-- Parameters: $1 bigint[]  outbox ids
--             $2 bigint[]  claimed_by of each before our claim
--             $3 bigint[]  our older epochs
--             $4 bigint    our new epoch
-- Returns:    the ids that are ours now.
UPDATE relay.outbox o
   SET claimed_by = $4
  FROM unnest($1::bigint[], $2::bigint[]) AS claim (id, previous_owner)
 WHERE o.id = claim.id
   AND (o.claimed_by = ANY ($3) OR o.claimed_by = claim.previous_owner OR o.claimed_by IS NULL)
   AND o.done_at IS NULL
RETURNING o.id
