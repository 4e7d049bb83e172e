-- Name pauses without an end that an operator may have forgotten.
--
-- Locks:      none.
-- Index:      none: the table is small.
-- Parameters: $1 integer  days for which a pause is not taken for forgotten
--             $2 bigint   most pauses
-- Returns:    webhook, project (one of them is null), since when, by whom, the reason; the oldest first.
SELECT p.webhook_id, p.project_id, p.created_at, p.created_by, p.reason
  FROM relay.pauses p
 WHERE p.until IS NULL
   AND p.created_at < now() - make_interval(days => $1)
 ORDER BY p.created_at, p.webhook_id, p.project_id
 LIMIT $2
