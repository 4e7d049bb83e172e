//! A copy is not the original: what was cloned, restored or replicated makes no call until an operator has said that it may.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser;
use promptpal_relay::inside::cli::Cli;
use promptpal_relay::inside::config;
use promptpal_relay::inside::daemon::Retention;
use promptpal_relay::inside::demo::{Cluster, Stop};
use serde_json::Value;
use tokio_postgres::Client;

use crate::standby::{base_backup_of, standby_of};
use crate::support::{
    Database, Receiver, Relay, as_user, connect, gated, outcome, program, psql, server_program,
};

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap();
}

/// Runs a program of Postgres' that must succeed; returns what it printed.
fn succeeds(mut command: Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn dump(url: &str, options: &[&str], file: &Path) {
    let mut command = server_program("pg_dump");
    command.args(["--format=custom", "--file"]).arg(file).args(options).arg(url);
    succeeds(command);
}

fn restore(url: &str, options: &[&str], file: &Path) {
    let mut command = server_program("pg_restore");
    command.args(["--exit-on-error", "--dbname", url]).args(options).arg(file);
    succeeds(command);
}

/// A copy by dump and restore, in a database of its own.
async fn restored(original: &Database) -> Database {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump");
    dump(&original.url, &[], &file);
    let copy = Database::empty().await;
    restore(&copy.url, &[], &file);
    copy
}

/// A database with a webhook and three pending rows: one parked, and one that an instance has in hand.
async fn with_three_pending(receiver: &Receiver) -> Database {
    let database = Database::new().await;
    database.webhook(1, &receiver.url("/")).await;
    let first = database.events(1, 3).await;
    let sql = format!(
        "UPDATE relay.outbox SET parked = true WHERE id = {first};
         INSERT INTO relay.instances (epoch, locks, host, pid, version) VALUES (7, '{{7}}', 'h', 1, '1');
         INSERT INTO relay.instances_since_crash VALUES (7);
         UPDATE relay.outbox SET claimed_by = 7 WHERE id = {first} + 1"
    );
    run(&database.client, &sql).await;
    database
}

/// The command refuses in one line, with the exit code for that.
fn refuses(database: &Database, command: &[&str], says: &[&str]) {
    refuses_at(&database.url, command, says);
}

fn refuses_at(url: &str, command: &[&str], says: &[&str]) {
    let (code, out, err) = outcome(program(command, url));
    assert_eq!((code, err.lines().count()), (78, 1), "{command:?}: {out}{err}");
    assert!(says.iter().all(|text| err.contains(text)), "{command:?}: {err}");
}

const WAYS_OUT: &[&str] = &["is a copy", "migrate --accept-copy=skip", "--accept-copy=deliver"];

fn migrates(database: &Database, arguments: &[&str]) -> String {
    let (code, out, err) = outcome(database.command(&[&["migrate"], arguments].concat()));
    assert_eq!(code, 0, "{arguments:?}: {out}{err}");
    err
}

async fn is_copy(database: &Database) -> bool {
    database.client.query_one("SELECT relay.is_copy()", &[]).await.unwrap().get(0)
}

const PENDING: &str = "SELECT count(*) FROM relay.outbox WHERE done_at IS NULL";
const SKIPPED: &str = "SELECT count(*) FROM relay.outbox WHERE done_at IS NOT NULL AND claimed_by IS NULL";
const ACCEPTED: &str =
    "SELECT coalesce(string_agg(concat_ws(' ', decision, rows_skipped, (accepted_at IS NOT NULL)::text), ', ' ORDER BY id), '')
       FROM relay.accepted_copies";

async fn text(database: &Database, sql: &str) -> String {
    database.client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_restored_dump_makes_no_call_until_somebody_says_what_becomes_of_its_pending_rows() {
    for (decision, skipped) in [("skip", 3), ("deliver", 0)] {
        let receiver = Receiver::good();
        let original = with_three_pending(&receiver).await;
        let copy = restored(&original).await;
        for command in [
            &["run"][..],
            &["run", "--site", "a"],
            &["migrate"],
            &["migrate", "--site", "a"],
            &["check"],
            &["send-test", "--webhook", "1"],
        ] {
            refuses(&copy, command, WAYS_OUT);
        }
        let (_, out, _) = outcome(copy.command(&["check"]));
        assert!(out.lines().any(|line| line.starts_with("FAILED   installation")), "{out}");
        let (code, out, _) = outcome(copy.command(&["status"]));
        assert!(
            code == 1 && out.contains("this is a copy") && out.contains("no daemon runs here"),
            "{code} {out}"
        );
        let (_, out, _) = outcome(copy.command(&["status", "--json"]));
        let status: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(status["database"]["is_copy"], true, "{out}");
        assert_eq!(copy.number(PENDING).await, 3);
        assert!(is_copy(&copy).await && receiver.requests().is_empty());

        let told = migrates(&copy, &[&format!("--accept-copy={decision}")]);
        assert!(told.contains(&format!("skipped={skipped}")), "{told}");
        assert!(!is_copy(&copy).await);
        assert_eq!(text(&copy, ACCEPTED).await, format!("{decision} {skipped} true"));
        assert_eq!((copy.number(PENDING).await, copy.number(SKIPPED).await), (3 - skipped, skipped));
        let (code, out, err) = outcome(copy.command(&["check"]));
        assert_eq!(code, 0, "{out}{err}");
        let _relay = Relay::start(&copy, &[]);
        copy.events(1, 1).await;
        copy.all_done().await;
        assert_eq!(receiver.requests().len() as i64, 4 - skipped, "{decision}");
        assert_eq!(copy.number("SELECT count(*) FROM relay.webhook_calls").await, 4 - skipped, "{decision}");

        // The original knows nothing of all that.
        let _relay = Relay::start(&original, &[]);
        original.all_done().await;
        assert_eq!(receiver.requests().len() as i64, 7 - skipped);
    }
}

#[tokio::test]
async fn a_copy_without_the_instances_delivers_what_they_had_in_hand() {
    let receiver = Receiver::good();
    let original = with_three_pending(&receiver).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump");
    dump(&original.url, &["--exclude-table-data=relay.instances"], &file);
    let copy = Database::empty().await;
    restore(&copy.url, &[], &file);
    migrates(&copy, &["--accept-copy=deliver"]);
    let relay = Relay::start(&copy, &[]);
    copy.all_done().await;
    assert_eq!(receiver.requests().len(), 3);
    assert_eq!(copy.number("SELECT count(*) FROM relay.webhook_calls WHERE repeated").await, 1);
    relay.kill();

    // Many of them are let go of in batches.
    let original = Database::new().await;
    original.events(2, 6000).await;
    run(&original.client, "UPDATE relay.outbox SET claimed_by = 9").await;
    let copy = restored(&original).await;
    migrates(&copy, &["--accept-copy=deliver"]);
    let let_go = "SELECT count(*) FROM relay.outbox WHERE claimed_by = 0 AND done_at IS NULL";
    assert_eq!(copy.number(let_go).await, 6000);
    assert_eq!(copy.number("SELECT count(DISTINCT xmin::text) FROM relay.outbox").await, 2);
}

#[tokio::test]
async fn check_tells_of_rows_whose_instance_is_not_listed_and_how_to_have_them_delivered() {
    let receiver = Receiver::good();
    let database = with_three_pending(&receiver).await;
    let claims = || {
        let (code, out, err) = outcome(database.command(&["check"]));
        assert_eq!(code, 0, "{out}{err}");
        out.lines().find(|line| line.starts_with("warning  claims")).map(str::to_owned)
    };
    assert_eq!(claims(), None);
    run(&database.client, "DELETE FROM relay.instances").await;
    let told = claims().unwrap();
    assert!(told.contains("does not list: 1."), "{told}");
    let (_, statement) = told.split_once("run: ").unwrap();
    run(&database.client, statement).await;
    assert_eq!(claims(), None);
    let _relay = Relay::start(&database, &[]);
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 3);
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls WHERE repeated").await, 1);
}

#[tokio::test]
async fn a_dump_that_is_loaded_into_a_migrated_database_makes_it_a_copy() {
    let receiver = Receiver::good();
    let original = with_three_pending(&receiver).await;
    migrates(&original, &["--site", "berlin"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump");
    dump(&original.url, &[], &file);
    for options in [&["--data-only"][..], &[]] {
        let target = Database::new().await;
        migrates(&target, &["--site", "tests"]);
        // It meets what is there already, says so, and goes on.
        let mut command = server_program("pg_restore");
        command.args(["--dbname", &target.url]).args(options).arg(&file);
        let (_, _, err) = outcome(command);
        assert_eq!(target.number(PENDING).await, 3, "{err}");
        for command in
            [&["run", "--site", "tests"][..], &["run", "--site", "berlin"], &["migrate"], &["check"]]
        {
            refuses(&target, command, WAYS_OUT);
        }
        refuses(&target, &["run"], &["comes from the database with oid"]);
        let told = migrates(&target, &["--accept-copy=skip"]);
        assert!(told.contains("skipped=3"), "{told}");
        assert!(!is_copy(&target).await);
        assert_eq!(text(&target, "SELECT string_agg(site, ' ') FROM relay.installation").await, "tests");
        assert_eq!(text(&target, "SELECT from_site FROM relay.accepted_copies").await, "berlin");
        let _relay = Relay::start(&target, &["--site", "tests"]);
    }
    assert!(receiver.requests().is_empty());
}

#[tokio::test]
async fn no_daemon_begins_while_migrate_makes_an_original_another_sites() {
    let receiver = Receiver::good();
    let database = with_three_pending(&receiver).await;
    migrates(&database, &["--site", "berlin"]);
    let other = connect(&database.url).await;
    run(&other, "BEGIN; SELECT id FROM relay.outbox FOR UPDATE").await;
    let mut command = database.command(&["migrate", "--site", "paris", "--accept-copy=skip"]);
    let migrate = command.stderr(Stdio::piped()).spawn().unwrap();
    database
        .eventually(
            "SELECT EXISTS (SELECT FROM pg_stat_activity
                             WHERE datname = current_database() AND wait_event_type = 'Lock'
                               AND application_name = 'promptpal-relay command')",
        )
        .await;
    for site in ["berlin", "paris"] {
        refuses(&database, &["run", "--site", site], &["is a copy", "has begun on it and has not ended"]);
    }
    run(&other, "ROLLBACK").await;
    let output = migrate.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("skipped=3"), "{told}");
    assert_eq!(text(&database, "SELECT site FROM relay.installation").await, "paris");
    refuses(&database, &["run", "--site", "berlin"], &["\"paris\""]);
    let _relay = Relay::start(&database, &["--site", "paris"]);
    assert!(receiver.requests().is_empty());
}

#[tokio::test]
async fn a_daemon_that_was_about_to_begin_when_the_site_was_changed_claims_nothing() {
    let receiver = Receiver::good();
    let database = with_three_pending(&receiver).await;
    let other = connect(&database.url).await;
    for (site, migrate) in [
        (&[][..], &["--site", "berlin"][..]),
        (&["--site", "berlin"], &["--site", "paris", "--accept-copy=deliver"]),
    ] {
        // It has read the identity, and cannot list itself yet.
        run(&other, "BEGIN; LOCK TABLE relay.instances IN SHARE MODE").await;
        let mut relay = Relay::spawn(&database.url, site);
        database
            .eventually(
                "SELECT EXISTS (SELECT FROM pg_locks
                                 WHERE relation = 'relay.instances'::regclass AND NOT granted)",
            )
            .await;
        migrates(&database, migrate);
        run(&other, "ROLLBACK").await;
        assert_eq!(relay.wait().code(), Some(78), "{}", relay.log());
        database.eventually("SELECT NOT EXISTS (SELECT FROM relay.daemon_locks())").await;
    }
    assert_eq!((database.number(PENDING).await, receiver.requests().len()), (3, 0));
    let _relay = Relay::start(&database, &["--site", "paris"]);
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 3);
}

