//! The retention makes partitions ahead, throws old calls and rows away, and holds up neither the daemon nor a DBA.

use std::time::{Duration, SystemTime};

use promptpal_relay::inside::cli::Cli;
use promptpal_relay::inside::config;
use promptpal_relay::inside::daemon::{Outcome, Retention};
use promptpal_relay::inside::outbox::Role;

use clap::Parser;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Database, Receiver, Relay, connect, outcome};

const DAY: Duration = Duration::from_secs(86400);

/// Takes the lock that an instance holds while it does the retention.
const RETENTION_LOCK: &str = "SELECT pg_advisory_lock(1886415989, 0)";

/// Tries one run of the retention, as a process that goes on: 30 days of calls, a day of the outbox.
async fn run_of(process: &mut Retention, database: &Database) -> Outcome {
    let cli = Cli::try_parse_from(["promptpal-relay", "--database-url", &database.url, "migrate"]).unwrap();
    // Also the session of the run before ends a moment after it.
    for _ in 0..1000 {
        match process.run_once(&config::database(&cli.global).unwrap(), DAY * 30, DAY).await.unwrap() {
            Outcome::Busy => tokio::time::sleep(Duration::from_millis(10)).await,
            outcome => return outcome,
        }
    }
    panic!("somebody has the retention for ever");
}

/// Makes one run that is due and may do everything.
async fn run(database: &Database) {
    due(database).await;
    assert_eq!(run_of(&mut Retention::default(), database).await, Outcome::Complete);
}

/// Notes that the last run was long enough ago, and that the clock is steady.
async fn due(database: &Database) {
    change(
        database,
        "seen_at = now(), steady_since = now() - interval '1 day', next_at = now(), dropped_at = NULL",
    )
    .await;
}

/// Changes what the database has noted about the retention.
async fn change(database: &Database, what: &str) {
    database.client.batch_execute(&format!("UPDATE relay.retention SET {what}")).await.unwrap();
}

/// Moves all noted times back by `ahead`, as if Postgres' clock had been put ahead.
async fn put_the_clock(database: &Database, ahead: &str) {
    let times = ["seen_at", "steady_since", "next_at", "completed_at", "dropped_at"];
    let times = times.map(|time| format!("{time} = {time} - interval '{ahead}'"));
    change(database, &times.join(", ")).await;
}

/// The partition of the day so many days from today.
async fn partition(database: &Database, days: i64) -> String {
    let sql = "SELECT 'webhook_calls_' || to_char((now() AT TIME ZONE 'UTC')::date + $1::bigint::integer, 'YYYYMMDD')";
    database.client.query_one(sql, &[&days]).await.unwrap().get(0)
}

/// How many partitions there are, from the day so many days from today to the other.
async fn partitions(database: &Database, from: i64, to: i64) -> i64 {
    let sql = "SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'relay.webhook_calls'::regclass AND c.relname BETWEEN $1 AND $2";
    let (from, to) = (partition(database, from).await, partition(database, to).await);
    database.client.query_one(sql, &[&from, &to]).await.unwrap().get(0)
}

async fn make(database: &Database, days: i64) {
    let sql = format!("SELECT relay.make_call_partition((now() AT TIME ZONE 'UTC')::date + ({days}))");
    database.client.execute(&sql, &[]).await.unwrap();
}

/// Inserts calls of a time.
async fn calls(database: &Database, count: i64, at: &str) {
    let sql = format!(
        "INSERT INTO relay.webhook_calls (outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body,
             response_bytes, response_truncated, start_time, end_time, is_timeout, succeeded, repeated, user_agent, ip,
             event_id)
         SELECT 1, 1, 1, 't', 'u', '{{}}', '', 0, false, {at}, {at}, false, true, false, '', '', gen_random_uuid() FROM generate_series(1, {count})"
    );
    database.client.execute(&sql, &[]).await.unwrap();
}

#[tokio::test]
async fn partitions_are_made_a_week_ahead_and_dropped_after_their_time() {
    let database = Database::new().await;
    // The daemon was off for months.
    database
        .client
        .batch_execute(&format!("DROP TABLE relay.{}", partition(&database, 0).await))
        .await
        .unwrap();
    for days in [-100, -32, -31, -30, -29, 3] {
        make(&database, days).await;
    }
    calls(&database, 3, "now() - interval '100 days'").await;
    run(&database).await;
    assert_eq!(partitions(&database, 0, 7).await, 8);
    // A day goes when all of it is 30 days old, the oldest first, one a run.
    assert_eq!(partitions(&database, -400, -31).await, 2);
    for left in [1, 0, 0] {
        assert_eq!(partitions(&database, -400, -100).await, 0);
        run(&database).await;
        assert_eq!(partitions(&database, -400, -31).await, left);
    }
    assert_eq!(partitions(&database, -30, -1).await, 2);
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls").await, 0);
    assert_eq!(partitions(&database, -30, 7).await, 10);
}

