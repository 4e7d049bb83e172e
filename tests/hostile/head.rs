//! Answers whose head or chunks are wrong: the status decides, and the record keeps what can be read.

use promptpal_relay::inside::model::Call;

use crate::answer::{CAP, answered, body, call};
use crate::support::{AUTHORITY, PATIENT, Receiver, caller, caller_to, kind, message, post, settings};

fn headers(call: &Call) -> serde_json::Value {
    serde_json::from_str(call.response_headers.as_deref().expect("headers")).unwrap()
}

/// With each status: a success or not, and a note.
fn assert_told(answer: &str, expected_body: &str, note: &str) -> Call {
    for (status, expected) in [("200", "success"), ("500", "http_status")] {
        let bytes = answer.replacen("200", status, 1);
        let call = answered(&bytes);
        assert_eq!(kind(&call), expected, "{bytes:?}: {}", message(&call));
        assert_eq!(call.status_code, status.parse().ok(), "{bytes:?}");
        assert_eq!(body(&call), expected_body, "{bytes:?}: {}", message(&call));
        assert!(message(&call).contains(note), "{bytes:?}: {}", message(&call));
    }
    answered(answer)
}

#[test]
fn lines_that_are_no_headers_are_left_out_and_the_status_decides() {
    for bad in
        ["no colon", ": no name", "na me: a", "a\0: b", "\0", "é: a", "\r a: b", "a b c", " folded: a value"]
    {
        let answer = format!("HTTP/1.1 200 OK\r\nA: 1\r\n{bad}\r\nB: 2\r\nContent-Length: 5\r\n\r\nhello");
        let call = assert_told(&answer, "hello", "the answer's head: ");
        let headers = headers(&call);
        assert_eq!((&headers["b"], &headers["content-length"]), (&"2".into(), &"5".into()), "{bad:?}");
        // The last one continues the line before it: nothing is missing.
        let lost = bad != " folded: a value";
        assert_eq!(call.response_truncated, lost, "{bad:?}: {}", message(&call));
    }
    let call = assert_told("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "", "no headers");
    assert_eq!(headers(&call), serde_json::json!({}));
}

#[test]
fn folded_lines_are_one_line() {
    let answer = "HTTP/1.1 200 OK\r\nA: 1,\r\n 2,\r\n\t\t3\r\nB:\r\n x\r\nContent-Length:\r\n 5\r\n\r\nhello";
    let call = assert_told(answer, "hello", "folded");
    assert!(!call.response_truncated, "nothing is missing");
    assert_eq!(headers(&call), serde_json::json!({"a": "1, 2, 3", "b": "x", "content-length": "5"}));
    // The first line has nothing to continue, and what is folded to a line that is no header goes with it.
    let call = assert_told("HTTP/1.1 200 OK\r\n a: b\r\nno header\r\n c\r\nD: 1\r\n\r\nhi", "hi", "folded");
    assert_eq!(headers(&call), serde_json::json!({"d": "1"}));
    assert!(call.response_truncated);
}

#[test]
fn values_with_characters_that_may_not_be_there_are_kept_as_text() {
    for (value, kept) in [("a\0b", "a\u{FFFD}b"), ("\u{7f}", "\u{7f}"), ("a\rb", "a\rb"), ("\u{1}", "\u{1}")]
    {
        let answer = format!("HTTP/1.1 200 OK\r\nA: {value}\r\nContent-Length: 2\r\n\r\nhi");
        let call = assert_told(&answer, "hi", "characters");
        assert_eq!(headers(&call)["a"], kept, "{value:?}");
    }
}

#[test]
fn heads_with_many_or_long_lines_are_kept_as_far_as_there_is_room() {
    for (lines, complete) in [(127, true), (128, true), (129, true), (250, true), (1000, false)] {
        let many: String = (0..lines).map(|n| format!("h{n}: v\r\n")).collect();
        let call = assert_told(&format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nhi"), "hi", "");
        assert_eq!(
            (call.response_truncated, message(&call).contains("256")),
            (!complete, !complete),
            "{lines}"
        );
        let kept = headers(&call).as_object().unwrap().len();
        assert_eq!(kept, if complete { lines + 1 } else { 256 }, "{lines}");
    }
    for (length, complete) in [(15_000, true), (17_000, false), (40_000, false), (60_000, false)] {
        let value = "v".repeat(length);
        let answer =
            format!("HTTP/1.1 200 OK\r\nA: 1\r\nBig: {value}\r\nB: 2\r\nContent-Length: 2\r\n\r\nhi");
        let call = assert_told(&answer, "hi", if complete { "" } else { "longer than 16 KiB" });
        let headers = headers(&call);
        assert_eq!(headers.get("big").is_some(), complete, "{length}");
        assert_eq!((&headers["a"], &headers["b"]), (&"1".into(), &"2".into()), "those beside it are kept");
        assert_eq!(call.response_truncated, !complete, "{length}");
    }
    // Many that are long together.
    let many = "a: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n"
        .repeat(250);
    let call = assert_told(&format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nhi"), "hi", "16 KiB");
    assert!(call.response_truncated && headers(&call)["a"].as_array().unwrap().len() > 150);
}

#[test]
fn endless_heads_end_early_and_their_status_decides() {
    for part in ["a: b\r\n", "a", "b: ", "\0", " folded\r\n", "a: b\n"] {
        let call = call(move |peer| {
            peer.send("HTTP/1.1 200 OK\r\nFirst: 1\r\n");
            peer.flood(part.as_bytes());
        });
        assert_eq!((kind(&call), call.status_code), ("success", Some(200)), "{part:?}: {}", message(&call));
        assert!(
            call.response_truncated && message(&call).contains("does not end"),
            "{part:?}: {}",
            message(&call)
        );
        assert!(headers(&call)["first"].as_str().unwrap().starts_with('1'), "{part:?}");
        assert!(call.response_headers.unwrap().len() < 64 * 1024, "{part:?}");
    }
}

#[test]
fn a_body_whose_length_is_in_doubt_ends_with_the_connection() {
    for (lines, note) in [
        ("Content-Length: 5\r\nContent-Length: 6", "more than one"),
        ("Content-Length: 5, 6", "more than one"),
        ("Content-Length: -1", "no number"),
        ("Content-Length: +5", "no number"),
        ("Content-Length: 0x5", "no number"),
        ("Content-Length: five", "no number"),
        ("Content-Length:", "no number"),
        ("Content-Length: 5,", "no number"),
        ("Content-Length: 99999999999999999999", "no number"),
        ("Content-Length: 5\r\nno header\r\nContent-Length: 6", "more than one"),
        ("Transfer-Encoding: gzip", "not known"),
        ("Transfer-Encoding: identity", "not known"),
        ("Transfer-Encoding: chunked, gzip", "not known"),
        ("Transfer-Encoding: chunked, chunked", "not known"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\nContent-Length: 1", "not known"),
    ] {
        let call = assert_told(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\nhello you"), "hello you", note);
        assert!(headers(&call).as_object().unwrap().len() <= 2, "{lines}");
    }
    // A length beside an encoding that is not known is all there is.
    assert_told(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\nContent-Length: 5\r\n\r\nhello",
        "hello",
        "not known",
    );
    assert_told(
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        "2\r\nhi\r\n0\r\n\r\n",
        "1.0",
    );
}

#[test]
fn status_lines_that_can_be_read_are_read() {
    for (line, flawed) in [
        ("HTTP/1.1 200 OK\r\n", false),
        ("HTTP/1.1 200\r\n", false),
        ("HTTP/1.1 200 \r\n", false),
        ("HTTP/1.1 200\n", false),
        ("HTTP/1.1 200 OK\n", false),
        ("\r\n\r\nHTTP/1.1 200 OK\r\n", false),
        ("HTTP/1.0 200 OK\r\n", false),
        ("http/1.1 200 ok\r\n", true),
        ("Http/1.1 200 OK\n", true),
        ("HTTP/1.1  200  OK\r\n", true),
        ("HTTP/1.1\t200\tOK\r\n", true),
        ("HTTP/1.9 200 OK\r\n", true),
        ("HTTP/1 200 OK\r\n", true),
        ("HTTP/1.1 200 \0\r\n", true),
        ("HTTP/1.1 200\0\r\n", true),
        ("HTTP/1.1 200 a\rb\r\n", true),
        ("HTTP/1.1 200-OK\r\n", true),
    ] {
        let end = if line.ends_with("\r\n") { "\r\n" } else { "\n" };
        let call = assert_told(&format!("{line}Content-Length: 2{end}{end}hi"), "hi", "");
        assert_eq!(message(&call).contains("status line"), flawed, "{line:?}: {}", message(&call));
        assert_eq!(headers(&call), serde_json::json!({"content-length": "2"}), "{line:?}");
        assert!(!call.response_truncated, "{line:?}");
        assert_told(&format!("{line}{end}"), "", "");
    }
    // A long one, and one that is nothing but long.
    let long = "O".repeat(40_000);
    assert_told(&format!("HTTP/1.1 200 {long}\r\nContent-Length: 2\r\n\r\nhi"), "hi", "");
    let endless = answered(format!("HTTP/1.1 200 {}\r\n\r\n", "O".repeat(128 * 1024)));
    assert_eq!((kind(&endless), endless.status_code), ("protocol", None));
}

#[test]
fn a_flawed_redirect_shows_where_to() {
    let call = answered("HTTP/1.1 302 Found\r\nno header\r\nLocation:\r\n http://a.example/\0b\r\n\r\n");
    assert_eq!((kind(&call), call.status_code), ("http_status", Some(302)));
    assert!(message(&call).contains("not followed: http://a.example/"), "{}", message(&call));
}

#[test]
fn interim_answers_may_have_headers_and_flaws() {
    for interim in [
        "HTTP/1.1 100 Continue\r\nDate: now\r\n\r\n",
        "HTTP/1.1 103 Hints\r\nno header\r\n\r\n",
        "http/1.1 100\n\n",
        &format!("HTTP/1.1 103 Hints\r\nLink: {}\r\n\r\n", "a".repeat(30_000)),
        "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
    ] {
        for times in [1, 2] {
            let answer = format!("{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", interim.repeat(times));
            if answer.len() > 60_000 {
                continue;
            }
            let call = answered(&answer);
            assert_eq!((kind(&call), body(&call)), ("success", "hi"), "{interim:?}: {}", message(&call));
            assert_eq!((message(&call), call.response_truncated), ("", false), "{interim:?}");
        }
    }
}

#[test]
fn heads_that_come_a_byte_at_a_time_are_the_same_heads() {
    for (answer, flawed) in [
        ("HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 2\r\n\r\nhi", false),
        (
            "HTTP/1.1 100 Continue\r\nA: 2\r\n\r\n\r\nHTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 2\r\n\r\nhi",
            false,
        ),
        ("HTTP/1.1 200 OK\r\nA: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", false),
        ("http/1.1 200 OK\nA:\n 1\nno\nContent-Length: 2\n\nhi", true),
        ("HTTP/1.1 200 OK\nA: 1\nTransfer-Encoding: chunked\n\n2\nhi\n0\n\n", true),
    ] {
        let call = call(move |peer| peer.drip(answer.as_bytes(), std::time::Duration::from_micros(50)));
        assert_eq!((kind(&call), body(&call)), ("success", "hi"), "{answer:?}: {}", message(&call));
        assert_eq!(headers(&call)["a"], "1", "{answer:?}");
        assert_eq!(!message(&call).is_empty(), flawed, "{answer:?}: {}", message(&call));
    }
}

#[test]
fn chunks_that_end_with_bare_line_feeds_are_chunks() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunks in [
        "2\nhe\n3\nllo\n0\n\n",
        "2\r\nhe\r\n3\nllo\n0\n\n",
        "2\nhe\r\n3\r\nllo\n0\r\na: b\n\n",
        "2;a=b\nhe\n3\nllo\n0\n\r\n",
    ] {
        let call = assert_told(&format!("{chunked}{chunks}"), "hello", "bare line feeds");
        assert!(!call.response_truncated, "{chunks:?}");
        assert_eq!(call.response_bytes, 5);
    }
    // Piece by piece.
    let call = call(move |peer| {
        peer.send(chunked);
        peer.drip(b"5\r\nhello\r\n1\n!\n0\n\n", std::time::Duration::from_millis(1));
    });
    assert_eq!(
        (kind(&call), body(&call), call.response_truncated),
        ("success", "hello!", false),
        "{}",
        message(&call)
    );
    // Sizes that are good, and too long for the parser.
    for size in
        ["0000000000000000000000000000000000005", "5;extension=aaaaaaaaaaaaaaaaaaaaaaaaaa", "05 ; a=\"b\""]
    {
        let call = answered(format!("{chunked}{size}\r\nhello\r\n0\r\n\r\n"));
        assert_eq!((kind(&call), body(&call), message(&call)), ("success", "hello", ""), "{size}");
        assert!(!call.response_truncated);
    }
    // A large body of many pieces.
    let many = format!("{chunked}{}0\n\n", "3e8\n".to_owned() + &"x".repeat(1000) + "\n");
    assert_eq!(body(&answered(many)), "x".repeat(CAP));
}

#[test]
fn a_connection_whose_answer_is_in_doubt_is_not_used_again() {
    const EVIL: &str = "HTTP/1.1 666 Evil\r\nContent-Length: 0\r\n\r\n";
    for (answer, connections) in [
        // Good ones, as a measure.
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_owned(), 1),
        ("HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".into(), 1),
        ("HTTP/1.1 200 OK\r\nA: 1\r\n b\r\nContent-Length: 2\r\n\r\nhi".into(), 3),
        ("HTTP/1.1 200 OK\r\nno header\r\nContent-Length: 2\r\n\r\nhi".into(), 3),
        ("http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".into(), 3),
        ("http/1.1 204 OK\r\n\r\n".into(), 3),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
                .into(),
            3,
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\nContent-Length: 2\r\n\r\nhi".into(), 3),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nhi\n0\n\n".into(), 3),
        (format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nhi\n0\n\n{EVIL}"), 3),
        (format!("HTTP/1.1 200 OK\r\nno header\r\nContent-Length: 2\r\n\r\nhi{EVIL}"), 3),
        (format!("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nhi{EVIL}"), 3),
    ] {
        for encrypted in [false, true] {
            let bytes = answer.clone();
            let script =
                move |peer: &mut crate::support::Peer| while peer.request().is_some() && peer.send(&bytes) {};
            let receiver =
                if encrypted { Receiver::tls(AUTHORITY.good(), script) } else { Receiver::start(script) };
            let url = if encrypted { receiver.https() } else { receiver.url() };
            let caller = caller(PATIENT);
            for _ in 0..3 {
                let call = post(&caller, &url);
                assert_eq!(kind(&call), "success", "{answer:?}: {}", message(&call));
            }
            assert_eq!(receiver.connections(), connections, "{answer:?}, encrypted: {encrypted}");
        }
    }
}

#[test]
fn a_flawed_answer_that_does_not_end_is_a_timeout_with_its_status() {
    for answer in [
        "HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\nContent-Length: 9\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nA: 1 folded\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nA: 1 folded\r\nB: ",
        "http/1.1 200 OK\r\nA: 1 folded\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n",
    ] {
        let receiver = Receiver::start(move |peer| {
            assert!(peer.request().is_some() && peer.send(answer));
            peer.until_closed();
        });
        let caller = caller_to(settings(std::time::Duration::from_millis(500)), |_| Ok(Vec::new()));
        let call = post(&caller, &receiver.url());
        assert_eq!((kind(&call), call.status_code), ("timeout", Some(200)), "{answer:?}: {}", message(&call));
        assert_eq!(headers(&call)["a"], "1 folded", "{answer:?}");
        assert!(call.response_truncated && message(&call).contains("did not end"), "{}", message(&call));
        assert!(call.response_body.is_some());
    }
}
