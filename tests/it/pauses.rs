//! Who is paused is not called, each call that is not made has its record, and resuming delivers it once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use promptpal_relay::inside::outbox::{Role, Target};
use serde_json::Value;
use tokio_postgres::SimpleQueryMessage;

use crate::promptpal::{TABLES, script};
use crate::support::{Database, Receiver, Relay, Reply, connect, gated, outcome};

/// Webhook and kind of each call on record, in the order of the rows.
async fn kinds(database: &Database) -> Vec<(i64, Option<String>)> {
    database.calls().await.iter().map(|call| (call.get("webhook_id"), call.get("error_kind"))).collect()
}

fn paused(webhook: i64) -> (i64, Option<String>) {
    (webhook, Some("paused".into()))
}

/// Runs a command that succeeds; what it printed.
fn succeeds(database: &Database, arguments: &[&str]) -> String {
    let (code, out, err) = outcome(database.command(arguments));
    assert_eq!(code, 0, "{arguments:?}: {out}{err}");
    out
}

/// Runs a statement that Postgres refuses; the SQLSTATE and the message.
async fn refused(database: &Database, sql: &str) -> (String, String) {
    let error = database.client.batch_execute(sql).await.expect_err(sql);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
    (error.code().code().to_owned(), error.message().to_owned())
}

#[tokio::test]
async fn a_paused_webhook_is_not_called_its_calls_are_on_record_and_the_others_go_on() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let held = database.webhook(1, &receiver.url("/held")).await;
    let other = database.webhook(1, &receiver.url("/other")).await;
    let alone = database.webhook(2, &receiver.url("/alone")).await;
    let _relay = Relay::start(&database, &["--poll-interval", "1h"]);
    database.events(1, 1).await;
    receiver.wait_for(2);
    database.all_done().await;
    succeeds(&database, &["pause", "--webhook", &held.to_string(), "--reason", "it \u{1b}[2J floods us"]);
    let sql = format!("SELECT relay.pause_webhook({alone}, 'why', now() + interval '1 hour')");
    database.client.batch_execute(&sql).await.unwrap();
    // A promise: every row that is inserted, and so claimed, after the pause is committed.
    for project in [1, 2] {
        database.events(project, 1).await;
    }
    database.all_done().await;
    let expected = [(held, None), (other, None), paused(held), (other, None), paused(alone)];
    assert_eq!(kinds(&database).await, expected);
    let calls = database.calls().await;
    let call = &calls[4];
    assert!(!call.get::<_, bool>("succeeded") && call.get::<_, Option<i32>>("status_code").is_none());
    assert_eq!(
        call.get::<_, &str>("error_message"),
        "the webhook is paused, nothing was sent: why",
        "the reason is there"
    );
    assert_eq!(call.get::<_, &str>("request_headers_text"), "{}");
    let same = "SELECT bool_and(start_time = end_time) FROM relay.webhook_calls WHERE error_kind = 'paused'";
    assert!(database.client.query_one(same, &[]).await.unwrap().get::<_, bool>(0));
    assert_eq!(receiver.requests().iter().filter(|request| request.path() == "/held").count(), 1);
    // These are no failures.
    assert_eq!(database.number("SELECT sum(failures)::bigint FROM relay.webhook_health").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM relay.recent_failures").await, 0);
    let status: Value = serde_json::from_str(&succeeds(&database, &["status", "--json"])).unwrap();
    assert_eq!((&status["failures_5min"], &status["paused"]), (&0.into(), &2.into()));
    let shown = succeeds(&database, &["status"]);
    assert!(
        shown.contains(&format!("webhook {held}")) && shown.contains(r"it \u001b[2J floods us"),
        "{shown}"
    );
    assert!(shown.contains("UNTIL") && shown.contains("postgres"), "{shown}");
}