#[tokio::test]
async fn a_missing_partition_loses_no_log_and_gets_what_came_before_it() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let other = connect(&database.url).await;
    other.batch_execute(RETENTION_LOCK).await.unwrap();
    let today = partition(&database, 0).await;
    database.client.batch_execute(&format!("DROP TABLE relay.{today}")).await.unwrap();
    let relay = Relay::start(&database, &["--log-level", "debug"]);
    // The lock has kept the daemon's own retention out, which now rests.
    relay.until_told("a run", is_busy);
    database.events(1, 5).await;
    database.all_done().await;
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls_default").await, 5);
    drop(other);
    // The clock was wrong for a while.
    calls(&database, 2, "now() + interval '1 year'").await;
    calls(&database, 7000, "now() - interval '1 year'").await;
    run(&database).await;
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls_default").await, 2);
    assert_eq!(database.number(&format!("SELECT count(*) FROM relay.{today}")).await, 5);
}

#[tokio::test]
async fn records_that_have_nowhere_to_go_wait_until_the_default_partition_is_there_again() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let other = connect(&database.url).await;
    other.batch_execute(RETENTION_LOCK).await.unwrap();
    let all = "SELECT 'DROP TABLE ' || inhrelid::regclass FROM pg_inherits WHERE inhparent = 'relay.webhook_calls'::regclass";
    for drop in database.client.query(all, &[]).await.unwrap() {
        database.client.batch_execute(drop.get(0)).await.unwrap();
    }
    let relay = Relay::start(&database, &["--log-level", "debug"]);
    // The lock has kept the daemon's own retention out, which now rests.
    relay.until_told("a run", is_busy);
    database.events(1, 3).await;
    relay.until("promptpal_relay_healthy", |healthy| healthy == 0.0);
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox WHERE done_at IS NOT NULL").await, 0);
    drop(other);
    run(&database).await;
    database.all_done().await;
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls WHERE succeeded").await, 3);
    assert_eq!(receiver.requests().len(), 3);
    calls(&database, 1, "now() - interval '1 year'").await;
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls_default").await, 1);
}

#[tokio::test]
async fn too_many_calls_of_a_day_without_partition_stay_where_they_are() {
    let database = Database::new().await;
    database
        .client
        .batch_execute(&format!("DROP TABLE relay.{}", partition(&database, 0).await))
        .await
        .unwrap();
    calls(&database, 10_001, "now()").await;
    run(&database).await;
    assert_eq!(partitions(&database, 0, 0).await, 0);
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls_default").await, 10_001);
    assert_eq!(partitions(&database, 1, 7).await, 7);
}

#[tokio::test]
async fn what_a_dba_made_or_took_away_is_left_alone() {
    let database = Database::new().await;
    let (today, tomorrow, after) =
        (partition(&database, 0).await, partition(&database, 1).await, partition(&database, 2).await);
    let sql = format!(
        "ALTER TABLE relay.webhook_calls DETACH PARTITION relay.{today};
         DROP TABLE relay.{tomorrow};
         DROP TABLE relay.{after};
         CREATE TABLE relay.a_week PARTITION OF relay.webhook_calls
             FOR VALUES FROM (date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '1 day')
             TO (date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '3 days');
         CREATE TABLE relay.long_ago PARTITION OF relay.webhook_calls FOR VALUES FROM ('2001-01-01') TO ('2002-01-01')"
    );
    database.client.batch_execute(&sql).await.unwrap();
    make(&database, -50).await;
    run(&database).await;
    assert_eq!(partitions(&database, 0, 2).await, 0);
    assert_eq!(partitions(&database, 3, 7).await, 5);
    assert_eq!(partitions(&database, -60, -1).await, 0);
    assert_eq!(
        database
            .number("SELECT count(*) FROM pg_inherits WHERE inhparent = 'relay.webhook_calls'::regclass")
            .await,
        8
    );
    // No log is lost through these holes either.
    for at in ["now()", "now() + interval '1 day'"] {
        calls(&database, 1, at).await;
    }
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls").await, 2);
}

