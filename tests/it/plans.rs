//! What the queries read: in proportion to their batch, whatever the tables hold and whatever the statistics say.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;

use promptpal_relay::inside::outbox::{Role, Store};
use serde_json::Value;
use tokio_postgres::SimpleQueryMessage;

use crate::support::Database;

/// Rows of the long backlog.
const MANY: i64 = 1_000_000;
/// Rows of a claim, or of a finish.
const BATCH: i64 = 500;
/// Projects with parked rows, in the long backlog.
const LANES: i64 = 100;
/// The epoch that has rows in hand.
const EPOCH: i64 = 77;

/// A query as its session runs it, and what it may read.
struct Query {
    file: &'static str,
    role: Role,
    arguments: String,
    /// Rows that it is about: claimed, finished, looked at.
    batch: i64,
}

/// Rows that may be read for each row of the batch: by the index, by the update, its webhook, and what one part of the
/// statement hands to the next.
const ROWS_PER_ROW: i64 = 8;
/// Blocks for each row of the batch: some index probes of a few levels each, and the row's own.
const BLOCKS_PER_ROW: i64 = 25;
/// Rows besides for each row of the batch while there are pauses: those of its webhook and of its project.
const PAUSED_ROWS_PER_ROW: i64 = 4;
/// Blocks besides for each row of the batch while there are pauses: two index probes.
const PAUSED_BLOCKS_PER_ROW: i64 = 10;
/// What a query may read besides: catalogs, the upper levels of indexes, small tables.
const REST: i64 = 400;

/// Queries that read none of our tables, or only those that stay small.
const SMALL: &[&str] = &[
    "postgres/backend",
    "postgres/timeline",
    "instances/declare_dead",
    "instances/end_sessions",
    "instances/draw_lock",
    "check/foreign_code",
    "installation/read",
    "installation/exists",
    "installation/last_accepted",
    "instances/keep_alive",
    "check/lock_holders",
    "migrations/applied",
    "migrations/daemon_runs",
    "migrations/holder",
    "status/minutes_ago",
    "instances/not_at_work",
    "sleep_lock/notify_peers",
    "check/privileges",
    "check/publications",
    "migrations/record",
    "instances/register",
    "instances/retire",
    "check/row_security",
    "migrations/server",
    "claim/snapshot",
    "retention/begin",
    "retention/end",
    "retention/age",
    "migrations/try_lock",
    "retention/try_lock",
    "sleep_lock/try_sleep",
    "check/missing_triggers",
    "sleep_lock/wake_up",
    // Their work is the catalog's.
    "retention/make_partition",
    "retention/expired_partitions",
    "retention/drop_partition",
    "retention/delete_strays",
    // For `check`: the webhooks, some at a time.
    "check/enabled_webhooks",
    // For people; on the call log, which is looked at in a test of its own.
    "call_log/calls",
    "call_log/calls_after",
    "call_log/calls_of_row",
    "call_log/whole_calls",
    "call_log/clock",
    "call_log/call_ids",
    "call_log/call",
    "call_log/repeats",
    "call_log/pending_repeats",
    "call_log/webhook_names",
    "call_log/open_failures",
    "replay/replay",
    "replay/replay_failed",
    "replay/callable_for",
    "replay/send_test",
    "replay/is_done",
    "replay/outcomes",
    "status/status",
    // Every second, while an operator looks; a test of its own, too.
    "top/sample",
    "check/unlisted_epochs",
    "pauses/pause",
    "pauses/resume",
    "pauses/held_back",
    "pauses/in_hand",
    "pauses/pause_failing",
    "pauses/forgotten",
    "retention/delete_ended_pauses",
];

fn array<T: std::fmt::Display>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    format!("'{{{}}}'", values.join(","))
}

/// Each row's event follows from its id.
const EVENT_ID: &str = "CREATE FUNCTION event_of() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.event_id := lpad(to_hex(NEW.id), 32, ''0'')::uuid; RETURN NEW; END';
    CREATE TRIGGER event_of BEFORE INSERT ON relay.outbox FOR EACH ROW EXECUTE FUNCTION event_of()";

