-- Tell whether the trigger that wakes a sleeping relay is there and fires.
--
-- Locks:      none.
-- Index:      the catalog's.
-- Parameters: none.
-- Returns:    whether.
SELECT EXISTS (
           SELECT
             FROM pg_trigger t
            WHERE t.tgrelid = to_regclass('relay.outbox')
              AND t.tgname = 'outbox_wake'
              AND t.tgenabled IN ('O', 'A'))
