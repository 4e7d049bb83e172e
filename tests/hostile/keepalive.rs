//! Connections that are kept, and endpoints that close them at the worst moment.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use promptpal_relay::inside::delivery::Caller;
use promptpal_relay::inside::delivery::fd_budget;
use promptpal_relay::inside::delivery::sign;
use promptpal_relay::inside::model::Room;
use promptpal_relay::inside::model::Webhook;
use promptpal_relay::inside::model::{Call, Outcome};
use rustls::ServerConfig;

use crate::support::{
    AUTHORITY, DEADLINE, Gate, OK, PATIENT, Peer, Receiver, caller, caller_to, caller_with, event,
    eventually, is_alone, kind, made, makes_no_sense_proxied, message, post, run_alone, settings, signed,
    webhook,
};

/// On loopback the end of a reused connection that is known later is final.
const CROSSING: Duration = Duration::from_millis(10);
/// How long a server works on an event before it dies: long for loopback, and less than the longest limit of a second chance.
const WORK: Duration = Duration::from_millis(80);

fn took(call: &Call) -> Duration {
    call.end_time.duration_since(call.start_time).unwrap_or_default()
}

/// Whether the call failed because this machine was too busy: it learned too late that the connection had ended.
fn was_slow(call: &Call) -> bool {
    let chance = ["sent twice", "not sent again"].iter().any(|remark| message(call).contains(remark));
    kind(call) == "connect" && took(call) > CROSSING && !chance
}

/// Tries until this machine is fast enough to say something.
fn tried<T>(attempt: impl Fn() -> (Call, T)) -> (Call, T) {
    let start = Instant::now();
    loop {
        let (call, rest) = attempt();
        if !was_slow(&call) {
            return (call, rest);
        }
        assert!(start.elapsed() < DEADLINE, "no end is known within {CROSSING:?}: {}", message(&call));
    }
}

/// A receiver that answers the first request of its first connection, and then does this with that connection. It counts the
/// requests that it has read.
fn dying(
    encrypted: bool,
    end: impl Fn(&mut Peer) + Send + Sync + 'static,
    others: impl Fn(&mut Peer) + Send + Sync + 'static,
) -> (Receiver, String, Arc<AtomicUsize>) {
    let requests: Arc<AtomicUsize> = Arc::default();
    let count = requests.clone();
    let script = move |peer: &mut Peer| {
        if peer.number > 1 {
            if peer.request().is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                others(peer);
            }
            return;
        }
        assert!(peer.request().is_some() && peer.send(OK));
        end(peer);
    };
    let receiver = if encrypted { Receiver::tls(AUTHORITY.good(), script) } else { Receiver::start(script) };
    let url = if encrypted { receiver.https() } else { receiver.url() };
    (receiver, url, requests)
}

fn at_most_once() -> Caller {
    let mut settings = settings(PATIENT);
    settings.second_chance = false;
    caller_with(settings)
}

/// Answers each request, and counts them.
fn good(count: &Arc<AtomicUsize>) -> impl Fn(&mut Peer) + Send + Sync + 'static {
    let count = count.clone();
    move |peer| {
        while peer.request().is_some() {
            count.fetch_add(1, Ordering::SeqCst);
            if !peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") {
                return;
            }
        }
    }
}

#[test]
fn connections_are_reused() {
    for encrypted in [false, true] {
        let count = Arc::default();
        let receiver = if encrypted {
            Receiver::tls(AUTHORITY.good(), good(&count))
        } else {
            Receiver::start(good(&count))
        };
        let url = if encrypted { receiver.https() } else { receiver.url() };
        let caller = caller(PATIENT);
        for _ in 0..200 {
            assert_eq!(kind(&post(&caller, &url)), "success");
        }
        println!("encrypted {encrypted}: 200 calls over {} connections", receiver.connections());
        assert_eq!(
            (receiver.connections(), count.load(Ordering::SeqCst)),
            (1, 200),
            "encrypted: {encrypted}"
        );
    }
}

