//! What a monitoring system sees: `/metrics`, `/healthz`, `/readyz` and `/livez`. prometheus.rs looks with a real Prometheus.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use promptpal_relay::inside::outbox::Role;
use serde_json::Value;

use crate::support::scrape::{ask, get, until, until_answer, until_unhealthy, value};
use crate::support::{Clock, Database, Gate, Receiver, Relay, Reply, as_user, closed_port, gated, outcome};

/// A relay, and the port at which it serves metrics.
fn start(database: &Database, flags: &[&str]) -> (Relay, u16) {
    let relay = Relay::start(database, flags);
    let port = relay.port();
    (relay, port)
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let database = Database::new().await;
    let gate = Gate::default();
    let receiver = Receiver::start({
        let gate = gate.clone();
        move |request| match request.path() {
            "/bad" => Reply::status(503),
            "/slow" => {
                gate.pass();
                Reply::status(200)
            }
            _ => Reply::status(200),
        }
    });
    for (project, path) in [(1, "/good"), (2, "/bad"), (3, "/slow")] {
        database.webhook(project, &receiver.url(path)).await;
    }
    let (_relay, port) = start(&database, &["--per-webhook", "2"]);
    assert_eq!(get(port, "/healthz"), (200, "ok\n".into()));
    assert_eq!(get(port, "/elsewhere").0, 404);
    database.events(1, 5).await;
    database.events(2, 3).await;
    let metrics =
        until(port, "promptpal_relay_call_duration_seconds_count{outcome=\"success\"}", |n| n == 5.0);
    assert_eq!(
        value(&metrics, "promptpal_relay_call_duration_seconds_count{outcome=\"timeout\"}"),
        Some(0.0)
    );
    until(port, "promptpal_relay_call_duration_seconds_count{outcome=\"http_status\"}", |n| n == 3.0);
    let metrics = until(port, "promptpal_relay_rows_done_total", |n| n == 8.0);
    assert_eq!(value(&metrics, "promptpal_relay_rows_claimed_total"), Some(8.0));
    until(port, "promptpal_relay_wakeups_total{cause=\"last_look\"}", |n| n > 0.0);
    // Two are on their way to the slow one, the others wait; the queue has an age.
    database.events(3, 50).await;
    let metrics = until(port, "promptpal_relay_webhook_calls_running{webhook=\"3\"}", |n| n == 2.0);
    assert!(value(&metrics, "promptpal_relay_rows_in_hand") >= Some(2.0));
    until(port, "promptpal_relay_oldest_pending_age_seconds", |age| age >= 0.0);
    gate.open();
    until(port, "promptpal_relay_rows_done_total", |n| n == 58.0);
    until(port, "promptpal_relay_rows_in_hand", |n| n == 0.0);
    // At most one label value for each webhook that has calls in flight.
    let metrics = get(port, "/metrics").1;
    assert!(!metrics.contains("webhook_calls_running{"));
    // Of the webhooks that fail all calls are told, of the others none.
    for series in ["recent_failures", "recent_calls"] {
        let of = |webhook: i64| {
            value(&metrics, &format!("promptpal_relay_webhook_{series}{{webhook=\"{webhook}\"}}"))
        };
        assert_eq!((of(1), of(2), of(3)), (None, Some(3.0), None), "{series}");
    }
}

