//! The reader of HTTP messages that the tests themselves go by: what it would misread, every other test would.

use std::io::{BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use test_support::http::Message;

/// The reader's end of a connection over which these pieces come, each in a segment of its own, and then the end.
fn sent(pieces: &[&[u8]]) -> BufReader<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_nodelay(true).unwrap();
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    // An error: the reader has seen enough, and is gone.
    thread::spawn(move || pieces.iter().for_each(|piece| _ = stream.write_all(piece).ok()));
    BufReader::new(listener.accept().unwrap().0)
}

#[test]
fn requests_are_read_one_after_the_other_however_they_are_cut() {
    let both = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Twice: 1\r\nx-twice:  2 \r\nContent-Length: 7\r\n\r\n{\"a\":1}\
                 POST /next HTTP/1.1\r\ncontent-length:0\r\nEmpty:\r\n\r\n";
    let bytes: Vec<&[u8]> = both.chunks(1).collect();
    for pieces in [&[&both[..]][..], &bytes] {
        let mut reader = sent(pieces);
        let first = Message::request(&mut reader).unwrap();
        assert_eq!((first.line.as_str(), first.path()), ("POST /a?b=c HTTP/1.1", "/a?b=c"));
        let headers: Vec<_> =
            first.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(headers, [("Host", "x"), ("X-Twice", "1"), ("x-twice", "2"), ("Content-Length", "7")]);
        assert_eq!((first.header("X-TWICE"), first.header("none")), (Some("1"), None));
        assert_eq!((first.text(), &first.json()["a"]), ("{\"a\":1}", &1.into()));
        let next = Message::request(&mut reader).unwrap();
        assert_eq!((next.path(), next.header("empty"), next.body.len()), ("/next", Some(""), 0));
        assert!(next.at >= first.at);
        assert!(Message::request(&mut reader).is_none(), "there is no third");
    }
}

#[test]
fn a_request_that_breaks_off_is_none() {
    let whole = "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
    for length in 0..whole.len() {
        assert!(Message::request(&mut sent(&[&whole.as_bytes()[..length]])).is_none(), "{length}");
    }
    assert_eq!(Message::request(&mut sent(&[whole.as_bytes()])).unwrap().text(), "hello");
}

#[test]
fn a_request_without_a_length_has_no_body() {
    let mut reader = sent(&[b"GET / HTTP/1.1\r\n\r\nGET /more HTTP/1.1\r\n\r\n"]);
    assert_eq!(Message::request(&mut reader).unwrap().body, b"");
    assert_eq!(Message::request(&mut reader).unwrap().path(), "/more");
}

#[test]
fn what_is_no_http_is_no_request() {
    let long = vec![b'x'; 70_000];
    for bytes in
        [&b"GET / HTTP/1.1\r\nno header\r\n\r\n"[..], b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", &long]
    {
        let mut reader = sent(&[bytes]);
        let read = thread::spawn(move || Message::request(&mut reader).is_some());
        assert!(read.join().is_err(), "it is taken for a request, or for one that broke off");
    }
}

#[test]
fn an_answer_ends_with_its_length_or_with_the_connection() {
    let answer = |bytes: &str| Message::answer(&mut sent(&[bytes.as_bytes()]));
    let counted = answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nhi there").unwrap();
    assert_eq!((counted.status(), counted.text()), (503, "hi"));
    let open = answer("HTTP/1.1 200 OK\n\nhi there").unwrap();
    assert_eq!((open.status(), open.text()), (200, "hi there"));
    for broken in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi"] {
        assert_eq!(answer(broken).unwrap_err().kind(), ErrorKind::UnexpectedEof, "{broken:?}");
    }
    assert_eq!(answer("HTTP/1.1 200 OK\r\nno header\r\n\r\n").unwrap_err().kind(), ErrorKind::InvalidData);
}
