//! A daemon works with the schema of a newer release when each migration after its own is marked, and refuses every other one.
//! So `migrate` runs first, and the daemons are replaced one after the other; inserts and deliveries go on meanwhile.

mod load;
mod releases;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use promptpal_relay::inside::outbox::{MIGRATIONS, Migration};
use serde_json::Value;

use self::load::{Books, Writers};
use self::releases::{compatible, next_release, releases};
use crate::scenes::terminate;
use crate::support::{BINARY, Database, Receiver, Relay, connect, outcome, program_at};

/// The daemon's three sessions that are made and lost together.
const SESSIONS: &str = "promptpal-relay listen";

fn newest() -> i32 {
    MIGRATIONS.last().unwrap().version
}

/// Applies a migration as `migrate` does.
async fn apply(database: &Database, version: i32, text: String) {
    let migration = Migration { version, name: "later", sql: text.leak() };
    let oldest = migration.oldest_daemon().map_or("NULL".into(), |oldest| oldest.to_string());
    let sql = format!(
        "BEGIN; {}; INSERT INTO relay.migrations (version, name, checksum, oldest_daemon)
         VALUES ({version}, 'later', '{}', {oldest}); COMMIT",
        migration.sql,
        migration.checksum()
    );
    database.client.batch_execute(&sql).await.unwrap();
}

fn incompatible() -> String {
    include_str!("incompatible.sql").to_owned()
}

/// A migration that adds nothing, with a mark.
fn marked(oldest_daemon: i32) -> String {
    format!("-- Adds nothing.\n--\n-- Oldest daemon: {oldest_daemon}\n\nSELECT 1")
}

/// Runs a command that must refuse the schema with one line; what it says.
fn refused(program: &Path, arguments: &[&str], url: &str) -> String {
    let (code, _, stderr) = outcome(program_at(program, arguments, url));
    assert_eq!((code, stderr.lines().count()), (78, 1), "{arguments:?}: {stderr}");
    stderr
}

fn migrate(program: &Path, url: &str) {
    let (code, _, stderr) = outcome(program_at(program, &["migrate"], url));
    assert_eq!(code, 0, "{stderr}");
}

/// Whether a line of the journal says that the schema is newer than the program.
fn tells_of(migration: i32) -> impl Fn(&Value) -> bool {
    move |line| line["migration"] == i64::from(migration) && line["level"] == "WARN"
}

