//! Connecting, against real servers: one without TLS, one with a certificate of an authority, one self-signed.

mod server;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use promptpal_relay::inside::error::{Error, one_line};
use promptpal_relay::inside::postgres::Session;
use test_support::openssl;

use server::{PLAIN, SELF_SIGNED, SIGNED, Server, free_port, settings};

/// How long anything here may take; long, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

const PASSWORD: &str = "right:pass";

/// Settings for role `relay` with the right password, and these beside.
fn relay(server: &Server, more: &str) -> String {
    let folder = server.path("");
    let more = more.replace("$", &folder.display().to_string());
    format!("host=localhost port={} user=relay dbname=app password={PASSWORD} {more}", server.port)
}

async fn connect(text: &str) -> Result<Session, Error> {
    settings(text, &[]).connect("test", "").await
}

/// What the server says about our connection: whether it is encrypted.
async fn is_encrypted(session: &Session) -> bool {
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    session.query_one(sql, &[]).await.expect("asked").get(0)
}

/// "tls", "plain", or the exit code. The password shows in none of it.
async fn outcome(text: &str) -> String {
    match connect(text).await {
        Ok(session) if is_encrypted(&session).await => "tls".to_owned(),
        Ok(_) => "plain".to_owned(),
        Err(error) => {
            let (line, debug) = (one_line(&error), format!("{error:?}"));
            assert!(!line.contains(PASSWORD) && !debug.contains(PASSWORD), "{line} {debug}");
            assert!(!line.contains('\n') && line.starts_with("connecting to Postgres (user "), "{line}");
            format!("exit {}", error.exit_code())
        }
    }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// Asks until the answer is yes.
async fn eventually(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !ask().await {
        assert!(start.elapsed() < PATIENCE, "{what} does not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_or_a_handshake_is_said_truly() {
    for case in openssl::cases(true) {
        let server = case.start();
        let url = |mode: &str| {
            format!(
                "postgres://relay@{}:{}/app?hostaddr=127.0.0.1&sslnegotiation=direct&sslmode={mode}",
                openssl::NAME,
                server.port
            )
        };
        let checked = url(&format!("verify-full&sslrootcert={}", server.trusted.display()));
        // What no mode can do without: the proof that the server has the certificate's key.
        let modes =
            if case.name == "RSA of 1024 bits" { vec![checked, url("require")] } else { vec![checked] };
        for url in modes {
            let error = within(case.name, connect(&url)).await.expect_err(case.name);
            let line = one_line(&error);
            assert!(line.contains(case.said), "{}: {line}", case.name);
            for word in ["rustls", "webpki", "invalid peer", "fatal alert", "corrupt message"] {
                assert!(!line.contains(word), "{}: {line}", case.name);
            }
        }
    }
}

#[tokio::test]
async fn each_mode_does_what_it_says_with_tls() {
    let server = SIGNED.server().await;
    for (more, expected) in [
        ("", "tls"),
        ("sslmode=disable", "plain"),
        ("sslmode=allow", "tls"),
        ("sslmode=prefer", "tls"),
        ("sslmode=prefer sslrootcert=$wrong.crt", "tls"),
        ("sslmode=require", "tls"),
        ("sslmode=require sslrootcert=$ca.crt", "tls"),
        ("sslmode=require sslrootcert=$wrong.crt", "exit 78"),
        ("sslmode=verify-ca sslrootcert=$ca.crt", "tls"),
        ("sslmode=verify-ca sslrootcert=$wrong.crt", "exit 78"),
        ("sslmode=verify-full sslrootcert=$ca.crt", "tls"),
        ("sslmode=verify-full sslrootcert=$wrong.crt", "exit 78"),
        // The system's store does not know our authority.
        ("sslmode=verify-full", "exit 78"),
        ("sslrootcert=system", "exit 78"),
        ("sslmode=require channel_binding=require", "tls"),
        ("sslmode=disable channel_binding=require", "exit 78"),
    ] {
        assert_eq!(outcome(&relay(&server, more)).await, expected, "{more}");
    }
}

#[tokio::test]
async fn each_mode_does_what_it_says_without_tls() {
    let server = PLAIN.server().await;
    for (more, expected) in [
        ("", "plain"),
        ("sslmode=disable", "plain"),
        ("sslmode=allow", "plain"),
        ("sslmode=prefer", "plain"),
        ("sslmode=require", "exit 78"),
        ("sslmode=verify-ca sslrootcert=$ca.crt", "exit 78"),
        ("sslmode=verify-full sslrootcert=$ca.crt", "exit 78"),
    ] {
        assert_eq!(outcome(&relay(&server, more)).await, expected, "{more}");
    }
}

#[tokio::test]
async fn only_verify_full_looks_at_the_name() {
    let server = SIGNED.server().await;
    for (more, expected) in [
        ("sslmode=require", "tls"),
        ("sslmode=require sslrootcert=$ca.crt", "tls"),
        ("sslmode=verify-ca sslrootcert=$ca.crt", "tls"),
        ("sslmode=verify-full sslrootcert=$ca.crt", "exit 78"),
    ] {
        // A later mention of a key counts.
        let elsewhere = format!("host=db.example.org hostaddr=127.0.0.1 {more}");
        assert_eq!(outcome(&relay(&server, &elsewhere)).await, expected, "{more}");
        let address = format!("host=127.0.0.1 {more}");
        assert_eq!(outcome(&relay(&server, &address)).await, expected, "{more} by address");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_works_when_it_is_the_root_itself() {
    let server = SELF_SIGNED.server().await;
    for (more, expected) in [
        ("sslmode=require", "tls"),
        ("sslmode=require sslrootcert=$server.crt", "tls"),
        ("sslmode=verify-ca sslrootcert=$server.crt", "tls"),
        ("sslmode=verify-full sslrootcert=$server.crt", "tls"),
        ("sslmode=verify-ca sslrootcert=$ca.crt", "exit 78"),
        ("sslmode=verify-ca sslrootcert=$server.crt host=db.example.org hostaddr=127.0.0.1", "tls"),
        ("sslmode=verify-full sslrootcert=$server.crt host=db.example.org hostaddr=127.0.0.1", "exit 78"),
    ] {
        assert_eq!(outcome(&relay(&server, more)).await, expected, "{more}");
    }
}

#[tokio::test]
async fn prefer_does_without_tls_where_only_that_is_let_in() {
    let server = SIGNED.server().await;
    assert_eq!(outcome(&relay(&server, "user=plain_only")).await, "plain");
    assert_eq!(outcome(&relay(&server, "user=plain_only sslmode=require")).await, "exit 78");
}

#[tokio::test]
async fn a_client_certificate_logs_in() {
    let server = SIGNED.server().await;
    let as_client = "user=cert_user sslmode=verify-full sslrootcert=$ca.crt";
    for (more, expected) in [
        ("sslcert=$client.crt sslkey=$client.key", "tls"),
        ("sslcert=$stranger.crt sslkey=$client.key", "exit 78"),
        ("", "exit 78"),
    ] {
        assert_eq!(outcome(&relay(&server, &format!("{as_client} {more}"))).await, expected, "{more}");
    }
}

#[tokio::test]
async fn the_password_comes_from_the_url_the_variable_or_the_file() {
    let server = SIGNED.server().await;
    let bare = format!("host=localhost port={} user=relay dbname=app", server.port);
    let url = format!("postgres://relay:right%3Apass@localhost:{}/app", server.port);
    let line = format!("localhost:{}:app:relay:right\\:pass\n", server.port);
    std::fs::create_dir_all(server.path("home")).expect("a folder");
    server.write("home/.pgpass", &line);
    server.write("pass", &format!("localhost:1:*:*:wrong\n{line}*:*:*:*:wrong\n"));
    server.write("wrong.pass", "*:*:*:*:wrong\n");
    server.write("loose.pass", &line);
    std::fs::set_permissions(server.path("loose.pass"), std::fs::Permissions::from_mode(0o644))
        .expect("mode set");
    let [home, pass, wrong, loose] =
        ["home", "pass", "wrong.pass", "loose.pass"].map(|name| server.path(name).display().to_string());

    for (text, variables, expected) in [
        (url, &[][..], ""),
        (format!("{bare} password={PASSWORD}"), &[("PGPASSWORD", "wrong")], ""),
        (bare.clone(), &[("PGPASSWORD", PASSWORD)], ""),
        (bare.clone(), &[("PGPASSFILE", &pass)], ""),
        (bare.clone(), &[("HOME", &home)], ""),
        (format!("{bare} passfile={pass}"), &[("PGPASSFILE", &wrong)], ""),
        (bare.clone(), &[("PGPASSWORD", PASSWORD), ("PGPASSFILE", &wrong)], ""),
        (bare.clone(), &[], "PGPASSWORD"),
        (bare.clone(), &[("PGPASSWORD", "wrong")], "password authentication failed"),
        (bare.clone(), &[("PGPASSFILE", &wrong)], "password authentication failed"),
        (bare, &[("PGPASSFILE", &loose)], "chmod 0600"),
    ] {
        let found = settings(&text, variables).connect("test", "").await;
        match (found, expected) {
            (Ok(_), "") => {}
            (Err(error), part) if !part.is_empty() => {
                let line = one_line(&error);
                assert!(line.contains(part) && error.exit_code() == 78, "{text} {variables:?} gave {line}");
            }
            (other, _) => panic!("{text} {variables:?} gave {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_missing_database_or_role_is_configuration() {
    let server = PLAIN.server().await;
    for (more, part) in [
        ("dbname=nowhere", "database \"nowhere\" does not exist"),
        ("user=nobody", "password authentication failed for user \"nobody\""),
        ("options='-c nonsense=1'", "unrecognized configuration parameter"),
        ("options='-c foo bar'", "-c foo requires a value"),
    ] {
        let error = connect(&relay(&server, more)).await.expect_err(more);
        assert!(one_line(&error).contains(part), "{}", one_line(&error));
        assert_eq!(error.exit_code(), 78, "{more}");
    }
}

#[tokio::test]
async fn the_next_host_is_tried_when_one_is_dead_or_read_only() {
    let server = PLAIN.server().await;
    let (dead, alive) = (free_port(), server.port);
    let url = |hosts: &str| format!("postgres://relay:right%3Apass@{hosts}/app");
    assert_eq!(outcome(&url(&format!("127.0.0.1:{dead},localhost:{alive}"))).await, "plain");

    // A role that only reads makes of the same server a standby.
    let reader = |hosts: &str| url(hosts).replace("relay:", "reader:");
    let error =
        connect(&reader(&format!("127.0.0.1:{dead},localhost:{alive}"))).await.expect_err("read-only");
    let line = one_line(&error);
    assert_eq!(error.exit_code(), 1, "a standby may be promoted: {line}");
    assert!(
        line.contains(&format!("127.0.0.1:{dead}")) && line.contains(&format!("localhost:{alive}")),
        "{line}"
    );
    assert!(line.contains("cannot be written to (default_transaction_read_only is on)"), "{line}");
    connect(&format!("{}?target_session_attrs=any", reader(&format!("localhost:{alive}"))))
        .await
        .expect("asked for");

    // A final answer ends the search: the session does not try the second host with the same wrong password. In turn, because
    // otherwise a busy machine may give the second host the time to begin.
    let (silent, asked) = counting_listener();
    let wrong =
        format!("postgres://relay:wrong@localhost:{alive},127.0.0.1:{silent}/app?target_session_attrs=any");
    assert_eq!(outcome(&wrong).await, "exit 78");
    assert!(!asked.load(std::sync::atomic::Ordering::SeqCst));
}

/// Listens on a port, and notes whether a client came.
#[tokio::test]
async fn where_a_session_was_opened_is_remembered_whatever_its_name_stands_for_later() {
    let server = PLAIN.server().await;
    let closed = free_port();
    let text = format!(
        "host=127.0.0.2,localhost port={closed},{} user=relay dbname=app password={PASSWORD}",
        server.port
    );
    let settings = settings(&text, &[]);
    let callers = settings.clone().reached;
    let session = settings.connect("test", "").await.expect("connected");
    let address: std::net::IpAddr =
        session.query_one("SELECT inet_server_addr()", &[]).await.expect("asked").get(0);
    assert_eq!((callers.at(server.port), callers.at(closed)), (vec![address], vec![]));
}

fn counting_listener() -> (u16, Arc<std::sync::atomic::AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let asked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        if listener.accept().is_ok() {
            noted.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    });
    (port, asked)
}

#[tokio::test]
async fn a_socket_is_used_without_tls_whatever_the_mode() {
    let server = SIGNED.server().await;
    let folder = server.path("").display().to_string();
    let encoded = folder.trim_end_matches('/').replace('/', "%2F");
    for text in [
        format!("host={folder} port={} user=relay dbname=app", server.port),
        format!("host={folder} port={} user=relay dbname=app sslmode=verify-full", server.port),
        format!("postgres://relay@{encoded}:{}/app?sslmode=require", server.port),
    ] {
        assert_eq!(outcome(&text).await, "plain", "{text}");
        // Such a server mostly listens on this machine's addresses, too: they are never called.
        assert_eq!(settings(&text, &[]).tcp_hosts(), [("localhost".to_owned(), server.port)]);
    }
}

#[tokio::test]
async fn a_server_that_is_down_is_one_line_and_exit_code_1() {
    let port = free_port();
    let error =
        connect(&format!("postgres://relay:s3cret@127.0.0.1:{port}/app")).await.expect_err("nobody there");
    assert_eq!(error.exit_code(), 1);
    assert_eq!(
        one_line(&error),
        format!("connecting to Postgres (user relay at 127.0.0.1:{port}, database app): Connection refused")
    );
    let error = connect("postgres://relay@nowhere.invalid/app").await.expect_err("no such name");
    assert_eq!(error.exit_code(), 1, "{}", one_line(&error));
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let start = Instant::now();
    let error =
        connect(&format!("host=127.0.0.1 port={port} user=relay connect_timeout=1")).await.expect_err("mute");
    assert_eq!(error.exit_code(), 1);
    assert!(one_line(&error).ends_with("no answer within 1 s"), "{}", one_line(&error));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_host_that_never_answers_holds_up_no_other() {
    let server = PLAIN.server().await;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mute = listener.local_addr().expect("its address").port();
    // Without a limit for the first host only the second one can end the search.
    let hosts = format!("host=127.0.0.1,localhost port={mute},{} connect_timeout=0", server.port);
    assert_eq!(within("the second host", outcome(&relay(&server, &hosts))).await, "plain");
}

/// Answers one startup without TLS with this SQLSTATE.
fn refusing_server(code: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let mut request = [0; 1024];
            // The request for TLS, then the startup message.
            stream.read_exact(&mut request[..8]).expect("a request");
            stream.write_all(b"N").expect("answered");
            if stream.read(&mut request).unwrap_or(0) == 0 {
                continue;
            }
            let fields = format!("SFATAL\0VFATAL\0C{code}\0Mthe database system is starting up\0\0");
            let length = u32::try_from(fields.len() + 4).expect("short");
            let answer = [b"E", &length.to_be_bytes()[..], fields.as_bytes()].concat();
            stream.write_all(&answer).expect("answered");
        }
    });
    port
}

#[tokio::test]
async fn a_server_that_is_starting_or_full_is_no_configuration() {
    for (code, expected) in
        [("57P03", "exit 1"), ("53300", "exit 1"), ("57P01", "exit 1"), ("28P01", "exit 78")]
    {
        let port = refusing_server(code);
        assert_eq!(outcome(&format!("host=127.0.0.1 port={port} user=relay")).await, expected, "{code}");
        // A server in trouble does not keep us from the next.
        if expected == "exit 1" {
            let server = PLAIN.server().await;
            let hosts = format!("host=127.0.0.1,localhost port={port},{}", server.port);
            assert_eq!(outcome(&relay(&server, &hosts)).await, "plain", "{code}");
        }
    }
    let port = refusing_server("57P03");
    let require = format!("host=127.0.0.1 port={port} user=relay sslmode=require");
    assert_eq!(outcome(&require).await, "exit 78", "TLS taken away is never accepted");
}

#[tokio::test]
async fn notifications_wake_once_however_many_came() {
    let server = PLAIN.server().await;
    let listener = connect(&relay(&server, "")).await.expect("connected");
    let sender = connect(&relay(&server, "")).await.expect("connected");
    listener.batch_execute("LISTEN wake").await.expect("listening");
    for _ in 0..3 {
        sender.batch_execute("NOTIFY wake").await.expect("notified");
        within("the wake-up", listener.notified()).await;
    }
    for _ in 0..100 {
        sender.batch_execute("NOTIFY wake").await.expect("notified");
    }
    // All that was sent before this answer has arrived by now.
    listener.batch_execute("SELECT 1").await.expect("alive");
    within("the wake-up", listener.notified()).await;
    let more = tokio::time::timeout(Duration::from_millis(50), listener.notified()).await;
    assert!(more.is_err(), "a hundred notifications are one");
}

#[tokio::test]
async fn a_session_that_is_ended_says_why() {
    let server = SIGNED.server().await;
    let session = connect(&relay(&server, "")).await.expect("connected");
    let early = tokio::time::timeout(Duration::from_millis(50), session.closed()).await;
    assert!(early.is_err(), "it is open");
    let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.expect("alive").get(0);
    let admin = server.admin().await;
    admin.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await.expect("terminated");
    let reason = within("the end", session.closed()).await;
    assert_eq!(
        one_line(&reason),
        "holding the test session with Postgres: terminating connection due to administrator command"
    );
    assert_eq!((reason.exit_code(), reason.sqlstate().map(|code| code.code())), (1, Some("57P01")));
    assert_eq!(within("the second answer", session.closed()).await.exit_code(), 1);
    session.batch_execute("SELECT 1").await.expect_err("it is gone");
}

#[tokio::test]
async fn a_dropped_session_is_closed_also_while_a_statement_runs() {
    let server = PLAIN.server().await;
    let admin = server.admin().await;
    let sessions = async |name: &str| -> i64 {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
        admin.query_one(sql, &[&name]).await.expect("asked").get(0)
    };
    let idle = connect(&relay(&server, "application_name=idle")).await.expect("connected");
    assert_eq!(sessions("idle").await, 1);
    drop(idle);
    eventually("the end of the idle session", async || sessions("idle").await == 0).await;

    // The server checks its client while it runs a statement. The test has it check more often than the relay does.
    let busy = "application_name=busy options='-c client_connection_check_interval=100ms'";
    let busy = connect(&relay(&server, busy)).await.expect("connected");
    let given_up =
        tokio::time::timeout(Duration::from_millis(200), busy.batch_execute("SELECT pg_sleep(600)"));
    given_up.await.expect_err("it sleeps");
    drop(busy);
    eventually("the end of the busy session", async || sessions("busy").await == 0).await;
}

#[tokio::test]
async fn sessions_have_our_settings_unless_the_user_has_others() {
    let server = PLAIN.server().await;
    let show = async |text: &str, variables: &[(&str, &str)], role: &str| {
        let session = settings(text, variables).connect(role, "").await.expect("connected");
        let names = [
            "application_name",
            "statement_timeout",
            "idle_in_transaction_session_timeout",
            "TimeZone",
            "default_transaction_isolation",
            "client_connection_check_interval",
            // The kernel's own number, in milliseconds: it has reached the server's socket.
            "tcp_user_timeout",
            "lock_timeout",
        ];
        let mut shown = Vec::new();
        for name in names {
            let row = session.query_one("SELECT current_setting($1)", &[&name]).await.expect(name);
            shown.push(row.get::<_, String>(0));
        }
        shown.join(" | ")
    };
    assert_eq!(
        show(&relay(&server, ""), &[], "claim").await,
        "promptpal-relay claim | 0 | 30s | UTC | read committed | 10s | 9000 | 0"
    );
    assert_eq!(
        show(
            &relay(&server, ""),
            &[("PGAPPNAME", "mine"), ("PGOPTIONS", "-c statement_timeout=5s")],
            "claim"
        )
        .await,
        "mine | 5s | 30s | UTC | read committed | 10s | 9000 | 0"
    );
    let options =
        "options='-c TimeZone=Asia/Tokyo -c lock_timeout=1s -c default_transaction_isolation=serializable'";
    assert_eq!(
        show(&relay(&server, options), &[], "").await,
        "promptpal-relay | 0 | 30s | UTC | read committed | 10s | 9000 | 1s"
    );
}

/// What the subscriber writes.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn warnings_of_the_server_reach_the_log() {
    let server = PLAIN.server().await;
    let writer = Lines::default();
    let written = Arc::clone(&writer.0);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(Mutex::new(writer))
        .finish();
    // For this thread, which is the whole runtime.
    let _guard = tracing::subscriber::set_default(subscriber);
    let session = connect(&relay(&server, "")).await.expect("connected");
    let sql = "DO $$ BEGIN RAISE WARNING 'disk nearly full' USING HINT = 'buy one'; RAISE NOTICE 'by the way'; END $$";
    session.batch_execute(sql).await.expect("said");
    let text = String::from_utf8(written.lock().expect("nobody panics").clone()).expect("text");
    let line = |part: &str| {
        text.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{part}: {text}"))
    };
    assert!(line("disk nearly full").contains("WARN"), "{text}");
    assert!(line("Postgres warns: disk nearly full; buy one").contains("role=\"test\""), "{text}");
    assert!(line("Postgres notes: by the way").contains("DEBUG"), "{text}");
    assert!(!text.contains(PASSWORD), "{text}");
}