#[tokio::test]
async fn a_first_site_waits_for_the_daemon_to_stop_and_a_daemon_tells_that_its_site_was_changed() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let first = database.events(1, 2).await;
    let mut relay = Relay::start(&database, &["--poll-interval", "1h"]);
    receiver.wait_for(2);
    database.eventually("SELECT count(claimed_by) = 2 FROM relay.outbox").await;
    let (code, _, err) = outcome(database.command(&["migrate", "--site", "berlin"]));
    assert!(code == 1 && err.contains("a daemon runs on this database: stop it first"), "{code} {err}");
    assert_eq!(database.number("SELECT count(site) FROM relay.installation").await, 0);

    run(&database.client, "UPDATE relay.installation SET site = 'berlin'").await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
    database.number(end).await;
    assert_eq!(relay.wait().code(), Some(78), "{}", relay.log());
    gate.open();
    let log = relay.log();
    let last = log.lines().last().unwrap();
    let named = format!(
        "calls were made for 2 rows of this database, and are not recorded: outbox id {first}, {}",
        first + 1
    );
    for says in ["the site of the database was changed while this daemon ran", "\"berlin\"", &named] {
        assert!(last.replace('\\', "").contains(says), "{says}: {last}");
    }
}

#[tokio::test]
async fn an_original_has_nothing_to_accept_and_keeps_its_rows() {
    let receiver = Receiver::good();
    let database = with_three_pending(&receiver).await;
    let row = "SELECT i::text FROM relay.installation i";
    let before = text(&database, row).await;
    for decision in ["skip", "deliver"] {
        let told = migrates(&database, &[&format!("--accept-copy={decision}")]);
        assert!(told.contains("there is nothing to accept"), "{told}");
    }
    migrates(&database, &[]);
    assert_eq!((text(&database, row).await, text(&database, ACCEPTED).await), (before, String::new()));
    assert_eq!((database.number(PENDING).await, database.number(SKIPPED).await), (3, 0));
    let (_, out, _) = outcome(database.command(&["status", "--json"]));
    let status: Value = serde_json::from_str(&out).unwrap();
    let identity = "SELECT (SELECT system_identifier FROM pg_control_system()) || ' ' || oid FROM pg_database WHERE datname = current_database()";
    let told = format!(
        "{} {}",
        status["database"]["system_identifier"].as_str().unwrap(),
        status["database"]["oid"]
    );
    assert_eq!(told, text(&database, identity).await);
    assert_eq!(
        (&status["database"]["is_copy"], &status["database"]["site"]),
        (&Value::Bool(false), &Value::Null)
    );
}

