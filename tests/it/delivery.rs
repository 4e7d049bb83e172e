//! A row of the outbox becomes a POST to each enabled webhook, and a call log.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use crate::support::{
    Database, Gate, Receiver, Relay, Reply, closed_port, connect, outcome, repository_file,
};

/// The JSON example of the guide without the white space that makes it readable: as it goes over the wire.
fn guide_example() -> String {
    let guide = repository_file("docs/receivers.md");
    let (_, after) = guide.split_once("## Payload Structure").expect("the section");
    let example =
        after.split("```json\n").nth(1).and_then(|text| text.split("```").next()).expect("the example");
    let mut quoted = false;
    example
        .chars()
        .filter(|c| {
            quoted ^= *c == '"';
            quoted || !c.is_whitespace()
        })
        .collect()
}

#[tokio::test]
async fn the_guides_example_arrives_as_in_the_guide() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let webhook_id = database.webhook(123, &receiver.url("/webhook/promptpal")).await;
    let _relay = Relay::start(&database, &["--user-agent-version", "7.8.9"]);
    database
        .client
        .execute(
            "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, finished_at, duration_ms, prompt_tokens,
                 completion_tokens, ip, user_agent, provider_id, provider_default_model, trace_id)
             VALUES (123, 456, 'user-123', 0, '2024-01-15 11:30:00.999+01', 1250, 150, 300, '192.168.1.1',
                 'Mozilla/5.0...', 789, 'gpt-4', 'trace-1')",
            &[],
        )
        .await
        .unwrap();
    let request = receiver.wait_for(1).remove(0);
    assert_eq!(request.text(), guide_example());
    assert_eq!(request.line, "POST /webhook/promptpal HTTP/1.1");
    let mut headers: Vec<(String, String)> =
        request.headers.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
    headers.sort();
    let host = receiver.url("").replace("http://", "");
    let event = "SELECT replace(event_id::text, '-', '') FROM relay.outbox";
    let event: String = database.client.query_one(event, &[]).await.unwrap().get(0);
    let id = format!("msg_{event}_{webhook_id}");
    let expected = [
        ("content-length", request.body.len().to_string()),
        ("content-type", "application/json".into()),
        ("host", host.clone()),
        ("user-agent", "PromptPal-Webhook@7.8.9".into()),
        ("webhook-id", id),
    ];
    assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value)));

    database.all_done().await;
    let calls = database.calls().await;
    assert_eq!(calls.len(), 1);
    let call = &calls[0];
    assert_eq!(call.get::<_, i64>("webhook_id"), webhook_id);
    assert_eq!(call.get::<_, i64>("project_id"), 123);
    assert_eq!(call.get::<_, &str>("trace_id"), "trace-1");
    assert_eq!(call.get::<_, &str>("request_body"), guide_example());
    assert_eq!(call.get::<_, Option<i32>>("status_code"), Some(200));
    assert_eq!(call.get::<_, Option<&str>>("response_body"), Some("{\"status\":\"received\"}"));
    assert_eq!(call.get::<_, i64>("response_bytes"), 21);
    assert_eq!(call.get::<_, &str>("ip"), "192.168.1.1");
    assert_eq!(call.get::<_, &str>("user_agent"), "Mozilla/5.0...");
    assert_eq!(call.get::<_, Option<i64>>("provider_id"), Some(789));
    assert_eq!(call.get::<_, Option<&str>>("remote_addr"), Some(host.as_str()));
    assert!(call.get::<_, bool>("succeeded") && !call.get::<_, bool>("repeated"));
    let logged: serde_json::Value = serde_json::from_str(call.get("request_headers_text")).unwrap();
    let logged: Vec<(String, String)> =
        serde_json::from_value::<std::collections::BTreeMap<String, String>>(logged)
            .unwrap()
            .into_iter()
            .collect();
    assert_eq!(logged, headers, "the log has the headers that went out");
}

