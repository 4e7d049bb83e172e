-- The wake-up: how an insert wakes a sleeping relay.
--
-- A NOTIFY in every inserting transaction would take a lock of the whole cluster at commit. So an insert notifies only
-- while a relay sleeps, and a sleeping relay holds the sleep lock exclusively. The trigger tries the lock shared. When it
-- gets the lock, it keeps it until the transaction ends, so that no relay can fall asleep between the insert and the
-- commit. When it does not get the lock, a relay sleeps, and the trigger notifies.

CREATE FUNCTION relay.wake() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
BEGIN
    PERFORM pg_notify('promptpal_relay', '');
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION relay.wake() IS 'Wakes sleeping relays; called by the trigger outbox_wake.';

CREATE TRIGGER outbox_wake
    AFTER INSERT ON relay.outbox
    FOR EACH STATEMENT
    WHEN (NOT pg_try_advisory_xact_lock_shared(1886415987, 0))
    EXECUTE FUNCTION relay.wake();

COMMENT ON TRIGGER outbox_wake ON relay.outbox IS
    'Notifies only a sleeping relay. Without it rows are found by polling: later, never lost.';

REVOKE ALL ON FUNCTION relay.wake() FROM PUBLIC;