#[tokio::test]
async fn a_pause_holds_for_the_claim_after_its_commit_and_not_for_rows_that_were_claimed_before() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    let id = database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    // It takes part in the transaction of the session that pauses.
    let other = connect(&database.url).await;
    other.batch_execute(&format!("BEGIN; SELECT relay.pause_webhook({id}, 'soon')")).await.unwrap();
    database.events(1, 1).await;
    receiver.wait_for(2);
    other.batch_execute("COMMIT").await.unwrap();
    database.events(1, 1).await;
    database.eventually("SELECT count(*) = 1 FROM relay.webhook_calls").await;
    assert_eq!(kinds(&database).await, [paused(id)], "it does not wait for those in flight");
    gate.open();
    database.all_done().await;
    assert_eq!(kinds(&database).await, [(id, None), (id, None), paused(id)]);
    let other = connect(&database.url).await;
    other.batch_execute(&format!("BEGIN; SELECT relay.resume_webhook({id}); ROLLBACK")).await.unwrap();
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(kinds(&database).await[3], paused(id), "a resume that is rolled back is none");
}

#[tokio::test]
async fn what_was_held_back_is_delivered_once_through_a_kill_and_however_often_it_is_resumed() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let id = database.webhook(1, &receiver.url("/")).await;
    let flag = id.to_string();
    let relay = Relay::start(&database, &[]);
    succeeds(&database, &["pause", "--webhook", &flag]);
    database.events(1, 250).await;
    database.all_done().await;
    relay.kill();
    // Rows that no daemon has claimed when it is resumed are delivered as any.
    database.events(1, 50).await;
    let out = succeeds(&database, &["resume", "--webhook", &flag, "--replay"]);
    assert!(
        out.contains("is resumed") && out.contains("250 calls that were held back are repeated"),
        "{out}"
    );
    // While the rows that repeat them wait.
    let out = succeeds(&database, &["resume", "--webhook", &flag, "--replay"]);
    assert!(out.contains("was not paused") && out.contains("\n0 calls"), "{out}");
    let _relay = Relay::start(&database, &[]);
    database.all_done().await;
    // When they are done, and when retention has deleted them.
    for end in ["SELECT", "DELETE FROM relay.outbox"] {
        database.client.batch_execute(end).await.unwrap();
        let out = succeeds(&database, &["resume", "--webhook", &flag, "--replay"]);
        assert!(out.contains("\n0 calls"), "{end}: {out}");
    }
    let requests = receiver.requests();
    let traces = "SELECT count(DISTINCT trace_id) FROM relay.webhook_calls WHERE succeeded";
    assert_eq!((requests.len(), database.number(traces).await), (300, 300));
    let prompts: BTreeSet<u64> =
        requests.iter().map(|request| request.json()["promptId"].as_u64().unwrap()).collect();
    assert_eq!(prompts, (1..=250).collect());
}

