//! The operators' commands: status, calls, replay and send-test, each as a user with the role that it is meant for.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use promptpal_relay::inside::demo::Cluster;
use serde_json::Value;

use crate::support::{
    Clock, Database, Receiver, Relay, Reply, Terminal, as_user, connect, memory_peak, outcome,
};

/// The program as a new login that is a member of these roles and no superuser.
async fn as_member(database: &Database, roles: &str, arguments: &[&str]) -> Command {
    let name = database
        .url
        .rsplit_once('/')
        .unwrap()
        .1
        .split('?')
        .next()
        .unwrap()
        .replace("promptpal_relay", "login");
    let name = format!("{name}_{}", roles.replace([',', ' '], ""));
    let exists = format!("SELECT count(*) FROM pg_roles WHERE rolname = '{name}'");
    if database.number(&exists).await == 0 {
        database
            .client
            .batch_execute(&format!("CREATE ROLE {name} LOGIN PASSWORD 'x' IN ROLE {roles}"))
            .await
            .unwrap();
    }
    let mut command = database.command(arguments);
    command.env("DATABASE_URL", as_user(&database.url, &name, "x"));
    command
}

/// Removes the logins of this database.
async fn drop_logins(database: &Database) {
    let name = database
        .url
        .rsplit_once('/')
        .unwrap()
        .1
        .split('?')
        .next()
        .unwrap()
        .replace("promptpal_relay", "login");
    let sql = "SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, $1)";
    for row in database.client.query(sql, &[&format!("{name}_")]).await.unwrap() {
        database.client.batch_execute(&format!("DROP ROLE {}", row.get::<_, String>(0))).await.unwrap();
    }
}

/// A database with a call that succeeded and one that did not, and the relay that made them.
async fn lively() -> (Database, Receiver, Relay) {
    let database = Database::new().await;
    let receiver = Receiver::start(|request| match request.path() {
        "/bad" => Reply::status(503),
        _ => Reply::status(200),
    });
    database.webhook(1, &receiver.url("/good")).await;
    database.webhook(2, &receiver.url("/bad")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    database.events(2, 1).await;
    database.all_done().await;
    (database, receiver, relay)
}

#[tokio::test]
async fn status_tells_who_runs_what_waits_and_who_fails() {
    let (database, _receiver, relay) = lively().await;
    let (code, out, err) = outcome(as_member(&database, "relay_reader", &["status"]).await);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for line in [
        "✓ database     ",
        "✓ instances    1 instance runs\n",
        "✓ waiting      0 rows wait for their calls, or have them under way\n",
        "✓ parked       0 rows wait for a slot at slow webhooks\n",
        "  in hand      0 rows are in hand of instances\n",
        "  calls        2 in the last 5 minutes, of which 1 failed\n",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    assert!(out.contains("http_status: status 503") && out.contains("2 test"), "{out}");
    assert!(!out.contains('\x1b'), "{out}");
    let (code, out, _) = outcome(as_member(&database, "relay_reader", &["status", "--json"]).await);
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, out.lines().count()), (0, 1));
    assert_eq!(status["instances"][0]["pid"], relay.pid().as_raw());
    assert_eq!(status["webhooks"][0]["failures"], 1);
    relay.kill();
    // The killed relay's row says that it lives: no peer has looked at it.
    database.events(7, 3).await;
    database
        .eventually(
            "SELECT count(*) = 0 FROM pg_locks l JOIN pg_database d ON d.oid = l.database
             WHERE l.locktype = 'advisory' AND objsubid = 1 AND d.datname = current_database()",
        )
        .await;
    let (code, out, err) = outcome(as_member(&database, "relay_reader", &["status"]).await);
    assert_eq!(code, 1);
    assert!(
        out.contains("✗ instances    no instance runs") && err.contains("no instance runs"),
        "{out}{err}"
    );
    assert!(
        out.contains("3 rows wait for their calls") && out.contains("; the oldest was inserted "),
        "{out}"
    );
    drop_logins(&database).await;
}

#[tokio::test]
async fn status_has_colours_where_they_are_wanted() {
    let (database, _receiver, _relay) = lively().await;
    let coloured = |arguments: &[&str], no_color: &str| {
        let mut command = database.command(&[&["status"], arguments].concat());
        command.env("NO_COLOR", no_color).env("TERM", "xterm");
        let (code, out, err) = outcome(command);
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        assert_eq!(out.contains("\x1b[32m✓\x1b[0m database"), out.contains('\x1b'), "{out:?}");
        out.contains('\x1b')
    };
    // Standard output is a pipe, as under watch.
    assert!(!coloured(&[], ""));
    assert!(coloured(&["--color", "always"], ""));
    assert!(coloured(&["--color", "always"], "1"), "the flag is typed, the variable is not");
    assert!(!coloured(&["--color", "never"], ""));
    assert!(!coloured(&["--color", "always", "--json"], ""), "JSON has none");
}

