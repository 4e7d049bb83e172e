//! The commands end with the documented exit codes, and each error is one clear line.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;

use crate::support::{Database, as_user, closed_port, outcome, program};

fn fails_with_one_line(arguments: &[&str], url: &str, code: i32, says: &str) {
    let (got, _, stderr) = outcome(program(arguments, url));
    assert_eq!(got, code, "{arguments:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    assert!(!stderr.contains("us3r") && !stderr.contains("s3cret"), "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("promptpal-relay: ") && stderr.contains(says), "{arguments:?}: {stderr}");
}

#[tokio::test]
async fn a_database_that_is_down_is_worth_a_restart() {
    let url = format!("postgres://nobody@127.0.0.1:{}/nothing", closed_port());
    for command in ["run", "migrate"] {
        fails_with_one_line(&[command], &url, 1, "refused");
    }
}

#[tokio::test]
async fn what_a_restart_does_not_change_is_told_by_78() {
    let database = Database::new().await;
    let nowhere = database.url.replace("promptpal_relay_test", "no_such_database");
    fails_with_one_line(&["run"], &nowhere, 78, "does not exist");
    // Where the server wants a password, the password is wrong.
    let nobody = as_user(&database.url, "no_such_role", "x");
    fails_with_one_line(&["run"], &nobody, 78, "\"no_such_role\"");
    fails_with_one_line(&["run"], "postgres://a?sslmode=sometimes", 78, "sslmode");
    fails_with_one_line(&["run", "--ca-file", "/no/such/file"], &database.url, 78, "/no/such/file");
    fails_with_one_line(&["run", "--bind-address", "192.0.2.1"], &database.url, 1, "192.0.2.1");
    fails_with_one_line(&["run", "--retain-calls", "1h"], &database.url, 78, "--retain-calls");
    fails_with_one_line(&["run", "--log-dir", "/proc/nowhere"], &database.url, 78, "--log-dir");
}

#[test]
fn bad_flags_are_usage() {
    for (arguments, says) in [
        (&["run", "--workers", "0"][..], "--workers"),
        (&["run", "--workers", "many"], "--workers"),
        (&["run", "--timeout", "ten"], "500ms"),
        (&["run", "--timeout", "0s"], "more than zero"),
        (&["run", "--max-response-body", "64 bananas"], "64KiB"),
        (&["run", "--allow-net", "10.0.0.0/33"], "10.0.0.0/8"),
        (&["run", "--user-agent-version", "1\r\nX: y"], "visible ASCII"),
        (&["run", "--after-crash", "panic"], "resend, record"),
        (&["run", "--bind-address", "eth0"], "192.0.2.10"),
        (&["run", "--bind-address", "0.0.0.0"], "192.0.2.10"),
        (&["run", "--bind-address", "127.0.0.1,127.0.0.2"], "one IPv4 and one IPv6 address at most"),
        (&["run", "--proxy", "proxy.example:3128"], "http://host:port"),
        (&["check", "--proxy", "https://us3r:s3cret@proxy.example:3128"], "http://host:port"),
        (&["run", "--proxy", "http://us3r:s3cret@proxy.example:3128/path"], "http://host:port"),
        (&["run", "--proxy", "http://us3r:s3cret@:3128"], "http://host:port"),
        (&["run", "--no-such-flag"], "--no-such-flag"),
        (&["send-test"], "--webhook <N>"),
        (&["replay", "--call", "1", "--webhook", "2"], "cannot be used with"),
        (&["fly"], "fly"),
    ] {
        fails_with_one_line(arguments, "", 2, says);
    }
    let (code, _, stderr) = outcome(program(&[], ""));
    assert!(code == 2 && stderr.contains("Usage:"), "{stderr}");
}

#[tokio::test]
async fn an_empty_variable_is_one_that_is_not_set() {
    let database = Database::new().await;
    let mut command = database.command(&["check"]);
    for flag in [
        "ALLOW_NET",
        "LOG_DIR",
        "TIMEOUT",
        "HTTPS_ONLY",
        "BIND_ADDRESS",
        "PROXY",
        "CA_FILE",
        "METRICS_LISTEN",
        "LOG_LEVEL",
        "DATABASE_URL",
        "DATABASE_URL_FILE",
        "USER_AGENT_VERSION",
    ] {
        command.env(format!("PROMPTPAL_RELAY_{flag}"), "");
    }
    let (code, stdout, stderr) = outcome(command);
    assert!(code == 0 && stdout.contains("timeout 10s"), "{stdout}{stderr}");
}