#[tokio::test]
async fn a_scraper_gets_the_format_that_it_asks_for() {
    let database = Database::new().await;
    let (_relay, port) = start(&database, &[]);
    let openmetrics = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let scrape = |headers: &[(&str, &str)]| {
        let answer = ask(port, "/metrics", headers).unwrap();
        (answer.header("Content-Type").unwrap().to_owned(), answer.text().to_owned())
    };
    for headers in [
        &[][..],
        &[("Accept", "*/*")],
        &[("Accept", "text/html")],
        &[("Accept", "application/openmetrics-text;q=0.1"), ("accept", "text/plain;q=0.2")],
    ] {
        let (kind, text) = scrape(headers);
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8", "{headers:?}");
        assert!(
            text.contains(
                "# TYPE promptpal_relay_rows_done_total counter\npromptpal_relay_rows_done_total 0\n"
            )
        );
        assert!(text.contains("# TYPE promptpal_relay_shortage_pauses_total counter\n"));
        assert!(text.contains("# TYPE promptpal_relay_build_info gauge\n"));
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
    }
    let (kind, text) = scrape(&[("Accept", "text/plain;q=0.2"), ("ACCEPT", openmetrics)]);
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(text.contains("# TYPE promptpal_relay_rows_done counter\npromptpal_relay_rows_done_total 0\n"));
    assert!(text.contains("# TYPE promptpal_relay_build info\n") && text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_process_is_told_as_the_kernel_has_it() {
    let database = Database::new().await;
    let relay = Relay::start_with_few_files(&database, &[], 321);
    assert_eq!(relay.metric("process_max_fds"), 321.0);
    let fds = std::fs::read_dir(format!("/proc/{}/fd", relay.pid())).unwrap().count() as f64;
    // The scrape's connection comes on top, and a session of the daemon may come and go.
    let told = relay.metric("process_open_fds");
    assert!((told - fds).abs() < 5.0, "{told} {fds}");
    let resident = relay.metric("process_resident_memory_bytes");
    assert!(resident > 1e6 && resident <= relay.memory_peak() as f64 * 1.1, "{resident}");
    let before = relay.metric("process_cpu_seconds_total");
    relay.until("process_cpu_seconds_total", |seconds| seconds > before);
    assert!(relay.metric("process_cpu_seconds_total") < 60.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - relay.metric("process_start_time_seconds");
    assert!((0.0..300.0).contains(&age), "{age}");
}

#[tokio::test]
async fn ages_are_told_whatever_the_application_says_of_its_rows() {
    let database = Database::new().await;
    let session = database.session(Role::Metrics).await;
    // What is asked: the metrics, the view, the command.
    let ages = async || {
        let (pending, parked) = session.oldest().await.unwrap();
        let view =
            "SELECT coalesce(min(extract(epoch FROM oldest_age)), 0)::double precision FROM relay.backlog";
        let view: f64 = database.client.query_one(view, &[]).await.unwrap().get(0);
        // The command tells last that no instance runs.
        let (code, out, err) = outcome(database.command(&["status", "--json"]));
        assert!(code == 1 && err.contains("no instance runs"), "{out}{err}");
        let status: serde_json::Value = serde_json::from_str(&out).unwrap();
        (pending, parked, view, status["oldest_age_s"].as_f64().unwrap())
    };
    let insert = async |project: i64, created_at: &str, parked: bool| {
        let sql = format!(
            "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens,
                 created_at, parked) VALUES ({project}, 1, 'u', 0, 1, 1, 1, {created_at}, {parked})"
        );
        database.client.execute(&sql, &[]).await.unwrap();
    };
    for parked in [false, true] {
        insert(1, "'9999-12-31 23:59:59+00'", parked).await;
    }
    assert_eq!(ages().await, (0.0, 0.0, 0.0, 0.0));
    // Behind one of the future, among the pending rows and among the parked ones.
    for parked in [false, true] {
        insert(1, "now() - interval '1 hour'", parked).await;
    }
    let (pending, parked, view, status) = ages().await;
    for age in [pending, parked, view, status] {
        assert!((3600.0..7200.0).contains(&age), "{age}");
    }
    insert(2, "'1970-01-01 00:00:00+00'", false).await;
    let (pending, .., status) = ages().await;
    assert!(pending > 1e9 && status > 1e9, "{pending} {status}");
}

#[tokio::test]
async fn healthz_says_when_nothing_is_delivered() {
    let database = Database::new().await;
    let gate = Gate::default();
    let receiver = Receiver::start({
        let gate = gate.clone();
        move |_| {
            gate.pass();
            Reply::status(200)
        }
    });
    database.webhook(1, &receiver.url("/")).await;
    let (mut relay, port) = start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(port, path), (200, "ok\n".into()), "{path}");
    }
    relay.signal(Signal::SIGTERM);
    assert_eq!(until_unhealthy(port, |_| true), "stopping\n");
    assert_eq!(get(port, "/readyz"), (503, "stopping\n".into()));
    assert_eq!(get(port, "/livez"), (200, "ok\n".into()), "it finishes what is in flight");
    gate.open();
    assert!(relay.wait().success());
}