/// Runs a script as docs/copies.md says.
fn run_by_psql(database: &Database, script: &str) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script.sql");
    fs::write(&file, script).unwrap();
    let mut command = psql();
    command
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"])
        .arg(&file)
        .arg(&database.url)
        .stdin(Stdio::null());
    let (code, _, err) = outcome(command);
    (code, err)
}

#[tokio::test]
async fn the_printed_script_adopts_no_copy_unless_it_was_printed_to() {
    let receiver = Receiver::good();
    let original = with_three_pending(&receiver).await;
    let printed = |arguments: &[&str]| {
        let (code, script, err) = outcome(original.command(&[&["migrate", "--print"], arguments].concat()));
        assert_eq!(code, 0, "{err}");
        script
    };
    let copy = restored(&original).await;
    run(&copy.client, "DELETE FROM relay.migrations WHERE version = 1").await;
    for arguments in [&[][..], &["--site", "a"]] {
        let (code, err) = run_by_psql(&copy, &printed(arguments));
        assert!(
            code != 0 && err.contains("this database is a copy") && err.contains("--accept-copy=skip"),
            "{err}"
        );
        assert_eq!(copy.number("SELECT count(*) FROM relay.migrations WHERE version = 1").await, 0);
    }
    assert!(is_copy(&copy).await);
    run(&copy.client, "INSERT INTO relay.migrations SELECT 1, 'outbox', ''").await;
    let sum = text(&original, "SELECT checksum FROM relay.migrations WHERE version = 1").await;
    run(&copy.client, &format!("UPDATE relay.migrations SET checksum = '{sum}' WHERE version = 1")).await;

    let script = printed(&["--accept-copy=skip", "--site", r"it's \a"]);
    let (code, err) = run_by_psql(&copy, &script);
    assert!(code == 0 && err.contains("3 pending rows were marked done without calls"), "{code} {err}");
    assert!(!is_copy(&copy).await);
    assert_eq!((text(&copy, ACCEPTED).await, copy.number(SKIPPED).await), ("skip 3 true".into(), 3));
    assert_eq!(text(&copy, "SELECT site FROM relay.installation").await, r"it's \a");
    // A second time, and on the original.
    let (code, err) = run_by_psql(&copy, &script);
    assert!(code == 0 && err.contains("nothing to accept"), "{code} {err}");
    let (code, err) = run_by_psql(&original, &printed(&["--accept-copy=skip"]));
    assert!(code == 0 && err.contains("nothing to accept"), "{code} {err}");
    assert_eq!(original.number(PENDING).await, 3);
}