#[tokio::test]
async fn two_who_resume_at_once_repeat_each_call_once() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let id = database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    succeeds(&database, &["pause", "--webhook", &id.to_string()]);
    database.events(1, 20).await;
    database.all_done().await;
    relay.kill();
    let first = connect(&database.url).await;
    let sql = format!("SELECT relay.resume_webhook({id}, true)");
    first.batch_execute("BEGIN").await.unwrap();
    let rows: i64 = first.query_one(&sql, &[]).await.unwrap().get(0);
    assert_eq!(rows, 20);
    // The other one leaves out what the first has in its transaction, and waits for nothing.
    let again = format!(
        "SET statement_timeout = '20s';
         SELECT relay.replay_failed(ARRAY(SELECT relay.held_back_calls({id}, NULL, '2020-01-01', 1000)))"
    );
    let second = connect(&database.url).await;
    let replayed = async |sql: &str| {
        let answer = second.simple_query(sql).await.unwrap();
        answer.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count()
    };
    assert_eq!(replayed(&again).await, 0);
    // No other session waits: neither one that claims, nor one that pauses, nor one that reads.
    database.client.batch_execute("SELECT relay.pause_project(7)").await.unwrap();
    succeeds(&database, &["check"]);
    first.batch_execute("COMMIT").await.unwrap();
    assert_eq!(replayed(&again).await, 0, "they are pending");
    assert_eq!(database.number(&sql).await, 0);
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox WHERE replay_of IS NOT NULL").await, 20);
    let old = &format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {sql}");
    assert_eq!(refused(&database, old).await.0, "25000");
    database.client.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn a_replay_that_is_held_back_itself_is_the_one_that_is_open_and_is_delivered_once() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let id = database.webhook(1, &receiver.url("/")).await;
    let flag = id.to_string();
    let _relay = Relay::start(&database, &[]);
    succeeds(&database, &["pause", "--webhook", &flag]);
    database.events(1, 2).await;
    database.all_done().await;
    let open = "SELECT count(*) FROM relay.open_failures WHERE error_kind = 'paused'";
    assert_eq!(database.number(open).await, 2);
    // An operator replays while it is paused: failed ones, or one of them by hand.
    for arguments in [
        &["replay", "--webhook", &flag, "--since", "1h", "--failed", "--yes"][..],
        &["replay", "--call", &database.number("SELECT max(id) FROM relay.webhook_calls").await.to_string()],
    ] {
        succeeds(&database, arguments);
        database.all_done().await;
        assert_eq!(database.number(open).await, 2, "{arguments:?}");
    }
    assert_eq!(kinds(&database).await, vec![paused(id); 5]);
    let newest = "SELECT count(*) FROM relay.open_failures f JOIN relay.webhook_calls c ON c.id = f.call_id
                   WHERE c.replay_of IS NOT NULL";
    assert_eq!(database.number(newest).await, 2, "the replays are open, not what they repeat");
    let out = succeeds(&database, &["resume", "--webhook", &flag, "--replay"]);
    assert!(out.contains("\n2 calls that were held back are repeated"), "{out}");
    database.all_done().await;
    assert_eq!(database.number(open).await, 0);
    let out = succeeds(&database, &["resume", "--webhook", &flag, "--replay"]);
    assert!(out.contains("\n0 calls"), "{out}");
    let ids: BTreeSet<String> = receiver
        .requests()
        .iter()
        .map(|request| request.header("webhook-id").expect("each call has one").to_owned())
        .collect();
    assert_eq!((receiver.requests().len(), ids.len()), (2, 2));
}

#[tokio::test]
async fn a_resume_waits_for_rows_in_hand_that_hold_calls_back() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    let good = Receiver::good();
    let held = database.webhook(1, &good.url("/held")).await;
    database.webhook(1, &receiver.url("/slow")).await;
    let _relay = Relay::start(&database, &[]);
    succeeds(&database, &["pause", "--webhook", &held.to_string()]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    let mut resume = database.command(&["resume", "--webhook", &held.to_string(), "--replay"]);
    let resume = resume.stdout(std::process::Stdio::piped()).spawn().unwrap();
    database.eventually("SELECT NOT EXISTS (SELECT FROM relay.pauses)").await;
    gate.open();
    let out = String::from_utf8(resume.wait_with_output().unwrap().stdout).unwrap();
    assert!(out.contains("\n1 calls that were held back are repeated"), "{out}");
    good.wait_for(1);
    database.all_done().await;
}

