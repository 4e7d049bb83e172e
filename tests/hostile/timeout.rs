//! A timeout that holds: a call ends when its time is over, whatever the endpoint does and in any phase.
//!
//! The promise is 200 ms beyond the limit. A busy machine is late by itself, so threads that merely sleep measure by how
//! much. The calls that were later than that try again, together and without the others. The test prints the worst
//! excess (`--nocapture`).

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use promptpal_relay::inside::model::Call;
use promptpal_relay::inside::model::Room;

use crate::support::{
    AUTHORITY, Dead, Gate, OK, Peer, Receiver, assert_storable, caller, caller_to, event, is_alone, kind,
    made, message, post, post_body, run_alone, settings, webhook,
};

/// The timeout of the calls: longer than the longest pause between two bytes.
const LIMIT: Duration = Duration::from_secs(2);
/// How late a call may end, as promised.
const EXCESS_MAX: Duration = Duration::from_millis(200);
/// How many threads merely sleep.
const SLEEPERS: usize = 8;
/// How often a call may try; it must be in time once.
const TRIES: usize = 3;
/// The pauses between two bytes.
const PAUSES_MS: [u64; 4] = [1, 300, 900, 1500];

fn took(call: &Call) -> Duration {
    call.end_time.duration_since(call.start_time).unwrap()
}

/// Asserts that the call ended as a timeout, at its limit or later; returns how much later.
fn excess(name: &str, call: &Call) -> Duration {
    assert_eq!(kind(call), "timeout", "{name}: {} after {:?}", message(call), took(call));
    assert!(call.is_timeout() && message(call).contains(" within 2s"), "{name}: {}", message(call));
    assert_storable(call);
    let took = took(call);
    assert!(took >= LIMIT, "{name} took {took:?}");
    took - LIMIT
}

/// A call to make on a thread of its own.
type Running = Box<dyn Fn() -> Call + Sync>;

type Script = Box<dyn Fn(&mut Peer, Duration) + Send + Sync>;

/// An answer whose first part comes at once and whose second comes a byte at a time.
fn answer(at_once: &'static str, dripping: Vec<u8>) -> Script {
    Box::new(move |peer, pause| {
        if peer.request().is_some() && peer.send(at_once) {
            peer.drip(&dripping, pause);
            peer.until_closed();
        }
    })
}

/// Endless for a call of [`LIMIT`], at a byte each millisecond.
fn long(text: &str) -> Vec<u8> {
    text.repeat(10_000 / text.len()).into_bytes()
}

/// Each with its name, and whether the status line of the answer was complete.
fn phases() -> Vec<(&'static str, bool, Script)> {
    let head = "HTTP/1.1 200 OK\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let trailers = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n";
    vec![
        ("status line", false, answer("", [b"HTTP/1.1 200 ", &*long("a")].concat())),
        ("header", true, answer(head, [b"a: ", &*long("b")].concat())),
        ("headers", true, answer(head, long("a: b\r\n"))),
        ("interim answers", false, answer("", long("HTTP/1.1 103 Early Hints\r\n\r\n"))),
        ("body with a length", true, answer("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", long("a"))),
        ("body until the end", true, answer("HTTP/1.1 200 OK\r\n\r\n", long("a"))),
        ("chunk size", true, answer(chunked, long("0"))),
        ("chunk data", true, answer(chunked, [b"fffff\r\n", &*long("a")].concat())),
        ("chunks", true, answer(chunked, long("1\r\na\r\n"))),
        ("trailer", true, answer(trailers, [b"a: ", &*long("b")].concat())),
        ("trailers", true, answer(trailers, long("a: b\r\n"))),
    ]
}

/// How much longer a sleep of [`LIMIT`] takes.
fn overslept() -> Duration {
    let start = Instant::now();
    thread::sleep(LIMIT);
    start.elapsed() - LIMIT
}

