//! The journal has what it should, never a secret, and holds nothing up. The program reads the database's URL from the
//! places that it names.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};

use crate::support::{Database, Receiver, Relay, Reply, as_user, outcome, program};

#[tokio::test]
async fn nobody_reads_the_log_and_rows_are_delivered_all_the_same() {
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::status(500));
    for project in 0..500 {
        database.webhook(project, &receiver.url("/")).await;
    }
    let mut command = database.command(&["run", "--allow-net", "127.0.0.0/8", "--log-level", "trace"]);
    // The pipe takes 64 KiB.
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    for project in 0..500 {
        database.events(project, 4).await;
    }
    database.all_done().await;
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn no_secret_and_no_body_is_in_the_log_at_any_level() {
    let database = Database::new().await;
    let receiver = Receiver::start(|request| match request.path() {
        path if path.starts_with("/bad") => Reply::full(500, &[("X-Header", "topsecret2")], b"topsecret3"),
        _ => Reply::full(200, &[("X-Header", "topsecret2")], b"topsecret3"),
    });
    let with_password =
        |path: &str| receiver.url(path).replacen("http://", "http://topsecret4:topsecret5@", 1);
    database.webhook(1, &with_password("/good?token=topsecret6")).await;
    database.webhook(1, &with_password("/bad?token=topsecret6")).await;
    database.webhook(1, "http://topsecret4:topsecret5@[").await;
    database.webhook(1, "http://topsecret4:topsecret5@127.0.0.1:2/?token=topsecret6").await;
    database
        .client
        .batch_execute(
            "UPDATE relay.webhooks SET signing_secret = 'whsec_dG9wc2VjcmV0NyB0b3BzZWNyZXQ3IHRvcHNlY3JldDc='",
        )
        .await
        .unwrap();
    let user = format!("logger_{}", std::process::id());
    let role = format!("CREATE ROLE {user} LOGIN PASSWORD 'topsecret1' IN ROLE relay_daemon");
    database.client.batch_execute(&role).await.unwrap();
    let url = as_user(&database.url, &user, "topsecret1");
    for format in ["text", "json"] {
        let mut relay = Relay::spawn(&url, &["--log-level", "trace", "--log-format", format]);
        let sql = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
                   VALUES (1, 1, 'topsecret8', 0, 1, 1, 1)";
        database.client.batch_execute(sql).await.unwrap();
        database.all_done().await;
        relay.signal(Signal::SIGTERM);
        assert!(relay.wait().success());
        let log = relay.log();
        // The log has the failures.
        for kind in ["bad_url", "connect", "http_status"] {
            assert!(log.contains(kind), "{kind}\n{log}");
        }
        for secret in ["topsecret", "dG9wc2VjcmV0Nw"] {
            assert!(!log.contains(secret), "{log}");
        }
    }
    database.client.batch_execute(&format!("DROP ROLE {user}")).await.unwrap();
    let calls =
        "SELECT count(*) FROM relay.webhook_calls WHERE url LIKE '%topsecret4%' OR url LIKE '%topsecret5%'
                 OR request_headers::text LIKE '%topsecret%' OR error_message LIKE '%topsecret%'";
    assert_eq!(database.number(calls).await, 0);
}

#[tokio::test]
async fn numbers_are_numbers_in_json() {
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::status(500));
    let webhook = database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &["--log-format", "json"]);
    let outbox_id = database.events(1, 1).await;
    let line = relay.until_told("a call that failed", |line| line["error_kind"] == "http_status");
    assert!(line["duration_ms"].is_u64() && line["status"] == 500, "{line}");
    assert!(line["webhook_id"] == webhook && line["outbox_id"] == outbox_id, "{line}");
    // The status says all; what the log says of it may have a header of the answer.
    assert!(line["error"].is_null(), "{line}");
}

#[tokio::test]
async fn the_line_of_a_failed_call_says_why_and_what_was_sent() {
    let database = Database::new().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    database.webhook(1, &format!("http://{closed}/")).await;
    let relay = Relay::start(&database, &["--log-format", "json"]);
    database.events(1, 1).await;
    let line = relay.until_told("a call that failed", |line| line["error_kind"] == "connect");
    let why = line["error"].as_str().unwrap_or_default();
    assert!(why.contains("refused the connection") && why.ends_with("; nothing was sent"), "{line}");
}

#[tokio::test]
async fn only_the_daily_files_of_its_own_are_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let old = ["promptpal-relay.2024-01-14.log", "promptpal-relay.2024-01-15.log"];
    let foreign = [
        "promptpal-relay-audit.log",
        "promptpal-relay.2024-01-15.log.gz",
        "promptpal-relay.2024-01-15.audit.log",
        "promptpal-relay.latest-one.log",
    ];
    for name in old.iter().chain(&foreign) {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let database = Database::empty().await;
    let path = folder.path().to_str().unwrap();
    let (code, _, err) = outcome(database.command(&["migrate", "--log-dir", path, "--log-days", "2"]));
    assert_eq!(code, 0, "{err}");
    assert!(foreign.iter().all(|name| folder.path().join(name).exists()));
    // The newest old one and today's.
    assert_eq!(old.map(|name| folder.path().join(name).exists()), [false, true]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), foreign.len() + 2);
}

