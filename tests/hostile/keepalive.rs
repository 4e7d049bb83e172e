//! Connections that are kept, and endpoints that close them at the worst moment.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ServerConfig;

use crate::support::{AUTHORITY, Gate, OK, PATIENT, Peer, Receiver, caller, eventually, kind, message, post};

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
    // In one write, each a record of its own; 4 KiB of it are decrypted at once, and around there the other answer, or
    // some of it, stays behind as it came from the wire.
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
            let receiver =
                if encrypted { Receiver::tls(AUTHORITY.good(), script) } else { Receiver::start(script) };
            let url = if encrypted { receiver.https() } else { receiver.url() };
            let caller = caller(PATIENT);
            assert_eq!(kind(&post(&caller, &url)), "success");
            let call = post(&caller, &url);
            let name = format!("{crossing:?}, encrypted: {encrypted}");
            assert_eq!(kind(&call), "success", "{name}: {}", message(&call));
            assert_eq!(receiver.connections(), 2, "{name}");
            assert!(call.request_headers.contains("content-length"), "{name}: {}", call.request_headers);
        }
    }
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
    let receiver = Receiver::start(|peer| {
        if peer.number == 1 && peer.request().is_some() {
            peer.send(OK);
        }
        peer.request();
    });
    let caller = caller(PATIENT);
    assert_eq!(kind(&post(&caller, &receiver.url())), "success");
    let call = post(&caller, &receiver.url());
    assert_eq!((kind(&call), receiver.connections()), ("connect", 2), "{}", message(&call));
}

#[test]
fn a_second_chance_has_no_time_of_its_own() {
    let limit = Duration::from_secs(1);
    let receiver = Receiver::start(move |peer| {
        if peer.number == 1 {
            assert!(peer.request().is_some() && peer.send(OK));
            peer.read(1);
            thread::sleep(limit / 2);
            return;
        }
        peer.until_closed();
    });
    let caller = caller(limit);
    assert_eq!(kind(&post(&caller, &receiver.url())), "success");
    let call = post(&caller, &receiver.url());
    assert_eq!(kind(&call), "timeout", "{}", message(&call));
    let took = call.end_time.duration_since(call.start_time).unwrap();
    println!("second chance: excess {:?}", took.saturating_sub(limit));
    assert!(took < limit + limit / 2, "{took:?}");
}

#[test]
fn an_endpoint_that_closes_whenever_it_likes_fails_no_call() {
    // Pauses around the time that a caller needs from one call to the next.
    for pause_us in [0, 20, 50, 100, 200, 500, 1000] {
        let count = Arc::new(AtomicUsize::new(0));
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
                        assert_eq!(kind(&call), "success", "{}", message(&call));
                    }
                });
            }
        });
        // Each answered request was a call: nothing that was answered is sent again.
        assert_eq!(count.load(Ordering::SeqCst), 200, "pause {pause_us} µs");
        assert!(receiver.connections() >= 66, "it closes: {}", receiver.connections());
    }
}