/// Runs each of the named calls on a thread of its own, all at once, and asserts that each ends in time; those that are
/// late get another try. Prints the worst excess.
fn assert_all_in_time(what: &str, mut calls: Vec<(String, Running)>, check: impl Fn(&str, &Call)) {
    for attempt in 1..=TRIES {
        let (excesses, own) = thread::scope(|scope| {
            let sleepers: Vec<_> = (0..SLEEPERS).map(|_| scope.spawn(overslept)).collect();
            let running: Vec<_> = calls.iter().map(|(_, call)| scope.spawn(call)).collect();
            let end = |((name, _), call): (&(String, Running), thread::ScopedJoinHandle<'_, Call>)| {
                let call = call.join().unwrap();
                check(name, &call);
                excess(name, &call)
            };
            let excesses: Vec<_> = calls.iter().zip(running).map(end).collect();
            (excesses, sleepers.into_iter().map(|sleeper| sleeper.join().unwrap()).max().unwrap())
        });
        println!("{what}: worst excess {:?}, of a sleep {own:?}", excesses.iter().max().unwrap());
        let late = |excess: &Duration| *excess > EXCESS_MAX + own;
        calls = calls
            .into_iter()
            .zip(excesses)
            .filter(|(_, excess)| late(excess))
            .map(|(call, _)| call)
            .collect();
        if calls.is_empty() {
            return;
        }
        let names: Vec<_> = calls.iter().map(|(name, _)| name).collect();
        assert!(attempt < TRIES, "{what}: late each time: {names:?}");
    }
}

#[test]
fn a_call_ends_at_its_limit_whatever_drips() {
    let mut calls: Vec<(String, Running)> = Vec::new();
    for pause in PAUSES_MS {
        for encrypted in [false, true] {
            for (name, complete, script) in phases() {
                let run = move |peer: &mut Peer| script(peer, Duration::from_millis(pause));
                let receiver =
                    if encrypted { Receiver::tls(AUTHORITY.good(), run) } else { Receiver::start(run) };
                let url = if encrypted { receiver.https() } else { receiver.url() };
                let complete = if complete { "complete" } else { "in the status line" };
                let name = format!("{name}, {complete}, each {pause} ms, encrypted: {encrypted}");
                calls.push((name, Box::new(move || post(&caller(LIMIT), &url))));
            }
        }
    }
    assert_all_in_time("dripping answers", calls, |name, call| {
        let complete = name.contains("complete");
        assert_eq!(call.status_code, complete.then_some(200), "{name}: a timeout also after a 2xx");
        assert_eq!(call.response_truncated, call.response_body.is_some(), "{name}");
        assert!(call.response_body.is_some() || name.contains("1500"), "{name}: what came is kept");
    });
}

#[test]
fn a_call_ends_at_its_limit_in_the_tls_handshake() {
    let mut calls: Vec<(String, Running)> = Vec::new();
    // The beginning of a record of 16 KiB that is part of a handshake, and then the record.
    let record = [&[0x16, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc, 3, 3], &*long("a")].concat();
    for pause in PAUSES_MS {
        let record = record.clone();
        let receiver = Receiver::start(move |peer| peer.drip(&record, Duration::from_millis(pause)));
        let url = receiver.https();
        calls.push((format!("each {pause} ms"), Box::new(move || post(&caller(LIMIT), &url))));
    }
    let receiver = Receiver::start(Peer::until_closed);
    let url = receiver.https();
    calls.push(("silence".into(), Box::new(move || post(&caller(LIMIT), &url))));
    assert_all_in_time("TLS handshakes", calls, |name, call| {
        assert!(message(call).contains("handshake"), "{name}: {}", message(call));
    });
}

#[test]
fn a_call_ends_at_its_limit_when_the_endpoint_does_not_read() {
    let body: Arc<str> = "x".repeat(16 * 1024 * 1024).into();
    let mut calls: Vec<(String, Running)> = Vec::new();
    for encrypted in [false, true] {
        for (sip, pause) in
            [(0, 0), (1, 1), (1, 300), (60_000, 300), (200_000, 900), (2_000, 1), (400_000, 1500)]
        {
            for narrow in [false, true] {
                let run = move |peer: &mut Peer| match sip {
                    // Holds the connection and does not touch it.
                    0 => thread::sleep(3 * LIMIT),
                    _ => peer.sip(sip, Duration::from_millis(pause)),
                };
                let receiver = match (encrypted, narrow) {
                    (false, true) => Receiver::narrow(run),
                    (false, false) => Receiver::start(run),
                    (true, false) => Receiver::tls(AUTHORITY.good(), run),
                    (true, true) => continue,
                };
                let url = if encrypted { receiver.https() } else { receiver.url() };
                let name = format!("{sip} bytes each {pause} ms, narrow: {narrow}, encrypted: {encrypted}");
                let body = body.clone();
                calls.push((name, Box::new(move || post_body(&caller(LIMIT), &url, &body))));
            }
        }
    }
    assert_all_in_time("endpoints that do not read", calls, |_, _| {});
}