#[tokio::test]
async fn a_pause_ends_by_itself() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let id = database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    let out = succeeds(&database, &["pause", "--webhook", &id.to_string(), "--until", "1h"]);
    assert!(out.contains("is paused until 20"), "{out}");
    database.events(1, 1).await;
    database.all_done().await;
    let soon = "UPDATE relay.pauses SET until = clock_timestamp() + interval '100 ms'";
    database.client.batch_execute(soon).await.unwrap();
    database.eventually("SELECT until < now() FROM relay.pauses").await;
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(kinds(&database).await, [paused(id), (id, None)]);
    let status: Value = serde_json::from_str(&succeeds(&database, &["status", "--json"])).unwrap();
    assert_eq!(status["paused"], 0);
    // What it held back can still be delivered.
    let out = succeeds(&database, &["resume", "--webhook", &id.to_string(), "--replay"]);
    assert!(out.contains("\n1 calls"), "{out}");
    database.all_done().await;
    assert_eq!(receiver.wait_for(2).len(), 2);
    // A pause that is over begins anew; one that goes on keeps its beginning. Only what has ended is thrown away.
    let sql = format!(
        "UPDATE relay.pauses SET until = now() - interval '2 days', created_at = '2020-01-01'; SELECT relay.pause_webhook({id})"
    );
    let again = format!("INSERT INTO relay.pauses (webhook_id) VALUES ({id}); {sql}");
    database.client.batch_execute(&again).await.unwrap();
    let fresh =
        "SELECT count(*) FROM relay.pauses WHERE created_at > now() - interval '1 hour' AND until IS NULL";
    assert_eq!(database.number(fresh).await, 1);
    let session = database.session(Role::Retention).await;
    let ended = "INSERT INTO relay.pauses (webhook_id, until) VALUES (1000, now() - interval '1 hour'), (1001, now() + interval '1 hour')";
    database.client.batch_execute(ended).await.unwrap();
    let far = std::time::SystemTime::now() + std::time::Duration::from_secs(86400 * 365);
    assert_eq!(session.delete_ended_pauses(far).await.unwrap(), 1);
    assert_eq!(database.number("SELECT count(*) FROM relay.pauses").await, 2);
}

#[tokio::test]
async fn a_project_is_paused_with_all_its_webhooks_and_those_to_come() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let first = database.webhook(5, &receiver.url("/")).await;
    let other = database.webhook(6, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    succeeds(&database, &["pause", "--project", "5", "--reason", "a bill"]);
    let second = database.webhook(5, &receiver.url("/")).await;
    for project in [5, 6] {
        database.events(project, 1).await;
    }
    database.all_done().await;
    assert_eq!(kinds(&database).await, [paused(first), paused(second), (other, None)]);
    let message: String = database.calls().await[0].get("error_message");
    assert_eq!(message, "the project is paused, nothing was sent: a bill");
    // A webhook of it is not resumed before it is.
    let (code, out, err) =
        outcome(database.command(&["resume", "--webhook", &first.to_string(), "--replay"]));
    assert!(code == 1 && err.contains("resume --project 5"), "{code} {out}{err}");
    let sql = format!("SELECT relay.resume_webhook({first}, true)");
    assert_eq!(refused(&database, &sql).await.0, "55000");
    // One that is paused by itself stays so.
    database.client.batch_execute(&format!("SELECT relay.pause_webhook({second})")).await.unwrap();
    let out = succeeds(&database, &["resume", "--project", "5", "--replay"]);
    assert!(out.contains("\n1 calls"), "{out}");
    database.all_done().await;
    assert_eq!(kinds(&database).await.last().unwrap(), &(first, None));
    assert_eq!(receiver.requests().len(), 2);
    let rows: i64 = database
        .client
        .query_one(&sql.replace(&first.to_string(), &second.to_string()), &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(rows, 1);
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 3);
}

#[tokio::test]
async fn a_row_for_one_webhook_and_parked_rows_know_pauses_too() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    let id = database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &["--per-webhook", "1"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    database.events(1, 50).await;
    relay.until("promptpal_relay_rows_parked_total", |rows| rows > 0.0);
    succeeds(&database, &["pause", "--webhook", &id.to_string()]);
    database.client.batch_execute(&format!("SELECT relay.send_test({id})")).await.unwrap();
    gate.open();
    database.all_done().await;
    let last = kinds(&database).await.pop().unwrap();
    assert_eq!(last, paused(id), "the test event");
    let held = database.number("SELECT count(*) FROM relay.webhook_calls WHERE error_kind = 'paused'").await;
    assert!(held >= 40, "{held} of those that were parked");
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls").await, 52);
    assert_eq!(relay.metric("promptpal_relay_call_duration_seconds_count{outcome=\"paused\"}"), held as f64);
}

