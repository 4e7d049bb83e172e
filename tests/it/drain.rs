//! A relay that is told to stop gives back what has not begun, finishes what has, and does not wait for ever.

use nix::sys::signal::Signal;
use promptpal_relay::inside::demo::{Cluster, Stop};

use crate::scenes::{COMMIT_WAITS, dead_rows, fill_disk, outcomes};
use crate::support::scrape::until_unhealthy;
use crate::support::{Database, Receiver, Relay, Reply, connect, gated};

#[tokio::test]
async fn what_a_stopping_relay_gives_back_a_peer_posts_at_once() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--poll-interval", "1h", "--workers", "16", "--per-webhook", "2"];
    let mut first = Relay::start(&database, &flags);
    database.events(1, 8).await;
    receiver.wait_for(2);
    let _second = Relay::start(&database, &flags);
    first.signal(Signal::SIGTERM);
    // Two of the first are in flight; two more can only be the second's.
    receiver.wait_for(4);
    gate.open();
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 8);
    assert_eq!(outcomes(&database).await, [(true, false); 8]);
}

#[tokio::test]
async fn what_a_stopping_relay_gives_back_is_found_though_dead_rows_are_kept() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(2, &receiver.url("/")).await;
    let _report = dead_rows(&database).await;
    let flags = ["--workers", "16", "--per-webhook", "2"];
    let mut first = Relay::start(&database, &flags);
    database.events(2, 8).await;
    receiver.wait_for(2);
    let _second = Relay::start(&database, &flags);
    // The second relay has seen the rows that follow the first one's.
    let (other, other_gate) = gated();
    other_gate.open();
    database.webhook(3, &other.url("/")).await;
    for count in 1..=20 {
        database.events(3, 1).await;
        other.wait_for(count);
    }
    first.signal(Signal::SIGTERM);
    // Two of the first are in flight; two more can only be the second's.
    receiver.wait_for(4);
    gate.open();
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 8);
}

#[tokio::test]
async fn a_sleeping_peer_hears_of_the_parked_rows_that_a_stopping_relay_leaves() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--poll-interval", "1h", "--workers", "16", "--per-webhook", "2"];
    let mut first = Relay::start(&database, &flags);
    let second = Relay::start(&database, &flags);
    // A relay looks for parked rows when it begins; of those that are parked later it must be told.
    second.signal(Signal::SIGSTOP);
    database.events(1, 4).await;
    receiver.wait_for(1);
    database.events(1, 4).await;
    database.eventually("SELECT count(*) = 4 FROM relay.outbox WHERE parked").await;
    second.signal(Signal::SIGCONT);
    first.signal(Signal::SIGTERM);
    first.until_given_back();
    gate.open();
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 8);
}

#[tokio::test]
async fn what_is_taken_over_and_given_back_is_still_repeated() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--workers", "16", "--per-webhook", "2"];
    let killed = Relay::start(&database, &flags);
    database.events(1, 8).await;
    receiver.wait_for(2);
    database.eventually("SELECT count(claimed_by) = 8 FROM relay.outbox").await;
    killed.kill();
    let mut drained = Relay::start(&database, &flags);
    receiver.wait_for(4);
    database.eventually("SELECT bool_and(claimed_by = (SELECT epoch FROM relay.instances ORDER BY started_at DESC LIMIT 1)) FROM relay.outbox").await;
    drained.signal(Signal::SIGTERM);
    assert_eq!(drained.until_given_back(), 6);
    gate.open();
    assert_eq!(drained.wait().code(), Some(0), "{}", drained.log());
    assert_eq!(database.number("SELECT count(*) FROM relay.in_flight").await, 0);
    let _last = Relay::start(&database, &flags);
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true); 8]);
}

#[tokio::test]
async fn a_drain_takes_no_longer_than_the_timeout_of_the_last_call() {
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::Never);
    database.webhook(1, &receiver.url("/")).await;
    let mut relay = Relay::start(&database, &["--timeout", "1s"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(0), "{}", relay.log());
    let calls = database.calls().await;
    assert_eq!(calls.len(), 1);
    assert!(calls[0].get::<_, bool>("is_timeout"));
}

#[tokio::test]
async fn told_to_stop_while_postgres_is_away_it_does_not_wait_for_ever() {
    let mut cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--timeout", "1s"];
    let (mut idle, mut busy) = (Relay::start(&database, &flags), Relay::start(&database, &flags));
    database.events(1, 1).await;
    receiver.wait_for(1);
    let pid = database
        .number("SELECT i.pid::bigint FROM relay.instances i JOIN relay.outbox o ON o.claimed_by = i.epoch")
        .await;
    if i64::from(idle.pid().as_raw()) == pid {
        std::mem::swap(&mut idle, &mut busy);
    }
    cluster.halt(Stop::Fast);
    for relay in [&mut idle, &mut busy] {
        relay.until_refused(1);
        relay.signal(Signal::SIGTERM);
    }
    assert_eq!(idle.wait().code(), Some(0), "it has nothing to lose: {}", idle.log());
    assert_eq!(busy.wait().code(), Some(1), "{}", busy.log());
    assert!(busy.log().contains("will be made again: 1"), "{}", busy.log());
    // The next relay posts it.
    cluster.boot().unwrap();
    gate.open();
    let database = database.reconnect().await;
    let _next = Relay::start(&database, &[]);
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true)]);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_who_has_the_outbox_locked() {
    let database = Database::new().await;
    let mut relay = Relay::start(&database, &["--timeout", "1s", "--poll-interval", "100ms"]);
    let mut reader = connect(&database.url).await;
    let lock = reader.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE relay.outbox IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let claim_waits = COMMIT_WAITS.replace("finish", "claim");
    database.eventually(&claim_waits).await;
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1), "{}", relay.log());
    assert!(relay.log().contains("will be made again: 0"), "{}", relay.log());
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_disk_that_is_full() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    fill_disk(&database).await;
    let mut relay = Relay::start(&database, &["--timeout", "1s"]);
    database.events(1, 1).await;
    relay.until_refused(1);
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1), "{}", relay.log());
    assert!(relay.log().contains("will be made again: 1"), "{}", relay.log());
    // The next relay posts it.
    database.client.batch_execute("DROP TRIGGER full_disk ON relay.webhook_calls").await.unwrap();
    let _next = Relay::start(&database, &[]);
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true)]);
}

#[tokio::test]
async fn what_is_left_of_a_row_that_has_begun_begins_at_once_when_it_stops() {
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::Never);
    for _ in 0..8 {
        database.webhook(1, &receiver.url("/")).await;
    }
    let mut relay = Relay::start(&database, &["--timeout", "5s", "--workers", "2"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(0), "{}", relay.log());
    let all_at_once =
        "SELECT count(*) = 8 AND max(start_time) < min(end_time) FROM relay.webhook_calls WHERE is_timeout";
    database.eventually(all_at_once).await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let database = Database::new().await;
    let (receiver, _gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let mut relay = Relay::start(&database, &["--timeout", "1h"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    relay.signal(Signal::SIGTERM);
    until_unhealthy(relay.port(), |why| why == "stopping\n");
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1), "{}", relay.log());
}
