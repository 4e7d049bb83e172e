-- Let the liveness locks of older epochs go that this session holds for a registration that is to be made anew.
--
-- Locks:      frees advisory (1886415986, epoch), shared, of the session.
-- Index:      none.
-- Parameters: $1 bigint[]  epochs
-- Returns:    for each, whether it was held.
SELECT pg_advisory_unlock_shared(1886415986, held.epoch::integer)
  FROM unnest($1::bigint[]) AS held (epoch)
