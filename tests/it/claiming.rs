//! Each row is found, and claimed by one relay at a time; no relay claims more than it can begin soon.

use crate::scenes::{COMMIT_WAITS, dead_rows};
use crate::support::{Database, Receiver, Relay, connect, gated};

#[tokio::test]
async fn a_row_that_appears_below_others_is_found_though_dead_rows_are_kept() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    gate.open();
    database.webhook(2, &receiver.url("/")).await;
    let _report = dead_rows(&database).await;
    let _relay = Relay::start(&database, &[]);
    let late = connect(&database.url).await;
    for round in 1..=20 {
        // Other rows come and go until the relay has looked beyond this one more than once.
        late.batch_execute("BEGIN").await.unwrap();
        let sql = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
                   VALUES (2, 1, 'user', 0, 1, 1, 1)";
        late.batch_execute(sql).await.unwrap();
        for other in 1..=4 {
            database.events(2, 1).await;
            receiver.wait_for(5 * (round - 1) + other);
        }
        late.batch_execute("COMMIT").await.unwrap();
        receiver.wait_for(5 * round);
    }
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 100);
}

#[tokio::test]
async fn rows_that_nobody_is_called_for_are_not_claimed_without_end() {
    let database = Database::new().await;
    let mut reader = connect(&database.url).await;
    let lock = reader.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE relay.webhook_calls IN SHARE MODE").await.unwrap();
    database.events(1, 20_000).await;
    let _relay = Relay::start(&database, &[]);
    // The relay has not claimed for a while although there are more rows.
    let rests = "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()
                 AND application_name = 'promptpal-relay claim' AND state_change < clock_timestamp() - interval '500 ms'";
    database.eventually(COMMIT_WAITS).await;
    database.eventually(rests).await;
    let claimed = database.number("SELECT count(claimed_by) FROM relay.outbox").await;
    assert!(claimed < 5000, "{claimed}");
    lock.rollback().await.unwrap();
    database.all_done().await;
}

#[tokio::test]
async fn several_relays_share_the_work_and_each_row_is_posted_once() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let _relays = [Relay::start(&database, &[]), Relay::start(&database, &[]), Relay::start(&database, &[])];
    let writers = (0..4).map(|_| async {
        let client = connect(&database.url).await;
        for _ in 0..10 {
            let sql = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
                       SELECT 1, n, 'user', 0, 1, 1, 1 FROM generate_series(1, 50) AS n";
            client.batch_execute(sql).await.unwrap();
        }
    });
    for writer in writers {
        writer.await;
    }
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 2000);
    assert_eq!(
        database.number("SELECT count(*) FROM relay.webhook_calls WHERE succeeded AND NOT repeated").await,
        2000
    );
    assert_eq!(database.number("SELECT count(DISTINCT outbox_id) FROM relay.webhook_calls").await, 2000);
}