#[tokio::test]
async fn a_partition_that_cannot_be_dropped_keeps_no_other() {
    let database = Database::new().await;
    for days in [-60, -59, -58, -57] {
        make(&database, days).await;
    }
    let (seen, moved) = (partition(&database, -60).await, partition(&database, -59).await);
    let sql = format!(
        "CREATE VIEW a_day AS SELECT * FROM relay.{seen};
         CREATE SCHEMA archive;
         ALTER TABLE relay.{moved} SET SCHEMA archive"
    );
    database.client.batch_execute(&sql).await.unwrap();
    for left in [3, 2, 2] {
        run(&database).await;
        assert_eq!(partitions(&database, -60, -1).await, left);
    }
    database.client.batch_execute("DROP VIEW a_day").await.unwrap();
    run(&database).await;
    assert_eq!(partitions(&database, -60, -1).await, 1);
}

#[tokio::test]
async fn a_partition_goes_by_what_it_has_not_by_its_name() {
    let database = Database::new().await;
    let (wide, old, open) =
        (partition(&database, -40).await, partition(&database, -45).await, partition(&database, -3000).await);
    let at = |days: i64| {
        format!("(date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '{days} days')")
    };
    let sql = format!(
        "CREATE TABLE relay.{wide} PARTITION OF relay.webhook_calls FOR VALUES FROM ({}) TO ({});
         CREATE TABLE relay.{old} PARTITION OF relay.webhook_calls FOR VALUES FROM ({}) TO ({});
         CREATE TABLE relay.{open} PARTITION OF relay.webhook_calls FOR VALUES FROM (MINVALUE) TO ({});
         CREATE TABLE relay.webhook_calls_99999999 PARTITION OF relay.webhook_calls FOR VALUES FROM ({}) TO (MAXVALUE)",
        at(-40), at(-10), at(-45), at(-42), at(-45), at(100)
    );
    database.client.batch_execute(&sql).await.unwrap();
    calls(&database, 1, "now() - interval '11 days'").await;
    for _ in 0..3 {
        run(&database).await;
    }
    assert_eq!(partitions(&database, -3000, -1).await, 1);
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls").await, 1);
}

#[tokio::test]
async fn partitions_are_of_utc_days_whatever_is_set_in_the_database() {
    let database = Database::empty().await;
    for setting in ["standard_conforming_strings = off", "DateStyle = 'German'", "TimeZone = 'Asia/Shanghai'"]
    {
        let name: String =
            database.client.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
        database.client.batch_execute(&format!("ALTER DATABASE {name} SET {setting}")).await.unwrap();
    }
    let (code, _, err) = outcome(database.command(&["migrate"]));
    assert_eq!(code, 0, "{err}");
    let (code, script, _) = outcome(database.command(&["migrate", "--print"]));
    assert_eq!(code, 0);
    let session = connect(&database.url).await;
    // Of a session with these settings: also what is printed, and what a DBA calls.
    let sql = "DROP SCHEMA relay CASCADE";
    session.batch_execute(sql).await.unwrap();
    session.batch_execute(&script).await.unwrap();
    session
        .batch_execute("SELECT relay.make_call_partition((now() AT TIME ZONE 'UTC')::date - 50)")
        .await
        .unwrap();
    let sql = "SELECT relay.url_problem('https://[::1]:2/') || relay.url_problem('https://a%20b/')";
    let problems: String = session.query_one(sql, &[]).await.unwrap().get(0);
    assert!(problems.contains("::1 may not be called") && problems.contains("no host has"), "{problems}");
    // Two keys, and white space of both kinds: what a backslash stands for is not the session's matter.
    let keys =
        "'MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw' || chr(9) || 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw' || chr(10)";
    let sql =
        format!("SELECT relay.secret_problem({keys}) IS NULL AND relay.secret_problem('tnfr') IS NOT NULL");
    assert!(session.query_one(&sql, &[]).await.unwrap().get::<_, bool>(0));
    let sql = format!("INSERT INTO relay.webhooks (project_id, url, signing_secret) VALUES (9, '', {keys})");
    session.batch_execute(&sql).await.unwrap();
    let sql = "SET DateStyle = 'ISO'; SET TimeZone = 'UTC'; SET standard_conforming_strings = on";
    session.batch_execute(sql).await.unwrap();
    let whole = "SELECT count(*) FROM pg_class WHERE relispartition AND relnamespace = 'relay'::regnamespace AND relkind = 'r'
                 AND pg_get_expr(relpartbound, oid) ~ 'FROM .''[-0-9]+ 00:00:00.00''. TO .''[-0-9]+ 00:00:00.00''.'";
    assert_eq!(session.query_one(whole, &[]).await.unwrap().get::<_, i64>(0), 9);
    run(&database).await;
    assert_eq!(partitions(&database, -60, -1).await, 0);
}

