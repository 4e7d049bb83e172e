//! An event is the same event only by its `event_id`: ids that Postgres draws again are other events', repeats and replays
//! keep theirs.

use std::collections::HashSet;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scenes::fill_disk;
use crate::standby::standby_of;
use crate::support::{Database, Receiver, Relay, Reply, gated, outcome};
use promptpal_relay::inside::demo::{Cluster, Stop};

/// The `webhook-id` headers of all requests so far.
fn ids(receiver: &Receiver) -> Vec<String> {
    receiver.requests().iter().map(|request| request.header("webhook-id").unwrap().to_owned()).collect()
}

/// Inserts so many events whose prompts are 101 and more.
const OTHER_EVENTS: &str =
    "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens,
    completion_tokens) SELECT 1, 100 + n, 'user', 0, 1, 1, 1 FROM generate_series(1, 5) AS n";

/// The call log has the five other events, each with its own body and `webhook-id`, and nothing else.
async fn assert_only_the_others_are_recorded(database: &Database) {
    let calls = database.calls().await;
    let mut prompts: Vec<i64> = Vec::new();
    for call in &calls {
        let body: Value = serde_json::from_str(call.get("request_body")).unwrap();
        let headers: Value = serde_json::from_str(call.get("request_headers_text")).unwrap();
        let event = call.get::<_, uuid::Uuid>("event_id").simple().to_string();
        assert_eq!(headers["webhook-id"], format!("msg_{event}_{}", call.get::<_, i64>("webhook_id")));
        prompts.push(body["promptId"].as_i64().unwrap());
    }
    prompts.sort_unstable();
    assert_eq!(prompts, [101, 102, 103, 104, 105]);
    let same = "SELECT count(*) FROM relay.outbox o JOIN relay.webhook_calls c ON c.outbox_id = o.id AND c.event_id = o.event_id
                WHERE (c.request_body::jsonb ->> 'promptId')::bigint = o.prompt_id";
    assert_eq!(database.number(same).await, 5);
}

/// The journal names the calls that were made and are not recorded.
fn assert_named(relay: &Relay, unrecorded: &[String]) {
    let lines = relay.until_told_of(unrecorded.len(), "which calls are not recorded", |line| {
        line["level"] == "WARN" && line["message_ids"].is_string()
    });
    let named: HashSet<&str> = lines.iter().map(|line| line["message_ids"].as_str().unwrap()).collect();
    assert_eq!(named, unrecorded.iter().map(String::as_str).collect());
}

#[tokio::test]
async fn rows_that_get_the_ids_of_rows_in_hand_are_other_events() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 5).await;
    receiver.wait_for(5);
    let unrecorded = ids(&receiver);
    database.client.batch_execute("TRUNCATE relay.outbox RESTART IDENTITY").await.unwrap();
    database.client.batch_execute(OTHER_EVENTS).await.unwrap();
    receiver.wait_for(10);
    gate.open();
    database.all_done().await;
    relay.until_fenced(5);
    assert_eq!(receiver.requests().len(), 10);
    assert_eq!(HashSet::<String>::from_iter(ids(&receiver)).len(), 10, "no two events have the same id");
    assert_only_the_others_are_recorded(&database).await;
    assert_named(&relay, &unrecorded);
}

#[tokio::test]
async fn a_record_of_a_row_that_is_gone_takes_no_claim_from_the_row_that_has_its_id_now() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    fill_disk(&database).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 5).await;
    receiver.wait_for(5);
    relay.until_refused(1);
    // The records of the five wait for the disk, and their rows go.
    database.client.batch_execute("TRUNCATE relay.outbox RESTART IDENTITY").await.unwrap();
    database.client.batch_execute(OTHER_EVENTS).await.unwrap();
    receiver.wait_for(10);
    database.client.batch_execute("DROP TRIGGER full_disk ON relay.webhook_calls").await.unwrap();
    database.all_done().await;
    assert_only_the_others_are_recorded(&database).await;
    assert_eq!(receiver.requests().len(), 10);
    // The failures and the durations are those of the log.
    assert_eq!(relay.metric("promptpal_relay_rows_done_total"), 5.0);
    assert_eq!(relay.metric("promptpal_relay_call_duration_seconds_count{outcome=\"success\"}"), 5.0);
}

#[tokio::test]
async fn a_row_that_is_gone_and_was_not_begun_gives_back_no_row_that_has_its_id_now() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    for project in 1..=3 {
        database.webhook(project, &receiver.url("/")).await;
    }
    let mut relay = Relay::start(&database, &["--per-webhook", "1"]);
    database.events(1, 2).await;
    receiver.wait_for(1);
    database.eventually("SELECT count(claimed_by) = 2 FROM relay.outbox").await;
    database.client.batch_execute("TRUNCATE relay.outbox RESTART IDENTITY").await.unwrap();
    // The second of these has the id of the one that waits.
    database.events(2, 1).await;
    database.events(3, 1).await;
    receiver.wait_for(3);
    relay.signal(Signal::SIGTERM);
    relay.until_given_back();
    gate.open();
    assert!(relay.wait().success());
    let done = "SELECT count(*) FROM relay.outbox WHERE done_at IS NOT NULL";
    assert_eq!(database.number(done).await, 2, "their calls were in flight, and are recorded");
    assert_eq!(receiver.requests().len(), 3);
}

#[tokio::test]
async fn a_daemon_that_is_not_listed_any_more_registers_anew_and_goes_on() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    for (round, forget) in
        ["DELETE FROM relay.instances", "UPDATE relay.instances SET dead_at = now()"].into_iter().enumerate()
    {
        database.client.batch_execute(forget).await.unwrap();
        database.events(1, 1).await;
        database.all_done().await;
        relay.until_reconnected(u32::try_from(round).unwrap() + 1);
    }
    assert_eq!(receiver.requests().len(), 2);
    let repeated = "SELECT count(*) FROM relay.webhook_calls WHERE repeated";
    assert_eq!(database.number(repeated).await, 0);
}