#[tokio::test]
async fn a_webhook_of_promptpals_is_paused_over_the_view() {
    let database = Database::new().await;
    let tables = TABLES.replace("HEADERS", "jsonb").replace("NULLABLE", "");
    database.client.batch_execute(&tables).await.unwrap();
    let receiver = Receiver::good();
    let sql = "INSERT INTO webhooks (name, url, webhook_project) VALUES ('w', $1::text, 7) RETURNING id";
    let id: i64 = database.client.query_one(sql, &[&receiver.url("/")]).await.unwrap().get(0);
    assert_eq!(script(&database, "install", &["feed=on"]), (0, String::new()));
    let _relay = Relay::start(&database, &[]);
    let flag = id.to_string();
    succeeds(&database, &["pause", "--webhook", &flag, "--reason", "maintenance"]);
    let prompt = "INSERT INTO prompt_calls (prompt_calls, project_calls, user_id, duration, result, prompt_call_provider)
                  VALUES (1, 7, 'u', 1, 0, 1)";
    database.client.batch_execute(prompt).await.unwrap();
    database.eventually("SELECT count(*) = 1 FROM relay.webhook_calls").await;
    assert_eq!(kinds(&database).await, [paused(id)]);
    let mirrored = "SELECT count(*) FROM webhook_calls WHERE error_message LIKE '%maintenance'";
    assert_eq!(database.number(mirrored).await, 1);
    assert_eq!(
        refused(&database, "SELECT relay.pause_webhook(99)").await.1,
        "there is no webhook 99 in relay.webhooks"
    );
    succeeds(&database, &["resume", "--webhook", &flag, "--replay"]);
    receiver.wait_for(1);
    database.all_done().await;
    assert_eq!(kinds(&database).await, [paused(id), (id, None)]);
    succeeds(&database, &["pause", "--project", "7"]);
    database.client.batch_execute(prompt).await.unwrap();
    database.all_done().await;
    assert_eq!(
        succeeds(&database, &["resume", "--project", "7", "--replay"]).matches("\n1 calls").count(),
        1
    );
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 2);
}

#[tokio::test]
async fn what_cannot_be_paused_is_refused_in_one_line_that_says_why() {
    let database = Database::new().await;
    let id = database.webhook(1, "http://a.example/").await;
    let of = |sql: &str| sql.replace("ID", &id.to_string());
    for (sql, code, says) in [
        ("SELECT relay.pause_webhook(ID + 1)", "P0002", "there is no webhook"),
        ("SELECT relay.pause_webhook(NULL)", "22004", "no webhook"),
        ("SELECT relay.pause_project(NULL)", "22004", "no project"),
        ("SELECT relay.pause_webhook(ID, 'x', now() - interval '1 s')", "22023", "over already"),
        ("SELECT relay.pause_webhook(ID, 'x', '-infinity')", "22023", "over already"),
        ("SELECT relay.pause_webhook(ID, repeat('x', 1001))", "22001", "at most 1000"),
        ("INSERT INTO relay.pauses (webhook_id, project_id) VALUES (1, 1)", "23514", "pauses_names_one"),
        ("INSERT INTO relay.pauses DEFAULT VALUES", "23514", "pauses_names_one"),
    ] {
        let (found, message) = refused(&database, &of(sql)).await;
        assert!(found == code && message.contains(says), "{sql}: {found} {message}");
    }
    database.client.batch_execute(&of("SELECT relay.pause_webhook(ID, NULL, 'infinity')")).await.unwrap();
    assert_eq!(
        database.number("SELECT count(*) FROM relay.pauses WHERE until IS NULL AND reason = ''").await,
        1
    );
    let id = id.to_string();
    for (arguments, code) in [
        (vec!["pause"], 2),
        (vec!["pause", "--webhook", "1", "--project", "1"], 2),
        (vec!["pause", "--webhook", "1", "--until", "never"], 2),
        (vec!["resume", "--replay"], 2),
        (vec!["pause", "--webhook", "999"], 1),
        (vec!["pause", "--webhook", &id, "--until", "2020-01-01"], 1),
    ] {
        let (found, out, err) = outcome(database.command(&arguments));
        assert!(
            found == code && out.is_empty() && err.lines().count() == 1,
            "{arguments:?}: {found} {out}{err}"
        );
    }
    // A disabled webhook is resumed, and what it held back is not repeated.
    database.client.batch_execute("UPDATE relay.webhooks SET enabled = false").await.unwrap();
    let (code, out, err) = outcome(database.command(&["resume", "--webhook", &id, "--replay"]));
    assert!(code == 1 && out.contains("is resumed") && err.contains("gone or disabled"), "{code} {out}{err}");
}