#[tokio::test]
async fn every_enabled_webhook_of_the_project_gets_one_post_and_nobody_else() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let first = database.webhook(1, &receiver.url("/first")).await;
    let second = database.webhook(1, &receiver.url("/second")).await;
    let disabled = database.webhook(1, &receiver.url("/disabled")).await;
    database.webhook(2, &receiver.url("/other-project")).await;
    let other_event = database.webhook(1, &receiver.url("/other-event")).await;
    // A view in the place of the table may have other events.
    let free = "ALTER TABLE relay.webhooks DROP CONSTRAINT webhooks_event_known";
    database.client.batch_execute(free).await.unwrap();
    let sql = "UPDATE relay.webhooks SET enabled = id <> $1, event = CASE id WHEN $2 THEN 'onSomethingElse' ELSE event END";
    database.client.execute(sql, &[&disabled, &other_event]).await.unwrap();
    database.events(1, 1).await;
    // Project 3 has no webhook: its row is done at once, without a call.
    database.events(3, 1).await;
    let _relay = Relay::start(&database, &[]);
    database.all_done().await;
    let mut paths: Vec<String> = receiver.requests().iter().map(|r| r.path().to_owned()).collect();
    paths.sort();
    assert_eq!(paths, ["/first", "/second"]);
    let called: Vec<i64> = database.calls().await.iter().map(|call| call.get("webhook_id")).collect();
    assert_eq!(called, [first, second]);
}

#[tokio::test]
async fn a_row_for_one_webhook_goes_to_that_one_only() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/a")).await;
    let wanted = database.webhook(1, &receiver.url("/b")).await;
    let id: i64 = database.client.query_one("SELECT relay.send_test($1)", &[&wanted]).await.unwrap().get(0);
    let _relay = Relay::start(&database, &[]);
    database.all_done().await;
    let requests = receiver.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].path(), "/b");
    assert_eq!(requests[0].json()["userId"], "promptpal-relay test");
    // The call can be repeated, also when its outbox row is gone.
    let call: i64 = database.calls().await[0].get("id");
    database.client.execute("DELETE FROM relay.outbox WHERE id = $1", &[&id]).await.unwrap();
    database.client.execute("SELECT relay.replay($1)", &[&call]).await.unwrap();
    let requests = receiver.wait_for(2);
    assert_eq!((requests[1].path(), requests[1].text()), ("/b", requests[0].text()));
    database.all_done().await;
    assert_eq!(database.number("SELECT replay_of FROM relay.outbox").await, call);
}

#[tokio::test]
async fn what_is_rolled_back_is_never_sent() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    database.client.batch_execute("BEGIN").await.unwrap();
    database.events(1, 3).await;
    database.client.batch_execute("ROLLBACK").await.unwrap();
    let committed = database.events(1, 1).await;
    receiver.wait_for(1);
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 1);
    let calls = database.calls().await;
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].get::<_, i64>("outbox_id"), committed);
}

/// Waits until the relay holds the sleep lock, and so depends on being notified.
async fn asleep(database: &Database) {
    database
        .eventually(
            "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                 WHERE l.locktype = 'advisory' AND l.classid = 1886415987 AND l.mode = 'ExclusiveLock' AND l.granted
                   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND a.state_change < clock_timestamp() - interval '100 ms')",
        )
        .await;
}

#[tokio::test]
async fn a_commit_wakes_a_relay_whose_poll_interval_is_an_hour() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &["--poll-interval", "1h"]);
    for round in 1..=20 {
        asleep(&database).await;
        database.events(1, 1).await;
        receiver.wait_for(round);
    }
}

#[tokio::test]
async fn writers_that_commit_late_and_out_of_order_are_all_heard() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &["--poll-interval", "1h"]);
    let late = crate::support::connect(&database.url).await;
    for round in 1..=10 {
        asleep(&database).await;
        // The lower id is drawn first and committed last.
        late.batch_execute(
            "BEGIN; INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
             VALUES (1, 1, 'late', 0, 1, 1, 1)",
        )
        .await
        .unwrap();
        database.events(1, 1).await;
        receiver.wait_for(2 * round - 1);
        late.batch_execute("COMMIT").await.unwrap();
        receiver.wait_for(2 * round);
    }
}

#[tokio::test]
async fn polling_finds_rows_without_the_trigger() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    database.client.batch_execute("DROP TRIGGER outbox_wake ON relay.outbox").await.unwrap();
    let _relay = Relay::start(&database, &["--poll-interval", "100ms"]);
    asleep(&database).await;
    database.events(1, 3).await;
    receiver.wait_for(3);
    database.all_done().await;
}