#[tokio::test]
async fn a_report_holds_up_the_dropping_and_nothing_else() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    make(&database, -50).await;
    let report = connect(&database.url).await;
    report.batch_execute("BEGIN; SELECT count(*) FROM relay.webhook_calls").await.unwrap();
    due(&database).await;
    let relay = Relay::start(&database, &[]);
    relay.until_told("why not all is thrown away", |line| {
        line["level"] == "WARN" && line["error"].is_string()
    });
    assert_eq!(partitions(&database, -60, -1).await, 1);
    database.events(1, 100).await;
    database.all_done().await;
    report.batch_execute("COMMIT").await.unwrap();
    run(&database).await;
    assert_eq!(partitions(&database, -60, -1).await, 0);
}

#[tokio::test]
async fn a_publication_of_all_tables_is_in_the_way_of_nothing() {
    let database = Database::new().await;
    let run_sql = async |sql: &str| database.client.batch_execute(sql).await;
    let strays = async || database.number("SELECT count(*) FROM relay.webhook_calls_default").await;
    run_sql("CREATE PUBLICATION everything FOR ALL TABLES").await.unwrap();
    let today = partition(&database, 0).await;
    run_sql(&format!("DROP TABLE relay.{today}")).await.unwrap();
    for at in ["now()", "now() - interval '1 year'"] {
        calls(&database, 3, at).await;
    }
    run(&database).await;
    assert_eq!(strays().await, 0);
    assert_eq!(database.number(&format!("SELECT count(*) FROM relay.{today}")).await, 3);
    // The default partition is made again when it is gone.
    run_sql("DROP TABLE relay.webhook_calls_default").await.unwrap();
    run(&database).await;
    calls(&database, 3, "now() - interval '1 year'").await;
    run(&database).await;
    assert_eq!(strays().await, 0);
    // All the rest: a day's calls by a DBA, claims, records, instances, done rows.
    run_sql("DELETE FROM relay.webhook_calls").await.unwrap();
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let mut relay = Relay::start(&database, &[]);
    database.events(1, 3).await;
    database.all_done().await;
    relay.signal(Signal::SIGTERM);
    assert!(relay.wait().success());
    run_sql(
        "UPDATE relay.outbox SET done_at = now() - interval '2 days', created_at = now() - interval '2 days'",
    )
    .await
    .unwrap();
    run_sql("UPDATE relay.instances SET cleared_at = now() - interval '8 days'").await.unwrap();
    run(&database).await;
    for table in ["outbox", "instances", "instances_since_crash"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM relay.{table}")).await, 0, "{table}");
    }
    let (code, out, err) = outcome(database.command(&["check"]));
    assert!(code == 0 && !out.contains("publication"), "{out}{err}");
}