#[tokio::test]
async fn the_application_pauses_and_a_reader_does_not_and_neither_does_the_daemon_but_by_its_function() {
    let database = Database::new().await;
    let id = database.webhook(1, "http://a.example/").await;
    for (role, sql, may) in [
        ("relay_app", "SELECT relay.pause_webhook(ID)", true),
        ("relay_app", "SELECT relay.pause_project(1)", true),
        ("relay_app", "SELECT relay.resume_webhook(ID, true)", true),
        ("relay_app", "SELECT relay.resume_project(1, true)", true),
        ("relay_app", "INSERT INTO relay.pauses (webhook_id) VALUES (1)", false),
        ("relay_app", "DELETE FROM relay.pauses", false),
        ("relay_app", "SELECT relay.pause_failing_webhook(ID, now(), '')", false),
        ("relay_app", "SELECT relay.write_pause(1, NULL, '', NULL)", false),
        ("relay_reader", "SELECT * FROM relay.pauses", true),
        ("relay_reader", "SELECT relay.pause_webhook(ID)", false),
        ("relay_reader", "SELECT relay.resume_webhook(ID)", false),
        ("relay_daemon", "SELECT relay.pause_failing_webhook(ID, now(), '')", true),
        ("relay_daemon", "SELECT relay.delete_ended_pauses(now())", true),
        ("relay_daemon", "SELECT relay.pause_webhook(ID)", false),
        ("relay_daemon", "SELECT relay.resume_webhook(ID)", false),
        ("relay_daemon", "DELETE FROM relay.pauses", false),
    ] {
        let sql = format!("BEGIN; SET LOCAL ROLE {role}; {}", sql.replace("ID", &id.to_string()));
        let result = database.client.batch_execute(&sql).await;
        database.client.batch_execute("ROLLBACK").await.unwrap();
        let code = result.as_ref().err().map(|error| error.code().unwrap().code().to_owned());
        assert_eq!(code.as_deref(), (!may).then_some("42501"), "{sql}");
    }
    // The owner of a view in the place of the webhooks runs nothing by it, and hinders no pause.
    let sql = "CREATE ROLE some_owner_of_a_view; CREATE SCHEMA theirs AUTHORIZATION some_owner_of_a_view;
               ALTER TABLE relay.webhooks RENAME TO kept;
               CREATE VIEW relay.webhooks AS SELECT * FROM relay.kept WHERE 1 / 0 = 1;
               ALTER VIEW relay.webhooks OWNER TO some_owner_of_a_view";
    database.client.batch_execute(sql).await.unwrap();
    database.client.batch_execute(&format!("SELECT relay.pause_webhook({id}, 'in need')")).await.unwrap();
    assert_eq!(database.number("SELECT count(*) FROM relay.pauses").await, 1);
    database
        .client
        .batch_execute("DROP OWNED BY some_owner_of_a_view; DROP ROLE some_owner_of_a_view")
        .await
        .unwrap();
}