#[tokio::test]
async fn rows_that_cannot_be_claimed_are_no_health() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let (_relay, port) = start(&database, &[]);
    until(port, "promptpal_relay_healthy", |n| n == 1.0);
    let rename = async |from: &str, to: &str| {
        database.client.batch_execute(&format!("ALTER TABLE relay.{from} RENAME TO {to}")).await.unwrap();
    };
    rename("webhooks", "elsewhere").await;
    database.events(1, 1).await;
    until(port, "promptpal_relay_healthy", |n| n == 0.0);
    let (code, why) = get(port, "/healthz");
    assert!(code == 503 && why.contains("cannot be claimed"), "{code} {why}");
    assert_eq!((get(port, "/readyz").0, get(port, "/livez").0), (503, 200));
    rename("elsewhere", "webhooks").await;
    database.all_done().await;
    until(port, "promptpal_relay_healthy", |n| n == 1.0);
}

#[tokio::test]
async fn a_call_that_never_ends_is_no_life() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let clock = Clock::new();
    let relay = Relay::start_by(&clock, &database.url, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    assert_eq!(get(relay.port(), "/livez"), (200, "ok\n".into()));
    // The thread waits in the kernel, which goes by a clock of its own: the call outlives its minute.
    clock.pass(2);
    until_answer(relay.port(), "/livez", |status, why| status == 503 && why == "a call does not end\n");
    gate.open();
    database.all_done().await;
    until_answer(relay.port(), "/livez", |status, _| status == 200);
}

#[tokio::test]
async fn a_row_that_is_set_aside_is_no_health_and_the_daemon_is_ready_for_others() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    database.webhook(2, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    let port = relay.port();
    database
        .client
        .batch_execute("ALTER TABLE relay.webhook_calls ADD CONSTRAINT none_of_two CHECK (project_id <> 2)")
        .await
        .unwrap();
    database.events(2, 1).await;
    until_unhealthy(port, |why| why.contains("refuses the records of 1 rows"));
    assert_eq!(get(port, "/readyz"), (200, "ok\n".into()));
    database.events(1, 1).await;
    until(port, "promptpal_relay_rows_done_total", |n| n == 1.0);
}

#[tokio::test]
async fn without_postgres_the_daemon_is_not_ready_and_lives() {
    let database = Database::new().await;
    let relay = Relay::start(&database, &[]);
    let port = relay.port();
    let run = async |allow: bool| {
        let sql = format!("UPDATE pg_database SET datallowconn = {allow} WHERE datname = current_database()");
        database.client.batch_execute(&sql).await.unwrap();
    };
    run(false).await;
    let lost = "SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND datname = current_database()";
    database.eventually(lost).await;
    until_answer(port, "/readyz", |status, _| status == 503);
    assert_eq!(get(port, "/livez"), (200, "ok\n".into()));
    run(true).await;
    until_answer(port, "/readyz", |status, _| status == 200);
}

