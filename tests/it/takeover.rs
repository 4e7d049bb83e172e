//! An instance dies, or is cut off: a peer or the next start takes its rows over, and each row has one record.

use std::time::Instant;

use nix::sys::signal::Signal;
use promptpal_relay::inside::outbox::Role;

use crate::scenes::{COMMIT_WAITS, busy, cut_off, outcomes};
use crate::support::{Database, Receiver, Relay, connect, gated};

#[tokio::test]
async fn the_next_start_finds_the_rows_of_a_killed_relay() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &["--poll-interval", "1h"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    relay.kill();
    let _next = Relay::start(&database, &["--poll-interval", "1h"]);
    receiver.wait_for(2);
    gate.open();
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true)]);
    // A row that no instance had in hand before is not marked.
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true), (true, false)]);
}

#[tokio::test]
async fn a_peer_takes_the_rows_of_a_killed_relay_over() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--poll-interval", "1h"];
    let relays = vec![Relay::start(&database, &flags), Relay::start(&database, &flags)];
    database.events(1, 1).await;
    receiver.wait_for(1);
    let (killed, others) = busy(&database, relays).await;
    let epoch = database.number("SELECT claimed_by FROM relay.outbox").await;
    let start = Instant::now();
    killed.kill();
    println!("kill to the peer's POST: {:?}", receiver.wait_for(2)[1].at - start);
    gate.open();
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true)]);
    assert_eq!(others[0].declared_dead(), [epoch]);
    others[0].until("promptpal_relay_takeovers_total", |count| count == 1.0);
}

#[tokio::test]
async fn a_peer_finds_the_rows_that_a_killed_relay_had_parked() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--poll-interval", "1h", "--per-webhook", "1"];
    let relays = vec![Relay::start(&database, &flags), Relay::start(&database, &flags)];
    database.events(1, 1).await;
    receiver.wait_for(1);
    let (busy, others) = busy(&database, relays).await;
    // The other relay sees none of these rows before they are parked.
    others[0].signal(Signal::SIGSTOP);
    // A claim that it had sent before runs on a busy machine some time later.
    let quiet =
        "SELECT bool_and(state = 'idle' AND now() - state_change > interval '0.3 s') FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'promptpal-relay claim'";
    database.eventually(quiet).await;
    database.events(1, 50).await;
    database.eventually("SELECT count(*) FILTER (WHERE parked) > 0 AND count(*) FILTER (WHERE NOT parked AND claimed_by IS NULL) = 0 FROM relay.outbox").await;
    busy.kill();
    others[0].signal(Signal::SIGCONT);
    gate.open();
    database.all_done().await;
}

#[tokio::test]
async fn who_prefers_at_most_once_gets_interrupted_calls_recorded() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/secret")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    relay.kill();
    gate.open();
    let _next = Relay::start(&database, &["--after-crash", "record"]);
    database.all_done().await;
    let calls = database.calls().await;
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].get::<_, Option<&str>>("error_kind"), Some("interrupted"));
    assert!(calls[0].get::<_, bool>("repeated"));
    assert_eq!(calls[0].get::<_, &str>("url"), receiver.url("/secret"));
    assert_eq!(receiver.requests().len(), 1, "not posted again");
}

#[tokio::test]
async fn a_frozen_relay_records_nothing_for_rows_that_a_peer_took() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let relays = vec![Relay::start(&database, &[]), Relay::start(&database, &[])];
    database.events(1, 1).await;
    receiver.wait_for(1);
    let (frozen, _peers) = busy(&database, relays).await;
    frozen.signal(Signal::SIGSTOP);
    cut_off(&database).await;
    receiver.wait_for(2);
    gate.open();
    database.all_done().await;
    frozen.signal(Signal::SIGCONT);
    // The relay is back under a new epoch, and has tried to record its result.
    let back = format!(
        "SELECT EXISTS (SELECT FROM relay.instances WHERE pid = {} AND dead_at IS NULL AND started_at > (SELECT started_at FROM relay.instances ORDER BY started_at OFFSET 1 LIMIT 1))",
        frozen.pid()
    );
    database.eventually(&back).await;
    frozen.until_fenced(1);
    assert_eq!(outcomes(&database).await, [(true, true)]);
}