#[tokio::test]
async fn a_daemon_works_with_a_newer_schema_that_is_marked_and_says_so() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let next = newest() + 1;
    apply(&database, next, compatible(newest())).await;
    let relay = Relay::start(&database, &[]);
    relay.until_told("that the schema is newer", tells_of(next));
    database.events(1, 3).await;
    database.all_done().await;
    assert_eq!(database.calls().await.len(), 3);

    let (code, stdout, stderr) = outcome(database.command(&["check"]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    let warning = format!("warning  schema         migration {next}, newer than this program's {}", newest());
    assert!(stdout.contains(&warning), "{stdout}");
    let (code, stdout, stderr) = outcome(database.command(&["status"]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    let line = stdout.lines().find(|line| line.contains("schema")).expect("a line of the schema");
    assert!(line.contains(&format!("migration {next}, newer than")), "{line}");
    let (_, stdout, _) = outcome(database.command(&["status", "--json"]));
    let schema = &serde_json::from_str::<Value>(&stdout).unwrap()["schema"];
    let numbers = [&schema["migration"], &schema["known_migration"]];
    assert_eq!(numbers, [&Value::from(next), &Value::from(newest())]);
    // The commands for people work, too.
    for arguments in
        [&["calls"][..], &["replay", "--call", "1"], &["pause", "--webhook", "1", "--reason", "x"]]
    {
        let (code, _, stderr) = outcome(database.command(arguments));
        assert_eq!(code, 0, "{arguments:?}: {stderr}");
    }
}

#[tokio::test]
async fn status_and_check_say_nothing_of_a_schema_that_is_the_programs_own() {
    let database = Database::new().await;
    let _relay = Relay::start(&database, &[]);
    let (_, stdout, _) = outcome(database.command(&["check"]));
    assert!(stdout.contains(&format!("ok       schema         migration {}\n", newest())), "{stdout}");
    let (_, stdout, _) = outcome(database.command(&["status"]));
    assert!(!stdout.contains("schema"), "{stdout}");
    let (_, stdout, _) = outcome(database.command(&["status", "--json"]));
    let schema = &serde_json::from_str::<Value>(&stdout).unwrap()["schema"];
    assert_eq!(schema["migration"], schema["known_migration"]);
}

#[tokio::test]
async fn a_daemon_refuses_a_newer_schema_unless_each_migration_after_its_own_is_marked_for_it() {
    let ours = Path::new(BINARY);
    let (here, next) = (newest(), newest() + 1);
    for (marks, refusing) in [
        (vec![None], Some(next)),
        (vec![Some(here)], None),
        // The second release is for the daemons of the first one, and then for ours, too.
        (vec![Some(here), Some(next)], Some(next + 1)),
        (vec![Some(here), Some(here)], None),
        (vec![Some(here), None], Some(next + 1)),
        (vec![None, Some(here)], Some(next)),
    ] {
        let database = Database::new().await;
        for (version, mark) in (next..).zip(&marks) {
            apply(&database, version, mark.map_or("SELECT 1".into(), marked)).await;
        }
        match refusing {
            None => drop(Relay::start(&database, &[])),
            Some(migration) => {
                for command in ["run", "check", "status", "calls"] {
                    let told = refused(ours, &[command], &database.url);
                    assert!(told.contains("install a newer promptpal-relay"), "{marks:?}: {told}");
                    assert!(told.contains(&format!("it has migration {migration},")), "{marks:?}: {told}");
                }
            }
        }
        // There is nothing that an older program could do to it.
        let told = refused(ours, &["migrate"], &database.url);
        assert!(told.contains("newer"), "{marks:?}: {told}");
    }
}

#[tokio::test]
async fn a_daemon_reads_the_mark_again_when_it_reconnects() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let mut relay = Relay::start(&database, &[]);
    let next = newest() + 1;
    apply(&database, next, compatible(newest())).await;
    terminate(&database, "%", SESSIONS).await;
    relay.until_reconnected(1);
    relay.until_told("that the schema is newer", tells_of(next));
    database.events(1, 1).await;
    database.all_done().await;

    apply(&database, next + 1, incompatible()).await;
    terminate(&database, "%", SESSIONS).await;
    assert_eq!(relay.wait().code(), Some(78), "{}", relay.log());
    let told = relay.log().lines().last().unwrap().to_owned();
    assert!(told.contains(&format!("it has migration {},", next + 1)), "{told}");
}

#[tokio::test]
async fn a_new_program_refuses_the_schema_before_until_its_migrate_has_run() {
    let database = Database::new().await;
    let next = next_release();
    for command in ["run", "check", "status"] {
        let told = refused(next, &[command], &database.url);
        assert!(told.contains(&format!("migration {} is missing", newest() + 1)), "{told}");
        assert!(told.contains("run promptpal-relay migrate"), "{told}");
    }
    migrate(next, &database.url);
    let mark = format!("SELECT oldest_daemon::bigint FROM relay.migrations WHERE version = {}", newest() + 1);
    assert_eq!(database.number(&mark).await, i64::from(newest()));
    let unmarked = "SELECT count(*) FROM relay.migrations WHERE oldest_daemon IS NULL";
    assert_eq!(database.number(unmarked).await, i64::from(newest()));
    drop(Relay::spawn_at(next, &database.url, &[]).ready());
    let (code, stdout, stderr) = outcome(program_at(next, &["check"], &database.url));
    assert_eq!(code, 0, "{stdout}{stderr}");
}

#[tokio::test]
async fn the_printed_sql_of_the_next_release_upgrades_and_writes_the_mark() {
    let database = Database::new().await;
    let (code, script, _) = outcome(program_at(next_release(), &["migrate", "--print"], &database.url));
    assert_eq!(code, 0);
    let (_, ours, _) = outcome(database.command(&["migrate", "--print"]));
    let relay = Relay::start(&database, &[]);
    database.client.batch_execute(&script).await.unwrap();
    database.client.batch_execute(&script).await.unwrap();
    let mark = format!("SELECT oldest_daemon::bigint FROM relay.migrations WHERE version = {}", newest() + 1);
    assert_eq!(database.number(&mark).await, i64::from(newest()));
    drop(Relay::start(&database, &[]));
    drop(relay);
    // The script of the release before changes nothing.
    let refused = database.client.batch_execute(&ours).await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("newer"), "{refused:?}");
}

#[tokio::test]
async fn migrate_leaves_a_schema_alone_whose_daemons_do_not_work_with_what_is_missing() {
    let database = Database::new().await;
    let (_, script, _) = outcome(database.command(&["migrate", "--print"]));
    let mut relay = Relay::start(&database, &[]);
    // The newest migration of this program has no mark for the daemons before; its objects are there already.
    let newest = MIGRATIONS.last().unwrap();
    assert_eq!(newest.oldest_daemon(), None, "take another migration for this test");
    let forget = format!("DELETE FROM relay.migrations WHERE version = {}", newest.version);
    database.client.batch_execute(&forget).await.unwrap();
    let told = refused(Path::new(BINARY), &["migrate"], &database.url);
    let named = format!("does not work with migration {} ({})", newest.version, newest.name);
    assert!(told.contains(&named) && told.contains("stop all daemons"), "{told}");
    let printed = async || {
        let error = database.client.batch_execute(&script).await.unwrap_err();
        database.client.batch_execute("ROLLBACK").await.unwrap();
        error.as_db_error().unwrap().message().to_owned()
    };
    let told = printed().await;
    assert!(told.contains("stop all daemons"), "{told}");

    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(0), "{}", relay.log());
    // Now it is applied, and meets what is there.
    let (_, _, stderr) = outcome(database.command(&["migrate"]));
    assert!(stderr.contains(&format!("applying migration {}", newest.version)), "{stderr}");
    let told = printed().await;
    assert!(told.contains("already exists"), "{told}");
}