#[tokio::test]
async fn check_names_a_pause_that_somebody_may_have_forgotten() {
    let database = Database::new().await;
    let id = database.webhook(1, "https://a.example/").await;
    database.client.batch_execute(&format!("SELECT relay.pause_webhook({id}, 'a test')")).await.unwrap();
    let out = succeeds(&database, &["check"]);
    assert!(out.lines().any(|line| line.starts_with("ok       pauses")), "{out}");
    database
        .client
        .batch_execute("UPDATE relay.pauses SET created_at = now() - interval '8 days'")
        .await
        .unwrap();
    let out = succeeds(&database, &["check"]);
    let line =
        out.lines().find(|line| line.starts_with("warning  pauses")).unwrap_or_else(|| panic!("{out}"));
    assert!(line.contains(&format!("resume --webhook {id}")) && line.contains("a test"), "{line}");
    let ends = "UPDATE relay.pauses SET until = now() + interval '1 day'";
    database.client.batch_execute(ends).await.unwrap();
    assert!(succeeds(&database, &["check"]).contains("ok       pauses"));
}

/// A receiver that answers with the status that is set.
fn answering(status: u16) -> (Receiver, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(status));
    let answer = status.clone();
    (Receiver::start(move |_| Reply::status(answer.load(Ordering::SeqCst))), status)
}

const PAUSED_TOTAL: &str = "promptpal_relay_webhooks_paused_total";

#[tokio::test]
async fn an_endpoint_that_fails_for_long_is_paused_and_the_operator_is_told() {
    let database = Database::new().await;
    let (receiver, _) = answering(500);
    let id = database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &["--pause-failing", "1ms"]);
    database.events(1, 19).await;
    database.all_done().await;
    // One more: it is known to be paused when the metric says so.
    assert_eq!(relay.metric(PAUSED_TOTAL), 0.0);
    database.events(1, 1).await;
    relay.until(PAUSED_TOTAL, |count| count == 1.0);
    let line = relay.until_told("that it has paused the webhook", |line| {
        line["level"] == "WARN" && line["webhook_id"] == id
    });
    let sql = "SELECT reason, created_by, until IS NULL FROM relay.pauses WHERE webhook_id = $1";
    let row = database.client.query_one(sql, &[&id]).await.unwrap();
    let (reason, by): (&str, &str) = (row.get(0), row.get(1));
    assert!(reason.starts_with("all 20 calls within ") && reason.ends_with("http_status 500"), "{reason}");
    assert!(by.starts_with("promptpal-relay as ") && row.get::<_, bool>(2), "{by}");
    assert_eq!(line["reason"], reason);
    database.events(1, 30).await;
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 20);
    assert_eq!(relay.metric(PAUSED_TOTAL), 1.0, "held-back calls count for nothing");
    // It is a pause as any.
    let out = succeeds(&database, &["resume", "--webhook", &id.to_string(), "--replay"]);
    assert!(out.contains("\n30 calls"), "{out}");
}