#[test]
fn threads_share_the_connections_of_an_endpoint() {
    let count = Arc::default();
    let receiver = Receiver::start(good(&count));
    let caller = caller(PATIENT);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                (0..100).for_each(|_| assert_eq!(kind(&post(&caller, &receiver.url())), "success"))
            });
        }
    });
    assert_eq!(count.load(Ordering::SeqCst), 800);
    assert!(receiver.connections() <= 8, "{} connections for 8 threads", receiver.connections());
}

#[test]
fn an_answer_of_any_framing_leaves_its_connection_usable_and_others_close_it() {
    for (answer, reused) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true),
        ("HTTP/1.1 204 No Content\r\n\r\n", true),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false),
        // More than was announced: the rest would be taken for the next answer.
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 666 Evil\r\nContent-Length: 0\r\n\r\n",
            false,
        ),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", false),
    ] {
        let receiver = Receiver::start(move |peer| while peer.request().is_some() && peer.send(answer) {});
        let caller = caller(PATIENT);
        for _ in 0..3 {
            let call = post(&caller, &receiver.url());
            assert_ne!(call.status_code, Some(666), "an answer that was not asked for");
            assert!(["success", "http_status"].contains(&kind(&call)), "{answer:?}: {}", message(&call));
        }
        assert_eq!(receiver.connections(), if reused { 1 } else { 3 }, "{answer:?}");
    }
}

#[test]
fn an_answer_that_nobody_asked_for_is_not_the_next_calls() {
    if makes_no_sense_proxied("nobody knows when the proxy has passed the answer on") {
        return;
    }
    for encrypted in [false, true] {
        let (said, ask) = (Gate::default(), Gate::default());
        let (door, answered) = (said.clone(), ask.clone());
        let script = move |peer: &mut Peer| {
            if peer.request().is_some() && peer.send(OK) && peer.number == 1 {
                // Only when the first answer is read: else the two come together.
                assert!(answered.pass() && peer.send("HTTP/1.1 666 Evil\r\nContent-Length: 0\r\n\r\n"));
                door.open();
                peer.until_closed();
            }
        };
        let receiver =
            if encrypted { Receiver::tls(AUTHORITY.good(), script) } else { Receiver::start(script) };
        let url = if encrypted { receiver.https() } else { receiver.url() };
        let caller = caller(PATIENT);
        assert_eq!(kind(&post(&caller, &url)), "success");
        ask.open();
        assert!(said.pass());
        let call = post(&caller, &url);
        assert_eq!((call.status_code, receiver.connections()), (Some(200), 2), "{}", message(&call));
    }
}

#[test]
fn what_came_with_an_encrypted_answer_is_not_the_next_calls() {
    const EVIL: &str = "HTTP/1.1 666 Evil\r\nContent-Length: 0\r\n\r\n";
    let evil_after = |first: String, second: String, config: ServerConfig| {
        let receiver = Receiver::tls(config.into(), move |peer| {
            while peer.request().is_some() {
                peer.send(&first);
                // Until the first part has been read; if not, this try says nothing.
                thread::sleep(Duration::from_millis(if second.is_empty() { 0 } else { 50 }));
                peer.send(&second);
            }
        });
        let caller = caller(PATIENT);
        for _ in 0..3 {
            let call = post(&caller, &receiver.https());
            assert_eq!(call.status_code, Some(200), "{} bytes: {}", call.response_bytes, message(&call));
        }
    };
    let good = || ServerConfig::clone(&AUTHORITY.good());
    // In one write, each a record of its own. 4 KiB of it are decrypted at once. Around there the other answer, or some of
    // it, stays behind as it came from the wire.
    for body in (3780..3850).step_by(3) {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\n\r\n{}", "x".repeat(body));
        let mut config = good();
        config.max_fragment_size = Some(answer.len() + 5);
        evil_after(answer + EVIL, String::new(), config);
    }
    // Two records that are decrypted together, when there is room for the first alone: 20 KiB hold the answer.
    for _ in 0..3 {
        let head = |body: usize| {
            format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: {body}\r\n\r\n", "x".repeat(5000))
        };
        let body = 20 * 1024 - head(10_000).len();
        let mut first = head(body) + &"x".repeat(body);
        let second = first.split_off(4096) + EVIL;
        evil_after(first, second, good());
    }
}