#[tokio::test]
async fn a_long_backlog_is_skipped_in_batches_and_an_interruption_leaves_a_copy() {
    let original = Database::new().await;
    let first = original.events(1, 12_000).await;
    let copy = restored(&original).await;
    let other = connect(&copy.url).await;
    let held = format!("BEGIN; SELECT id FROM relay.outbox WHERE id = {first} + 6000 FOR UPDATE");
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity
                                 WHERE datname = current_database() AND wait_event_type = 'Lock'
                                   AND application_name = 'promptpal-relay command')";
    // Held up in the second batch, and killed there.
    run(&other, &held).await;
    let mut migrate = copy.command(&["migrate", "--accept-copy=skip"]).stderr(Stdio::null()).spawn().unwrap();
    copy.eventually(waits).await;
    migrate.kill().unwrap();
    migrate.wait().unwrap();
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'promptpal-relay command'";
    copy.number(end).await;
    copy.eventually(&format!("SELECT NOT ({})", waits.trim_start_matches("SELECT "))).await;
    assert_eq!((copy.number(SKIPPED).await, text(&copy, ACCEPTED).await), (5000, "skip 5000 false".into()));
    refuses(&copy, &["run"], WAYS_OUT);

    // Held up again: what is inserted meanwhile is not skipped.
    let migrate = copy.command(&["migrate", "--accept-copy=skip"]).stderr(Stdio::piped()).spawn().unwrap();
    copy.eventually(waits).await;
    copy.events(1, 1).await;
    run(&other, "ROLLBACK").await;
    let output = migrate.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("skipped=7000"), "{told}");
    assert_eq!((copy.number(SKIPPED).await, copy.number(PENDING).await), (12_000, 1));
    assert_eq!(text(&copy, ACCEPTED).await, "skip 5000 false, skip 7000 true");
    let transactions = "SELECT count(DISTINCT xmin::text) FROM relay.outbox WHERE done_at IS NOT NULL";
    assert_eq!(copy.number(transactions).await, 3);
}

