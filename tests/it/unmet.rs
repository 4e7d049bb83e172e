//! Rows that meet no webhook: done without a call, and told.

use serde_json::{Value, json};

use crate::support::{Database, Receiver, Relay, outcome};

const INSERT: &str = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens, webhook_id)
                      VALUES ($1, 1, 'u', 0, 1, 1, 1, $2) RETURNING id";

/// What `status --json` says.
fn status(database: &Database) -> Value {
    let (_, out, err) = outcome(database.command(&["status", "--json"]));
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
}

#[tokio::test]
async fn a_row_that_meets_no_webhook_is_counted_and_told_with_the_reason() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let run = async |sql: &str| database.client.batch_execute(sql).await.unwrap();
    // A view in the place of the table may have other events.
    run("ALTER TABLE relay.webhooks DROP CONSTRAINT webhooks_event_known").await;
    let good = database.webhook(1, &receiver.url("/")).await;
    let disabled = database.webhook(3, &receiver.url("/")).await;
    let other = database.webhook(4, &receiver.url("/")).await;
    run(&format!("UPDATE relay.webhooks SET enabled = false WHERE id = {disabled}")).await;
    run(&format!("UPDATE relay.webhooks SET event = 'onpromptfinished' WHERE id = {other}")).await;
    let absent = |id: i64| format!("webhook {id} is gone, is disabled, or belongs to another project");
    let rows: [(i64, Option<i64>, Option<String>); 9] = [
        (1, None, None),
        (1, Some(good), None),
        (2, None, Some("the project has no enabled webhook".into())),
        (3, None, Some("the project has no enabled webhook".into())),
        (4, None, Some("the enabled webhooks of the project are for other events".into())),
        (1, Some(999), Some(absent(999))),
        (2, Some(good), Some(absent(good))),
        (3, Some(disabled), Some(absent(disabled))),
        (4, Some(other), Some(format!("webhook {other} is for another event"))),
    ];
    let mut ids = Vec::new();
    for (project, webhook, _) in &rows {
        let row = database.client.query_one(INSERT, &[project, webhook]).await.unwrap();
        ids.push(row.get::<_, i64>(0));
    }
    let relay = Relay::start(&database, &["--log-level", "debug"]);
    database.all_done().await;
    relay.until("promptpal_relay_rows_done_total", |rows| rows == 9.0);
    relay.until("promptpal_relay_rows_without_call_total", |rows| rows == 7.0);
    let journal = relay.journal();
    for (id, (project, _, why)) in ids.iter().zip(&rows) {
        let line = journal.iter().find(|line| line["outbox_id"] == *id && line["why"].is_string());
        let told =
            line.map(|line| (line["project_id"].as_i64(), line["level"].as_str(), line["why"].as_str()));
        let expected = why.as_deref().map(|why| (Some(*project), Some("DEBUG"), Some(why)));
        assert_eq!(told, expected, "row {id}");
    }
    let flagged = database
        .client
        .query("SELECT id FROM relay.outbox WHERE without_call ORDER BY id", &[])
        .await
        .unwrap();
    let flagged: Vec<i64> = flagged.iter().map(|row| row.get(0)).collect();
    assert_eq!(flagged, ids[2..]);
    let status = status(&database);
    assert_eq!(status["without_call_5min"], 7);
    let by_project = json!([
        {"project_id": 2, "rows": 2, "last_outbox_id": ids[6]},
        {"project_id": 3, "rows": 2, "last_outbox_id": ids[7]},
        {"project_id": 4, "rows": 2, "last_outbox_id": ids[8]},
        {"project_id": 1, "rows": 1, "last_outbox_id": ids[5]},
    ]);
    assert_eq!(status["without_call"], by_project);
    let (_, out, _) = outcome(database.command(&["status"]));
    assert!(
        out.contains("without call 7 rows in the last 5 minutes met no enabled webhook")
            && out.contains("ROWS WITHOUT A CALL"),
        "{out}"
    );
    // Those of more than five minutes ago are history.
    run("UPDATE relay.outbox SET done_at = done_at - interval '6 minutes' WHERE project_id <> 1").await;
    assert_eq!(self::status(&database)["without_call_5min"], 1);
}

