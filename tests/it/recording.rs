//! The record of a call is written although Postgres refuses it at first, and the call is not made again for it.

use crate::scenes::{fill_disk, outcomes};
use crate::support::{Database, Receiver, Relay, Reply};

#[tokio::test]
async fn a_record_that_postgres_refuses_does_not_hold_up_the_others() {
    let database = Database::new().await;
    let receiver = Receiver::start(|request| {
        let poison = request.json()["promptId"] == 7;
        Reply::full(200, &[], if poison { b"poison" } else { b"fine" })
    });
    database.webhook(1, &receiver.url("/")).await;
    let sql = "ALTER TABLE relay.webhook_calls ADD CONSTRAINT poison CHECK (response_body <> 'poison')";
    database.client.batch_execute(sql).await.unwrap();
    database.events(1, 50).await;
    let _relay = Relay::start(&database, &[]);
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 50);
    let calls = database.calls().await;
    assert_eq!(calls.len(), 50);
    let bad: Vec<_> = calls.iter().filter(|call| !call.get::<_, bool>("succeeded")).collect();
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0].get::<_, Option<&str>>("error_kind"), Some("internal"));
    assert_eq!(bad[0].get::<_, Option<i32>>("status_code"), Some(200), "what can be kept is kept");
}

#[tokio::test]
async fn a_full_disk_makes_it_try_the_commit_again_and_never_the_post() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    fill_disk(&database).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 3).await;
    relay.until_refused(1);
    relay.until("promptpal_relay_healthy", |healthy| healthy == 0.0);
    database.client.batch_execute("DROP TRIGGER full_disk ON relay.webhook_calls").await.unwrap();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 3);
    assert_eq!(outcomes(&database).await, [(true, false); 3]);
}
