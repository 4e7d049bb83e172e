//! Texts of strangers on a terminal: endpoints, applications and the database say what they like. None of it steers the
//! reader's terminal or forges a line of the journal.

use serde_json::Value;

use crate::support::scrape::until_unhealthy;
use crate::support::{Database, Receiver, Relay, Reply, outcome, program};

/// Clears the screen, deletes, begins a control sequence of one byte, turns the direction of writing, ends lines, hides.
pub const EVIL: &str = "a\u{1b}[2J\u{7f}\u{9b}31m\u{61c}\u{200e}\u{202e}b\u{2028}c\u{2029}d\u{2066}\u{feff}\u{e0041}\r\n<3>forged\te";

/// Asserts that a text has no character that steers a terminal or deceives a reader, but for the ends of its lines.
fn assert_harmless(what: &str, text: &str) {
    let harmful = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(u32::from(c), 0x61c | 0x200e | 0x200f | 0x2028..=0x202e | 0x2066..=0x2069 | 0xfeff | 0xe0000..=0xe007f)
    };
    assert!(!text.contains(harmful), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("<3>forged")), "{what}: {text:?}");
}

/// Runs a command, and asserts that its output is harmless on both streams.
fn harmless(database: &Database, arguments: &[&str]) -> (i32, String, String) {
    let (code, stdout, stderr) = outcome(database.command(arguments));
    assert_harmless(&format!("{arguments:?}"), &stdout);
    assert_harmless(&format!("{arguments:?}, standard error"), &stderr);
    (code, stdout, stderr)
}

#[tokio::test]
async fn what_strangers_wrote_never_steers_the_terminal_of_who_reads_it() {
    let database = Database::new().await;
    let receiver = Receiver::start(|request| {
        let status = if request.path() == "/good" { 200 } else { 500 };
        Reply::full(status, &[("X-Said", "\u{9b}2J\u{202e}\u{7f}")], EVIL.as_bytes())
    });
    let webhook = database.webhook(1, &receiver.url("/good")).await;
    database.webhook(1, &receiver.url("/bad\u{202e}")).await;
    database.webhook(2, &format!("gopher://{EVIL}/")).await;
    let relay = Relay::start(&database, &[]);
    let sql = "INSERT INTO relay.outbox (trace_id, project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
               SELECT $1, project_id, 1, $1, 0, 1, 1, 1 FROM generate_series(1, 2) AS project_id";
    database.client.execute(sql, &[&EVIL]).await.unwrap();
    database.all_done().await;
    // A host's name, a webhook's, and names of a DBA's.
    database.client.execute("UPDATE relay.webhooks SET name = $1", &[&EVIL]).await.unwrap();
    database.client.execute("UPDATE relay.instances SET host = $1", &[&EVIL]).await.unwrap();
    let names =
        format!("CREATE TABLE relay.\"{EVIL}\" (); CREATE PUBLICATION evil FOR TABLE relay.\"{EVIL}\"");
    database.client.batch_execute(&names).await.unwrap();

    for arguments in [
        &["calls", "--wide"][..],
        &["call", "1"],
        &["call", "1", "--json"],
        &["status"],
        &["status", "--color", "never"],
        &["check"],
        &["status", "--json"],
    ] {
        let (code, stdout, stderr) = harmless(&database, arguments);
        assert!(code == 0 && stdout.contains(r"\u202e"), "{arguments:?}: {stdout}{stderr}");
    }
    let (code, stdout, stderr) = harmless(&database, &["calls"]);
    assert!(code == 0 && stdout.contains(r"\u001b"), "{stdout}{stderr}");
    let (code, stdout, stderr) = harmless(&database, &["calls", "--json"]);
    assert_eq!((code, stdout.lines().count()), (0, 3), "{stderr}");
    let mut bodies = 0;
    for line in stdout.lines() {
        let call: Value = serde_json::from_str(line).unwrap();
        assert_eq!(call["trace_id"], EVIL, "JSON means the same as before");
        bodies += usize::from(call["response_body"] == EVIL);
    }
    assert_eq!(bodies, 2, "{stdout}");

    let test = ["send-test", "--webhook", &webhook.to_string()].map(String::from);
    let test: Vec<&str> = test.iter().map(String::as_str).collect();
    let (code, stdout, stderr) = harmless(&database, &[&test[..], &["--json"]].concat());
    let call: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &call["response_body"]), (0, &EVIL.into()), "{stderr}");
    assert_eq!(harmless(&database, &test).0, 0);
    drop(relay);

    // An error of Postgres' that a user's trigger words, as the last line on standard error.
    let sql = format!(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '%', E'{}'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON relay.outbox FOR EACH ROW EXECUTE FUNCTION public.refuse()",
        EVIL.replace('\r', "\\r").replace('\n', "\\n")
    );
    database.client.batch_execute(&sql).await.unwrap();
    let (code, _, stderr) = harmless(&database, &test);
    assert!(code == 1 && stderr.contains(r"\u202e") && stderr.lines().count() == 1, "{stderr}");
}

#[tokio::test]
async fn what_strangers_wrote_never_steers_the_reader_of_the_log_or_forges_a_line() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    // Two messages of each kind: said by a server (an interpolated message), and an error (a field).
    let sql = format!(
        "CREATE FUNCTION public.say() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE WARNING '%', E'{0}'; RAISE EXCEPTION '%', E'{0}' USING ERRCODE = '55000'; END $$;
         CREATE TRIGGER say BEFORE INSERT ON relay.webhook_calls FOR EACH ROW EXECUTE FUNCTION public.say()",
        EVIL.replace('\r', "\\r").replace('\n', "\\n")
    );
    database.client.batch_execute(&sql).await.unwrap();
    for format in ["text", "json"] {
        let relay = Relay::start(&database, &["--log-format", format]);
        database.events(1, 1).await;
        // The warning, and the error that follows it.
        relay.until_written(2, r"\u202eb\u2028");
        let log = relay.log();
        assert_harmless(format, &log);
        if format == "json" {
            let (whole, _) = log.rsplit_once('\n').unwrap();
            let is_json = |line: &str| serde_json::from_str::<Value>(line).is_ok();
            assert!(whole.lines().all(is_json), "{log}");
            let has =
                |line: &Value, name: &str| line[name].as_str().is_some_and(|text| text.contains('\u{202e}'));
            relay.until_told("the warning as it was", |line| has(line, "message"));
            relay.until_told("the error as it was", |line| has(line, "error"));
            assert_harmless("/healthz", &until_unhealthy(relay.port(), |why| why.contains(r"\u202eb\u2028")));
        }
    }
}

#[test]
fn an_argument_is_repeated_as_harmlessly() {
    let (code, _, stderr) = outcome(program(&["fly\u{1b}[2J\u{202e}"], ""));
    assert!(code == 2 && stderr.contains(r"\u202e"), "{stderr:?}");
    assert_harmless("an argument", &stderr);
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join(EVIL.trim_end());
    let (code, _, stderr) =
        outcome(program(&["check", "--database-url-file", missing.to_str().unwrap()], ""));
    assert!(code == 78 && stderr.contains(r"\u202e"), "{stderr:?}");
    assert_harmless("a path", &stderr);
}