#[tokio::test]
async fn failures_are_results_and_the_other_webhooks_of_the_row_are_called() {
    let database = Database::new().await;
    let receiver = Receiver::start(|request| match request.path() {
        "/500" => Reply::status(500),
        "/302" => Reply::full(302, &[("Location", "/good")], b""),
        "/never" => Reply::Never,
        "/close" => Reply::Close,
        "/garbage" => Reply::Bytes(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        _ => Reply::status(204),
    });
    let refused = format!("http://127.0.0.1:{}/", closed_port());
    let kinds = [
        (receiver.url("/good"), None, None),
        (receiver.url("/500"), Some("http_status"), Some(500)),
        (receiver.url("/302"), Some("http_status"), Some(302)),
        (receiver.url("/never"), Some("timeout"), None),
        (receiver.url("/close"), Some("connect"), None),
        (receiver.url("/garbage"), Some("protocol"), None),
        (refused, Some("connect"), None),
        ("no url at all".to_owned(), Some("bad_url"), None),
        ("ftp://example.com/".to_owned(), Some("bad_url"), None),
        (String::new(), Some("bad_url"), None),
        ("http://10.0.0.1/".to_owned(), Some("blocked_address"), None),
        ("http://nowhere.invalid/".to_owned(), Some("dns"), None),
    ];
    for (url, _, _) in &kinds {
        database.webhook(1, url).await;
    }
    database.events(1, 1).await;
    let _relay = Relay::start(&database, &["--timeout", "2s"]);
    database.all_done().await;
    let calls = database.calls().await;
    assert_eq!(calls.len(), kinds.len());
    for (call, (url, kind, status)) in calls.iter().zip(&kinds) {
        assert_eq!(call.get::<_, Option<&str>>("error_kind"), *kind, "{url}");
        assert_eq!(call.get::<_, bool>("succeeded"), kind.is_none(), "{url}");
        assert_eq!(call.get::<_, bool>("is_timeout"), *kind == Some("timeout"), "{url}");
        assert_eq!(call.get::<_, Option<&str>>("error_message").is_some(), kind.is_some(), "{url}");
        if let Some(status) = status {
            assert_eq!(call.get::<_, Option<i32>>("status_code"), Some(*status), "{url}");
        }
    }
    assert!(
        receiver.requests().iter().filter(|request| request.path() == "/good").count() == 1,
        "not followed"
    );
}

#[tokio::test]
async fn answers_are_cut_and_made_storable() {
    let database = Database::new().await;
    let receiver = Receiver::start(|request| match request.path() {
        "/long" => Reply::full(200, &[], &[b'x'; 5000]),
        "/nul" => Reply::full(200, &[("X-Twice", "1"), ("X-Twice", "2")], b"a\0b\xff\xfec"),
        _ => {
            Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nshort".to_vec())
        }
    });
    for path in ["/long", "/nul"] {
        database.webhook(1, &receiver.url(path)).await;
    }
    database.events(1, 1).await;
    let _relay = Relay::start(&database, &["--max-response-body", "1KiB"]);
    database.all_done().await;
    let calls = database.calls().await;
    assert!(calls[0].get::<_, bool>("succeeded") && calls[0].get::<_, bool>("response_truncated"));
    assert_eq!(calls[0].get::<_, &str>("response_body"), "x".repeat(1024));
    assert!(calls[1].get::<_, bool>("succeeded") && !calls[1].get::<_, bool>("response_truncated"));
    assert_eq!(calls[1].get::<_, &str>("response_body"), "a\u{FFFD}b\u{FFFD}\u{FFFD}c");
    assert_eq!(calls[1].get::<_, i64>("response_bytes"), 6);
    let headers: serde_json::Value = serde_json::from_str(calls[1].get("response_headers_text")).unwrap();
    assert_eq!(headers["x-twice"], serde_json::json!(["1", "2"]));
}

#[tokio::test]
async fn a_backlog_drains_once_each() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    for path in ["/a", "/b"] {
        database.webhook(1, &receiver.url(path)).await;
    }
    database.webhook(2, &receiver.url("/c")).await;
    database.events(1, 2000).await;
    database.events(2, 2000).await;
    let _relay = Relay::start(&database, &[]);
    database.all_done().await;
    let requests = receiver.requests();
    assert_eq!(requests.len(), 6000);
    let distinct: HashSet<(String, String)> =
        requests.iter().map(|r| (r.path().to_owned(), r.json()["promptId"].to_string())).collect();
    assert_eq!(distinct.len(), 6000);
    assert_eq!(
        database.number("SELECT count(DISTINCT (outbox_id, webhook_id)) FROM relay.webhook_calls").await,
        6000
    );
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls").await, 6000);
}