#[tokio::test]
async fn check_names_the_tables_that_a_publication_breaks() {
    let database = Database::new().await;
    let (today, tomorrow) = (partition(&database, 0).await, partition(&database, 1).await);
    let run_sql = async |sql: &str| database.client.batch_execute(sql).await.unwrap();
    let named = async || {
        let (code, out, err) = outcome(database.command(&["check"]));
        assert_eq!(code, 0, "{out}{err}");
        let lines =
            out.lines().filter_map(|line| line.strip_prefix("warning  publication")?.split(" is in ").next());
        lines.map(|table| table.trim().to_owned()).collect::<Vec<_>>()
    };
    run_sql(&format!(
        "ALTER TABLE relay.{today} REPLICA IDENTITY DEFAULT;
         ALTER TABLE relay.webhook_calls DETACH PARTITION relay.{tomorrow};
         ALTER TABLE relay.{tomorrow} REPLICA IDENTITY NOTHING;
         ALTER TABLE relay.webhook_calls_default REPLICA IDENTITY DEFAULT;
         DROP TABLE relay.webhooks;
         CREATE TABLE relay.webhooks (id bigint, project_id bigint, url text, event text, enabled boolean, signing_secret text)"
    ))
    .await;
    assert!(named().await.is_empty());
    run_sql("CREATE PUBLICATION everything FOR ALL TABLES").await;
    let day = |name: &str| format!("relay.{name}");
    assert_eq!(named().await, [day(&today), day(&tomorrow), day("webhook_calls_default"), day("webhooks")]);
    // Retention, too, has nothing to say as long as it has nothing to delete there.
    run(&database).await;
    run_sql(
        "DROP PUBLICATION everything; CREATE PUBLICATION inserts FOR ALL TABLES WITH (publish = 'insert')",
    )
    .await;
    assert!(named().await.is_empty());
    // By the table that it is a part of, under whose name its rows are published.
    run_sql("DROP PUBLICATION inserts; CREATE PUBLICATION log FOR TABLE relay.webhook_calls WITH (publish_via_partition_root)").await;
    assert_eq!(named().await, [day(&today), day("webhook_calls_default")]);
    run_sql("DROP PUBLICATION log").await;
    if database.number("SELECT current_setting('server_version_num')::bigint").await >= 150_000 {
        run_sql("CREATE PUBLICATION few FOR TABLE relay.outbox (project_id), relay.instances (epoch, host)")
            .await;
        assert_eq!(named().await, ["relay.outbox"]);
        run_sql("DROP PUBLICATION few; CREATE PUBLICATION filtered FOR TABLE relay.outbox WHERE (project_id > 1), relay.instances WHERE (epoch > 1)").await;
        assert_eq!(named().await, ["relay.outbox"]);
        run_sql("DROP PUBLICATION filtered; CREATE PUBLICATION ours FOR TABLES IN SCHEMA relay").await;
        assert_eq!(
            named().await,
            [day(&today), day(&tomorrow), day("webhook_calls_default"), day("webhooks")]
        );
    }
}

#[tokio::test]
async fn calls_are_kept_for_thirteen_months_at_most() {
    let database = Database::new().await;
    for command in ["run", "check"] {
        let (code, out, err) = outcome(database.command(&[command, "--retain-calls", "401d"]));
        assert!(code == 78 && err.contains("--retain-calls is more than 400 days"), "{out}{err}");
    }
    let (code, out, err) = outcome(database.command(&["check", "--retain-calls", "400d"]));
    assert_eq!(code, 0, "{out}{err}");
}

#[tokio::test]
async fn one_of_several_instances_does_it() {
    let database = Database::new().await;
    let other = connect(&database.url).await;
    other.batch_execute(RETENTION_LOCK).await.unwrap();
    due(&database).await;
    let cli = Cli::try_parse_from(["promptpal-relay", "--database-url", &database.url, "migrate"]).unwrap();
    let settings = config::database(&cli.global).unwrap();
    assert_eq!(Retention::default().run_once(&settings, DAY * 30, DAY).await.unwrap(), Outcome::Busy);
    drop(other);
    run(&database).await;
}

/// Seven partitions that a clock 60 days ahead takes for old, or that are; rows that were done two days ago by it.
async fn with_old_things() -> Database {
    let database = Database::new().await;
    for days in -60..=-54 {
        make(&database, days).await;
    }
    database.events(1, 10).await;
    let sql =
        "UPDATE relay.outbox SET created_at = now() - interval '2 days', done_at = now() - interval '2 days'";
    database.client.batch_execute(sql).await.unwrap();
    database
}

/// How many old partitions and how many rows are left.
async fn left(database: &Database) -> (i64, i64) {
    (partitions(database, -60, -54).await, database.number("SELECT count(*) FROM relay.outbox").await)
}

/// Whether a line is about a run of the retention.
fn is_run(line: &Value) -> bool {
    line["outcome"].is_string()
}

/// Whether a line is about a run that another session kept out.
fn is_busy(line: &Value) -> bool {
    line["outcome"] == "Busy"
}

/// Whether a line is about a run that threw all away that is old.
fn is_complete(line: &Value) -> bool {
    line["outcome"] == "Complete"
}

