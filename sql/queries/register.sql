-- List an instance, after its liveness lock is taken.
--
-- Locks:      none that anybody waits for.
-- Index:      instances_pkey.
-- Parameters: $1 integer epoch, $2 text host, $3 integer process id, $4 text version
INSERT INTO relay.instances (epoch, host, pid, version)
VALUES ($1, $2, $3, $4)