#[tokio::test]
async fn skipping_runs_no_code_that_came_with_the_copy() {
    let original = Database::new().await;
    original.events(1, 1).await;
    let copy = restored(&original).await;
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mallory = format!("mallory_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let trap = format!(
        "CREATE ROLE {mallory};
         CREATE SCHEMA loot AUTHORIZATION {mallory};
         CREATE FUNCTION loot.take() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''taken''; END';
         ALTER FUNCTION loot.take() OWNER TO {mallory};
         CREATE TRIGGER loot AFTER UPDATE ON relay.outbox FOR EACH ROW EXECUTE FUNCTION loot.take()"
    );
    run(&copy.client, &trap).await;
    let (code, _, err) = outcome(copy.command(&["migrate", "--accept-copy=skip"]));
    assert!(code == 78 && err.contains("loot.take()") && !err.contains("taken"), "{code} {err}");
    assert!(is_copy(&copy).await);
    run(&copy.client, &format!("DROP SCHEMA loot CASCADE; DROP ROLE {mallory}")).await;
    migrates(&copy, &["--accept-copy=skip"]);
    assert_eq!(copy.number(SKIPPED).await, 1);
}

/// Ends all sessions of a database, and waits until they are gone.
async fn empty(admin: &Database, name: &str) {
    let sql =
        format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'");
    admin.number(&sql).await;
    let gone = format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{name}')");
    admin.eventually(&gone).await;
}

#[tokio::test]
async fn each_way_to_copy_a_database_or_to_put_one_back_is_noticed() {
    let cluster = Cluster::start(&[]).unwrap();
    let url = cluster.url("app");
    let server = Database::at(&cluster.url("postgres")).await;
    let admin = &server.client;
    run(admin, "CREATE DATABASE app TEMPLATE template0").await;
    drop(Database::on(&url).await);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump");
    dump(&url, &[], &file);

    // By template.
    empty(&server, "app").await;
    run(admin, "CREATE DATABASE clone TEMPLATE app").await;
    refuses_at(&cluster.url("clone"), &["run"], WAYS_OUT);
    refuses_at(&cluster.url("clone"), &["run"], &["comes from the database with oid"]);
    // A new name is no copy.
    empty(&server, "app").await;
    run(admin, "ALTER DATABASE app RENAME TO renamed").await;
    let (code, out, err) = outcome(program(&["check"], &cluster.url("renamed")));
    assert_eq!(code, 0, "{out}{err}");
    empty(&server, "renamed").await;
    run(admin, "ALTER DATABASE renamed RENAME TO app").await;
    // Over itself.
    restore(&url, &["--clean", "--if-exists"], &file);
    refuses_at(&url, &["run"], WAYS_OUT);
    refuses_at(&url, &["run"], &["a dump was restored over it"]);
    let (code, _, err) = outcome(program(&["migrate", "--accept-copy=deliver"], &url));
    assert_eq!(code, 0, "{err}");
    let (code, out, err) = outcome(program(&["check"], &url));
    assert_eq!(code, 0, "{out}{err}");
    // Dropped, and restored under the same name.
    run(admin, "DROP DATABASE app WITH (FORCE)").await;
    run(admin, "CREATE DATABASE app TEMPLATE template0").await;
    restore(&url, &[], &file);
    refuses_at(&url, &["run"], &["comes from the database with oid"]);
    // On another server. The roles are of the first one.
    let other = Cluster::start(&[]).unwrap();
    restore(&other.url("postgres"), &["--no-owner", "--no-acl"], &file);
    refuses_at(&other.url("postgres"), &["run"], &["comes from the server with system identifier"]);
    let database = Database::at(&other.url("postgres")).await;
    // A row that is gone fits nowhere.
    run(&database.client, "DELETE FROM relay.installation").await;
    refuses(&database, &["run"], &["relay.installation has no row"]);
    refuses(&database, &["migrate"], WAYS_OUT);
    migrates(&database, &["--accept-copy=skip"]);
    let (code, out, err) = outcome(database.command(&["check"]));
    assert_eq!(code, 0, "{out}{err}");
    run(&database.client, "VACUUM FULL relay.installation").await;
    assert!(!is_copy(&database).await);
}