#[tokio::test]
async fn call_shows_one_call_whole_and_what_repeats_it() {
    let (database, _receiver, relay) = lively().await;
    let failed = database.number("SELECT id FROM relay.webhook_calls WHERE webhook_id = 2").await;
    let call = async |arguments: &[&str]| {
        let (code, out, err) =
            outcome(as_member(&database, "relay_reader", &[&["call"], arguments].concat()).await);
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        out
    };
    let out = call(&[&failed.to_string()]).await;
    for part in [
        &format!("  call         {failed}\n"),
        "✗ outcome      503 after ",
        "  message      status 503\n",
        "  webhook      2 test, of project 2\n",
        "/bad\n",
        "  repeats      no call\n",
        "  repeated by  no call\n",
        "  user-agent: PromptPal-Webhook@",
        "\"event\":\"onPromptFinished\"",
        "\nAnswer, 21 bytes of body\n",
        "  {\"status\":\"received\"}\n",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
    // One that has repeated it, and one that is about to.
    database.client.execute("SELECT relay.replay($1)", &[&failed]).await.unwrap();
    database.all_done().await;
    relay.kill();
    database.client.execute("SELECT relay.replay($1)", &[&failed]).await.unwrap();
    let row = database.number("SELECT max(id) FROM relay.outbox").await;
    let repeat = database.number("SELECT max(id) FROM relay.webhook_calls").await;
    let out = call(&[&failed.to_string()]).await;
    assert!(out.contains(&format!("  repeated by  call {repeat} (503) at ")), "{out}");
    assert!(out.contains(&format!("  repeated by  outbox row {row}, which is not done yet")), "{out}");
    let out = call(&[&repeat.to_string()]).await;
    assert!(out.contains(&format!("  repeats      call {failed} (503)\n")), "{out}");
    let json: Value = serde_json::from_str(&call(&[&failed.to_string(), "--json"]).await).unwrap();
    assert_eq!((&json["id"], &json["webhook_name"]), (&failed.into(), &"test".into()));
    assert_eq!(json["repeated_by"][0]["id"], repeat);
    assert_eq!(json["pending_rows"], serde_json::json!([row]));
    // The log has the call no more that it repeats.
    let gone = format!("DELETE FROM relay.webhook_calls WHERE id = {failed}");
    database.client.batch_execute(&gone).await.unwrap();
    let out = call(&[&repeat.to_string()]).await;
    assert!(out.contains(&format!("call {failed}, which the log has no more")), "{out}");
    let (code, _, err) = outcome(database.command(&["call", &failed.to_string()]));
    assert!(code == 1 && err.contains("there is no call") && err.lines().count() == 1, "{err}");
    let (code, _, err) = outcome(as_member(&database, "relay_app", &["call", "1"]).await);
    assert!(code == 78 && err.contains("a member of relay_reader"), "{err}");
    drop_logins(&database).await;
}

#[tokio::test]
async fn a_webhook_that_cannot_be_read_keeps_nobody_from_the_log() {
    let (database, _receiver, _relay) = lively().await;
    let shown = async || {
        let calls = outcome(as_member(&database, "relay_reader", &["calls"]).await);
        let status = outcome(as_member(&database, "relay_reader", &["status"]).await);
        assert_eq!((calls.0, status.0), (0, 0), "{calls:?} {status:?}");
        calls.1 + &status.1
    };
    assert!(shown().await.contains("2 test"));
    // Another session changes the table, and has not committed.
    let other = connect(&database.url).await;
    other.batch_execute("BEGIN; LOCK TABLE relay.webhooks IN ACCESS EXCLUSIVE MODE").await.unwrap();
    assert!(!shown().await.contains("2 test"));
    other.batch_execute("ROLLBACK").await.unwrap();
    assert!(shown().await.contains("2 test"));
    drop_logins(&database).await;
}

#[tokio::test]
async fn status_at_a_standby_says_that_it_cannot_know_who_runs() {
    let mut primary = Cluster::start(&[]).unwrap();
    let standby = crate::standby::standby_of(&mut primary);
    let database = Database::on(&primary.url("postgres")).await;
    let receiver = Receiver::start(|_| Reply::Never);
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    let there = Database::at(&format!("{}?target_session_attrs=any", standby.url("postgres"))).await;
    // The claim is not flushed at once.
    there.eventually("SELECT to_regclass('relay.outbox') IS NOT NULL").await;
    there.eventually("SELECT count(claimed_by) = 1 FROM relay.outbox").await;
    let (code, out, err) = outcome(there.command(&["status"]));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(
        out.contains("1 row waits for its calls") && out.contains("1 row is in hand of an instance"),
        "{out}"
    );
    assert!(out.contains("this is a standby") && out.contains(&relay.pid().to_string()), "{out}");
    let (code, out, err) = outcome(there.command(&["status", "--json"]));
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &status["standby"], status["pending"].as_i64()),
        (0, &Value::Bool(true), Some(1)),
        "{err}"
    );
    // The log is there, too.
    let (code, _, err) = outcome(there.command(&["calls"]));
    assert_eq!((code, err.as_str()), (0, ""));
    let (code, out, _) = outcome(database.command(&["status", "--json"]));
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &status["standby"]), (0, &Value::Bool(false)));
}

#[tokio::test]
async fn calls_lists_the_log_newest_first() {
    let (database, _receiver, _relay) = lively().await;
    // This call, two hours ago, has text that would steer the reader's terminal.
    let sql = "INSERT INTO relay.webhook_calls (outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body,
                   response_bytes, response_truncated, start_time, end_time, is_timeout, error_message, error_kind, succeeded,
                   repeated, user_agent, ip, event_id)
               VALUES (1, 9, 9, 'trace', 'http://a.example', '{}', '{}', 0, false, now() - interval '2 hours',
                   now() - interval '2 hours', false, E'bad \\x1b[2J', 'connect', false, true, '', '', gen_random_uuid())";
    database.client.batch_execute(sql).await.unwrap();
    let calls = async |arguments: &[&str]| {
        let arguments = [&["calls"], arguments].concat();
        let (code, out, err) = outcome(as_member(&database, "relay_reader", &arguments).await);
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        out
    };
    let all = calls(&[]).await;
    let lines: Vec<&str> = all.lines().collect();
    assert_eq!(lines.len(), 3, "{all}");
    assert!(lines[0].starts_with("TIME ") && all.contains("  503       status 503"), "{all}");
    assert!(all.contains("  2 test  "), "{all}");
    assert_eq!(calls(&["--failed"]).await.lines().count(), 2);
    let old = calls(&["--since", "3h", "--webhook", "9"]).await;
    assert!(old.contains(r"connect   repeated; bad \u001b[2J") && !old.contains('\x1b'), "{old}");
    let wide = calls(&["--since", "3h", "--webhook", "9", "--wide"]).await;
    for part in ["PROJECT", "connect repeated", r"bad \u001b[2J", " trace ", "http://a.example"] {
        assert!(wide.contains(part), "{part}\n{wide}");
    }
    let none = calls(&["--since", "1m", "--webhook", "9", "--failed"]).await;
    assert!(none.starts_with("no failed calls of webhook 9 since 2") && none.lines().count() == 1, "{none}");
    assert_eq!(calls(&["--since", "1m", "--webhook", "9", "--json"]).await, "", "JSON has no such line");
    assert_eq!(calls(&["--since", "3h", "--limit", "2"]).await.lines().count(), 3);
    let json = calls(&["--json", "--failed", "--since", "1d"]).await;
    let json: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json[0]["status_code"], 503);
    assert_eq!(json[1]["error_message"], "bad \x1b[2J");
    assert_eq!(json[0].as_object().unwrap().len(), 26);
    let (code, _, err) = outcome(database.command(&["calls", "--since", "yesterday"]));
    assert!(code == 2 && err.contains("write how long ago"), "{err}");
    drop_logins(&database).await;
}