#[test]
fn connections_rest_for_three_seconds_at_most() {
    // When each connection's end came.
    let ends: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = ends.clone();
    let receiver = Receiver::start(move |peer| {
        while peer.request().is_some() && peer.send(OK) {}
        noted.lock().unwrap().push(Instant::now());
    });
    let caller = caller(PATIENT);
    assert_eq!(kind(&post(&caller, &receiver.url())), "success");
    let start = Instant::now();
    eventually("the connection's end", || {
        caller.close_resting();
        !ends.lock().unwrap().is_empty()
    });
    let rested = ends.lock().unwrap()[0] - start;
    assert!(rested > Duration::from_millis(2500), "closed after {rested:?}: not reused");
    assert!(rested < Duration::from_millis(4500), "closed after {rested:?}: Express closes after 5 s");
}

#[test]
fn a_connection_that_rested_too_long_is_not_used() {
    let count = Arc::default();
    let receiver = Receiver::start(good(&count));
    let caller = caller(PATIENT);
    assert_eq!(kind(&post(&caller, &receiver.url())), "success");
    // It is this time that is tested.
    thread::sleep(Duration::from_millis(3200));
    assert_eq!(kind(&post(&caller, &receiver.url())), "success");
    assert_eq!(receiver.connections(), 2);
}

/// What an endpoint does with the second request of its first connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Crossing {
    /// Closes the connection before the request comes.
    Before,
    /// Closes the connection when so many bytes of it have come.
    After(usize),
    /// Resets the connection when so many bytes of it have come.
    Reset(usize),
}

#[test]
fn a_connection_that_dies_under_the_next_request_fails_no_call() {
    let all = [
        Crossing::Before,
        Crossing::After(0),
        Crossing::After(1),
        Crossing::After(50),
        Crossing::Reset(0),
        Crossing::Reset(1),
        Crossing::Reset(100),
    ];
    for encrypted in [false, true] {
        for crossing in all {
            let script = move |peer: &mut Peer| {
                if peer.request().is_none() || !peer.send(OK) || peer.number > 1 {
                    return;
                }
                match crossing {
                    Crossing::Before => {}
                    Crossing::After(bytes) => drop(peer.read(bytes.max(1))),
                    Crossing::Reset(bytes) => {
                        peer.read(bytes.max(1));
                        peer.reset();
                    }
                }
            };
            let (call, connections) = tried(|| {
                let receiver =
                    if encrypted { Receiver::tls(AUTHORITY.good(), script) } else { Receiver::start(script) };
                let url = if encrypted { receiver.https() } else { receiver.url() };
                let caller = caller(PATIENT);
                assert_eq!(kind(&post(&caller, &url)), "success");
                (post(&caller, &url), receiver.connections())
            });
            let name = format!("{crossing:?}, encrypted: {encrypted}");
            assert_eq!(kind(&call), "success", "{name}: {}", message(&call));
            assert_eq!(connections, 2, "{name}");
            assert!(call.request_headers.contains("content-length"), "{name}: {}", call.request_headers);
        }
    }
}

#[test]
fn a_call_that_was_sent_twice_says_so_whatever_came_of_it() {
    let ends: [(&str, &str, &str); 4] = [
        (OK, "success", ""),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "http_status", "status 500; "),
        // A flaw of the answer, beside a success.
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", "success", "the answer broke off"),
        ("", "connect", ""),
    ];
    for encrypted in [false, true] {
        for (answer, outcome, also) in ends {
            let (call, requests) = tried(|| {
                let (_receiver, url, requests) =
                    dying(encrypted, |peer| _ = peer.read(1), move |peer| _ = peer.send(answer));
                let caller = caller(PATIENT);
                let first = post(&caller, &url);
                assert_eq!((kind(&first), message(&first)), ("success", ""));
                let call = post(&caller, &url);
                // A second one that dies has no sign of its own, however long it took.
                let sent_twice = message(&call)
                    .contains("sent twice: the first time on a connection that had been used before");
                assert!(sent_twice || was_slow(&call), "{answer:?}: {}", message(&call));
                (call, requests.load(Ordering::SeqCst))
            });
            assert_eq!((kind(&call), requests), (outcome, 1), "{answer:?}: {}", message(&call));
            assert!(message(&call).contains(also), "{answer:?}: {}", message(&call));
        }
    }
}

