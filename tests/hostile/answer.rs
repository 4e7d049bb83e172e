//! Bounded answers: each answer becomes one record of the right kind, with the body up to the cap.

use std::thread;
use std::time::Duration;

use promptpal_relay::inside::model::Call;
use promptpal_relay::inside::model::Room;

use crate::support::{
    AUTHORITY, Gate, OK, PATIENT, Peer, Receiver, assert_storable, caller, caller_with, event, kind, message,
    post, post_body, settings, signed,
};

/// The cap of these tests.
pub const CAP: usize = 1000;

/// One call to an endpoint that reads the request and then runs the script.
pub fn call(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Call {
    let receiver = Receiver::start(move |peer| {
        if peer.request().is_some() {
            script(peer);
        }
    });
    let mut settings = settings(PATIENT);
    settings.response_body_bytes_max = CAP;
    let call = post(&caller_with(settings), &receiver.url());
    assert_storable(&call);
    assert_eq!(receiver.connections(), 1, "one call is one POST");
    assert_eq!(call.is_timeout(), kind(&call) == "timeout");
    assert!(call.succeeded() || call.error_message.is_some(), "a failure says why");
    assert!(call.response_body.as_ref().is_none_or(|body| body.len() <= 3 * CAP), "a cap");
    call
}

pub fn answered(bytes: impl AsRef<[u8]>) -> Call {
    let bytes = bytes.as_ref().to_vec();
    call(move |peer| assert!(peer.send(&bytes)))
}

pub fn body(call: &Call) -> &str {
    call.response_body.as_deref().unwrap_or("(none)")
}

#[test]
fn good_answers_are_successes_as_they_are() {
    for (bytes, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi"),
        ("HTTP/1.1 200 OK\r\n\r\nhi", "hi"),
        ("HTTP/1.0 200 OK\r\n\r\nhi", "hi"),
        ("HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", "hi"),
        ("HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", "hi"),
        ("HTTP/1.1 299 Whatever\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi", "hi"),
        ("HTTP/1.1 204 No Content\r\n\r\n", ""),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", ""),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "hi"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\na: b\r\n\r\n", "hi"),
        // The length does not count then (RFC 9112, 6.3).
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            "hi",
        ),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi"),
        (
            "HTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            "hi",
        ),
    ] {
        let call = answered(bytes);
        assert_eq!((kind(&call), body(&call)), ("success", expected), "{bytes:?}: {}", message(&call));
        assert_eq!((call.response_truncated, message(&call)), (false, ""), "{bytes:?}");
        assert_eq!(call.response_bytes, expected.len() as u64, "{bytes:?}");
    }
}