/// The queries on tables that grow. `in_hand` are rows of [`EPOCH`].
fn queries(in_hand: &[i64]) -> Vec<Query> {
    let ids = array(in_hand);
    // As EVENT_ID makes them.
    let events = array(in_hand.iter().map(|id| format!("{id:032x}")));
    let calls = || in_hand.iter();
    let same = |value: &str| array(calls().map(|_| value));
    let finish = [
        ids.clone(),
        events.clone(),
        same("false"),
        EPOCH.to_string(),
        ids.clone(),
        same("1"),
        same("http://a.example"),
        same("{}").replace("{}", "\"{}\""),
        same("body"),
        same("200"),
        same("null"),
        same("null"),
        same("0"),
        same("false"),
        same("2026-01-01T00:00:00Z"),
        same("2026-01-01T00:00:00Z"),
        same("false"),
        same("null"),
        same("null"),
        same("false"),
        same("null"),
    ]
    .join(", ")
    // The outer braces of an empty list of objects.
    .replace("'\"{}\"'", "'{}'");
    // All of them without calls.
    let without_call = [&ids, &events, &same("true"), &EPOCH.to_string(), &vec!["'{}'"; 17].join(", ")]
        .map(String::as_str)
        .join(", ");
    let with_calls = same("false");
    let log_calls =
        finish.replacen(&format!("{ids}, {events}, {with_calls}, {EPOCH}, "), &format!("{ids}, "), 1);
    let lanes = array(0..LANES);
    let rooms = array((0..LANES).map(|_| BATCH / LANES));
    let of = |file, role, arguments: String, batch| Query { file, role, arguments, batch };
    vec![
        of("claim/claim", Role::Claim, format!("0, '{{}}', {BATCH}, 1, '{{}}', 1000000"), BATCH),
        of(
            "claim/claim",
            Role::Claim,
            format!("{}, '{{5,6,7}}', {BATCH}, 1, '{{}}', 1000000", MANY / 2),
            BATCH,
        ),
        of(
            "claim/claim",
            Role::Claim,
            format!("0, '{{}}', {BATCH}, 1, {}, 1000000", array(LANES..2 * LANES)),
            BATCH,
        ),
        of("claim/head", Role::Claim, "0, '{}'".into(), BATCH),
        of("claim/head", Role::Claim, format!("{}, '{{5,6,7}}'", MANY / 2), BATCH),
        of("claim/claim_parked", Role::Claim, format!("{lanes}, {rooms}, '{{}}', 1, 1000000"), BATCH),
        of("claim/parked_projects", Role::Claim, "10000".into(), LANES),
        of("finish/finish", Role::Finish, finish, BATCH),
        of("finish/finish", Role::Finish, without_call, BATCH),
        of("finish/log_calls", Role::Finish, log_calls, BATCH),
        of(
            "claim/adopt",
            Role::Listen,
            format!("{ids}, {events}, {}, '{{{EPOCH}}}', 78", same("null")),
            BATCH,
        ),
        of("claim/give_back", Role::Claim, format!("{ids}, {EPOCH}, {ids}, false"), BATCH),
        of("pauses/not_done", Role::Command, ids.clone(), BATCH),
        of("retention/lowest_id", Role::Retention, String::new(), 1),
        of("retention/delete_done", Role::Retention, format!("0, {BATCH}, now(), now()"), BATCH),
        of(
            "retention/delete_done",
            Role::Retention,
            format!("{}, {}, now(), now()", MANY - BATCH, MANY),
            BATCH,
        ),
        of("status/oldest", Role::Metrics, String::new(), LANES),
        // Reads the first pending rows and the first parked ones.
        of("instances/clear_dead", Role::Retention, String::new(), 10_000),
    ]
}

/// What a plan read.
#[derive(Debug, Default)]
struct Read {
    rows: i64,
    blocks: i64,
}

impl Read {
    fn of(plan: &Value) -> Read {
        let number = |node: &Value, key: &str| node.get(key).and_then(Value::as_f64).unwrap_or_default();
        let mut read = Read { rows: 0, blocks: 0 };
        read.blocks = (number(plan, "Shared Hit Blocks") + number(plan, "Shared Read Blocks")) as i64;
        let mut nodes = vec![plan];
        while let Some(node) = nodes.pop() {
            if node["Node Type"].as_str().is_some_and(|kind| kind.ends_with("Scan")) {
                let rows = ["Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"];
                let rows: f64 = rows.iter().map(|key| number(node, key)).sum();
                read.rows += (rows * number(node, "Actual Loops")) as i64;
            }
            nodes.extend(node.get("Plans").and_then(Value::as_array).into_iter().flatten());
        }
        read
    }
}