#[test]
fn a_server_near_by_that_read_the_event_and_died_later_is_not_called_again() {
    for encrypted in [false, true] {
        for reset in [false, true] {
            let read: Arc<AtomicUsize> = Arc::default();
            let count = read.clone();
            let end = move |peer: &mut Peer| {
                assert!(peer.request().is_some());
                count.fetch_add(1, Ordering::SeqCst);
                // It is this time that is tested: the server works, and then dies.
                thread::sleep(WORK);
                if reset {
                    peer.reset();
                }
            };
            let (receiver, url, requests) = dying(encrypted, end, |peer| _ = peer.send(OK));
            let caller = caller(PATIENT);
            assert_eq!(kind(&post(&caller, &url)), "success");
            let call = post(&caller, &url);
            assert_eq!(kind(&call), "connect", "encrypted {encrypted}, reset {reset}: {}", message(&call));
            assert_eq!((receiver.connections(), read.load(Ordering::SeqCst)), (1, 1), "{}", message(&call));
            assert_eq!(requests.load(Ordering::SeqCst), 0);
            assert!(!message(&call).contains("sent twice"), "{}", message(&call));
            assert!(call.request_headers.contains("content-length"), "{}", call.request_headers);
        }
    }
}

#[test]
fn who_wants_one_post_at_most_gets_no_second_chance() {
    for encrypted in [false, true] {
        let (receiver, url, requests) = dying(encrypted, |peer| _ = peer.read(1), |peer| _ = peer.send(OK));
        let caller = at_most_once();
        assert_eq!(kind(&post(&caller, &url)), "success");
        let call = post(&caller, &url);
        assert_eq!((kind(&call), receiver.connections()), ("connect", 1), "{}", message(&call));
        assert_eq!(requests.load(Ordering::SeqCst), 0);
        // The next one has a fresh connection.
        assert_eq!(kind(&post(&caller, &url)), "success");
    }
}

#[test]
fn a_second_chance_that_finds_no_server_says_that_the_first_request_went_out() {
    let (call, ()) = tried(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let mut peer = Peer::new(listener.accept().unwrap().0, 1);
            drop(listener);
            assert!(peer.request().is_some() && peer.send(OK));
            peer.read(1);
        });
        let (caller, url) = (caller(PATIENT), format!("http://{address}/"));
        assert_eq!(kind(&post(&caller, &url)), "success");
        let call = post(&caller, &url);
        server.join().unwrap();
        (call, ())
    });
    assert_eq!(kind(&call), "connect", "{}", message(&call));
    assert!(
        message(&call).contains("; sent on a connection that had been used before"),
        "{}",
        message(&call)
    );
    assert!(message(&call).contains("not sent again"), "{}", message(&call));
    assert!(call.request_headers.contains("content-length"), "{}", call.request_headers);
    assert!(call.remote_addr.is_some());
}

#[test]
fn a_second_chance_for_which_no_file_is_left_ends_the_call() {
    if !is_alone() {
        return run_alone(
            "keepalive::a_second_chance_for_which_no_file_is_left_ends_the_call",
            "ulimit -n 200",
        );
    }
    // Takes all descriptors that calls may have, and each that comes back, until the call has ended.
    let (greedy, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (want, end) = (greedy.clone(), ended.clone());
    let grabber = thread::spawn(move || {
        let mut taken = Vec::new();
        while !end.load(Ordering::SeqCst) {
            match want.load(Ordering::SeqCst) {
                true => taken.extend(fd_budget::take(1)),
                false => taken.clear(),
            }
        }
    });
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < DEADLINE, "a second chance always finds a file");
        let grab = greedy.clone();
        let end = move |peer: &mut Peer| {
            grab.store(true, Ordering::SeqCst);
            peer.read(1);
        };
        let (receiver, url, requests) = dying(false, end, |peer| _ = peer.send(OK));
        let caller = caller(PATIENT);
        assert_eq!(kind(&post(&caller, &url)), "success");
        eventually("the files are taken", || fd_budget::take(1).is_none());
        let outcome = caller.call(&webhook(&url), &event("{}"), &mut Room::without_end());
        greedy.store(false, Ordering::SeqCst);
        // Whatever comes of it: the call does not come again as one of which nothing was sent.
        let Outcome::Called(call) = outcome else { panic!("{outcome:?}: the request had gone out") };
        eventually("the files are free", || fd_budget::take(10).is_some());
        if message(&call).contains("not sent again") {
            assert_eq!((kind(&call), receiver.connections()), ("connect", 1), "{}", message(&call));
            assert_eq!(requests.load(Ordering::SeqCst), 0);
            break;
        }
        assert!(was_slow(&call) || message(&call).contains("sent twice"), "{}", message(&call));
    }
    ended.store(true, Ordering::SeqCst);
    grabber.join().unwrap();
}