#[test]
fn a_call_ends_at_its_limit_when_nothing_connects() {
    let dead = Dead::on([127, 0, 0, 1], 0);
    let url = format!("http://{}/", dead.address);
    let one: Running = Box::new(move || post(&caller(LIMIT), &url));
    // The time is shared by the addresses of a name, and is not more for many of them.
    let all = [2, 3, 4].map(|last| Dead::on([127, 0, 0, last], dead.address.port()));
    let addresses: Vec<_> = all.iter().map(|dead| dead.address.ip()).collect();
    let many = caller_to(settings(LIMIT), move |_| Ok(addresses.clone()));
    let url = format!("http://many.example:{}/", dead.address.port());
    let many: Running = Box::new(move || post(&many, &url));
    let calls = vec![("one address".into(), one), ("many addresses".into(), many)];
    assert_all_in_time("no connection", calls, |_, _| {});
}

#[test]
fn a_call_ends_at_its_limit_when_the_resolver_hangs() {
    let gate = Gate::default();
    let door = gate.clone();
    let hangs = caller_to(settings(LIMIT), move |_| {
        door.pass();
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    });
    let call: Running = Box::new(move || post(&hangs, "http://slow.example/"));
    assert_all_in_time("resolver", vec![("a name".into(), call)], |_, call| {
        assert!(message(call).contains("resolved"), "{}", message(call));
    });
    gate.open();
}

#[test]
fn a_second_try_for_want_of_files_has_what_the_first_has_left_of_the_time() {
    const NAME: &str = "timeout::a_second_try_for_want_of_files_has_what_the_first_has_left_of_the_time";
    if !is_alone() {
        return run_alone(NAME, "ulimit -n 60");
    }
    // The first try finds no file for its connection after most of the time. A connection that rests gives one up for the
    // second try. The endpoint's system takes that, and no program answers: a script would need files of its own.
    let resting = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (pause, files) = (LIMIT / 4 * 3, Arc::new(Mutex::new(Vec::new())));
    let taken = files.clone();
    let caller = caller_to(settings(LIMIT), move |_| {
        thread::sleep(pause);
        taken.lock().unwrap().extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()));
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    });
    assert_eq!(kind(&post(&caller, &resting.url())), "success");
    let start = Instant::now();
    let call = post(&caller, &format!("http://slow.example:{}/", silent.local_addr().unwrap().port()));
    let waited = start.elapsed();
    files.lock().unwrap().clear();
    assert!(message(&call).starts_with("no answer"), "{}", message(&call));
    excess("the second try", &call);
    assert!(waited < LIMIT + pause / 2, "{waited:?}");
}

#[test]
fn the_time_of_all_phases_is_one() {
    // Each phase stays well below the limit; together they do not.
    let pause = LIMIT / 4;
    let receiver = Receiver::start(move |peer| {
        thread::sleep(pause);
        peer.request();
        for part in ["HTTP/1.1 200 OK\r\n", "a: b\r\n\r\n", "body", "body", "body"] {
            thread::sleep(pause);
            peer.send(part);
        }
    });
    let slow = caller_to(settings(LIMIT), move |_| {
        thread::sleep(pause);
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    });
    let url = format!("http://slow.example:{}/", receiver.address.port());
    let call: Running =
        Box::new(move || made(slow.call(&webhook(&url), &event("{}"), &mut Room::without_end())));
    assert_all_in_time("all phases", vec![("half a second each".into(), call)], |_, _| {});
}