/// Sessions, and the queries that they have prepared.
struct Sessions(Vec<(Role, Store)>, RefCell<BTreeSet<&'static str>>);

impl Sessions {
    async fn connect(database: &Database) -> Sessions {
        let mut sessions = Vec::new();
        for role in [
            Role::Claim,
            Role::Finish,
            Role::Listen,
            Role::Retention,
            Role::Metrics,
            Role::Command,
            Role::Top,
        ] {
            sessions.push((role, database.session(role).await));
        }
        Sessions(sessions, RefCell::default())
    }

    /// Runs a query and takes it back; what it read.
    async fn explain(&self, query: &Query) -> (Read, String) {
        let (_, session) = self.0.iter().find(|(role, _)| *role == query.role).unwrap();
        let sql = fs::read_to_string(format!("sql/queries/{}.sql", query.file)).unwrap();
        let call = if query.arguments.is_empty() { String::new() } else { format!("({})", query.arguments) };
        // Prepared once, as the daemon does it: a plan may be of an hour when the tables were others.
        let name = query.file.replace('/', "_");
        if self.1.borrow_mut().insert(query.file) {
            session.batch_execute(&format!("PREPARE {name} AS {sql}")).await.unwrap();
        }
        let script = format!("BEGIN; EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name}{call}; ROLLBACK");
        let answer = session.simple_query(&script).await;
        let answer = answer.unwrap_or_else(|error| panic!("{}: {error:?}", query.file));
        let text = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        let text = text.unwrap();
        let plan: Value = serde_json::from_str(&text).unwrap();
        (Read::of(&plan[0]["Plan"]), text)
    }

    async fn assert_bounded(&self, state: &str, in_hand: &[i64]) {
        for query in queries(in_hand) {
            let (read, plan) = self.explain(&query).await;
            let (mut rows, mut blocks) = (ROWS_PER_ROW, BLOCKS_PER_ROW);
            if state.contains("many pauses") {
                (rows, blocks) = (rows + PAUSED_ROWS_PER_ROW, blocks + PAUSED_BLOCKS_PER_ROW);
            }
            let (rows, blocks) = (query.batch * rows + REST, query.batch * blocks + REST);
            assert!(
                read.rows <= rows && read.blocks <= blocks,
                "{}, {state}: read {read:?}, of at most {rows} rows and {blocks} blocks\n{plan}",
                query.file
            );
        }
    }
}

/// The files under `sql/queries`, as `room/verb`.
fn query_files() -> BTreeSet<String> {
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let verbs = |room: String| {
        let files = names(&format!("sql/queries/{room}"));
        files.into_iter().map(move |file| format!("{room}/{}", file.strip_suffix(".sql").unwrap()))
    };
    names("sql/queries").into_iter().flat_map(verbs).collect()
}

#[test]
fn every_query_is_looked_at() {
    let small = SMALL.iter().map(|name| name.to_string());
    let known: BTreeSet<String> =
        queries(&[]).iter().map(|query| query.file.to_owned()).chain(small).collect();
    assert_eq!(query_files(), known);
}

#[test]
fn a_query_has_a_head_and_is_run_by_the_file_that_its_folder_names() {
    for query in query_files() {
        let room = query.split('/').next().unwrap();
        let source = match room {
            "postgres" if query == "postgres/backend" => "src/postgres/backend.rs".to_owned(),
            "postgres" => "src/postgres/connect.rs".to_owned(),
            room => format!("src/outbox/{room}.rs"),
        };
        let include = format!("include_str!(\"../../sql/queries/{query}.sql\")");
        assert!(fs::read_to_string(&source).unwrap().contains(&include), "{source}: {query}");
        let sql = fs::read_to_string(format!("sql/queries/{query}.sql")).unwrap();
        let mut head = sql.lines().take_while(|line| line.starts_with("--"));
        for part in ["-- Locks:", "-- Index:", "-- Parameters:", "-- Returns:"] {
            assert!(head.any(|line| line.starts_with(part)), "{query}: {part}");
        }
    }
}

#[tokio::test]
async fn queries_read_in_proportion_to_their_batch_whatever_the_tables_hold_and_the_statistics_say() {
    let database = Database::new().await;
    let run = async |sql: &str| database.client.batch_execute(sql).await.unwrap();
    // The statistics are what the test says.
    run("ALTER TABLE relay.outbox SET (autovacuum_enabled = off)").await;
    run("ALTER TABLE relay.webhooks SET (autovacuum_enabled = off)").await;
    run("INSERT INTO relay.instances (epoch, locks, host, pid, version, dead_at) SELECT n, ARRAY[n], 'h', 1, '1', now() - interval '1 hour' FROM generate_series(1, 3) AS n").await;
    // The instance that claims is listed, and not dead.
    run("UPDATE relay.instances SET dead_at = NULL WHERE epoch = 1").await;
    let sessions = Sessions::connect(&database).await;
    sessions.assert_bounded("empty, never analysed", &[]).await;
    run("ANALYZE relay.outbox, relay.webhooks").await;
    sessions.assert_bounded("empty, analysed", &[]).await;

    run(EVENT_ID).await;
    let columns = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens";
    run(&format!("{columns}, claimed_by) VALUES (1, 1, 'user', 0, 1, 1, 1, {EPOCH})")).await;
    run("INSERT INTO relay.webhooks (project_id, url) VALUES (1, 'http://a.example')").await;
    sessions.assert_bounded("one row, analysed when empty", &[1]).await;
    run("ANALYZE relay.outbox, relay.webhooks").await;
    sessions.assert_bounded("one row, analysed", &[1]).await;

    // Done ones first, then parked and pending ones among each other, the last ones in hand.
    run(&format!(
        "{columns}, done_at, parked, claimed_by)
         SELECT n % 10000, n, 'user', 0, 1, 1, 1, CASE WHEN n <= {MANY} / 10 THEN now() END,
                n > {MANY} / 10 AND n % 10000 < {LANES}, CASE WHEN n > {MANY} - {BATCH} THEN {EPOCH} END
           FROM generate_series(2, {MANY}) AS n"
    ))
    .await;
    run("INSERT INTO relay.webhooks (project_id, url) SELECT n, 'http://a.example' FROM generate_series(0, 9999) AS n").await;
    let in_hand: Vec<i64> = (MANY - BATCH + 1..=MANY).collect();
    sessions.assert_bounded("a million rows, analysed when there was one", &in_hand).await;
    run("ANALYZE relay.outbox, relay.webhooks").await;
    sessions.assert_bounded("a million rows, analysed", &in_hand).await;
    // Many pauses, most of them of others.
    run("INSERT INTO relay.pauses (webhook_id) SELECT n FROM generate_series(5000, 25000) AS n").await;
    run("INSERT INTO relay.pauses (project_id) SELECT n FROM generate_series(0, 50000, 2) AS n").await;
    sessions.assert_bounded("a million rows and many pauses, analysed without", &in_hand).await;
    run("ANALYZE relay.pauses").await;
    sessions.assert_bounded("a million rows and many pauses, analysed", &in_hand).await;

    // Analysed when nearly all were one project's, which makes any project look like the whole table.
    run("TRUNCATE relay.outbox").await;
    let one = "SELECT 1, n, 'user', 0, 1, 1, 1, true, NULL::bigint FROM generate_series(1, 100000) AS n";
    run(&format!("{columns}, parked, claimed_by) {one}; ANALYZE relay.outbox")).await;
    run(&format!(
        "{columns}, parked, claimed_by)
         SELECT n % {LANES}, n, 'user', 0, 1, 1, 1, n <= 5000, CASE WHEN n > 10000 - {BATCH} THEN {EPOCH} END
           FROM generate_series(1, 10000) AS n"
    ))
    .await;
    let last: i64 = database.client.query_one("SELECT max(id) FROM relay.outbox", &[]).await.unwrap().get(0);
    let in_hand: Vec<i64> = (last - BATCH + 1..=last).collect();
    sessions.assert_bounded("analysed when all rows were one project's", &in_hand).await;
}

/// The tables that a plan reads, each with how many rows of it.
fn tables(plan: &Value) -> std::collections::BTreeMap<String, i64> {
    let mut tables = std::collections::BTreeMap::new();
    let mut nodes = vec![plan];
    while let Some(node) = nodes.pop() {
        if let Some(name) = node["Relation Name"].as_str() {
            let number = |key: &str| node.get(key).and_then(Value::as_f64).unwrap_or_default();
            let rows = ["Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"];
            let rows = rows.iter().map(|key| number(key)).sum::<f64>() * number("Actual Loops");
            *tables.entry(name.to_owned()).or_default() += rows as i64;
        }
        nodes.extend(node.get("Plans").and_then(Value::as_array).into_iter().flatten());
    }
    tables
}

#[tokio::test]
async fn a_refresh_of_the_live_screen_reads_few_rows_of_few_days_whatever_waits_and_was_called() {
    let database = Database::new().await;
    let run = async |sql: &str| database.client.batch_execute(sql).await.unwrap();
    // A log of a month.
    run("SET ROLE relay_owner").await;
    for day in 3..32 {
        run(&format!(
            "DO $$ DECLARE day date := (now() AT TIME ZONE 'UTC')::date - {day}; BEGIN
                 EXECUTE format('CREATE TABLE relay.webhook_calls_%s PARTITION OF relay.webhook_calls FOR VALUES FROM (%L) TO (%L)',
                                to_char(day, 'YYYYMMDD'), day || ' 00:00+00', day + 1 || ' 00:00+00'); END $$"
        ))
        .await;
    }
    run("RESET ROLE").await;
    run("ALTER TABLE relay.outbox SET (autovacuum_enabled = off)").await;
    run("INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens, parked)
         SELECT n % 1000, 1, 'user', 0, 1, 1, 1, n % 2 = 0 FROM generate_series(1, 200000) AS n")
    .await;
    // The last quarter of an hour, 200 calls a second; one of ten fails.
    run("INSERT INTO relay.webhook_calls (outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body,
             response_bytes, response_truncated, start_time, end_time, is_timeout, error_kind, succeeded, repeated, user_agent, ip, event_id)
         SELECT n, n % 700, n % 700, 'trace', 'http://a.example', '{}', '{}', 0, false, t, t, false,
                CASE WHEN n % 10 = 0 THEN 'connect' END, n % 10 <> 0, false, '', '', gen_random_uuid()
           FROM generate_series(1, 180000) AS n, LATERAL (SELECT now() - (180000 - n) * interval '5 ms' AS t) AS t")
    .await;
    // As autovacuum does it.
    run("VACUUM relay.webhook_calls").await;
    let session = Sessions::connect(&database).await;
    let before = async |span: &str| -> String {
        let sql = format!("SELECT '''' || (now() - interval '{span}')::text || ''''");
        database.client.query_one(sql.as_str(), &[]).await.unwrap().get(0)
    };
    let arguments = format!("{}, {}, 170000", before("15 min").await, before("1 min").await);
    for analysed in [false, true] {
        if analysed {
            run("ANALYZE relay.outbox; ANALYZE relay.webhook_calls").await;
        }
        let query = Query { file: "top/sample", role: Role::Top, arguments: arguments.clone(), batch: 1 };
        let (_, text) = session.explain(&query).await;
        let plan: Value = serde_json::from_str(&text).unwrap();
        let tables = tables(&plan[0]["Plan"]);
        let log = || tables.iter().filter(|(name, _)| name.starts_with("webhook_calls"));
        let read: i64 = log().map(|(_, rows)| rows).sum();
        // The newest 10,000, and the rest of the first block range.
        assert!((10_000..15_000).contains(&read), "{tables:?}\n{text}");
        // Today, yesterday around midnight, a week to come, and the partition for other days; not the month before.
        assert!(log().count() <= 10, "{tables:?}");
        assert_eq!(tables["outbox"], 10_000, "{text}");
        let milliseconds = plan[0]["Execution Time"].as_f64().unwrap();
        println!("a refresh took {milliseconds} ms, analysed: {analysed}");
    }
}