#[tokio::test]
async fn a_daemon_whose_database_becomes_a_copy_under_it_claims_nothing_and_ends() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let mut relay = Relay::start(&database, &[]);
    // As a dump does it that is restored over the database: the table is another one, and rows come with it.
    let restored = "BEGIN; UPDATE relay.installation SET table_oid = 1;
        INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
        VALUES (1, 1, 'user', 0, 1, 1, 1); COMMIT";
    database.client.batch_execute(restored).await.unwrap();
    assert_eq!(relay.wait().code(), Some(78), "{}", relay.log());
    assert_eq!(receiver.requests().len(), 0);
}

#[tokio::test]
async fn events_after_a_failover_that_lost_rows_are_not_taken_for_the_lost_ones() {
    let mut primary = Cluster::start(&[]).unwrap();
    let mut standby = standby_of(&mut primary);
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
    let relay = Relay::spawn(&both, &[]).ready();
    // The standby has all until here, and nothing of what follows.
    let at = database.client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap();
    let at: &str = at.get(0);
    let behind = Database::at(&standby.url("postgres")).await;
    behind.eventually(&format!("SELECT pg_last_wal_replay_lsn() >= '{at}'::pg_lsn")).await;
    standby.halt(Stop::Fast);
    database.events(1, 5).await;
    receiver.wait_for(5);
    let unrecorded = ids(&receiver);
    primary.halt(Stop::Immediate);
    standby.boot().unwrap();
    let behind = behind.reconnect().await;
    behind.client.execute("SELECT pg_promote()", &[]).await.unwrap();
    behind.client.batch_execute(OTHER_EVENTS).await.unwrap();
    let first = behind.number("SELECT min(id) FROM relay.outbox").await;
    assert!(first <= 33, "the ids are drawn again, but for those that a crash of Postgres skips: {first}");
    relay.until_reconnected(1);
    receiver.wait_for(10);
    gate.open();
    behind.all_done().await;
    relay.until_fenced(5);
    assert_only_the_others_are_recorded(&behind).await;
    assert_named(&relay, &unrecorded);
}

#[tokio::test]
async fn a_replay_has_the_identity_of_the_event_and_says_which_call_it_repeats() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let webhook = database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    database.all_done().await;
    let first: i64 = database.calls().await[0].get("id");
    let (code, _, error) = outcome(database.command(&["replay", "--call", &first.to_string()]));
    assert_eq!(code, 0, "{error}");
    database.all_done().await;
    let ids = ids(&receiver);
    assert_eq!((ids.len(), &ids[0]), (2, &ids[1]));
    let calls = database.calls().await;
    assert_eq!(calls[0].get::<_, uuid::Uuid>("event_id"), calls[1].get::<_, uuid::Uuid>("event_id"));
    assert_eq!(calls[0].get::<_, Option<i64>>("replay_of"), None);
    assert_eq!(calls[1].get::<_, Option<i64>>("replay_of"), Some(first));
    assert_eq!(calls[1].get::<_, &str>("trace_id"), calls[0].get::<_, &str>("trace_id"));
    assert!(ids[0].ends_with(&format!("_{webhook}")));
}

#[tokio::test]
async fn a_dump_that_is_restored_elsewhere_draws_no_identity_twice() {
    let database = Database::new().await;
    let copy = Database::empty().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 3).await;
    database.all_done().await;
    drop(relay);
    // What a dump has of the outbox: the rows, and the counter.
    let last = database.number("SELECT max(id) FROM relay.outbox").await;
    let (code, _, error) = outcome(copy.command(&["migrate"]));
    assert_eq!(code, 0, "{error}");
    copy.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&copy, &[]);
    copy.events(1, 3).await;
    copy.all_done().await;
    assert_eq!(copy.number("SELECT max(id) FROM relay.outbox").await, last, "the same ids");
    assert_eq!(HashSet::<String>::from_iter(ids(&receiver)).len(), 6, "and no identity twice");
}

#[tokio::test]
async fn the_trace_of_an_execution_goes_with_its_calls_and_into_the_journal() {
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::status(500));
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    let insert =
        "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens,
        completion_tokens, trace_id, traceparent) VALUES
        (1, 1, 'u', 0, 1, 1, 1, 'mine', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'),
        (1, 2, 'u', 0, 1, 1, 1, NULL, 'nonsense')";
    database.client.batch_execute(insert).await.unwrap();
    database.all_done().await;
    let requests = receiver.requests();
    let of = |prompt: i64| requests.iter().find(|request| request.json()["promptId"] == prompt).unwrap();
    let sent = of(1).header("traceparent").unwrap();
    assert!(sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && sent.ends_with("-01"), "{sent}");
    assert!(!sent.contains("b7ad6b7169203331"), "a span of its own");
    assert_eq!(of(2).header("traceparent"), None, "what is not valid is left out");
    let calls = database.calls().await;
    let event = calls[1].get::<_, uuid::Uuid>("event_id").simple().to_string();
    assert_eq!(calls[0].get::<_, &str>("trace_id"), "mine");
    assert_eq!(calls[1].get::<_, &str>("trace_id"), event, "without one it is the event's");
    assert!(
        calls[0].get::<_, &str>("request_headers_text").contains("traceparent"),
        "the log says what went out"
    );
    let told = relay.until_told("the failed call", |line| line["error_kind"] == "http_status");
    assert_eq!(told["project_id"], 1);
    assert!([Value::from("mine"), Value::from(event)].contains(&told["trace_id"]), "{told}");
}
