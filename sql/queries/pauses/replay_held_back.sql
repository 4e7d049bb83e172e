-- Repeat those of some calls that nothing repeats yet.
--
-- Locks:      relay.pauses, SHARE UPDATE EXCLUSIVE: the statement waits for another one like it, and for no other.
-- Index:      outbox_replays, and as relay.replay().
-- Parameters: $1 bigint[]  call ids
-- Returns:    how many were repeated.
SELECT relay.replay_held_back($1::bigint[])