#[tokio::test]
async fn a_project_that_hangs_holds_up_nobody_else() {
    let database = Database::new().await;
    let receiver = Receiver::start(|request| match request.path() {
        "/hangs" => Reply::Never,
        _ => Reply::status(200),
    });
    database.webhook(1, &receiver.url("/hangs")).await;
    database.webhook(2, &receiver.url("/good")).await;
    // Thousands of rows of the one that hangs stand before the other's.
    database.events(1, 5000).await;
    database.events(2, 100).await;
    let _relay = Relay::start(&database, &["--timeout", "1h", "--per-webhook", "8", "--workers", "16"]);
    database
        .eventually("SELECT NOT EXISTS (SELECT FROM relay.outbox WHERE done_at IS NULL AND project_id = 2)")
        .await;
    // One call finds out that the endpoint hangs. Then the endpoint gets all of its slots, and no more.
    let requests = receiver.wait_for(108);
    assert_eq!(requests.iter().filter(|r| r.path() == "/hangs").count(), 8);
}

#[tokio::test]
async fn parked_rows_are_delivered_when_the_endpoint_recovers() {
    let database = Database::new().await;
    let gate = Gate::default();
    let door = gate.clone();
    let receiver = Receiver::start(move |_| {
        door.pass();
        Reply::status(200)
    });
    database.webhook(1, &receiver.url("/")).await;
    database.events(1, 1000).await;
    let _relay = Relay::start(&database, &["--per-webhook", "4", "--poll-interval", "1h"]);
    database.eventually("SELECT EXISTS (SELECT FROM relay.outbox WHERE parked)").await;
    gate.open();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 1000);
}

#[tokio::test]
async fn sigterm_finishes_the_calls_in_flight_and_gives_the_rest_back() {
    let database = Database::new().await;
    let gate = Gate::default();
    let door = gate.clone();
    let receiver = Receiver::start(move |_| {
        door.pass();
        Reply::status(200)
    });
    database.webhook(1, &receiver.url("/")).await;
    database.events(1, 50).await;
    let mut relay = Relay::start(&database, &["--workers", "16", "--per-webhook", "4"]);
    receiver.wait_for(2);
    relay.signal(Signal::SIGTERM);
    database
        .eventually("SELECT count(*) <= 4 FROM relay.outbox WHERE done_at IS NULL AND claimed_by IS NOT NULL")
        .await;
    gate.open();
    assert_eq!(relay.wait().code(), Some(0), "{}", relay.log());
    let posted = i64::try_from(receiver.requests().len()).unwrap();
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls WHERE succeeded").await, posted);
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox WHERE done_at IS NOT NULL").await, posted);
    assert_eq!(
        database
            .number("SELECT count(*) FROM relay.outbox WHERE done_at IS NULL AND claimed_by IS NOT NULL")
            .await,
        0
    );
}

#[tokio::test]
async fn commits_that_are_slower_than_the_calls_stop_the_claiming_and_repeat_nothing() {
    const ROWS: i64 = 4000;
    // Answers that fill the memory with a few hundred calls.
    const MEMORY: usize = 32 * 1024 * 1024;
    const ANSWER: usize = 64 * 1024;
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::full(200, &[], &vec![b'x'; ANSWER]));
    database.webhook(1, &receiver.url("/")).await;
    let mut relay = Relay::start(&database, &["--memory", "32MiB"]);
    // The relay can record nothing while another session has the call log locked.
    let slow = connect(&database.url).await;
    slow.batch_execute("BEGIN; LOCK TABLE relay.webhook_calls IN SHARE MODE").await.unwrap();
    database.events(1, ROWS).await;
    let held = MEMORY / ANSWER;
    // The relay stops claiming before the memory is full.
    receiver.wait_for(held / 2);
    let mut before = 0;
    while before < receiver.requests().len() {
        before = receiver.requests().len();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(before <= held, "{before} calls, of which {held} fill the memory");
    let claimed = database.number("SELECT count(*) FROM relay.outbox WHERE claimed_by IS NOT NULL").await;
    assert!(claimed < ROWS / 2, "{claimed} rows are in hand");
    slow.batch_execute("ROLLBACK").await.unwrap();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), usize::try_from(ROWS).unwrap());
    let sql = "SELECT count(*) FROM relay.webhook_calls WHERE succeeded AND NOT repeated";
    assert_eq!(database.number(sql).await, ROWS);
    // 64 MiB are for a release build, which needs less for its own code.
    let memory = relay.memory_peak();
    println!("memory: {} MiB at most", memory >> 20);
    assert!(memory < 80 * 1024 * 1024, "{memory} bytes");
    relay.signal(Signal::SIGTERM);
    assert!(relay.wait().success());
}

