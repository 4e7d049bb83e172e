//! Which way calls leave the host: the proxy dies while rows wait, refuses, comes back; the address that calls leave from.

use std::collections::HashSet;
use std::io::{BufReader, Write};
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use nix::sys::signal::Signal;
use test_support::http::Message;
use test_support::proxy::{Proxy, Reply as Answer};

use crate::support::scrape::{get, until_unhealthy};
use crate::support::{Database, Receiver, Relay, outcome};

/// The ids of the events that a receiver got; asserts that it got each once.
fn ids(receiver: &Receiver) -> HashSet<String> {
    let requests = receiver.requests();
    let ids: HashSet<_> =
        requests.iter().map(|request| request.header("webhook-id").unwrap().to_owned()).collect();
    assert_eq!(ids.len(), requests.len(), "an event was called twice");
    ids
}

/// Lines of the journal that say that the way out is lacking.
fn lacks(relay: &Relay) -> usize {
    let journal = relay.journal();
    let told = |line: &&serde_json::Value| {
        line["level"] == "ERROR" && line["message"].as_str().is_some_and(|text| text.contains("the proxy"))
    };
    journal.iter().filter(told).count()
}

#[tokio::test]
async fn while_the_proxy_is_dead_rows_wait_and_afterwards_each_event_is_called_once_and_none_has_failed() {
    const EVENTS: i64 = 60;
    let database = Database::new().await;
    let receivers = [Receiver::good(), Receiver::good()];
    for receiver in &receivers {
        database.webhook(1, &receiver.url("/hook")).await;
    }
    let proxy = Proxy::open();
    let address = proxy.address();
    let relay = Relay::start(&database, &["--proxy", &proxy.url()]);
    database.events(1, EVENTS).await;
    database.all_done().await;
    assert_eq!(lacks(&relay), 0);
    proxy.stop();
    database.events(1, EVENTS).await;
    let why = until_unhealthy(relay.port(), |why| why.contains("the proxy"));
    assert!(why.contains(&address.to_string()) && why.contains("start it, or correct --proxy"), "{why}");
    // Again and again, in vain.
    relay.until("promptpal_relay_shortage_pauses_total", |pauses| pauses >= 5.0);
    let logged = "SELECT count(*) FROM relay.webhook_calls";
    assert_eq!(database.number(logged).await, 2 * EVENTS, "nothing is recorded meanwhile");
    assert_eq!(lacks(&relay), 1, "it is told once in a while, not for each call");
    let back = Proxy::on(address, |_| Answer::Tunnel);
    database.all_done().await;
    assert_eq!(database.number(logged).await, 4 * EVENTS);
    let failed = "SELECT count(*) FROM relay.webhook_calls WHERE NOT succeeded OR repeated OR error_message IS NOT NULL";
    assert_eq!(database.number(failed).await, 0);
    for receiver in &receivers {
        assert_eq!(ids(receiver).len(), usize::try_from(2 * EVENTS).unwrap());
    }
    assert!(!back.targets().is_empty());
    let remote = "SELECT DISTINCT remote_addr FROM relay.webhook_calls";
    let remotes = database.client.query(remote, &[]).await.unwrap();
    let remotes: HashSet<String> =
        remotes.iter().map(|row| format!("http://{}/hook", row.get::<_, &str>(0))).collect();
    assert_eq!(remotes, receivers.iter().map(|receiver| receiver.url("/hook")).collect());
    relay.until("promptpal_relay_healthy", |healthy| healthy == 1.0);
}