/// Waits until `/healthz` says these words, and until the journal says them in an error, which it does after some minutes:
/// they are what the operator is to read.
pub fn told(clock: &Clock, relay: &Relay, words: [&str; 2]) {
    let says = |text: &str| words.iter().all(|word| text.contains(word));
    until_unhealthy(relay.port(), says);
    let is_error = |line: &Value| line["level"] == "ERROR" && line["message"].as_str().is_some_and(says);
    let errors = |journal: &[Value]| journal.iter().filter(|line| is_error(line)).count();
    assert_eq!(errors(&relay.journal()), 0, "it may pass");
    let deadline = Instant::now() + Duration::from_secs(30);
    // The time that passes may cut short what is under way, which then begins anew.
    let mut lines = 0;
    loop {
        let journal = relay.journal();
        if errors(&journal) > 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{words:?}");
        if journal.len() > lines + 1 {
            clock.pass(1);
            lines = journal.len();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn a_privilege_that_is_lost_is_told_with_what_to_do() {
    let database = Database::new().await;
    let user = format!("unprivileged_{}", std::process::id());
    let run = async |sql: String| database.client.batch_execute(&sql).await.unwrap();
    run(format!("CREATE ROLE {user} LOGIN PASSWORD 'x' IN ROLE relay_daemon")).await;
    let clock = Clock::new();
    let relay = Relay::start_by(&clock, &as_user(&database.url, &user, "x"), &[]);
    run(format!("REVOKE relay_daemon FROM {user}")).await;
    told(&clock, &relay, ["waiting for Postgres", &format!("GRANT relay_daemon TO {user}")]);
    run(format!("GRANT relay_daemon TO {user}")).await;
    relay.until_reconnected(1);
    // The role may not log in, and loses the sessions that it has.
    run(format!("ALTER ROLE {user} NOLOGIN")).await;
    let sessions =
        format!("SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity WHERE usename = '{user}'");
    database.eventually(&sessions).await;
    told(&clock, &relay, ["waiting for Postgres", &format!("CREATE ROLE {user} LOGIN")]);
    drop(relay);
    run(format!("REVOKE relay_daemon FROM {user}; DROP ROLE {user}")).await;
}

#[tokio::test]
async fn what_keeps_rows_from_being_claimed_or_recorded_is_told_with_what_to_do() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let clock = Clock::new();
    let relay = Relay::start_by(&clock, &database.url, &[]);
    let run = async |sql: &str| database.client.batch_execute(sql).await.unwrap();
    run("CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN RAISE EXCEPTION ''could not extend file'' USING ERRCODE = ''disk_full''; END';
         CREATE TRIGGER full_disk BEFORE INSERT ON relay.webhook_calls FOR EACH ROW EXECUTE FUNCTION full_disk()").await;
    database.events(1, 1).await;
    told(&clock, &relay, ["calls cannot be recorded", "make room"]);
    run("DROP TRIGGER full_disk ON relay.webhook_calls").await;
    database.all_done().await;
    run("ALTER TABLE relay.webhooks RENAME TO elsewhere").await;
    database.events(1, 1).await;
    told(&clock, &relay, ["rows cannot be claimed", "put it back"]);
    run("ALTER TABLE relay.elsewhere RENAME TO webhooks").await;
    database.all_done().await;
    relay.until("promptpal_relay_healthy", |n| n == 1.0);
}

#[tokio::test]
async fn a_scraper_that_says_nothing_holds_up_no_row() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let (_relay, port) = start(&database, &[]);
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let mut endless = TcpStream::connect(("127.0.0.1", port)).unwrap();
    endless.write_all(&[b'x'; 64 * 1024]).ok();
    database.events(1, 10).await;
    database.all_done().await;
    drop((silent, endless));
    until(port, "promptpal_relay_rows_done_total", |n| n == 10.0);
}

#[tokio::test]
async fn a_scraper_is_answered_at_once_however_many_say_nothing() {
    let database = Database::new().await;
    let (_relay, port) = start(&database, &[]);
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    // Some clients say nothing, some send half of a request, and some do not read the answer.
    let mut silent = Vec::new();
    for number in 0..200 {
        let mut stream = connect();
        match number % 3 {
            0 => {}
            1 => stream.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap(),
            _ => stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap(),
        }
        silent.push(stream);
        if number % 20 == 0 {
            let start = Instant::now();
            assert_eq!(get(port, "/healthz"), (200, "ok\n".into()));
            assert_eq!(get(port, "/metrics").0, 200);
            assert!(start.elapsed() < Duration::from_millis(900), "{number}: {:?}", start.elapsed());
        }
    }
    // The relay closes at once those that are too many, and the rest when their time is over.
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_configuration() {
    let database = Database::new().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, err) = outcome(database.command(&["run", "--metrics-listen", &address]));
    assert!(code == 78 && err.contains("--metrics-listen"), "{err}");
    let (code, _, err) = outcome(database.command(&["run", "--metrics-listen", "somewhere"]));
    assert!(code == 2 && err.contains("127.0.0.1:9464"), "{err}");
    assert!(TcpStream::connect(("127.0.0.1", closed_port())).is_err());
}