#[tokio::test]
async fn sessions_that_flap_and_processes_that_restart_do_not_hasten_it() {
    let database = with_old_things().await;
    due(&database).await;
    let debug = ["--log-level", "debug"];
    let mut relay = Relay::start(&database, &debug);
    relay.until_told("a complete run", is_complete);
    assert_eq!(left(&database).await, (6, 0));
    let sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name LIKE 'promptpal-relay%'";
    for times in 1..=5 {
        database.client.query(sessions, &[]).await.unwrap();
        relay.until_reconnected(times);
        relay.until_told_of(times as usize + 1, "a run", is_run);
    }
    for _ in 0..2 {
        relay.signal(Signal::SIGTERM);
        assert!(relay.wait().success());
        relay = Relay::start(&database, &debug);
        relay.until_told("a run", is_run);
        assert!(!relay.journal().iter().any(is_complete), "{}", relay.log());
    }
    assert_eq!(left(&database).await, (6, 0));
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_costs_nothing_within_an_hour_and_then_a_partition_an_hour() {
    let database = with_old_things().await;
    change(
        &database,
        "seen_at = now(), steady_since = now() - interval '1 day', next_at = now() + interval '5 min'",
    )
    .await;
    assert!(matches!(run_of(&mut Retention::default(), &database).await, Outcome::NotYet(_)));
    put_the_clock(&database, "60 days").await;
    let mut process = Retention::default();
    assert_eq!(run_of(&mut process, &database).await, Outcome::Unsteady);
    for _ in 0..5 {
        assert!(matches!(run_of(&mut process, &database).await, Outcome::NotYet(_)));
        assert!(matches!(run_of(&mut Retention::default(), &database).await, Outcome::NotYet(_)));
    }
    // The regular ones of the hour.
    for _ in 0..6 {
        change(&database, "next_at = now()").await;
        assert_eq!(run_of(&mut process, &database).await, Outcome::Unsteady);
    }
    assert_eq!(left(&database).await, (7, 10));
    // The hour is over. Who knows whether it is wrong.
    change(&database, "steady_since = steady_since - interval '61 min', next_at = now()").await;
    assert_eq!(run_of(&mut process, &database).await, Outcome::Complete);
    assert_eq!(left(&database).await, (6, 0));
    for _ in 0..5 {
        change(&database, "next_at = now()").await;
        assert_eq!(run_of(&mut Retention::default(), &database).await, Outcome::Complete);
    }
    assert_eq!(left(&database).await, (6, 0));
    let dropped = partition(&database, -60).await;
    let noted =
        format!("SELECT count(*) FROM relay.retention WHERE dropped = '{dropped}' AND dropped_at <= now()");
    assert_eq!(database.number(&noted).await, 1);
}

#[tokio::test]
async fn a_clock_that_was_ahead_and_is_put_back_does_not_stop_it() {
    let database = with_old_things().await;
    due(&database).await;
    change(&database, "dropped_at = now() - interval '1 min', next_at = now() + interval '9 min'").await;
    put_the_clock(&database, "-60 days").await;
    assert!(database.session(Role::Metrics).await.retention_age().await.unwrap().is_nan());
    assert_eq!(run_of(&mut Retention::default(), &database).await, Outcome::Unsteady);
    let future = "SELECT count(*) FROM relay.retention WHERE greatest(seen_at, steady_since, completed_at, dropped_at) > now()";
    assert_eq!(database.number(future).await, 0);
    assert!(database.session(Role::Metrics).await.retention_age().await.unwrap() < 60.0);
    assert_eq!(left(&database).await, (7, 10));
    change(&database, "steady_since = steady_since - interval '61 min', dropped_at = dropped_at - interval '61 min', next_at = now()").await;
    assert_eq!(run_of(&mut Retention::default(), &database).await, Outcome::Complete);
    assert_eq!(left(&database).await, (6, 0));
}

#[tokio::test]
async fn a_clock_is_judged_by_the_time_that_the_process_knows_to_have_passed() {
    let database = Database::new().await;
    let session = database.session(Role::Retention).await;
    let hour = Duration::from_secs(3600);
    let begin = async |noted| {
        change(&database, "next_at = now()").await;
        session.begin_retention(noted, hour / 6, hour / 60, hour).await.unwrap()
    };
    let steady = async |hours: u32| {
        put_the_clock(&database, &format!("{hours} h")).await;
        let sql = "SELECT seen_at FROM relay.retention";
        database.client.query_one(sql, &[]).await.unwrap().get::<_, SystemTime>(0)
    };
    // A process that waited for Postgres for five hours knows that they have passed.
    let turn = begin(Some((steady(5).await, hour * 5))).await;
    assert!(turn.off_s.is_none() && turn.steady, "{turn:?}");
    // Five hours, and the clock says fifty, or none.
    let turn = begin(Some((steady(50).await, hour * 5))).await;
    assert!(turn.off_s.unwrap() > 44.0 * 3600.0 && !turn.steady, "{turn:?}");
    let turn = begin(Some((steady(0).await, hour * 5))).await;
    assert!(turn.off_s.unwrap() < -4.0 * 3600.0 && !turn.steady, "{turn:?}");
    // One that knows nothing believes in less than an hour.
    let sql = "seen_at = now() - interval '50 min', steady_since = now() - interval '2 h'";
    change(&database, sql).await;
    let turn = begin(None).await;
    assert!(turn.off_s.is_none() && turn.steady, "{turn:?}");
    steady(2).await;
    assert!(!begin(None).await.steady);
    // The row is made again when a DBA has taken it away.
    database.client.batch_execute("DELETE FROM relay.retention").await.unwrap();
    assert!(!begin(None).await.steady);
    assert!(begin(None).await.off_s.is_none());
}

#[tokio::test]
async fn work_that_is_late_is_a_warning_and_a_metric() {
    let database = Database::new().await;
    let other = connect(&database.url).await;
    other.batch_execute(RETENTION_LOCK).await.unwrap();
    change(&database, "completed_at = now() - interval '2 h'").await;
    let relay = Relay::start(&database, &[]);
    relay.until_told("that it is late", |line| {
        line["level"] == "WARN" && line["age_s"].as_u64() >= Some(7200)
    });
    let series = "promptpal_relay_retention_age_seconds";
    relay.until(series, |age| (7200.0..8000.0).contains(&age));
    database.client.batch_execute("DELETE FROM relay.retention").await.unwrap();
    relay.until(series, f64::is_nan);
    drop(other);
    run_of(&mut Retention::default(), &database).await;
    relay.until(series, |age| age < 100.0);
}

#[tokio::test]
async fn done_rows_go_after_their_time_and_others_stay() {
    let database = Database::new().await;
    database.events(1, 30_000).await;
    let sql = "UPDATE relay.outbox SET created_at = now() - interval '3 days';
               UPDATE relay.outbox SET created_at = now() + interval '3 years' WHERE id = 5;
               UPDATE relay.outbox SET done_at = now() - interval '2 days' WHERE id % 1000 <> 0";
    database.client.batch_execute(sql).await.unwrap();
    // Far behind: the sequence has jumped.
    database
        .client
        .batch_execute("ALTER TABLE relay.outbox ALTER COLUMN id RESTART WITH 9000000000000")
        .await
        .unwrap();
    database.events(1, 3).await;
    let sql = "UPDATE relay.outbox SET created_at = now() - interval '3 days', done_at = now() - interval '23 hours' WHERE id = 9000000000000;
               UPDATE relay.outbox SET created_at = now() - interval '3 days', done_at = now() - interval '25 hours' WHERE id = 9000000000001;
               UPDATE relay.outbox SET done_at = now() WHERE id = 9000000000002";
    database.client.batch_execute(sql).await.unwrap();
    run(&database).await;
    // Pending ones of any age, and the one that was done within the day.
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox WHERE done_at IS NULL").await, 30);
    let left = "SELECT count(*) FROM relay.outbox WHERE id IN (9000000000000, 9000000000002)";
    assert_eq!(database.number(left).await, 2);
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox").await, 32);
}

#[tokio::test]
async fn a_record_that_crosses_the_making_of_its_partition_is_stored_whole() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let other = connect(&database.url).await;
    other.batch_execute(RETENTION_LOCK).await.unwrap();
    let today = partition(&database, 0).await;
    database.client.batch_execute(&format!("DROP TABLE relay.{today}")).await.unwrap();
    // The record is on its way into the default partition when that may not have it any more.
    other
        .batch_execute("BEGIN; LOCK TABLE relay.webhook_calls_default IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let _relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    let waits = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'relay.webhook_calls_default'::regclass AND NOT granted";
    database.eventually(waits).await;
    other
        .batch_execute("SELECT relay.make_call_partition((now() AT TIME ZONE 'UTC')::date); COMMIT")
        .await
        .unwrap();
    database.all_done().await;
    let stored = format!("SELECT count(*) FROM relay.{today} WHERE succeeded AND response_body <> ''");
    assert_eq!(database.number(&stored).await, 1);
}