#[tokio::test]
async fn an_endpoint_that_flaps_or_answers_another_instance_is_not_paused() {
    let database = Database::new().await;
    let (receiver, status) = answering(500);
    let id = database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &["--pause-failing", "1ms", "--log-level", "debug"]);
    for _ in 0..3 {
        database.events(1, 19).await;
        database.all_done().await;
        status.store(200, Ordering::SeqCst);
        database.events(1, 1).await;
        database.all_done().await;
        status.store(500, Ordering::SeqCst);
    }
    // As if another instance had made it: in the time of the failures that follow.
    database.events(1, 1).await;
    database.all_done().await;
    let success = "INSERT INTO relay.webhook_calls (outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body,
                       response_bytes, response_truncated, start_time, end_time, is_timeout, succeeded, repeated, user_agent, ip, event_id)
                   VALUES (1, $1, 1, 't', '', '{}', '', 0, false, now() + interval '1 min', now(), false, true, false, '', '', gen_random_uuid())";
    database.client.execute(success, &[&id]).await.unwrap();
    database.events(1, 19).await;
    database.all_done().await;
    relay.until_told("that it is not paused", |line| line["level"] == "DEBUG" && line["reason"].is_string());
    assert_eq!(database.number("SELECT count(*) FROM relay.pauses").await, 0);
    assert_eq!(relay.metric(PAUSED_TOTAL), 0.0);
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_paused_at_once_and_only_with_the_flag() {
    let database = Database::new().await;
    let (receiver, _) = answering(410);
    let id = database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 40).await;
    database.all_done().await;
    drop(relay);
    assert_eq!(database.number("SELECT count(*) FROM relay.pauses").await, 0, "without the flag");
    let relay = Relay::start(&database, &["--pause-failing", "30d"]);
    database.events(1, 1).await;
    relay.until(PAUSED_TOTAL, |count| count == 1.0);
    let reason = "SELECT count(*) FROM relay.pauses WHERE webhook_id = $1 AND reason LIKE '%410%'";
    assert_eq!(database.client.query_one(reason, &[&id]).await.unwrap().get::<_, i64>(0), 1);
    // A person's pause stays as it is.
    let sql = format!(
        "SELECT relay.pause_webhook({id}, 'mine', now() + interval '1 day'); SELECT relay.pause_failing_webhook({id}, now(), 'x')"
    );
    database.client.batch_execute(&sql).await.unwrap();
    assert_eq!(
        database.number("SELECT count(*) FROM relay.pauses WHERE reason = 'mine' AND until > now()").await,
        1
    );
}

#[tokio::test]
async fn a_pause_that_somebody_has_open_holds_up_no_delivery_and_comes_later() {
    let database = Database::new().await;
    let (receiver, _) = answering(410);
    let good = Receiver::good();
    let id = database.webhook(1, &receiver.url("/")).await;
    let gone = database.webhook(2, &receiver.url("/")).await;
    database.webhook(3, &good.url("/")).await;
    let relay = Relay::start(&database, &["--pause-failing", "1h"]);
    let other = connect(&database.url).await;
    other.batch_execute(&format!("BEGIN; SELECT relay.pause_webhook({id})")).await.unwrap();
    database.events(1, 1).await;
    relay.until_told("that it cannot be paused", |line| line["level"] == "WARN" && line["error"].is_string());
    for project in [2, 3] {
        database.events(project, 1).await;
    }
    database.all_done().await;
    good.wait_for(1);
    // Neither does another webhook that is to be paused wait for it.
    relay.until(PAUSED_TOTAL, |count| count == 1.0);
    assert_eq!(database.number("SELECT webhook_id FROM relay.pauses").await, gone);
    other.batch_execute("ROLLBACK").await.unwrap();
    relay.until(PAUSED_TOTAL, |count| count == 2.0);
}

#[tokio::test]
async fn only_enabled_webhooks_of_a_project_are_repeated_when_it_is_resumed() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/kept")).await;
    let gone = database.webhook(1, &receiver.url("/gone")).await;
    let _relay = Relay::start(&database, &[]);
    succeeds(&database, &["pause", "--project", "1"]);
    database.events(1, 3).await;
    database.all_done().await;
    let disable = format!("UPDATE relay.webhooks SET enabled = false WHERE id = {gone}");
    database.client.batch_execute(&disable).await.unwrap();
    let open = format!(
        "SELECT count(*) FROM relay.open_failures WHERE error_kind = 'paused' AND webhook_id = {gone}"
    );
    assert_eq!(database.number(&open).await, 3);
    let session = database.session(Role::Command).await;
    assert_eq!(session.held_back(Target::Webhook(gone), None, 10).await.unwrap(), [0i64; 0]);
    let out = succeeds(&database, &["resume", "--project", "1", "--replay"]);
    assert!(out.contains("\n3 calls"), "{out}");
    database.all_done().await;
    assert!(receiver.requests().iter().all(|request| request.path() == "/kept"));
    assert_eq!(receiver.requests().len(), 3);
}