#[tokio::test]
async fn inserts_go_on_while_migrate_waits_for_a_report() {
    let database = Database::new().await;
    let report = connect(&database.url).await;
    report.batch_execute("BEGIN; SELECT count(*) FROM relay.outbox").await.unwrap();
    let pid: i32 = report.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let mut command = program_at(next_release(), &["migrate"], &database.url);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let other = connect(&database.url).await;
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                 AND application_name = 'promptpal-relay command' AND now() > backend_start + interval '2 s')";
    let watched = async {
        while !other.query_one(waits, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let inserts = async {
        loop {
            database.events(1, 1).await;
        }
    };
    // An insert that waits for the report would wait for ever.
    let both = async {
        tokio::select! {
            () = watched => {}
            never = inserts => never,
        }
        database.events(1, 1).await;
    };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("the inserts go on");
    report.batch_execute("COMMIT").await.unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains(&format!("session {pid} (")), "{told}");
    let applied = format!("SELECT count(*) FROM relay.migrations WHERE version = {}", newest() + 1);
    assert_eq!(database.number(&applied).await, 1);
}

/// What the operator does, and what may go wrong meanwhile: daemons of both releases over the newer schema, each killed while the
/// other one takes over, and a step back.
#[tokio::test]
async fn two_daemons_are_replaced_one_after_the_other_under_load() {
    let releases = releases();
    let database = Database::empty().await;
    migrate(&releases.old, &database.url);
    let receiver = Receiver::start(load::answer);
    for (project, path) in [(1, "/a"), (2, "/b"), (2, "/c")] {
        database.webhook(project, &receiver.url(path)).await;
    }
    let start = |name: &str| {
        let path = if name.contains("old") { &releases.old } else { &releases.new };
        Relay::spawn_at(path, &database.url, &["--user-agent-version", name]).ready()
    };
    let (a, b) = (start("a1.old"), start("b1.old"));
    let writers = Writers::start(&database.url);
    writers.delivered(&database).await;

    migrate(&releases.new, &database.url);
    writers.delivered(&database).await;
    for relay in [&a, &b] {
        // No daemon noticed anything.
        assert_eq!((relay.reconnects(), relay.was_refused()), (0.0, false), "{}", relay.log());
    }
    terminate(&database, "%", SESSIONS).await;
    a.until_reconnected(1);
    b.until_reconnected(1);
    writers.delivered(&database).await;

    let mut killed = Vec::new();
    let mut kill = |relay: Relay, name| {
        relay.kill();
        killed.push(name);
    };
    // An old daemon takes over from an old one, from a new one, and a new one takes over from an old one.
    kill(a, "a1.old");
    writers.delivered(&database).await;
    let a = start("a2.new");
    writers.delivered(&database).await;
    kill(a, "a2.new");
    writers.delivered(&database).await;
    let a = start("a3.new");
    writers.delivered(&database).await;
    kill(b, "b1.old");
    writers.delivered(&database).await;
    // Both are new; then a step back, and forward again.
    for name in ["b2.new", "b3.old", "b4.new"] {
        let mut b = start(name);
        writers.delivered(&database).await;
        b.signal(Signal::SIGTERM);
        assert_eq!(b.wait().code(), Some(0), "{}", b.log());
    }
    writers.delivered(&database).await;
    let inserted = writers.stop();
    database.all_done().await;
    drop(a);
    let books = Books::of(&database, &receiver.requests()).await;
    books.require_right(inserted, &killed);
}