#[test]
fn only_a_reused_connection_is_given_a_second_chance_and_only_before_an_answer() {
    // A fresh one that dies: once, and failed.
    let receiver = Receiver::start(|peer| assert!(peer.request().is_some()));
    let call = post(&caller(PATIENT), &receiver.url());
    assert_eq!((kind(&call), receiver.connections()), ("connect", 1), "{}", message(&call));
    // A reused one that dies after a byte of the answer: the endpoint has begun to answer.
    for (part, expected) in [("H", "protocol"), ("HTTP/1.1 500 Oops\r\n", "http_status"), ("x", "protocol")] {
        let receiver = Receiver::start(move |peer| {
            if peer.request().is_some() && peer.send(OK) && peer.request().is_some() {
                peer.send(part);
            }
        });
        let caller = caller(PATIENT);
        assert_eq!(kind(&post(&caller, &receiver.url())), "success");
        let call = post(&caller, &receiver.url());
        assert_eq!((kind(&call), receiver.connections()), (expected, 1), "{part:?}: {}", message(&call));
    }
    // The second chance fails as well: no third.
    let (call, connections) = tried(|| {
        let receiver = Receiver::start(|peer| {
            if peer.number == 1 && peer.request().is_some() {
                peer.send(OK);
            }
            peer.request();
        });
        let caller = caller(PATIENT);
        assert_eq!(kind(&post(&caller, &receiver.url())), "success");
        (post(&caller, &receiver.url()), receiver.connections())
    });
    assert_eq!((kind(&call), connections), ("connect", 2), "{}", message(&call));
}

/// How long this machine needs to sign a body: the shortest of some times.
fn signing(webhook: &Webhook, body: &str) -> Duration {
    let secret = webhook.signing_secret.as_ref().unwrap();
    let once = |_| {
        let start = Instant::now();
        sign(secret, "id", SystemTime::now(), body).unwrap();
        start.elapsed()
    };
    (0..3).map(once).min().unwrap()
}

/// A body that takes long to sign with as many secrets as [`secrets`] has.
const LONG_BYTES: usize = 8 * 1024 * 1024;

fn secrets() -> String {
    ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"; 24].join(" ")
}

#[test]
fn a_second_chance_has_no_time_of_its_own() {
    let message_of_a_call = event(&"x".repeat(LONG_BYTES));
    // Each of the two requests is signed: so long before the second one goes out.
    let signing = || signing(&signed("http://a.example/", &secrets()), &message_of_a_call.body);
    let before = signing();
    let (limit, start) = (6 * before, Instant::now());
    let attempt = || {
        let (_receiver, url, _) = dying(false, |peer| _ = peer.read(1), Peer::until_closed);
        let caller = caller(limit);
        // A busy machine may not come as far as the second chance.
        let long =
            || made(caller.call(&signed(&url, &secrets()), &message_of_a_call, &mut Room::without_end()));
        (kind(&post(&caller, &url)) == "success").then(long)
    };
    let calls = std::iter::repeat_with(attempt)
        .take_while(|_| start.elapsed() < DEADLINE)
        .flatten()
        .filter(|call| message(call).contains("sent twice"))
        .take(3);
    let timed = calls.inspect(|call| assert_eq!(kind(call), "timeout", "{}", message(call)));
    // The shortest of some: a busy machine only adds to it.
    let shortest = timed.map(|call| took(&call)).min().expect("this machine is too busy to say anything");
    let signing = before.min(signing());
    println!("second chance: excess {:?}, signing {signing:?}", shortest.saturating_sub(limit));
    assert!(shortest < limit + signing, "{shortest:?}, signing {signing:?}");
}

