-- Name the triggers of the outbox that are missing or do not fire: outbox_wake wakes a sleeping relay, outbox_valid
-- refuses rows that cannot be meant.
--
-- Locks:      none.
-- Index:      the catalog's.
-- Parameters: none.
-- Returns:    their names; no row: all are in place.
SELECT ours.name
  FROM (VALUES ('outbox_wake'), ('outbox_valid')) AS ours (name)
 WHERE NOT EXISTS (
           SELECT
             FROM pg_trigger t
            WHERE t.tgrelid = to_regclass('relay.outbox')
              AND t.tgname = ours.name
              AND t.tgenabled IN ('O', 'A'))
 ORDER BY ours.name DESC