#[test]
fn endless_bodies_are_cut_and_the_status_decides() {
    for (head, part) in [
        ("HTTP/1.1 200 OK\r\n\r\n", "xxxxxxxx"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n", "xxxxxxxx"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "8\r\nxxxxxxxx\r\n"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n", "xxxxxxxx"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"),
        ("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "xxxxxxxx"),
    ] {
        let call = call(move |peer| {
            peer.send(head);
            peer.flood(part.as_bytes());
        });
        assert_eq!((kind(&call), call.status_code), ("success", Some(200)), "{head:?}: {}", message(&call));
        assert!(call.response_truncated && call.response_bytes == CAP as u64 + 1, "{head:?}");
        assert_eq!(body(&call), "x".repeat(CAP), "{head:?}");
    }
    let call = call(|peer| {
        peer.send("HTTP/1.1 503 Busy\r\n\r\n");
        peer.flood(b"x");
    });
    assert_eq!((kind(&call), message(&call), body(&call).len()), ("http_status", "status 503", CAP));
}

#[test]
fn a_body_that_is_nearly_all_framing_ends_early() {
    for (name, head, part) in [
        ("trailers", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", "a: b\r\n"),
        ("a trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: ", "b"),
        ("an extension", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1;a=", "b"),
    ] {
        let call = call(move |peer| {
            peer.send(head);
            peer.flood(part.as_bytes());
        });
        assert_eq!((kind(&call), body(&call)), ("success", "x"), "{name}: {}", message(&call));
        assert!(call.response_truncated && !message(&call).is_empty(), "{name}");
    }
}

#[test]
fn endless_heads_without_a_status_line_end_early_and_are_protocol_failures() {
    for (start, part) in [
        ("HTTP/1.1 200 ", "O"),
        ("HTTP/1.1 ", " "),
        ("", "HTTP/1.1 100 Continue\r\n\r\n"),
        ("", "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"),
        ("", "HTTP/1.1 199 Own\r\n\r\n"),
        ("", "\r\n"),
        ("", "x"),
        ("", "\0"),
    ] {
        let call = call(move |peer| {
            peer.send(start);
            peer.flood(part.as_bytes());
        });
        assert_eq!(kind(&call), "protocol", "{start:?} {part:?}: {}", message(&call));
        assert!(call.status_code.is_none() && call.response_truncated, "{start:?} {part:?}");
        let came = format!("{start}{}", part.repeat(CAP)).replace('\0', "\u{FFFD}");
        // As much as may be kept, as text.
        let kept = (CAP - 2..=CAP).rev().find(|at| came.is_char_boundary(*at)).unwrap();
        assert_eq!(body(&call), &came[..kept], "what came is kept");
    }
}

#[test]
fn interim_answers_that_come_one_by_one_end_early_as_well() {
    for status in [100, 102, 103, 199] {
        let call = call(move |peer| {
            while peer.send(format!("HTTP/1.1 {status} Wait\r\n\r\n")) {
                // So that each is read by itself, and no buffer is ever full.
                thread::sleep(Duration::from_micros(20));
            }
        });
        assert_eq!(kind(&call), "protocol", "{status}: {}", message(&call));
        assert!(
            call.status_code.is_none() && call.response_bytes < 100_000,
            "{status}: {}",
            call.response_bytes
        );
    }
}

#[test]
fn what_is_compressed_stays_so() {
    // 10 MB of zeros, and what brotli makes of nothing.
    let gzip =
        b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\xed\xc1\x01\x0d\0\0\0\xc2\xa0\xf7Om\x0e7\xa0\0\0\0\0\0\0\0\0\0";
    for (encoding, bytes) in [
        ("Content-Encoding: gzip\r\n", &gzip[..]),
        ("Content-Encoding: br\r\n", b"\x3b"),
        ("Content-Encoding: gzip, gzip\r\n", b"no gzip at all"),
        ("Transfer-Encoding: gzip\r\n", &gzip[..]),
        ("", &gzip[..]),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{encoding}Content-Length: {}\r\n\r\n", bytes.len());
        let call = answered([head.as_bytes(), bytes].concat());
        assert_eq!(
            (kind(&call), call.response_truncated),
            ("success", false),
            "{encoding}: {}",
            message(&call)
        );
        assert_eq!(call.response_bytes, bytes.len() as u64, "{encoding}");
        assert_eq!(body(&call), String::from_utf8_lossy(bytes).replace('\0', "\u{FFFD}"), "{encoding}");
        let headers = call.response_headers.unwrap();
        assert_eq!(headers.contains("gzip"), encoding.contains("gzip"), "headers are kept: {headers}");
    }
}

#[test]
fn what_is_no_http_is_a_protocol_failure_and_kept() {
    for bytes in [
        "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        "220 mail.example.com ESMTP\r\n",
        "-ERR unknown command 'POST'\r\n",
        "<html>hello</html>\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 -20 OK\r\n\r\n",
        "HTTP/1.1 000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "HTTP/1.1 1000 OK\r\n\r\n",
        "HTTP/1.10 200 OK\r\n\r\n",
        "HTTP/1.1200 OK\r\n\r\n",
        // No line: more may have come.
        "HTTP/1.1 200 OK",
        "HTTP/1.1 200 OK\r",
        // Settings of HTTP/2, and an alert of TLS.
        "\0\0\u{12}\u{4}\0\0\0\0\0\0\u{3}\0\0\0\u{64}",
        "\u{15}\u{3}\u{1}\0\u{2}\u{2}\u{46}",
    ] {
        let call = answered(bytes);
        assert_eq!(kind(&call), "protocol", "{bytes:?}: {}", message(&call));
        assert_eq!((call.status_code, body(&call)), (None, &*bytes.replace('\0', "\u{FFFD}")), "{bytes:?}");
        assert_eq!(call.response_bytes, bytes.len() as u64, "{bytes:?}");
        assert!(call.response_truncated && call.remote_addr.is_some(), "{bytes:?}");
        assert!(call.request_headers.contains("content-length"), "the request went out: {bytes:?}");
    }
}

#[test]
fn strange_statuses_are_statuses() {
    for status in [101, 300, 304, 400, 404, 500, 599, 600, 999] {
        let call = answered(format!("HTTP/1.1 {status} Strange\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!((kind(&call), call.status_code), ("http_status", Some(status)), "{}", message(&call));
        assert_eq!(message(&call), format!("status {status}"));
    }
    // Not a websocket, whatever it says.
    let call = answered(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\u{1}\u{2}",
    );
    assert_eq!((kind(&call), call.status_code), ("http_status", Some(101)));
}

#[test]
fn a_redirect_is_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let other = Receiver::start(|peer| assert!(peer.send(OK)));
        let location = other.url();
        let call =
            answered(format!("HTTP/1.1 {status} Away\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!((kind(&call), call.status_code), ("http_status", Some(status)));
        assert!(message(&call).contains(&location), "{}", message(&call));
        assert_eq!(other.connections(), 0);
    }
}

#[test]
fn nul_and_invalid_utf_8_are_replaced() {
    let call = answered(
        b"HTTP/1.1 200 \xff\r\nA: \xff\xfeb\r\na: \xc3\xa9\r\nContent-Length: 6\r\n\r\na\0\xff\xf0\x9f\x98",
    );
    assert_eq!(kind(&call), "success", "{}", message(&call));
    assert_eq!(body(&call), "a\u{FFFD}\u{FFFD}\u{FFFD}");
    assert_eq!(call.response_bytes, 6);
    let headers: serde_json::Value = serde_json::from_str(&call.response_headers.unwrap()).unwrap();
    assert_eq!(headers["a"], serde_json::json!(["\u{FFFD}\u{FFFD}b", "é"]));
    let call = answered(b"HTTP/1.1 302 Found\r\nLocation: http://a/\xff\r\n\r\n");
    assert!(message(&call).contains("http://a/\u{FFFD}"), "{}", message(&call));
}

#[test]
fn bad_chunks_after_a_good_head_leave_the_status_to_decide() {
    for chunks in [
        "zz\r\n",
        "-1\r\n",
        "\r\n",
        "fffffffffffffffffffff\r\n",
        "0x2\r\nhi",
        "2\r\nhi!!\r\n",
        "\0\r\n",
        "é\r\n",
    ] {
        for (status, expected) in [(200, "success"), (500, "http_status")] {
            let head = format!("HTTP/1.1 {status} A\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
            let call = answered(format!("{head}{chunks}"));
            assert_eq!(
                (kind(&call), call.status_code),
                (expected, Some(status)),
                "{chunks:?}: {}",
                message(&call)
            );
            assert!(
                call.response_truncated && message(&call).contains("broke off"),
                "{chunks:?}: {}",
                message(&call)
            );
            // What could not be decoded is kept as it came.
            assert_eq!(body(&call), format!("1\r\nx\r\n{chunks}").replace('\0', "\u{FFFD}"), "{chunks:?}");
        }
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Close,
    Reset,
    HalfClose,
}

#[test]
fn an_answer_may_break_off_at_every_point() {
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (head, rest, payload) in
        [(length, "hello", "hello"), (chunked, "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "hello")]
    {
        let whole = format!("{head}{rest}");
        for end in [End::Close, End::Reset, End::HalfClose] {
            for at in 0..=whole.len() {
                let part = whole[..at].to_owned();
                let call = call(move |peer| {
                    peer.send(&part);
                    match end {
                        End::Close => {}
                        End::Reset => {
                            // So that it was read before the reset takes it away.
                            thread::sleep(Duration::from_millis(5));
                            peer.reset();
                        }
                        End::HalfClose => peer.half_close(),
                    }
                });
                let name = format!("{at} of {whole:?}, {end:?}: {} {}", kind(&call), message(&call));
                // The status decides as soon as its line has come.
                let in_line = at < "HTTP/1.1 200 OK\r\n".len();
                let expected = match at {
                    0 => "connect",
                    _ if in_line => "protocol",
                    _ => "success",
                };
                assert_eq!(kind(&call), expected, "{name}");
                if in_line {
                    assert_eq!((call.status_code, call.response_bytes), (None, at as u64), "{name}");
                    assert_eq!(call.response_truncated, at > 0, "{name}");
                    continue;
                }
                assert_eq!(call.status_code, Some(200), "{name}");
                let kept = body(&call);
                assert!(payload.starts_with(kept) || rest.starts_with(kept), "{name}: {kept:?}");
                let in_head = at < head.len();
                assert!(!in_head || message(&call).contains("within its head"), "{name}");
                // The line that ends the trailers may be missing: nothing of the body is.
                let body_is = at + 2 == whole.len() && rest.ends_with("\r\n\r\n");
                let complete = at == whole.len() || (body_is && end != End::Reset);
                assert_eq!(call.response_truncated, !complete, "{name}");
                assert_eq!(call.error_message.is_some(), !complete, "{name}");
                assert!(!complete || body(&call) == payload, "{name}");
            }
        }
    }
}

#[test]
fn a_body_until_the_end_is_whole_when_the_connection_ends_and_truncated_when_it_breaks() {
    for (end, truncated) in [(End::Close, false), (End::HalfClose, false), (End::Reset, true)] {
        let call = call(move |peer| {
            peer.send("HTTP/1.1 200 OK\r\n\r\nhello");
            match end {
                End::Close => {}
                End::Reset => {
                    thread::sleep(Duration::from_millis(50));
                    peer.reset();
                }
                End::HalfClose => peer.half_close(),
            }
        });
        assert_eq!((kind(&call), body(&call)), ("success", "hello"), "{end:?}");
        assert_eq!(call.response_truncated, truncated, "{end:?}: {}", message(&call));
    }
    // Encrypted, an end without the notice of TLS is a break.
    let receiver = Receiver::tls(AUTHORITY.good(), |peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\n\r\nhello");
    });
    let call = post(&caller(PATIENT), &receiver.https());
    assert_eq!((kind(&call), body(&call), call.response_truncated), ("success", "hello", true));
}

#[test]
fn a_connection_that_ends_before_an_answer_is_a_connect_failure() {
    let before = Receiver::start(|_| {});
    let reset = Receiver::start(Peer::reset);
    let within = Receiver::start(|peer| assert!(peer.read(10)));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = format!("http://{closed}/");
    for (name, url) in
        [("before", before.url()), ("reset", reset.url()), ("within", within.url()), ("refused", refused)]
    {
        let call = post(&caller(PATIENT), &url);
        assert_storable(&call);
        assert_eq!(kind(&call), "connect", "{name}: {}", message(&call));
        assert_eq!((call.status_code, call.response_body), (None, None), "{name}");
        // A reset may come before we know that we are connected.
        assert!(name == "reset" || call.remote_addr.is_none() == (name == "refused"), "{name}");
    }
    assert_eq!([before.connections(), reset.connections(), within.connections()], [1, 1, 1], "no repeats");
}

#[test]
fn an_answer_before_the_request_was_read_counts() {
    let gate = Gate::default();
    let door = gate.clone();
    let receiver = Receiver::start(move |peer| {
        peer.read(100);
        peer.send("HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhuge");
        // Closed with much of the request unread: the system resets the connection.
        door.pass();
    });
    let url = receiver.url();
    let (caller, body) = (caller(PATIENT), "x".repeat(32 * 1024 * 1024));
    let running = thread::spawn(move || post_body(&caller, &url, &body));
    thread::sleep(Duration::from_millis(200));
    gate.open();
    let call = running.join().unwrap();
    assert_eq!((kind(&call), call.status_code), ("http_status", Some(413)), "{}", message(&call));
}

#[test]
fn a_secret_that_cannot_sign_is_our_failure_and_nothing_is_sent() {
    let receiver = Receiver::start(|peer| assert!(peer.send(OK)));
    let webhook = signed(&receiver.url(), "no base64!");
    let caller = caller(PATIENT);
    let call = crate::support::made(caller.call(&webhook, &event("{}"), &mut Room::without_end()));
    assert_eq!((kind(&call), receiver.connections()), ("internal", 0));
    assert_eq!(caller.problem(&webhook).as_deref(), call.error_message.as_deref());
}