#[tokio::test]
async fn a_row_in_a_batch_with_others_and_one_that_a_dead_instance_had_are_told_too() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let dead = "INSERT INTO relay.instances (epoch, locks, host, pid, version, dead_at) VALUES (7, '{7}', 'h', 1, '1', now())";
    database.client.batch_execute(dead).await.unwrap();
    for n in 0..100 {
        database.events(1 + n % 2, 1).await;
    }
    database.client.batch_execute("UPDATE relay.outbox SET claimed_by = 7 WHERE id > 50").await.unwrap();
    // What a dead instance had in hand is not called again.
    let relay = Relay::start(&database, &["--after-crash", "record"]);
    database.all_done().await;
    relay.until("promptpal_relay_rows_without_call_total", |rows| rows == 50.0);
    let wrong = "SELECT count(*) FROM relay.outbox o
                  WHERE o.without_call <> (o.project_id = 2)
                     OR o.without_call = EXISTS (SELECT FROM relay.webhook_calls c WHERE c.outbox_id = o.id)";
    assert_eq!(database.number(wrong).await, 0);
}

#[tokio::test]
async fn status_finds_them_behind_a_backlog_and_reads_a_bounded_part_of_the_outbox() {
    let database = Database::new().await;
    let insert = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens,
                      done_at, without_call)";
    let rows = |project: i64, done: &str, count: i64| {
        format!(
            "{insert} SELECT {project}, n, 'u', 0, 1, 1, 1, {done}, {done} IS NOT NULL FROM generate_series(1, {count}) AS n"
        )
    };
    // Older ones than are looked at, those that were done last, and what waits.
    for sql in [rows(1, "now()", 10_000), rows(2, "now()", 50_000), rows(3, "NULL::timestamptz", 60_000)] {
        database.client.batch_execute(&sql).await.unwrap();
    }
    let status = status(&database);
    assert_eq!(status["without_call_5min"], 50_000);
    assert_eq!(status["without_call"].as_array().unwrap().len(), 1);
    assert_eq!(status["without_call"][0]["project_id"], 2);
}

#[tokio::test]
async fn check_names_the_webhooks_of_a_view_that_no_event_can_meet() {
    let database = Database::new().await;
    // As a DBA may make it over tables of a site.
    let sql = "ALTER TABLE relay.webhooks RENAME TO kept;
               CREATE TABLE relay.hooks (id integer, project integer, event varchar, url varchar);
               INSERT INTO relay.hooks VALUES (1, 1, 'onPromptFinished', 'https://a.example/'), (2, 1, 'onPromptFinnished', 'https://a.example/'),
                   (3, 1, NULL, 'https://a.example/'), (4, NULL, 'onPromptFinished', 'https://a.example/'), (5, 1, 'onPromptFinished', 'ftp://a/');
               CREATE VIEW relay.webhooks AS SELECT id, project AS project_id, ''::text AS name, ''::text AS description, url, event,
                   true AS enabled, NULL::text AS signing_secret, now() AS created_at, now() AS updated_at FROM relay.hooks";
    database.client.batch_execute(sql).await.unwrap();
    let (code, out, err) = outcome(database.command(&["check"]));
    assert_eq!(code, 0, "the customers' mistakes keep no daemon from running: {out}{err}");
    let line = |id: i64| out.lines().find(|line| line.contains(&format!(" {id} can never work: ")));
    assert_eq!(line(1), None);
    assert!(line(2).unwrap().contains("no event is called \"onPromptFinnished\""), "{out}");
    assert!(line(3).unwrap().contains("it has no event"), "{out}");
    assert!(line(4).unwrap().contains("it has no project"), "{out}");
    assert!(line(5).is_some() && out.contains("4 of 5 enabled ones can never work"), "{out}");
}