#[tokio::test]
async fn calls_follows_the_log_and_comes_back_after_a_lost_connection() {
    let (database, _receiver, _relay) = lively().await;
    let mut command = database.command(&["calls", "--follow", "--json", "--limit", "1"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    // Only the newest of the old ones.
    let first = next();
    database.events(2, 1).await;
    let second = next();
    assert_eq!(second["webhook_id"], 2);
    assert!(second["id"].as_i64() > first["id"].as_i64());
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'promptpal-relay command'
               AND datname = current_database()";
    database.client.batch_execute(sql).await.unwrap();
    database.events(1, 1).await;
    assert_eq!(next()["webhook_id"], 1);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn calls_follows_the_log_without_a_gap_however_many_calls_come_at_once() {
    let (database, _receiver, _relay) = lively().await;
    // The slow ones began long before the others that are recorded with them.
    let record = async |first: i64, last: i64| {
        let sql = format!(
            "INSERT INTO relay.webhook_calls (outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body,
                 response_bytes, response_truncated, start_time, end_time, is_timeout, succeeded, repeated, user_agent, ip, event_id)
             SELECT n, 9, 9, '', '', '{{}}', '', 0, false, now() - CASE WHEN n % 100 = 0 THEN 60 ELSE 0 END * interval '1 s',
                 now(), false, true, false, '', '', gen_random_uuid()
               FROM generate_series({first}, {last}) AS n"
        );
        database.client.batch_execute(&sql).await.unwrap();
    };
    record(0, 0).await;
    let mut command = database.command(&["calls", "--follow", "--json", "--webhook", "9"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut rows = lines
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["outbox_id"].as_i64().unwrap());
    // It follows.
    assert_eq!(rows.next(), Some(0));
    record(1, 25_000).await;
    let reader = std::thread::spawn(move || rows.take(25_000).collect::<BTreeSet<_>>());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !reader.is_finished() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    child.wait().unwrap();
    assert_eq!(reader.join().unwrap().len(), 25_000);
}

/// Records calls that answered with so many bytes, and that began so long ago.
async fn record_calls(database: &Database, webhook_id: i64, count: i64, bytes: i64, ago: &str) {
    let sql = format!(
        "INSERT INTO relay.webhook_calls (outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body,
             response_body, response_bytes, response_truncated, start_time, end_time, is_timeout, succeeded, repeated,
             user_agent, ip, event_id)
         SELECT n, {webhook_id}, 9, '', '', '{{}}', '', repeat('x', {bytes}), {bytes}, false, now() - interval '{ago}', now(),
                false, true, false, '', '', gen_random_uuid()
           FROM generate_series(1, {count}) AS n"
    );
    database.client.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn calls_has_few_of_them_in_memory_however_large_they_are() {
    let database = Database::new().await;
    record_calls(&database, 9, 2000, 64 * 1024, "1 second").await;
    for arguments in
        [&["calls", "--json", "--limit", "2000"][..], &["calls", "--json", "--follow", "--limit", "2000"]]
    {
        let mut command = database.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // It waits for us to read the rest.
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().take(1900);
        let mut ids: Vec<i64> = lines
            .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["id"].as_i64().unwrap())
            .collect();
        let peak = memory_peak(Pid::from_raw(i32::try_from(child.id()).unwrap())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        if !arguments.contains(&"--follow") {
            ids.reverse();
        }
        assert!(ids.len() == 1900 && ids.is_sorted(), "{arguments:?}");
        assert!(peak < 64 * 1024 * 1024, "{arguments:?}: {peak}");
    }
}

#[tokio::test]
async fn calls_follows_with_what_is_recorded_whenever_it_began() {
    let database = Database::new().await;
    record_calls(&database, 1, 1, 0, "2 days").await;
    record_calls(&database, 2, 1, 0, "1 minute").await;
    let mut command = database.command(&["calls", "--follow", "--json", "--since", "1h"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut webhooks = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["webhook_id"].as_i64().unwrap());
    assert_eq!(webhooks.next(), Some(2));
    let reader = std::thread::spawn(move || webhooks.take(2).collect::<Vec<_>>());
    record_calls(&database, 3, 1, 0, "3 days").await;
    record_calls(&database, 4, 1, 0, "0 s").await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !reader.is_finished() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(reader.join().unwrap(), [3, 4]);
}

#[tokio::test]
async fn a_clock_that_is_wrong_where_a_command_is_typed_changes_nothing() {
    let (database, _receiver, _relay) = lively().await;
    let clock = Clock::new();
    for ahead in [3 * 3600, -3 * 3600] {
        let typed = |arguments: &[&str]| {
            let mut command = database.command(arguments);
            clock.ahead(&mut command, ahead);
            outcome(command)
        };
        let (code, out, err) = typed(&["calls", "--failed"]);
        assert!(code == 0 && out.lines().count() == 2, "{ahead}: {out}{err}");
        for span in [&["--since", "10m"][..], &["--since", "10m", "--until", "1ms"]] {
            let replay = [&["replay", "--webhook", "2", "--failed", "--dry-run"], span].concat();
            assert_eq!(typed(&replay), (0, "1 calls would be repeated\n".into(), String::new()), "{ahead}");
        }
        let (code, out, err) = typed(&["send-test", "--webhook", "1"]);
        assert!(code == 0 && out.contains(" 200 after "), "{ahead}: {out}{err}");
        let mut command = database.command(&["calls", "--follow", "--limit", "1", "--json"]);
        clock.ahead(&mut command, ahead);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.next().unwrap().unwrap();
        database.events(1, 1).await;
        lines.next().unwrap().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[tokio::test]
async fn nobody_reads_any_more_and_it_ends_quietly() {
    let (database, _receiver, _relay) = lively().await;
    let mut command = database.command(&["calls", "--follow"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("TIME"));
    drop(lines);
    database.events(1, 1).await;
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[tokio::test]
async fn replay_repeats_the_failed_calls_of_a_webhook_once_it_is_told_to() {
    let (database, receiver, _relay) = lively().await;
    database.events(2, 2).await;
    database.all_done().await;
    receiver.wait_for(4);
    let replay = async |arguments: &[&str]| {
        let arguments = [&["replay"], arguments].concat();
        outcome(as_member(&database, "relay_app, relay_reader", &arguments).await)
    };
    let failures = ["--webhook", "2", "--since", "1h", "--failed"];
    let (code, out, err) = replay(&[&failures[..], &["--dry-run"]].concat()).await;
    assert_eq!((code, out.as_str()), (0, "3 calls would be repeated\n"), "{err}");
    // There is no terminal on which the command could ask.
    let (code, _, err) = replay(&failures).await;
    assert!(code == 2 && err.contains("--yes"), "{err}");
    receiver.wait_for(4);
    let (code, out, err) = replay(&[&failures[..], &["--yes", "--rate", "20"]].concat()).await;
    assert_eq!((code, out.as_str()), (0, "3 calls are repeated\n"), "{err}");
    database.all_done().await;
    assert_eq!(
        database
            .number("SELECT count(*) FROM relay.outbox WHERE replay_of IS NOT NULL AND webhook_id = 2")
            .await,
        3
    );
    assert_eq!(receiver.wait_for(7).iter().filter(|request| request.path() == "/bad").count(), 6);
    let (code, out, _) = replay(&["--webhook", "2", "--since", "1h", "--until", "30m"]).await;
    assert_eq!((code, out.as_str()), (0, "0 calls would be repeated\n"));
    let call = database.number("SELECT min(id) FROM relay.webhook_calls WHERE webhook_id = 1").await;
    let (code, out, err) = replay(&["--call", &call.to_string()]).await;
    assert!(code == 0 && out.contains("repeats the call"), "{out}{err}");
    receiver.wait_for(8);
    let (code, _, err) = replay(&["--call", "999999"]).await;
    assert!(code == 1 && err.contains("there is no call 999999"), "{err}");
    for usage in
        [&["--webhook", "2"][..], &[], &["--call", "1", "--failed"], &["--call", "1", "--webhook", "2"]]
    {
        assert_eq!(replay(usage).await.0, 2, "{usage:?}");
    }
    drop_logins(&database).await;
}

#[tokio::test]
async fn replay_waits_for_what_comes_of_it() {
    let database = Database::new().await;
    let mended = Arc::new(AtomicBool::new(false));
    let works = mended.clone();
    let receiver = Receiver::start(move |request| {
        Reply::status(if request.path() == "/good" || works.load(Ordering::SeqCst) { 200 } else { 503 })
    });
    database.webhook(1, &receiver.url("/good")).await;
    database.webhook(2, &receiver.url("/bad")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 2).await;
    database.events(2, 3).await;
    database.all_done().await;
    let replay = async |roles: &str, arguments: &[&str]| {
        let arguments = [&["replay", "--yes"], arguments].concat();
        outcome(as_member(&database, roles, &arguments).await)
    };
    let both = "relay_app, relay_reader";
    let (code, out, err) = replay(both, &["--webhook", "1", "--since", "1h", "--wait"]).await;
    assert_eq!((code, out.as_str()), (0, "2 calls are repeated\n2 of 2 calls succeeded\n"), "{err}");
    let failed = ["--webhook", "2", "--since", "1h", "--failed", "--wait=1m"];
    let (code, out, err) = replay(both, &failed).await;
    let told = "3 calls are repeated\n0 of 3 calls succeeded; 3 failed (http_status 3)\n";
    assert_eq!((code, out.as_str()), (1, told), "{err}");
    assert!(err.contains("3 calls did not succeed"), "{err}");
    mended.store(true, Ordering::SeqCst);
    let (code, out, err) = replay(both, &failed).await;
    assert_eq!((code, out.as_str()), (0, "3 calls are repeated\n3 of 3 calls succeeded\n"), "{err}");
    let call = database.number("SELECT min(id) FROM relay.webhook_calls").await.to_string();
    let (code, out, err) = replay(both, &["--call", &call, "--wait"]).await;
    assert!(code == 0 && out.ends_with("1 of 1 calls succeeded\n"), "{out}{err}");
    // A login that could not see what comes of it inserts nothing. This one may read all else that is asked before.
    let sql = "GRANT SELECT ON relay.installation TO relay_app; GRANT EXECUTE ON FUNCTION relay.is_copy() TO relay_app";
    database.client.batch_execute(sql).await.unwrap();
    let rows = database.number("SELECT count(*) FROM relay.outbox").await;
    let (code, _, err) = replay("relay_app", &["--call", &call, "--wait"]).await;
    assert!(code == 78 && err.contains("a member of relay_reader and of relay_app"), "{err}");
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox").await, rows);
    relay.kill();
    let (code, out, err) = replay(both, &["--call", &call, "--wait=100ms"]).await;
    assert!(code == 1 && out.contains("0 of 1 calls succeeded; 1 are not made yet"), "{out}{err}");
    assert!(err.contains("1 rows are not done yet"), "{err}");
    let (code, _, err) = replay(both, &["--webhook", "1", "--since", "1h", "--wait", "--dry-run"]).await;
    assert!(code == 2 && err.contains("--dry-run"), "{err}");
    drop_logins(&database).await;
}

#[tokio::test]
async fn long_commands_have_a_bar_on_a_terminal_and_lines_in_a_log() {
    let empty = Database::empty().await;
    let mut terminal = Terminal::start(&empty.command(&["migrate"]), 120, 40);
    assert!(terminal.ends().success());
    let screen = terminal.until_shown("migrations=13");
    assert!(!screen.contains(" of 13 migrations"), "the bar is gone\n{screen}");
    assert!(String::from_utf8_lossy(&terminal.written()).contains(" of 13 migrations, "));
    let (database, _receiver, _relay) = lively().await;
    database.events(1, 59).await;
    database.all_done().await;
    let replay = ["replay", "--webhook", "1", "--since", "1h", "--yes", "--rate", "20"];
    let mut terminal = Terminal::start(&database.command(&replay), 120, 24);
    let screen = terminal.until_shown(" of 60 calls, ");
    assert!(screen.contains("/s, ") && screen.contains(" left"), "{screen}");
    assert!(terminal.ends().success());
    let screen = terminal.until_shown("60 calls are repeated");
    assert!(!screen.contains(" left"), "the bar is gone\n{screen}");
    database.all_done().await;
    // 120 calls at 20 a second take six seconds; a line comes after two.
    let (code, out, err) = outcome(database.command(&replay));
    assert_eq!((code, out.as_str()), (0, "120 calls are repeated\n"), "{err}");
    assert!(err.contains(" of 120 calls, ") && err.contains("/s, ") && err.contains(" left\n"), "{err}");
    assert!(!err.contains(['\r', '\x1b']), "{err:?}");
}

#[tokio::test]
async fn failed_calls_are_repeated_once_however_often_and_by_how_many_at_once() {
    let database = Database::new().await;
    let mended = Arc::new(AtomicBool::new(false));
    let works = mended.clone();
    let receiver =
        Receiver::start(move |_| Reply::status(if works.load(Ordering::SeqCst) { 200 } else { 503 }));
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 5).await;
    database.all_done().await;
    let replay = ["replay", "--webhook", "1", "--since", "1h", "--failed", "--yes"];
    // The repeats fail, too: each event is open once.
    let (code, out, err) = outcome(database.command(&replay));
    assert_eq!((code, out.as_str()), (0, "5 calls are repeated\n"), "{err}");
    database.all_done().await;
    assert_eq!(database.number("SELECT count(*) FROM relay.open_failures").await, 5);
    mended.store(true, Ordering::SeqCst);
    drop(relay);
    // Two at once, and each of them twice, while nothing is delivered.
    let both: Vec<_> = (0..2)
        .map(|_| {
            let mut commands = [database.command(&replay), database.command(&replay)].into_iter();
            std::thread::spawn(move || {
                commands.by_ref().map(|command| outcome(command).0).collect::<Vec<_>>()
            })
        })
        .collect();
    for run in both {
        assert_eq!(run.join().unwrap(), [0, 0]);
    }
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox WHERE done_at IS NULL").await, 5);
    assert_eq!(database.number("SELECT count(*) FROM relay.open_failures").await, 0, "they are pending");
    let _relay = Relay::start(&database, &[]);
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 15);
    // The outbox forgets, the log does not.
    database.client.batch_execute("DELETE FROM relay.outbox").await.unwrap();
    let (code, out, err) = outcome(database.command(&replay));
    assert_eq!((code, out.as_str()), (0, "0 calls would be repeated\n"), "{err}");
    let again = "SELECT count(*) FROM relay.replay_failed(ARRAY(SELECT id FROM relay.webhook_calls))";
    assert_eq!(database.number(again).await, 0);
    let isolated = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {again}");
    assert!(database.client.batch_execute(&isolated).await.is_err(), "it could not see what is committed");
}

#[tokio::test]
async fn two_that_repeat_the_same_failures_at_once_repeat_each_once() {
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::status(503));
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 3).await;
    database.all_done().await;
    drop(relay);
    let again = "SELECT count(*) FROM relay.replay_failed(ARRAY(SELECT call_id FROM relay.open_failures))";
    let (first, second) = (connect(&database.url).await, connect(&database.url).await);
    first.batch_execute("BEGIN").await.unwrap();
    assert_eq!(first.query_one(again, &[]).await.unwrap().get::<_, i64>(0), 3);
    assert_eq!(
        second.query_one(again, &[]).await.unwrap().get::<_, i64>(0),
        0,
        "it does not wait, and repeats none"
    );
    first.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(second.query_one(again, &[]).await.unwrap().get::<_, i64>(0), 3, "nothing was repeated");
}

/// A database whose webhook 1 has open failures of projects 1 (`ids` 1 to `old`) and 2 (the following ones), without a relay.
async fn with_open_failures(old: i64, new: i64) -> Database {
    let database = Database::new().await;
    database.webhook(2, "http://a.example/").await;
    record_failures(&database, 1, old, "1 hour").await;
    record_failures(&database, 2, new, "1 minute").await;
    database
}

/// Puts failed calls of webhook 1 into the log.
async fn record_failures(database: &Database, project_id: i64, count: i64, ago: &str) {
    let sql = format!(
        "INSERT INTO relay.webhook_calls (outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body,
             response_bytes, response_truncated, start_time, end_time, is_timeout, error_kind, succeeded, repeated,
             user_agent, ip, event_id)
         SELECT n, 1, {project_id}, '', '', '{{}}',
                '{{\"event\":\"onPromptFinished\",\"projectId\":1,\"promptId\":1,\"userId\":\"u\",\"result\":0,\"timestamp\":\"2026-01-01T00:00:00Z\",\"duration\":1,\"tokens\":{{\"prompt\":1,\"completion\":1,\"total\":2}},\"cached\":false,\"ip\":\"\",\"userAgent\":\"\"}}',
                0, false, now() - interval '{ago}', now(), false, 'connect', false, false, '', '', gen_random_uuid()
           FROM generate_series(1, {count}) AS n"
    );
    database.client.batch_execute(&sql).await.unwrap();
}

const REPLAY_FAILED: [&str; 7] = ["replay", "--webhook", "1", "--since", "2h", "--failed", "--yes"];
const OPEN: &str = "SELECT count(*) FROM relay.open_failures";
const REPLAYS: &str = "SELECT count(*) FROM relay.outbox WHERE replay_of IS NOT NULL";

#[tokio::test]
async fn calls_that_cannot_be_repeated_do_not_stop_the_others_and_are_told() {
    let database = with_open_failures(3, 2).await;
    let by_function = async || {
        let sql = "BEGIN; SELECT count(*) FROM relay.replay_failed(ARRAY(SELECT call_id FROM relay.open_failures ORDER BY 1)); ROLLBACK";
        database.client.batch_execute(sql).await
    };
    by_function().await.unwrap();
    let (code, out, err) = outcome(database.command(&REPLAY_FAILED));
    let left_out = "3 calls are left out: webhook 1 is of another project now";
    assert!(code == 0 && out == "2 calls are repeated\n" && err.trim() == left_out, "{code} {out}{err}");
    assert_eq!(database.number(REPLAYS).await, 2);
    // Nothing mends those of the other project, so a timer goes on being content.
    for more in [&[][..], &["--dry-run"]] {
        let (code, out, err) = outcome(database.command(&[&REPLAY_FAILED[..], more].concat()));
        assert!(
            code == 0 && out == "0 calls would be repeated\n" && err.trim() == left_out,
            "{code} {out}{err}"
        );
    }
    assert_eq!(database.number(OPEN).await, 3, "they are open");
    record_failures(&database, 2, 1, "1 minute").await;
    for change in ["UPDATE relay.webhooks SET enabled = false", "DELETE FROM relay.webhooks"] {
        database.client.batch_execute(change).await.unwrap();
        by_function().await.unwrap();
        let (code, _, err) = outcome(database.command(&REPLAY_FAILED));
        let says = "4 calls are left out: webhook 1 is gone or disabled";
        assert!(code == 1 && err.contains(says), "{change}: {code} {err}");
    }
    assert_eq!((database.number(OPEN).await, database.number(REPLAYS).await), (4, 2));
}

#[tokio::test]
async fn a_stranger_who_holds_advisory_locks_stops_no_replay_and_another_session_is_told() {
    let database = with_open_failures(0, 3).await;
    let stranger = connect(&database.url).await;
    let sql = "SELECT pg_advisory_lock(1886415990, hashtext(event_id::text || webhook_id)) FROM relay.webhook_calls";
    stranger.batch_execute(sql).await.unwrap();
    let all = "SELECT count(*) FROM relay.replay_failed(ARRAY(SELECT call_id FROM relay.open_failures))";
    database.client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(database.number(all).await, 3, "the stranger is in the way");
    database.client.batch_execute("ROLLBACK").await.unwrap();
    let member = "CREATE ROLE member; GRANT relay_app, relay_reader, relay_daemon TO member";
    stranger.batch_execute(&format!("BEGIN; {member}; SET LOCAL ROLE member")).await.unwrap();
    for attempt in ["SELECT FROM relay.replays FOR UPDATE", "LOCK TABLE relay.replays IN EXCLUSIVE MODE"] {
        stranger.batch_execute("SAVEPOINT attempt").await.unwrap();
        let refused = stranger.batch_execute(attempt).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{attempt}: {refused:?}");
        stranger.batch_execute("ROLLBACK TO attempt").await.unwrap();
    }
    stranger.batch_execute("ROLLBACK").await.unwrap();
    // Another session repeats one of them and does not commit.
    let other = connect(&database.url).await;
    let one = "BEGIN; SELECT relay.replay_failed(ARRAY(SELECT call_id FROM relay.open_failures LIMIT 1))";
    other.batch_execute(one).await.unwrap();
    let (code, out, err) = outcome(database.command(&REPLAY_FAILED));
    let says = "3 calls are left out: another session is repeating them";
    assert!(code == 1 && out == "0 calls are repeated\n" && err.contains(says), "{code} {out}{err}");
    // It commits while the command tries again.
    let waiting = database.command(&REPLAY_FAILED);
    let waiting = std::thread::spawn(move || outcome(waiting));
    let tries = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()
                 AND application_name = 'promptpal-relay command' AND query LIKE '%relay.replay_failed(%'";
    database.eventually(tries).await;
    other.batch_execute("COMMIT").await.unwrap();
    let (code, out, err) = waiting.join().unwrap();
    assert_eq!((code, out.as_str(), err.as_str()), (0, "2 calls are repeated\n", ""));
    assert_eq!((database.number(OPEN).await, database.number(REPLAYS).await), (0, 3));
    // Without its rows nothing could be locked, and every call would look like another session's.
    database.client.batch_execute("DELETE FROM relay.replays WHERE slot = 1").await.unwrap();
    let refused = database.client.query(all, &[]).await.unwrap_err();
    let hint = refused.as_db_error().and_then(|error| error.hint()).unwrap();
    let statement = hint.trim_end_matches('.');
    database.client.batch_execute(statement).await.unwrap();
    assert_eq!(database.number(all).await, 0);
}

#[tokio::test]
async fn a_repair_keeps_few_locks_whatever_it_repeats_and_however_long_the_log_is() {
    let database = with_open_failures(0, 1001).await;
    let sql = "DO $$ DECLARE today date := (now() AT TIME ZONE 'UTC')::date; BEGIN FOR n IN 2..150 LOOP
                   EXECUTE format('CREATE TABLE IF NOT EXISTS relay.webhook_calls_%s PARTITION OF relay.webhook_calls FOR VALUES FROM (%L) TO (%L)',
                                  to_char(today - n, 'YYYYMMDD'), (today - n) || ' 00:00+00', (today - n + 1) || ' 00:00+00');
               END LOOP; END $$";
    for statement in ["SET ROLE relay_owner", sql, "RESET ROLE"] {
        database.client.batch_execute(statement).await.unwrap();
    }
    let session = connect(&database.url).await;
    let locks = async |statement: &str| -> i64 {
        session.batch_execute(&format!("BEGIN; {statement}")).await.unwrap();
        let held = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()";
        let held = session.query_one(held, &[]).await.unwrap().get(0);
        session.batch_execute("ROLLBACK").await.unwrap();
        held
    };
    let replay = |limit: i64| {
        format!("SELECT relay.replay_failed(ARRAY(SELECT id FROM relay.call_ids ORDER BY id LIMIT {limit}))")
    };
    // The log is read before, so that this reading's locks do not count.
    database
        .client
        .batch_execute("CREATE TABLE relay.call_ids AS SELECT id FROM relay.webhook_calls")
        .await
        .unwrap();
    assert!(
        locks("SELECT count(*) FROM relay.webhook_calls WHERE start_time > now()").await > 500,
        "shows nothing"
    );
    let open = "SELECT call_id FROM relay.open_failures_since(now() - interval '2 hours', 10)";
    let held = [locks(open).await, locks(&replay(1)).await, locks(&replay(1000)).await];
    assert!(held.iter().all(|held| *held < 200), "{held:?}");
    let refused = session.batch_execute(&replay(1001)).await.unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert!(
        refused.message().contains("at most 1000 calls at once, these are 1001")
            && refused.hint().is_some_and(|hint| hint.contains("LIMIT 500")),
        "{refused:?}"
    );
    let command = [&REPLAY_FAILED[..], &["--rate", "10000"]].concat();
    let (code, out, err) = outcome(database.command(&command));
    assert_eq!((code, out.as_str()), (0, "1001 calls are repeated\n"), "{err}");
}

#[tokio::test]
async fn replay_refuses_what_would_not_be_called() {
    let (database, receiver, _relay) = lively().await;
    let refused = async |says: &str| {
        let call =
            database.number("SELECT min(id) FROM relay.webhook_calls WHERE webhook_id = 1").await.to_string();
        let dry = ["--webhook", "1", "--since", "1h", "--dry-run"];
        for which in [&dry[..], &["--webhook", "1", "--since", "1h", "--yes"], &["--call", &call]] {
            let (code, out, err) = outcome(database.command(&[&["replay"], which].concat()));
            assert!(code == 1 && err.contains(says) && out.is_empty(), "{code} {out}{err}");
        }
    };
    database.client.batch_execute("UPDATE relay.webhooks SET enabled = false WHERE id = 1").await.unwrap();
    refused("webhook 1 is disabled").await;
    database
        .client
        .batch_execute("UPDATE relay.webhooks SET enabled = true, project_id = 9 WHERE id = 1")
        .await
        .unwrap();
    refused("project 1 has no webhook 1 any more").await;
    database.client.batch_execute("DELETE FROM relay.webhooks WHERE id = 1").await.unwrap();
    refused("project 1 has no webhook 1 any more").await;
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox WHERE replay_of IS NOT NULL").await, 0);
    assert_eq!(receiver.requests().len(), 2);
}

#[tokio::test]
async fn replay_keeps_to_its_rate_after_it_was_held_up() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    database.events(1, 30).await;
    database.all_done().await;
    let other = connect(&database.url).await;
    other.batch_execute("BEGIN; LOCK TABLE relay.outbox IN SHARE MODE").await.unwrap();
    let replay = ["replay", "--webhook", "1", "--since", "1h", "--yes", "--rate", "20"];
    let mut child = database.command(&replay).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'promptpal-relay command'
                 AND datname = current_database() AND wait_event_type = 'Lock' AND now() > query_start + interval '1 s'";
    database.eventually(waits).await;
    other.batch_execute("COMMIT").await.unwrap();
    assert!(child.wait().unwrap().success());
    // Four at once, and the next 0.2 s later; five and more turns were missed. A busy machine may bring two close together.
    let hasty = "SELECT count(*) FROM (
                     SELECT created_at - lag(created_at) OVER (ORDER BY created_at) AS gap
                       FROM (SELECT DISTINCT created_at FROM relay.outbox WHERE replay_of IS NOT NULL) AS parts) AS gaps
                 WHERE gap < interval '0.1 s'";
    assert!(database.number(hasty).await < 3);
}

#[tokio::test]
async fn send_test_waits_for_the_result_and_tells_it() {
    let (database, _receiver, relay) = lively().await;
    let send = async |arguments: &[&str]| {
        let arguments = [&["send-test"], arguments].concat();
        outcome(as_member(&database, "relay_app, relay_reader", &arguments).await)
    };
    let (code, out, err) = send(&["--webhook", "1"]).await;
    assert_eq!(code, 0, "{out}{err}");
    for part in [
        "✓ outcome      200 after ",
        "  webhook      1 test,",
        "  content-length: 21\n",
        "  {\"status\":\"received\"}\n",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
    let (code, out, err) = send(&["--webhook", "2"]).await;
    assert!(
        code == 1 && out.contains("✗ outcome      503 after ") && out.contains("status 503\n"),
        "{out}{err}"
    );
    let (code, out, err) = send(&["--webhook", "2", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["status_code"], 503);
    assert!(code == 1 && err.contains("failed (http_status)"), "{err}");
    let (code, _, err) = send(&["--webhook", "77"]).await;
    assert!(code == 1 && err.contains("there is no webhook 77"), "{err}");
    // A view in the place of the table may have events of its own.
    let view = "ALTER TABLE relay.webhooks RENAME TO real_webhooks;
                CREATE VIEW relay.webhooks AS SELECT id, project_id, name, description, url,
                       CASE id WHEN 1 THEN 'onOther' ELSE event END AS event, enabled, signing_secret, created_at, updated_at
                  FROM relay.real_webhooks;
                ALTER VIEW relay.webhooks OWNER TO relay_owner; GRANT SELECT ON relay.webhooks TO relay_daemon, relay_reader, relay_app";
    database.client.batch_execute(view).await.unwrap();
    let (code, out, err) = send(&["--webhook", "1"]).await;
    let said = "nothing was sent: webhook 1 is for an event that relay.outbox refuses, so no event meets it; set its event to \
                onPromptFinished";
    assert!(code == 1 && err.contains(said) && !err.contains("promptpal-relay test"), "{out}{err}");
    let back = "DROP VIEW relay.webhooks; ALTER TABLE relay.real_webhooks RENAME TO webhooks";
    database.client.batch_execute(back).await.unwrap();
    // A login that could not see the result sends nothing.
    let rows = database.number("SELECT count(*) FROM relay.outbox").await;
    let (code, _, err) = outcome(as_member(&database, "relay_app", &["send-test", "--webhook", "1"]).await);
    assert!(code == 78 && err.contains("a member of relay_reader and of relay_app"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox").await, rows);
    let (code, _, err) = outcome(as_member(&database, "relay_app", &["calls"]).await);
    assert!(code == 78 && err.contains("a member of relay_reader"), "{err}");
    relay.kill();
    let (code, _, err) = send(&["--webhook", "1", "--wait", "100ms"]).await;
    assert!(code == 1 && err.contains("not delivered after 100ms"), "{err}");
    drop_logins(&database).await;
}

#[tokio::test]
async fn commands_and_views_do_without_locks_on_a_log_of_many_days() {
    // The server has far less room for locks than by default, so that fewer partitions use it up.
    let cluster = Cluster::start(&["max_connections=20", "max_locks_per_transaction=10"]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    // The test makes more partitions than relay.make_call_partition does, as that makes them: relay_owner owns them.
    let sql = "DO $$ DECLARE today date := (now() AT TIME ZONE 'UTC')::date; BEGIN FOR n IN 1..900 LOOP
                   EXECUTE format('CREATE TABLE relay.webhook_calls_%s PARTITION OF relay.webhook_calls FOR VALUES FROM (%L) TO (%L)',
                                  to_char(today - n, 'YYYYMMDD'), (today - n) || ' 00:00+00', (today - n + 1) || ' 00:00+00');
                   COMMIT;
               END LOOP; END $$";
    for statement in ["SET ROLE relay_owner", sql, "RESET ROLE"] {
        database.client.batch_execute(statement).await.unwrap();
    }
    let receiver = Receiver::start(|_| Reply::status(503));
    database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    database.all_done().await;
    // A year ago; and one that a clock ahead has put among younger ones.
    let lately = "SELECT to_char(now() - interval '1 hour', 'YYYY-MM-DD HH24:MI:SSOF')";
    let lately: String = database.client.query_one(lately, &[]).await.unwrap().get(0);
    let sql = format!(
        "UPDATE relay.webhook_calls SET id = 1000 WHERE start_time > '{lately}';
         INSERT INTO relay.webhook_calls
         SELECT (jsonb_populate_record(c, jsonb_build_object('id', v.id, 'start_time', now() - v.days * interval '1 day'))).*
           FROM relay.webhook_calls c, (VALUES (365, 365), (1300, 700), (1299, 701)) AS v (id, days)
          WHERE c.start_time > '{lately}'"
    );
    database.client.batch_execute(&sql).await.unwrap();
    let all = database.client.query("SELECT count(*) FROM relay.webhook_calls", &[]).await.unwrap_err();
    assert_eq!(all.code().unwrap().code(), "53200", "the test shows nothing");
    // The answer comes before its locks are free, and the next one after them.
    database.client.batch_execute("SELECT 1").await.unwrap();
    for (arguments, says) in [
        (&["status"][..], "1 in the last 5 minutes, of which 1 failed"),
        (&["calls", "--since", "1000d"], "status 503"),
        (&["calls", "--since", "1000d", "--webhook", "77"], "no calls of webhook 77 since "),
        (&["call", "365"], "  call         365"),
        (&["replay", "--call", "1000"], "repeats the call"),
        (&["replay", "--call", "365"], "repeats the call"),
        (&["replay", "--call", "1299"], "repeats the call"),
        (&["replay", "--webhook", "1", "--since", "1000d", "--dry-run"], "calls would be repeated"),
        (&["send-test", "--webhook", "1"], "503"),
    ] {
        let (code, out, err) = outcome(database.command(arguments));
        assert!(
            code == i32::from(arguments[0] == "send-test") && out.contains(says),
            "{arguments:?}: {out}{err}"
        );
    }
    let (code, _, err) = outcome(database.command(&["replay", "--call", "99"]));
    assert!(code == 1 && err.contains("there is no call 99 "), "{err}");
    let calls = outcome(database.command(&["calls", "--since", "1000d", "--webhook", "1", "--wide"])).1;
    let ids: Vec<&str> = calls.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert!(ids.ends_with(&["1000", "365", "1300", "1299"]), "{calls}");
    for view in ["webhook_health", "recent_failures"] {
        assert!(
            database.number(&format!("SELECT count(*) FROM relay.{view} WHERE webhook_id = 1")).await > 0,
            "{view}"
        );
    }
}