#[tokio::test]
async fn a_subscriber_is_a_copy() {
    let cluster = Cluster::start(&["wal_level=logical"]).unwrap();
    let original = Database::on(&cluster.url("postgres")).await;
    original.events(1, 2).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump");
    dump(&original.url, &["--schema-only"], &file);
    run(&original.client, "CREATE DATABASE subscriber TEMPLATE template0").await;
    let subscriber = Database::at(&cluster.url("subscriber")).await;
    restore(&subscriber.url, &[], &file);
    // Both are databases of one server, so the slot is made apart.
    run(&original.client, "CREATE PUBLICATION everything FOR ALL TABLES").await;
    run(&original.client, "SELECT pg_create_logical_replication_slot('everything', 'pgoutput')").await;
    let source = format!(
        "host={} port={} user=postgres dbname=postgres",
        cluster.socket_dir().display(),
        cluster.port()
    );
    let sql = format!(
        "CREATE SUBSCRIPTION everything CONNECTION '{source}' PUBLICATION everything WITH (create_slot = false)"
    );
    run(&subscriber.client, &sql).await;
    subscriber
        .eventually(
            "SELECT (SELECT count(*) FROM relay.outbox) = 2 AND (SELECT count(*) FROM relay.installation) = 1
                    AND (SELECT count(*) FROM relay.migrations) > 0",
        )
        .await;
    subscriber.eventually("SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel").await;
    refuses(&subscriber, &["run"], WAYS_OUT);
    let detach =
        "ALTER SUBSCRIPTION everything DISABLE; ALTER SUBSCRIPTION everything SET (slot_name = NONE)";
    run(&subscriber.client, detach).await;
    run(&subscriber.client, "DROP SUBSCRIPTION everything").await;
}

#[tokio::test]
async fn a_running_daemon_that_finds_another_database_stops_and_names_what_it_cannot_record() {
    // A copy that no operator has accepted, and a database that is an original of its own.
    for accepted in [false, true] {
        let cluster = Cluster::start(&[]).unwrap();
        let admin = Database::at(&cluster.url("postgres")).await;
        run(&admin.client, "CREATE DATABASE app TEMPLATE template0").await;
        let app = Database::on(&cluster.url("app")).await;
        let (receiver, gate) = gated();
        app.webhook(1, &receiver.url("/")).await;
        let first = app.events(1, 2).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dump");
        dump(&app.url, &[], &file);
        run(&admin.client, "CREATE DATABASE other TEMPLATE template0").await;
        restore(&cluster.url("other"), &[], &file);
        if accepted {
            let (code, _, err) =
                outcome(program(&["migrate", "--accept-copy=deliver"], &cluster.url("other")));
            assert_eq!(code, 0, "{err}");
        }
        let mut relay = Relay::start(&app, &["--poll-interval", "1h"]);
        receiver.wait_for(2);
        app.eventually("SELECT count(claimed_by) = 2 FROM relay.outbox").await;

        // The other one takes its name, as behind a host name that leads elsewhere now.
        drop(app);
        run(&admin.client, "ALTER DATABASE app ALLOW_CONNECTIONS false").await;
        empty(&admin, "app").await;
        run(&admin.client, "ALTER DATABASE app RENAME TO before").await;
        run(&admin.client, "ALTER DATABASE other RENAME TO app").await;
        assert_eq!(relay.wait().code(), Some(78), "{}", relay.log());
        gate.open();
        let log = relay.log();
        let last = log.lines().last().unwrap();
        let named = format!(
            "calls were made for 2 rows of the database before, and are not recorded: outbox id {}, {}",
            first,
            first + 1
        );
        assert!(last.contains(&named), "{last}");
        let why = if accepted { "is not the one that this daemon began with" } else { "is a copy" };
        assert!(last.contains(why), "{last}");
        let other = Database::at(&cluster.url("app")).await;
        assert_eq!(other.number("SELECT count(*) FROM relay.webhook_calls").await, 0);
        assert_eq!(other.number("SELECT count(claimed_by) FROM relay.outbox").await, 0);
        assert_eq!(receiver.requests().len(), 2);
        // In the one before, the calls are made again, and are marked.
        run(&admin.client, "ALTER DATABASE before ALLOW_CONNECTIONS true").await;
        let before = Database::at(&cluster.url("before")).await;
        let _relay = Relay::start(&before, &[]);
        before.all_done().await;
        assert_eq!(before.number("SELECT count(*) FROM relay.webhook_calls WHERE repeated").await, 2);
    }
}

