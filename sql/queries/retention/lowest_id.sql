-- Tell the lowest id in the outbox. The statement does not use min(id): a plan that Postgres made while the table had a
-- row or two would read all of the table when it has grown.
--
-- Locks:      none.
-- Index:      outbox_pkey, one probe.
-- Parameters: none.
-- Returns:    the id; no row when the outbox is empty.
SELECT o.id
  FROM relay.outbox o
 ORDER BY o.id
 LIMIT 1
