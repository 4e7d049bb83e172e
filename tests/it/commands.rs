//! Clear errors, one line each, and the exit codes.

use crate::support::{Database, closed_port, outcome, program};

fn fails_with_one_line(arguments: &[&str], url: &str, code: i32, says: &str) {
    let (got, _, stderr) = outcome(program(arguments, url));
    assert_eq!(got, code, "{arguments:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
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
    let nobody = database.url.replacen("postgres@", "no_such_role@", 1);
    fails_with_one_line(&["run"], &nobody, 78, "does not exist");
    fails_with_one_line(&["run"], "postgres://a?sslmode=sometimes", 78, "sslmode");
    fails_with_one_line(&["run", "--ca-file", "/no/such/file"], &database.url, 78, "/no/such/file");
    fails_with_one_line(&["run", "--retain-calls", "1h"], &database.url, 78, "--retain-calls");
    fails_with_one_line(&["run", "--log-dir", "/proc/nowhere"], &database.url, 78, "--log-dir");
}

#[test]
fn bad_flags_are_usage() {
    for arguments in [
        &["run", "--workers", "0"][..],
        &["run", "--workers", "many"],
        &["run", "--timeout", "ten"],
        &["run", "--timeout", "0s"],
        &["run", "--max-response-body", "64 bananas"],
        &["run", "--allow-net", "10.0.0.0/33"],
        &["run", "--user-agent-version", "1\r\nX: y"],
        &["fly"],
        &[],
    ] {
        let (code, _, stderr) = outcome(program(arguments, ""));
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
    }
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
    database.client.batch_execute("ALTER TABLE relay.outbox DISABLE TRIGGER outbox_wake").await.unwrap();
    let (code, stdout, _) = outcome(database.command(&["check"]));
    assert!(code == 0 && stdout.contains("warning  wake-up"), "{stdout}");
}