/// Forwards to one server, and the sessions of one role to another. Returns the port.
fn forwarded(server: u16, role: &'static str, other: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            thread::spawn(move || {
                // The first message names the session.
                let mut first = vec![0; 4096];
                let length = client.read(&mut first).unwrap();
                let is_other = String::from_utf8_lossy(&first[..length]).contains(role);
                let port = if is_other { other } else { server };
                let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                server.write_all(&first[..length]).unwrap();
                let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || {
                    // Either end may close the connection at any time.
                    io::copy(&mut from, &mut to).ok();
                    to.shutdown(Shutdown::Both).ok();
                });
                io::copy(&mut client, &mut server).ok();
                server.shutdown(Shutdown::Both).ok();
            });
        }
    });
    port
}

#[tokio::test]
async fn each_session_must_be_one_of_the_database_and_not_the_first_one_alone() {
    let (server, other) = (Cluster::start(&[]).unwrap(), Cluster::start(&[]).unwrap());
    let receiver = Receiver::good();
    let database = Database::on(&server.url("postgres")).await;
    database.webhook(1, &receiver.url("/")).await;
    database.events(1, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump");
    dump(&database.url, &[], &file);
    restore(&other.url("postgres"), &["--no-owner", "--no-acl"], &file);
    for says in [WAYS_OUT, &["is not the one that this daemon began with"]] {
        for role in ["listen", "claim", "finish"] {
            let port = forwarded(server.port(), role, other.port());
            let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
            refuses_at(&url, &["run", "--allow-net", "127.0.0.0/8"], says);
        }
        // From now on the other one is an original of its own.
        let (code, _, err) = outcome(program(&["migrate", "--accept-copy=deliver"], &other.url("postgres")));
        assert_eq!(code, 0, "{err}");
    }
    assert!(receiver.requests().is_empty());
}

#[tokio::test]
async fn a_copy_throws_nothing_away() {
    let original = Database::new().await;
    original.events(1, 2).await;
    let old = "UPDATE relay.outbox SET done_at = now() - interval '10 days', created_at = now() - interval '10 days';
               UPDATE relay.retention SET steady_since = now() - interval '1 day', seen_at = now(), next_at = now()";
    run(&original.client, old).await;
    let copy = restored(&original).await;
    let run_once = async |database: &Database| {
        let cli =
            Cli::try_parse_from(["promptpal-relay", "--database-url", &database.url, "migrate"]).unwrap();
        let (settings, day) = (config::database(&cli.global).unwrap(), Duration::from_secs(86400));
        Retention::default().run_once(&settings, 30 * day, day).await
    };
    assert_eq!(run_once(&copy).await.map_err(|error| error.exit_code()), Err(78));
    assert_eq!(copy.number("SELECT count(*) FROM relay.outbox").await, 2);
    run_once(&original).await.unwrap();
    assert_eq!(original.number("SELECT count(*) FROM relay.outbox").await, 0);
}

#[tokio::test]
async fn a_daemon_runs_only_on_the_site_that_it_names() {
    let receiver = Receiver::good();
    let database = with_three_pending(&receiver).await;
    refuses(&database, &["run", "--site", "berlin"], &["has no site", "migrate --site \"berlin\""]);
    let told = migrates(&database, &["--site", "berlin"]);
    assert!(told.contains("berlin"), "{told}");
    assert_eq!((database.number(PENDING).await, text(&database, ACCEPTED).await), (3, String::new()));
    refuses(&database, &["run"], &["of site \"berlin\"", "has no --site"]);
    refuses(&database, &["run", "--site", "paris"], &["\"berlin\"", "\"paris\"", "migrate --site"]);
    refuses(&database, &["check", "--site", "paris"], &["\"berlin\"", "\"paris\""]);
    let (code, out, err) = outcome(database.command(&["check", "--site", "berlin"]));
    assert!(code == 0 && out.contains("site berlin"), "{out}{err}");
    let (_, out, _) = outcome(database.command(&["status"]));
    assert!(out.contains("site berlin"), "{out}");
    // Said again, and by the migrate of an upgrade.
    migrates(&database, &["--site", "berlin"]);
    migrates(&database, &[]);
    for bad in ["", "a\nb", &"a".repeat(64)] {
        for command in [["run", "--site", bad], ["migrate", "--site", bad]] {
            let (code, _, err) = outcome(database.command(&command));
            assert_eq!((code, err.lines().count()), (2, 1), "{command:?} {err}");
        }
    }
    let sql = "UPDATE relay.installation SET site = E'a\\nb'";
    let refused = database.client.batch_execute(sql).await.unwrap_err();
    assert_eq!(refused.as_db_error().unwrap().constraint(), Some("installation_site_is_a_name"));

    // Another site may be a copy's.
    refuses(
        &database,
        &["migrate", "--site", "paris"],
        &["\"berlin\"", "--accept-copy=skip", "--accept-copy=deliver"],
    );
    let relay = Relay::start(&database, &["--site", "berlin"]);
    database.all_done().await;
    let (code, _, err) = outcome(database.command(&["migrate", "--site", "paris", "--accept-copy=skip"]));
    assert!(code == 1 && err.contains("a daemon runs on this database: stop it first"), "{code} {err}");
    relay.kill();
    // Postgres frees the locks of a daemon that was killed within moments.
    database.eventually("SELECT NOT EXISTS (SELECT FROM relay.daemon_locks())").await;
    database.events(1, 1).await;
    let told = migrates(&database, &["--site", "paris", "--accept-copy=skip"]);
    assert!(told.contains("skipped=1"), "{told}");
    assert_eq!(text(&database, ACCEPTED).await, "skip 1 true");
    refuses(&database, &["run", "--site", "berlin"], &["\"paris\""]);
    let requests = receiver.requests().len();
    let _relay = Relay::start(&database, &["--site", "paris"]);
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(receiver.requests().len(), requests + 1);
}

#[tokio::test]
async fn a_promoted_standby_goes_on_and_a_base_backup_is_told_by_its_site() {
    let mut primary = Cluster::start(&[]).unwrap();
    let database = Database::on(&primary.url("postgres")).await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    migrates(&database, &["--site", "berlin"]);
    drop(database);
    let standby = standby_of(&mut primary);
    let backup = base_backup_of(&primary);

    // A second server, which is for tests and says so.
    let clone = Database::at(&backup.url("postgres")).await;
    clone.events(1, 1).await;
    assert!(!is_copy(&clone).await, "a physical copy cannot be told");
    refuses(&clone, &["run", "--site", "tests"], &["\"berlin\"", "\"tests\"", "--accept-copy=skip"]);
    refuses(&clone, &["run"], &["\"berlin\""]);
    migrates(&clone, &["--site", "tests", "--accept-copy=skip"]);
    refuses(&clone, &["run", "--site", "berlin"], &["\"tests\""]);
    let _tests = Relay::start(&clone, &["--site", "tests"]);
    clone.events(1, 1).await;
    clone.all_done().await;
    assert_eq!(receiver.requests().len(), 1);

    // A daemon of the site follows it to the standby, and asks nothing.
    let both = format!(
        "host={},{} port={},{} user=postgres dbname=postgres",
        primary.socket_dir().display(),
        standby.socket_dir().display(),
        primary.port(),
        standby.port()
    );
    let relay = Relay::spawn(&both, &["--site", "berlin"]).ready();
    let database = Database::at(&primary.url("postgres")).await;
    database.events(1, 1).await;
    database.all_done().await;
    database.eventually("SELECT bool_and(replay_lsn >= pg_current_wal_lsn()) FROM pg_stat_replication").await;
    drop(database);
    primary.halt(Stop::Immediate);
    run(&connect(&standby.url("postgres")).await, "SELECT pg_promote()").await;
    relay.until_reconnected(1);
    let promoted = Database::at(&standby.url("postgres")).await;
    promoted.events(1, 1).await;
    promoted.all_done().await;
    assert_eq!(receiver.requests().len(), 3);
}

#[tokio::test]
async fn who_may_not_ask_which_server_this_is_is_told_so_and_migrate_mends_it() {
    let cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let sql =
        "CREATE ROLE relay_run LOGIN IN ROLE relay_daemon; CREATE ROLE reads LOGIN IN ROLE relay_reader;
               REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC";
    run(&database.client, sql).await;
    let daemon = as_user(&database.url, "relay_run", "");
    let (code, out, _) = outcome(program(&["check"], &daemon));
    assert!(code == 78 && out.contains("FAILED   privileges") && out.contains("pg_control_system"), "{out}");
    refuses_at(&daemon, &["run"], &["pg_control_system"]);
    migrates(&database, &[]);
    let (code, out, err) = outcome(program(&["check"], &daemon));
    assert_eq!(code, 0, "{out}{err}");
    let (code, out, err) = outcome(program(&["status"], &as_user(&database.url, "reads", "")));
    assert!(code == 1 && err.contains("no instance runs"), "{out}{err}");
}
