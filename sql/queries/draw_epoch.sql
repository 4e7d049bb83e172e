-- A new epoch, never used before.
--
-- Locks: none. Index: none. Parameters: none. Returns: the epoch.
SELECT nextval('relay.instances_epoch_seq')::integer