#[tokio::test]
async fn a_view_with_integers_and_varchars_takes_the_place_of_the_webhooks_while_the_relay_runs() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/table")).await;
    let _relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    let view = format!(
        "BEGIN;
         DROP TABLE relay.webhooks;
         CREATE TABLE hooks (id serial PRIMARY KEY, project integer, url varchar(255), secret varchar(64));
         INSERT INTO hooks (project, url) VALUES (1, '{}');
         CREATE VIEW relay.webhooks AS
         SELECT id, project AS project_id, 'onPromptFinished'::varchar AS event, url, true AS enabled, secret AS signing_secret
           FROM hooks;
         COMMIT",
        receiver.url("/view")
    );
    database.client.batch_execute(&view).await.unwrap();
    database.events(1, 1).await;
    assert_eq!(receiver.wait_for(2)[1].path(), "/view");
    database.all_done().await;
    let (code, stdout, stderr) = outcome(database.command(&["check", "--allow-net", "127.0.0.0/8"]));
    assert!(code == 0 && stdout.contains("ok       webhooks       1 enabled"), "{stdout}{stderr}");
    // The command says in a line of its own what cannot be meant.
    let view = "DROP VIEW relay.webhooks;
                CREATE VIEW relay.webhooks AS
                SELECT gen_random_uuid() AS id, 1 AS project_id, '' AS event, '' AS url, true AS enabled, '' AS signing_secret";
    database.client.batch_execute(view).await.unwrap();
    let (code, stdout, stderr) = outcome(database.command(&["check"]));
    assert!(code == 78 && stdout.contains("FAILED   webhooks"), "{stdout}{stderr}");
}

#[tokio::test]
async fn a_webhook_without_an_id_or_an_event_is_none_and_stops_nobody() {
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::status(200));
    database.webhook(1, &receiver.url("/")).await;
    database.webhook(2, &receiver.url("/")).await;
    database.webhook(1, &receiver.url("/")).await;
    let sql = "ALTER TABLE relay.webhooks RENAME TO theirs;
               CREATE VIEW relay.webhooks AS
               SELECT nullif(id, 3) AS id, project_id, name, description, url, CASE WHEN id <> 2 THEN event END AS event, enabled,
                      signing_secret, created_at, updated_at
                 FROM relay.theirs";
    database.client.batch_execute(sql).await.unwrap();
    let _relay = Relay::start(&database, &[]);
    database.events(2, 1).await;
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls WHERE project_id = 1").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls").await, 1);
}

#[tokio::test]
async fn a_request_that_dies_on_a_reused_connection_goes_out_once_more_and_with_at_most_once_never() {
    for (after_crash, requests) in [("record", 2), ("resend", 3)] {
        let (error_kind, message) = loop {
            let database = Database::new().await;
            let count = AtomicUsize::new(0);
            // The second request is read, and its connection ends at once.
            let receiver = Receiver::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
                1 => Reply::Close,
                _ => Reply::status(200),
            });
            database.webhook(1, &receiver.url("/")).await;
            let _relay = Relay::start(&database, &["--after-crash", after_crash]);
            for _ in 0..2 {
                database.events(1, 1).await;
                database.all_done().await;
            }
            let call = database.calls().await.pop().expect("the second one");
            let start: SystemTime = call.get("start_time");
            let took = call.get::<_, SystemTime>("end_time").duration_since(start).unwrap_or_default();
            if after_crash == "resend" && receiver.requests().len() == 2 && took > Duration::from_millis(10) {
                // This machine was too busy to learn of the end within the limit on loopback, so the end was final.
                continue;
            }
            assert_eq!(receiver.requests().len(), requests, "{after_crash}");
            assert!(!call.get::<_, bool>("repeated"), "no instance died");
            break (
                call.get::<_, Option<String>>("error_kind"),
                call.get::<_, Option<String>>("error_message"),
            );
        };
        let twice = message.unwrap_or_default().contains("sent twice");
        let expected = if after_crash == "record" { (Some("connect"), false) } else { (None, true) };
        assert_eq!((error_kind.as_deref(), twice), expected, "{after_crash}");
    }
}
