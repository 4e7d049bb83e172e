//! What the call log says of a failure: words of ours, and what was sent. (Every call of these tests is asked for texts of
//! libraries and numbers of the system, see `made` in `support`.)

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use crate::support::{
    AUTHORITY, Dead, Gate, PATIENT, Peer, Receiver, caller, caller_to, is_proxied, kind, message, post,
    post_body, settings,
};

const NOTHING: &str = "; nothing was sent";
const REQUEST: &str = "; the request had been sent";

/// The kind and the message of one call to a receiver that reads the request and then runs the script.
fn told(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> (&'static str, String) {
    let receiver = Receiver::start(move |peer| {
        if peer.request().is_some() {
            script(peer);
        }
    });
    let call = post(&caller(PATIENT), &receiver.url());
    (kind(&call), message(&call).to_owned())
}

#[test]
fn a_connection_that_is_refused_or_ends_says_so_and_what_was_sent() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let call = post(&caller(PATIENT), &format!("http://{closed}/"));
    let refused = if is_proxied() {
        "the proxy does not reach the endpoint: it answers 502"
    } else {
        "the endpoint's host refused the connection: no server listens on this port"
    };
    assert_eq!((kind(&call), message(&call)), ("connect", format!("{refused}{NOTHING}").as_str()));

    let silent = format!("no answer came: the endpoint closed the connection{REQUEST}");
    assert_eq!(told(|_| {}), ("connect", silent));
    let reset = format!("no answer came: the endpoint reset the connection{REQUEST}");
    assert_eq!(told(Peer::reset), ("connect", reset));
    let within = format!("the answer broke off within its head: the endpoint closed the connection{REQUEST}");
    assert_eq!(told(|peer| assert!(peer.send("HTTP/1.1 2"))), ("protocol", within));
}

#[test]
fn a_request_that_did_not_go_out_whole_says_so() {
    let receiver = Receiver::narrow(|peer| {
        assert!(peer.read(10));
        peer.reset();
    });
    let call = post_body(&caller(PATIENT), &receiver.url(), &"x".repeat(64 << 20));
    let part = "the endpoint reset the connection; a part of the request may have been sent";
    assert_eq!((kind(&call), message(&call)), ("connect", part));
}

#[test]
fn what_is_no_http_is_called_that() {
    let garbage = format!("the answer is not HTTP/1.1{REQUEST}");
    for bytes in ["garbage\r\n\r\n", "HTTP/2 200\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n"] {
        let bytes = bytes.to_owned();
        assert_eq!(told(move |peer| assert!(peer.send(&bytes))), ("protocol", garbage.clone()));
    }
    let chunks = told(|peer| {
        assert!(peer.send("HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"));
    });
    assert_eq!(chunks, ("http_status", "status 500; the answer broke off: its chunks are malformed".into()));
}

#[test]
fn a_server_without_tls_is_called_that() {
    let plain = Receiver::start(|peer| assert!(peer.send("HTTP/1.1 400 Bad Request\r\n\r\n")));
    let call = post(&caller(PATIENT), &plain.https());
    let said = format!("the server does not speak TLS on this port (http instead of https?){NOTHING}");
    assert_eq!((kind(&call), message(&call)), ("tls", said.as_str()));
    let closed = Receiver::start(|peer| assert!(peer.read(5)));
    let call = post(&caller(PATIENT), &closed.https());
    assert_eq!(kind(&call), "tls");
    assert!(
        message(&call).starts_with("the connection broke in the TLS handshake: the endpoint "),
        "{}",
        message(&call)
    );
    assert!(message(&call).ends_with(NOTHING), "{}", message(&call));
}

#[test]
fn an_end_of_tls_without_its_notice_is_told_without_a_link() {
    for (answer, status) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "success"),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", "success"),
        ("HTTP/1.1 200 OK\r\nA: b", "success"),
        ("HTTP/1.1 2", "protocol"),
    ] {
        let receiver = Receiver::tls(AUTHORITY.good(), move |peer| {
            peer.request();
            peer.send(answer);
        });
        let call = post(&caller(PATIENT), &receiver.https());
        assert_eq!(kind(&call), status, "{answer:?}: {}", message(&call));
        assert!(message(&call).contains("the answer broke off"), "{answer:?}: {}", message(&call));
        assert!(
            message(&call).contains("the endpoint closed the connection"),
            "{answer:?}: {}",
            message(&call)
        );
    }
}

#[test]
fn a_name_that_is_not_resolved_is_told_without_the_text_of_the_resolver() {
    let caller = caller_to(settings(PATIENT), |_| {
        Err(io::Error::other("failed to lookup address information: Name or service not known"))
    });
    let call = post(&caller, "http://a.example/");
    let said = "the name could not be resolved: it does not exist, or its name servers do not answer; nothing was sent";
    assert_eq!((kind(&call), message(&call)), ("dns", said));
}

#[test]
fn a_time_that_is_over_says_what_was_sent() {
    let limit = Duration::from_millis(300);
    let over = Gate::default();
    let held = over.clone();
    let receiver = Receiver::start(move |peer| {
        peer.request();
        assert!(held.pass());
    });
    let call = post(&caller(limit), &receiver.url());
    over.open();
    assert_eq!(
        (kind(&call), message(&call)),
        ("timeout", format!("no answer within 300ms{REQUEST}").as_str())
    );
    let dead = Dead::on([127, 0, 0, 1], 0);
    let call = post(&caller(limit), &format!("http://{}/", dead.address));
    assert_eq!(
        (kind(&call), message(&call)),
        ("timeout", format!("no connection within 300ms{NOTHING}").as_str())
    );
}

#[test]
fn what_is_no_url_is_told_in_the_words_of_the_check() {
    for (url, said) in [
        ("", "the URL is empty"),
        ("//a.example/", "not a URL: it does not begin with https://"),
        ("https://a.example:99999/", "not a URL: the port is no number up to 65535"),
        ("https://[::1/", "not a URL: what is in brackets is no IPv6 address"),
        ("https://a b/", "not a URL: the host has a character that no host has"),
        ("https://1.2.3.4.5/", "not a URL: the host is neither a name nor an IPv4 address"),
        ("https://", "not a URL: the host is empty"),
    ] {
        let call = post(&caller(PATIENT), url);
        assert_eq!((kind(&call), message(&call)), ("bad_url", said), "{url}");
    }
}
