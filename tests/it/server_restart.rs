//! Postgres restarts, crashes, fails over or becomes read-only: the relay comes back, and no call is made twice.

use nix::sys::signal::Signal;
use promptpal_relay::inside::demo::{Cluster, Stop};

use crate::scenes::{outcomes, terminate};
use crate::support::scrape::until_unhealthy;
use crate::support::{Database, Relay, connect, gated};

#[tokio::test]
async fn a_restart_of_postgres_repeats_no_call() {
    for how in [Stop::Fast, Stop::Immediate] {
        let mut cluster = Cluster::start(&[]).unwrap();
        let url = cluster.url("postgres");
        let (receiver, gate) = gated();
        let database = Database::on(&url).await;
        database.webhook(1, &receiver.url("/")).await;
        let relays = [Relay::start(&database, &[]), Relay::start(&database, &[])];
        database.events(1, 10).await;
        receiver.wait_for(2);
        // Claims are not flushed, so a crash may lose them. No relay may take the rows for unclaimed.
        cluster.halt(how);
        cluster.boot().unwrap();
        let database = database.reconnect().await;
        // Both are back.
        let alive = "SELECT count(*) = 2 FROM relay.instances WHERE dead_at IS NULL";
        database.eventually(alive).await;
        gate.open();
        database.all_done().await;
        assert_eq!(receiver.requests().len(), 10, "{how:?}\n{}\n{}", relays[0].log(), relays[1].log());
        assert_eq!(outcomes(&database).await, [(true, false); 10], "{how:?}");
    }
}

#[tokio::test]
async fn who_starts_after_a_crash_of_the_server_waits_for_those_that_come_back() {
    let mut cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let first = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    first.signal(Signal::SIGSTOP);
    cluster.halt(Stop::Immediate);
    cluster.boot().unwrap();
    let database = database.reconnect().await;
    // The crash may lose the claim, which is not flushed. The update loses it in any case.
    database.client.batch_execute("UPDATE relay.outbox SET claimed_by = NULL").await.unwrap();
    let _second = Relay::start(&database, &[]);
    // The second relay has looked at the locks more than once.
    let looks = "SELECT started_at < clock_timestamp() - interval '500 ms' FROM relay.instances ORDER BY started_at DESC LIMIT 1";
    database.eventually(looks).await;
    first.signal(Signal::SIGCONT);
    first.until_reconnected(1);
    gate.open();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 1);
    assert_eq!(outcomes(&database).await, [(true, false)]);
}

#[tokio::test]
async fn a_takeover_that_a_crash_of_the_server_loses_repeats_no_call() {
    let mut cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let killed = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    killed.kill();
    let relay = Relay::start(&database, &[]);
    receiver.wait_for(2);
    relay.signal(Signal::SIGSTOP);
    cluster.halt(Stop::Immediate);
    cluster.boot().unwrap();
    let database = database.reconnect().await;
    // The crash may lose the claim, which is not flushed. The update loses it in any case.
    let lose = "UPDATE relay.outbox SET claimed_by = (SELECT epoch FROM relay.instances ORDER BY started_at LIMIT 1)";
    database.client.batch_execute(lose).await.unwrap();
    relay.signal(Signal::SIGCONT);
    relay.until_reconnected(1);
    gate.open();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 2);
    assert_eq!(outcomes(&database).await, [(true, true)]);
}

#[tokio::test]
async fn a_failover_to_a_promoted_standby_repeats_no_call() {
    let mut primary = Cluster::start(&[]).unwrap();
    let standby = crate::standby::standby_of(&mut primary);
    let database = Database::on(&primary.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let both = format!(
        "host={},{} port={},{} user=postgres dbname=postgres",
        standby.socket_dir().display(),
        primary.socket_dir().display(),
        standby.port(),
        primary.port()
    );
    let relay = Relay::spawn(&both, &[]);
    database.events(1, 5).await;
    receiver.wait_for(2);
    database.eventually("SELECT count(claimed_by) = 5 FROM relay.outbox").await;
    // The switch flushes the claims, too. The standby replays up to there; the end of the log is behind the new file's
    // header while no record follows.
    let switched = database.client.query_one("SELECT pg_switch_wal()::text", &[]).await.unwrap();
    let switched: &str = switched.get(0);
    database
        .eventually(&format!("SELECT bool_and(replay_lsn >= '{switched}'::pg_lsn) FROM pg_stat_replication"))
        .await;
    primary.halt(Stop::Immediate);
    relay.until_refused(1);
    let database = connect(&standby.url("postgres")).await;
    database.execute("SELECT pg_promote()", &[]).await.unwrap();
    let database = Database::at(&standby.url("postgres")).await;
    relay.until_reconnected(1);
    gate.open();
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 6, "{}", relay.log());
    assert_eq!(outcomes(&database).await, [(true, false); 6]);
}

#[tokio::test]
async fn a_read_only_database_makes_it_wait_and_repeats_no_call() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    let name =
        database.number("SELECT oid::bigint FROM pg_database WHERE datname = current_database()").await;
    let read_only = |on| {
        format!(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {on}',
                 (SELECT datname FROM pg_database WHERE oid = {name})); END $$"
        )
    };
    database.client.batch_execute(&read_only("on")).await.unwrap();
    // Postgres applies a database's settings to new sessions only.
    terminate(&database, "%", "promptpal-relay %").await;
    // The operator reads why.
    until_unhealthy(relay.port(), |why| why.contains("cannot be written to"));
    gate.open();
    database.client.batch_execute(&read_only("off")).await.unwrap();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 1);
    assert_eq!(outcomes(&database).await, [(true, false)]);
}