#[test]
fn help_and_version_go_to_standard_output() {
    let (code, stdout, _) = outcome(program(&["--version"], ""));
    assert_eq!((code, stdout), (0, format!("promptpal-relay {}\n", env!("CARGO_PKG_VERSION"))));
    let (code, stdout, _) = outcome(program(&["run", "--help"], "postgres://secret"));
    assert!(code == 0 && stdout.contains("--per-webhook") && !stdout.contains("secret"));
}

#[tokio::test]
async fn check_says_what_can_never_work() {
    let database = Database::new().await;
    let bad = database.webhook(1, "gopher://example.com/").await;
    let (code, stdout, stderr) = outcome(database.command(&["check"]));
    assert_eq!(code, 0, "a customer's mistake is no reason not to run: {stderr}");
    assert!(stdout.contains(&format!("{bad} can never work")), "{stdout}");
    for (trigger, line) in [("outbox_wake", "warning  wake-up"), ("outbox_valid", "warning  outbox")] {
        assert!(!stdout.contains(line), "{stdout}");
        let sql = format!("ALTER TABLE relay.outbox DISABLE TRIGGER {trigger}");
        database.client.batch_execute(&sql).await.unwrap();
        let (code, stdout, _) = outcome(database.command(&["check"]));
        assert!(code == 0 && stdout.contains(line), "{stdout}");
    }
}

/// A folder for temporary files, whose name has characters that mean something in a URL. The demo's Postgres may enter it
/// also when root runs the tests and it runs as another user.
fn folder_for_the_demo() -> TempDir {
    let temporary = tempfile::Builder::new().prefix("a%40@b").tempdir().unwrap();
    fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
    temporary
}

fn demo(arguments: &[&str], temporary: &TempDir) -> Command {
    let mut command = program(&[&["demo"], arguments].concat(), "");
    command.env_remove("DATABASE_URL").env("TMPDIR", temporary.path());
    command
}

fn nothing_is_left(temporary: &TempDir) {
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "a file is left");
    assert_eq!(processes(temporary), 0, "a process is left");
}

/// The processes that name the folder among their arguments.
fn processes(temporary: &TempDir) -> usize {
    let path = temporary.path().display().to_string();
    let named = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&path)
    });
    named.count()
}

#[test]
fn the_demo_shows_what_was_promised_and_leaves_nothing_behind() {
    let temporary = folder_for_the_demo();
    let (code, stdout, stderr) = outcome(demo(&[], &temporary));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("As promised") && stdout.contains("Nothing is left"), "{stdout}");
    nothing_is_left(&temporary);
}

#[tokio::test]
async fn the_demo_ends_in_order_whatever_the_terminal_sends_to_all_of_its_processes() {
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGKILL] {
        let temporary = folder_for_the_demo();
        let mut command = demo(&["--keep"], &temporary);
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.find_map(|line| {
            line.unwrap()
                .trim()
                .strip_prefix("psql 'postgres")
                .map(|rest| format!("postgres{}", rest.trim_end_matches('\'')))
        });
        // The demo's silent receiver has a call in hand.
        let database = Database::at(&url.unwrap()).await;
        database.events(123, 1).await;
        database
            .eventually(
                "SELECT EXISTS (SELECT FROM relay.outbox WHERE done_at IS NULL AND claimed_by IS NOT NULL)",
            )
            .await;
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap());
        killpg(group, signal).unwrap();
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        let output = child.wait_with_output().unwrap();
        if signal == Signal::SIGKILL {
            // Its folder stays; Postgres, which writes there, does not.
            let deadline = Instant::now() + Duration::from_secs(30);
            while processes(&temporary) > 0 {
                assert!(Instant::now() < deadline, "a process is left");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            continue;
        }
        assert!(
            output.status.success() && rest.iter().any(|line| line.contains("Nothing is left")),
            "{signal}: {rest:?} {output:?}"
        );
        nothing_is_left(&temporary);
    }
}

#[test]
fn a_folder_that_the_demos_postgres_may_not_enter_is_told() {
    if !Uid::effective().is_root() {
        // Postgres runs as ourselves.
        return;
    }
    let private = tempfile::tempdir().unwrap();
    fs::set_permissions(private.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let (code, _, stderr) = outcome(demo(&[], &private));
    assert!(
        code == 1 && stderr.contains("set TMPDIR to a folder") && stderr.lines().count() == 1,
        "{stderr}"
    );
}
