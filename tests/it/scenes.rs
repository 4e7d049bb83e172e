//! Situations that several tests begin with, and what they look at afterwards.

use crate::support::{Database, Relay, connect};

/// Tells the relay that has rows in hand from the others.
pub async fn busy(database: &Database, relays: Vec<Relay>) -> (Relay, Vec<Relay>) {
    let sql =
        "SELECT i.pid::bigint FROM relay.instances i JOIN relay.outbox o ON o.claimed_by = i.epoch LIMIT 1";
    let pid = database.number(sql).await;
    let (mut busy, others): (Vec<_>, Vec<_>) =
        relays.into_iter().partition(|relay| i64::from(relay.pid().as_raw()) == pid);
    (busy.pop().expect("one of them"), others)
}

/// For each call, whether it succeeded, and whether it is marked as repeated.
pub async fn outcomes(database: &Database) -> Vec<(bool, bool)> {
    database.calls().await.iter().map(|call| (call.get("succeeded"), call.get("repeated"))).collect()
}

/// Ends the sessions of this user and application name; both are patterns of LIKE.
pub async fn terminate(database: &Database, user: &str, application: &str) {
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND usename LIKE $1 AND application_name LIKE $2";
    let ended: i64 = database.client.query_one(sql, &[&user, &application]).await.unwrap().get(0);
    assert!(ended > 0, "no session is called {application}");
}

/// Ends the sessions of the relay that has rows in hand, which it finds by the liveness locks. Postgres does not notice by
/// itself that a relay is frozen.
pub async fn cut_off(database: &Database) {
    let sql = "SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l
               JOIN relay.instances i ON (l.classid::bigint << 32 | l.objid::bigint) = ANY (i.locks)
               WHERE l.locktype = 'advisory' AND l.objsubid = 1
                 AND i.epoch IN (SELECT claimed_by FROM relay.outbox)
                 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(database.number(sql).await, 3);
}

/// Whether a finish waits for a lock.
pub const COMMIT_WAITS: &str =
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
    AND application_name = 'promptpal-relay finish' AND wait_event_type = 'Lock')";

/// Makes rows whose dead versions stand before all rows that follow, for as long as the returned session has its
/// transaction open.
pub async fn dead_rows(database: &Database) -> tokio_postgres::Client {
    let report = connect(&database.url).await;
    let hold = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM relay.outbox";
    report.batch_execute(hold).await.unwrap();
    database.client.batch_execute("SET synchronous_commit = off").await.unwrap();
    database.events(1, 100_000).await;
    database.client.batch_execute("UPDATE relay.outbox SET done_at = now()").await.unwrap();
    report
}

/// Makes Postgres refuse all call logs as if the disk were full, until the trigger `full_disk` is dropped.
pub async fn fill_disk(database: &Database) {
    let sql = "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
                   'BEGIN RAISE EXCEPTION ''could not extend file'' USING ERRCODE = ''disk_full''; END';
               CREATE TRIGGER full_disk BEFORE INSERT ON relay.webhook_calls FOR EACH ROW EXECUTE FUNCTION full_disk()";
    database.client.batch_execute(sql).await.unwrap();
}