#[tokio::test]
async fn a_row_that_was_taken_from_a_relay_and_came_back_has_one_record_and_is_marked() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    let good = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    database.webhook(2, &good.url("/")).await;
    let flags = ["--timeout", "1h"];
    let mut relays = vec![Relay::start(&database, &flags), Relay::start(&database, &flags)];
    database.events(1, 1).await;
    receiver.wait_for(1);
    let (first, peers) = busy(&database, relays).await;
    first.signal(Signal::SIGSTOP);
    cut_off(&database).await;
    receiver.wait_for(2);
    first.signal(Signal::SIGCONT);
    first.until_reconnected(1);
    // The first relay's call is in flight all the while.
    relays = peers;
    relays.pop().unwrap().kill();
    receiver.wait_for(3);
    // A commit that waits for the log's lock: what ends meanwhile is in the next one, both results of the first relay.
    let mut reader = connect(&database.url).await;
    let lock = reader.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE relay.webhook_calls IN SHARE MODE").await.unwrap();
    database.events(2, 1).await;
    database.eventually(COMMIT_WAITS).await;
    gate.open();
    first.until("promptpal_relay_calls_running", |running| running == 0.0);
    lock.rollback().await.unwrap();
    database.all_done().await;
    first.until_fenced(1);
    assert_eq!(outcomes(&database).await, [(true, true), (true, false)]);
}

#[tokio::test]
async fn a_thawed_relay_does_not_begin_calls_of_rows_that_a_peer_took() {
    // This is longer than a relay begins calls without a look at the locks.
    let later = "SELECT dead_at < clock_timestamp() - interval '500 ms' FROM relay.instances ORDER BY started_at LIMIT 1";
    freeze_and_take("SELECT true", later).await;
}

/// A relay that is alone, and whose calls hang, looks at the others once a second. Calls may start no longer for that.
#[tokio::test]
async fn nor_does_one_whose_calls_had_hung_for_long() {
    let seldom = "SELECT clock_timestamp() - state_change > interval '400 ms' FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'promptpal-relay listen'";
    freeze_and_take(seldom, "SELECT true").await;
}

/// Freezes a relay with calls that hang and rows that have not begun, when `freeze` is true. Has a peer take the rows. Thaws it
/// when `thaw` is true.
async fn freeze_and_take(freeze: &str, thaw: &str) {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--workers", "16", "--per-webhook", "2"];
    let frozen = Relay::start(&database, &flags);
    database.events(1, 8).await;
    receiver.wait_for(2);
    database.eventually("SELECT count(claimed_by) > 2 FROM relay.outbox").await;
    database.eventually(freeze).await;
    frozen.signal(Signal::SIGSTOP);
    cut_off(&database).await;
    let _peer = Relay::start(&database, &flags);
    receiver.wait_for(4);
    gate.open();
    database.all_done().await;
    database.eventually(thaw).await;
    frozen.signal(Signal::SIGCONT);
    // Rows that it had claimed, and had not begun, were among those that the peer took.
    frozen
        .until_told("that rows were taken from it", |line| line["level"] == "WARN" && line["rows"].is_u64());
    frozen.until_reconnected(1);
    // The relay works on.
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 2 + 8 + 1, "{}", frozen.log());
    assert_eq!(outcomes(&database).await.len(), 9);
}

#[tokio::test]
async fn a_dead_instance_is_cleared_when_it_has_no_rows_left_and_all_of_them_were_looked_at() {
    let database = Database::new().await;
    let run = async |sql: &str| database.client.batch_execute(sql).await.unwrap();
    let died = "INSERT INTO relay.instances (epoch, locks, host, pid, version, dead_at) SELECT n, ARRAY[n], 'h', 1, '1', now() - interval '1 hour'";
    run(&format!("{died} FROM generate_series(1, 3) AS n")).await;
    database.events(1, 12_000).await;
    // Of the three instances one has a parked row, one has another row, and the third has none.
    run("UPDATE relay.outbox SET claimed_by = id, parked = id = 2 WHERE id <= 2").await;
    let session = database.session(Role::Retention).await;
    assert_eq!(session.clear_dead().await.unwrap(), [0; 0], "the backlog is too long to know");
    run("UPDATE relay.outbox SET done_at = now() WHERE id > 5000").await;
    assert_eq!(session.clear_dead().await.unwrap(), [3]);
    run("UPDATE relay.outbox SET done_at = now() WHERE id = 1").await;
    assert_eq!(session.clear_dead().await.unwrap(), [1]);
    run("UPDATE relay.outbox SET claimed_by = 0 WHERE id = 2").await;
    assert_eq!(session.clear_dead().await.unwrap(), [2]);
}