#[test]
fn the_time_of_a_signature_is_the_calls() {
    let long = event(&"x".repeat(LONG_BYTES));
    let signing = || signing(&signed("http://a.example/", &secrets()), &long.body);
    let before = signing();
    let limit = 4 * before;
    let receiver = Receiver::start(Peer::until_closed);
    let attempt = |_| {
        let webhook = signed(&receiver.url(), &secrets());
        let start = Instant::now();
        let call = made(caller(limit).call(&webhook, &long, &mut Room::without_end()));
        assert_eq!(kind(&call), "timeout", "{}", message(&call));
        start.elapsed()
    };
    let shortest = (0..3).map(attempt).min().unwrap();
    let signing = before.min(signing());
    println!("signature: excess {:?}, signing {signing:?}", shortest.saturating_sub(limit));
    assert!(shortest < limit + signing / 4 * 3, "{shortest:?}, signing {signing:?}");
}

#[test]
fn a_try_after_a_shortage_has_no_time_of_its_own() {
    if makes_no_sense_proxied("the proxy is in this process, and has no files either") {
        return;
    }
    if !is_alone() {
        return run_alone("keepalive::a_try_after_a_shortage_has_no_time_of_its_own", "ulimit -n 200");
    }
    const LIMIT: Duration = Duration::from_millis(2400);
    const LOOKUP: Duration = Duration::from_millis(1800);
    let taken: Arc<Mutex<Vec<File>>> = Arc::default();
    let files = taken.clone();
    let lookup = move |name: &str| {
        if name.starts_with("slow.example") {
            thread::sleep(LOOKUP);
            // No file is left for the connection. The one that rests gives its own back.
            files.lock().unwrap().extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
        }
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    };
    let caller = caller_to(settings(LIMIT), lookup);
    let receiver = Receiver::start(good(&Arc::default()));
    // Its system makes connections, and nothing answers on them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://slow.example:{}/", silent.local_addr().unwrap().port());
    assert_eq!(kind(&post(&caller, &receiver.url())), "success");
    let start = Instant::now();
    let call = post(&caller, &url);
    let whole = start.elapsed();
    let taken = std::mem::take(&mut *taken.lock().unwrap());
    assert!(!taken.is_empty(), "no file was left");
    drop(taken);
    assert_eq!(kind(&call), "timeout", "{}", message(&call));
    assert_eq!(call.remote_addr, Some(silent.local_addr().unwrap().to_string()), "the second try connects");
    assert!(whole < LIMIT + LOOKUP, "{whole:?}");
    assert!(took(&call) >= LOOKUP, "the log has the time of both: {:?}", took(&call));
}

#[test]
fn an_endpoint_that_closes_whenever_it_likes_fails_no_call() {
    // Pauses around the time that a caller needs from one call to the next.
    for pause_us in [0, 20, 50, 100, 200, 500, 1000] {
        let (count, slow) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
        let answered = count.clone();
        let receiver = Receiver::start(move |peer| {
            for _ in 0..=peer.number % 3 {
                if peer.request().is_none() {
                    return;
                }
                answered.fetch_add(1, Ordering::SeqCst);
                if !peer.send(OK) {
                    return;
                }
            }
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(pause_us) {
                std::hint::spin_loop();
            }
        });
        let caller = caller(PATIENT);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let call = post(&caller, &receiver.url());
                        if was_slow(&call) {
                            slow.fetch_add(1, Ordering::SeqCst);
                            continue;
                        }
                        assert_eq!(kind(&call), "success", "{}", message(&call));
                    }
                });
            }
        });
        let slow = slow.load(Ordering::SeqCst);
        assert!(slow < 100, "this machine is too busy to say anything");
        // Each answered request was a call: nothing that was answered is sent again.
        assert_eq!(count.load(Ordering::SeqCst), 200 - slow, "pause {pause_us} µs");
        assert!(receiver.connections() >= 66, "it closes: {}", receiver.connections());
    }
}