#[tokio::test]
async fn a_proxy_that_wants_another_password_is_told_and_the_password_is_nowhere() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    let webhook = database.webhook(1, &receiver.url("/")).await;
    let accepts = Arc::new(AtomicBool::new(false));
    let flag = accepts.clone();
    let proxy = Proxy::start(move |request| {
        let right = request.header("proxy-authorization") == Some("Basic dXMzcjpzM2NyZXQ=");
        if right && flag.load(Ordering::SeqCst) { Answer::Tunnel } else { Answer::status(407) }
    });
    let url = format!("http://us3r:s3cret@{}", proxy.address());
    let relay = Relay::start(&database, &["--proxy", &url, "--log-level", "trace"]);
    relay.until_told("that other users see the password", |line| {
        line["level"] == "WARN" && line["message"].as_str().is_some_and(|text| text.contains("--proxy"))
    });
    database.events(1, 3).await;
    let why = until_unhealthy(relay.port(), |why| why.contains("the proxy"));
    assert!(why.contains("407") && why.contains("correct user and password in --proxy"), "{why}");
    accepts.store(true, Ordering::SeqCst);
    database.all_done().await;
    let calls = database.calls().await;
    assert!(calls.len() == 3 && calls.iter().all(|call| call.get::<_, bool>("succeeded")));
    assert_eq!(ids(&receiver).len(), 3);
    let sql = "SELECT string_agg(c::text, ' ') FROM relay.webhook_calls AS c";
    let recorded: String = database.client.query_one(sql, &[]).await.unwrap().get(0);
    let (_, call, _) = outcome(database.command(&["calls", "--webhook", &webhook.to_string(), "--json"]));
    let (code, checked, told) = outcome(database.command(&["check", "--proxy", &url]));
    assert_eq!(code, 0, "{checked}{told}");
    let everything =
        [relay.log(), why, recorded, call, checked, told, get(relay.port(), "/metrics").1].concat();
    for secret in ["us3r", "s3cret", "dXMzcjpzM2NyZXQ"] {
        assert!(!everything.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn an_endpoint_that_the_proxy_refuses_or_does_not_reach_has_failures_and_stops_nobody() {
    let database = Database::new().await;
    let [good, refused, dead] = [Receiver::good(), Receiver::good(), Receiver::good()];
    let end = |receiver: &Receiver| receiver.url("").rsplit_once(':').unwrap().1.to_owned();
    let (of_refused, of_dead) = (end(&refused), end(&dead));
    let proxy = Proxy::start(move |request| match request.path().rsplit_once(':') {
        Some((_, port)) if port == of_refused => Answer::status(403),
        Some((_, port)) if port == of_dead => Answer::status(504),
        _ => Answer::Tunnel,
    });
    for (project, receiver) in [(1, &good), (2, &refused), (3, &dead)] {
        database.webhook(project, &receiver.url("/")).await;
    }
    let relay = Relay::start(&database, &["--proxy", &proxy.url()]);
    for project in [2, 3, 1, 2, 3, 1] {
        database.events(project, 20).await;
    }
    database.all_done().await;
    let sql = "SELECT count(*) FROM relay.webhook_calls WHERE (project_id = 1) = (error_kind IS NULL) AND coalesce(error_kind, 'connect') = 'connect'";
    assert_eq!(database.number(sql).await, 120);
    assert_eq!((ids(&good).len(), refused.requests().len(), dead.requests().len()), (40, 0, 0));
    // One that is dead fails at once, alone or not, and does not make the proxy look broken.
    relay.until("promptpal_relay_healthy", |healthy| healthy == 1.0);
    let before = relay.metric("promptpal_relay_shortage_pauses_total");
    database.events(3, 20).await;
    database.all_done().await;
    assert!((relay.metric("promptpal_relay_shortage_pauses_total") - before).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_stop_while_the_way_out_is_lacking_says_so_and_what_was_called_is_repeated_with_a_mark() {
    let database = Database::new().await;
    let [called, waits] = [Receiver::good(), Receiver::good()];
    for receiver in [&called, &waits] {
        database.webhook(1, &receiver.url("/")).await;
    }
    let open = called.url("").rsplit_once(':').unwrap().1.to_owned();
    // It refuses when it has opened its only tunnel: a tunnel after the refusal would say that it is about the endpoint.
    let (first, turn) = mpsc::channel::<()>();
    let turn = Mutex::new(turn);
    let proxy = Proxy::start(move |request| match request.path().rsplit_once(':') {
        Some((_, port)) if port == open => Answer::Tunnel,
        _ => {
            // Until the other end is dropped.
            turn.lock().unwrap().recv().ok();
            Answer::status(407)
        }
    });
    let mut relay = Relay::start(&database, &["--proxy", &proxy.url(), "--timeout", "1s"]);
    database.events(1, 1).await;
    called.wait_for(1);
    drop(first);
    relay.until("promptpal_relay_shortage_pauses_total", |pauses| pauses >= 2.0);
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1));
    let told = relay.log();
    let told = told.lines().last().unwrap_or_default();
    assert!(told.contains("answers 407") && !told.contains("Postgres"), "{told}");
    assert!(told.contains("will be made again: 1"), "{told}");
    let _next = Relay::start(&database, &[]);
    database.all_done().await;
    let calls = database.calls().await;
    assert_eq!(calls.len(), 2);
    assert!(calls.iter().all(|call| call.get::<_, bool>("succeeded") && call.get("repeated")));
    assert_eq!((called.requests().len(), waits.requests().len()), (2, 1));
    assert_eq!(called.requests()[0].header("webhook-id"), called.requests()[1].header("webhook-id"));
}

#[tokio::test]
async fn calls_leave_from_the_address_that_is_named() {
    let database = Database::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen: Arc<Mutex<Vec<IpAddr>>> = Arc::default();
    let noted = seen.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            noted.lock().unwrap().push(stream.peer_addr().unwrap().ip());
            if Message::request(&mut BufReader::new(&stream)).is_some() {
                stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").unwrap();
            }
        }
    });
    database.webhook(1, &format!("http://127.0.0.1:{port}/")).await;
    let _relay = Relay::start(&database, &["--bind-address", "127.0.0.2,::1"]);
    database.events(1, 3).await;
    database.all_done().await;
    assert_eq!(*seen.lock().unwrap(), [IpAddr::from([127, 0, 0, 2]); 3]);
    assert!(database.calls().await.iter().all(|call| call.get::<_, bool>("succeeded")));
}

#[tokio::test]
async fn check_tells_the_way_out_and_tries_the_proxys_port() {
    let database = Database::new().await;
    let check = |arguments: &[&str]| {
        let (code, out, err) = outcome(database.command(&[&["check"], arguments].concat()));
        assert_eq!(code, 0, "{out}{err}");
        out
    };
    let line = |out: &str, what: &str| {
        let line = out.lines().find(|line| line.contains(what));
        line.unwrap_or_else(|| panic!("{out}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let out = check(&[]);
    assert_eq!(line(&out, " bind address "), "ok bind address none; the kernel chooses");
    assert_eq!(line(&out, " proxy "), "ok proxy none");
    let proxy = Proxy::open();
    let (url, address) = (proxy.url(), proxy.address());
    let flags = ["--proxy", &url, "--bind-address", "127.0.0.2", "--bind-address", "::1"];
    let out = check(&flags);
    assert_eq!(line(&out, " bind address "), "ok bind address 127.0.0.2, ::1");
    assert_eq!(line(&out, " proxy "), format!("ok proxy {address} takes connections"));
    assert!(proxy.asked().is_empty(), "it is asked for nothing");
    proxy.stop();
    let out = check(&flags);
    assert!(
        line(&out, " proxy ").starts_with(&format!("warning proxy the proxy {address} cannot be reached")),
        "{out}"
    );
}
