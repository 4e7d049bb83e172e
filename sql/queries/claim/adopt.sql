-- Adopt rows: stamp them with our new epoch. We had them in hand under older epochs, whose sessions were lost. A row that
-- another instance has finished or taken over meanwhile stays as it is.
--
-- A row is the same row only by id and event_id. After a failover to a standby that lagged, or after a restore, Postgres
-- draws the same ids again for other events.
--
-- A server crash may lose our claim, because claims are not flushed. So a row that has no owner, or that still has its
-- previous owner, is ours, too.
--
-- Locks:      the rows. The statement waits for a finish of the old session that still runs.
-- Index:      outbox_pkey.
-- Parameters: $1 bigint[]  outbox ids
--             $2 uuid[]    event_id of each
--             $3 bigint[]  claimed_by of each before our claim
--             $4 bigint[]  our older epochs
--             $5 bigint    our new epoch
-- Returns:    the ids that are ours now.
UPDATE relay.outbox o
   SET claimed_by = $5
  FROM unnest($1::bigint[], $2::uuid[], $3::bigint[]) AS claim (id, event_id, previous_owner)
 WHERE o.id = claim.id
   AND o.event_id = claim.event_id
   AND (o.claimed_by = ANY ($4) OR o.claimed_by = claim.previous_owner OR o.claimed_by IS NULL)
   AND o.done_at IS NULL
RETURNING o.id
