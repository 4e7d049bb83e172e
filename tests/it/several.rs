//! Several relays of one host and one database, and no processor to spare. One relay claims while the others leave the rows to it.
//! No row waits for a relay that claims nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::support::{DEADLINE, Database, Receiver, Relay, Reply, gated};

/// Threads that keep every processor busy until this is dropped.
struct Burning(Arc<AtomicBool>);

impl Burning {
    fn start() -> Burning {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..thread::available_parallelism().unwrap().get() * 2 {
            let over = over.clone();
            thread::spawn(move || while !over.load(Ordering::Relaxed) {});
        }
        Burning(over)
    }
}

impl Drop for Burning {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Starts so many relays that know of each other; the most senior one comes first.
async fn relays(database: &Database, count: usize, flags: &[&str]) -> Vec<Relay> {
    let mut relays: Vec<Relay> = (0..count).map(|_| Relay::start(database, flags)).collect();
    let sql = "SELECT pid FROM relay.instances ORDER BY epoch";
    let pids: Vec<i32> =
        database.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    relays.sort_by_key(|relay| pids.iter().position(|pid| *pid == relay.pid().as_raw()));
    relays
}

/// How often a relay has left rows to a senior one.
const DEFERRED: &str = "promptpal_relay_wakeups_total{cause=\"deferred\"}";

/// Adds rows until the relay has left some of them to a senior one; how many.
async fn events_until_left(database: &Database, project_id: i64, relay: &Relay) -> usize {
    let deadline = Instant::now() + DEADLINE;
    let mut sent = 0;
    while relay.metric_if_any(DEFERRED).is_none_or(|count| count == 0.0) {
        assert!(Instant::now() < deadline, "it leaves no row: {}", relay.log());
        database.events(project_id, 10).await;
        sent += 10;
    }
    sent
}

/// Each row has one call.
async fn assert_once(database: &Database) {
    let sql = "SELECT count(*) FROM relay.outbox o
                WHERE (SELECT count(*) FROM relay.webhook_calls c WHERE c.outbox_id = o.id) <> 1";
    assert_eq!(database.number(sql).await, 0);
}

#[tokio::test]
async fn a_drain_goes_on_when_the_relay_that_claims_is_killed() {
    const ROWS: i64 = 5_000;
    let database = Database::new().await;
    let receiver = Receiver::forgetful(|_| Reply::status(200));
    database.webhook(1, &receiver.url("/")).await;
    let mut relays = relays(&database, 3, &[]).await;
    let epoch = database.number("SELECT min(epoch) FROM relay.instances").await;
    database.events(1, ROWS).await;
    database.eventually("SELECT count(*) > 500 FROM relay.outbox WHERE done_at IS NOT NULL").await;
    relays.remove(0).kill();
    database.all_done().await;
    assert_once(&database).await;
    // Only what the dead one had in hand is repeated.
    let sql = format!(
        "SELECT count(*) FROM relay.webhook_calls c JOIN relay.outbox o ON o.id = c.outbox_id
          WHERE c.repeated AND o.previous_owner IS DISTINCT FROM {epoch}"
    );
    assert_eq!(database.number(&sql).await, 0);
}

#[tokio::test]
async fn rows_that_a_frozen_relay_lets_stand_are_delivered() {
    let database = Database::new().await;
    let receiver = Receiver::forgetful(|_| Reply::status(200));
    database.webhook(1, &receiver.url("/")).await;
    let relays = relays(&database, 2, &[]).await;
    let frozen = database.number("SELECT min(epoch) FROM relay.instances").await;
    relays[0].signal(Signal::SIGSTOP);
    let _burning = Burning::start();
    // The other one leaves rows to the frozen one, and finds that it lets them stand.
    events_until_left(&database, 1, &relays[1]).await;
    database.events(1, 100).await;
    let sql = format!(
        "SELECT NOT EXISTS (SELECT FROM relay.outbox WHERE done_at IS NULL AND claimed_by IS DISTINCT FROM {frozen})"
    );
    database.eventually(&sql).await;
    relays[0].signal(Signal::SIGCONT);
    database.all_done().await;
    assert_once(&database).await;
}

#[tokio::test]
async fn a_row_does_not_wait_for_a_relay_that_is_full() {
    let database = Database::new().await;
    let (slow, gate) = gated();
    let receiver = Receiver::good();
    database.webhook(1, &slow.url("/")).await;
    database.webhook(2, &receiver.url("/")).await;
    let relays = relays(&database, 2, &["--workers", "1", "--per-webhook", "1"]).await;
    // The senior one takes a call that hangs: all its threads are busy.
    relays[1].signal(Signal::SIGSTOP);
    database.events(1, 1).await;
    slow.wait_for(1);
    relays[1].signal(Signal::SIGCONT);
    let _burning = Burning::start();
    let sent = events_until_left(&database, 2, &relays[1]).await;
    database.events(2, 1).await;
    receiver.wait_for(sent + 1);
    gate.open();
    database.all_done().await;
    assert_once(&database).await;
}