#[tokio::test]
async fn the_journal_gets_priorities_and_a_file_does_not() {
    let folder = tempfile::tempdir().unwrap();
    for is_journal in [true, false] {
        let path = folder.path().join("log");
        let file = File::create(&path).unwrap();
        let meta = file.metadata().unwrap();
        let inode = if is_journal { meta.ino() } else { meta.ino() + 1 };
        let database = Database::empty().await;
        let log = |arguments: &[&str]| {
            let mut command = program(arguments, &database.url);
            command.env("JOURNAL_STREAM", format!("{}:{inode}", meta.dev()));
            command.stderr(file.try_clone().unwrap()).status().unwrap();
            let log = fs::read_to_string(&path).unwrap();
            // It goes on where the last one ended.
            log.lines().last().unwrap().to_owned()
        };
        let is_error = |line: &str| line.starts_with("<3>promptpal-relay: ");
        assert_eq!(is_error(&log(&["check"])), is_journal, "there is no schema");
        assert_eq!(is_error(&log(&["run", "--workers", "0"])), is_journal);
        assert_eq!(log(&["migrate"]).starts_with("<6> INFO migrated"), is_journal);
        assert_eq!(log(&["migrate", "--log-format", "json"]).starts_with("<6>{"), is_journal);
    }
}

#[tokio::test]
async fn the_databases_url_is_read_from_a_file_or_a_credential() {
    let database = Database::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("database-url");
    fs::write(&path, format!("{}\n", database.url)).unwrap();
    let run = |flags: &[&str], credentials: bool| {
        let mut command = program(&[&["check"], flags].concat(), "");
        command.env_remove("DATABASE_URL");
        if credentials {
            command.env("CREDENTIALS_DIRECTORY", folder.path());
        }
        outcome(command)
    };
    let file = path.to_str().unwrap();
    assert_eq!(run(&["--database-url-file", file], false).0, 0);
    assert_eq!(run(&[], true).0, 0);
    let (code, _, err) = run(&["--database-url-file", "/no/such/file"], true);
    assert!(code == 78 && err.contains("/no/such/file"), "{err}");
    assert_eq!(run(&["--database-url-file", file, "--database-url", "postgres://a"], false).0, 2);
    fs::write(&path, "postgres://a:topsecret@b/c\npostgres://d").unwrap();
    let (code, _, err) = run(&[], true);
    assert!(code == 78 && err.contains("more than one line") && !err.contains("topsecret"), "{err}");
    fs::write(&path, "\n").unwrap();
    assert!(run(&[], true).2.contains("empty"));
    // The program does not pass over a variable that it cannot read: it would go on to another database.
    let mut command = program(&["check"], "");
    command.env("DATABASE_URL", OsStr::from_bytes(b"postgres://a\xff"));
    let (code, out, _) = outcome(command);
    assert!(code == 78 && out.contains("DATABASE_URL is not UTF-8"), "{out}");
}

#[tokio::test]
async fn a_password_that_other_users_can_read_is_a_warning() {
    let database = Database::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("database-url");
    let (url, file) = (as_user(&database.url, "postgres", "topsecret"), path.to_str().unwrap());
    fs::write(&path, format!("{}\n", as_user(&database.url, "postgres", "topsecret"))).unwrap();
    let base = database.url.split('?').next().unwrap();
    let more = if url.contains('?') { "&" } else { "?" };
    let warned = |flags: &[&str], mode: u32, variable: bool| {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = program(&[&["check"], flags].concat(), if variable { &url } else { "" });
        if variable {
            command.env("PROMPTPAL_RELAY_DATABASE_URL", &url);
        }
        let (_, out, err) = outcome(command);
        assert!(!out.contains("topsecret") && !err.contains("topsecret"), "{out}{err}");
        let warnings: Vec<&str> = err.lines().filter(|line| line.contains(" WARN ")).collect();
        assert!(warnings.len() <= 1, "{err}");
        warnings.first().copied().unwrap_or_default().to_owned()
    };
    let in_query = format!("{base}{more}password=topsecret");
    for flag in [&url, &in_query, &String::from("host=127.0.0.1 port=1 password=topsecret")] {
        assert!(warned(&["--database-url", flag], 0o600, false).contains("in the process list"), "{flag}");
    }
    assert!(warned(&["--database-url-file", file], 0o604, false).contains("chmod o-r"));
    // No warning where others do not see the password, or where there is none.
    assert_eq!(warned(&["--database-url-file", file], 0o640, false), "");
    assert_eq!(warned(&[], 0o600, true), "");
    assert_eq!(warned(&["--database-url", "postgres://127.0.0.1:1/app"], 0o600, false), "");
}

/// The daemon runs as an ordinary user here. Another program of the same user reads neither its environment nor its memory.
#[tokio::test]
async fn no_other_process_of_the_same_user_reads_the_daemons_environment_or_memory() {
    // A Postgres that never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://u:topsecret@{}/x?connect_timeout=0", listener.local_addr().unwrap());
    let user = if Uid::effective().is_root() { User::from_name("nobody").unwrap() } else { None };
    let user = user.unwrap_or_else(|| User::from_uid(Uid::effective()).unwrap().unwrap());
    // The program stands where every user may run it.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("promptpal-relay");
    fs::copy(crate::support::BINARY, &binary).unwrap();
    let as_user = |mut command: Command| {
        if Uid::effective().is_root() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut command = Command::new(&binary);
    command.arg("run").env("DATABASE_URL", &url);
    let mut relay = as_user(command);
    // It has read its settings.
    let connection = listener.accept().unwrap();
    let reads = |pid: u32, file: &str| {
        let mut command = Command::new("head");
        command.args(["-c", "1"]).arg(format!("/proc/{pid}/{file}"));
        as_user(command).wait_with_output().unwrap().status.success()
    };
    let mut command = Command::new("sleep");
    let mut other = as_user({
        command.arg("60");
        command
    });
    assert!(reads(other.id(), "environ"), "what the test asks can be had of others");
    for file in ["environ", "maps", "auxv", "fd/0"] {
        assert!(!reads(relay.id(), file), "{file}");
    }
    for child in [&mut relay, &mut other] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    drop(connection);
}
