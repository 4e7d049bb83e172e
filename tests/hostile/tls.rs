//! TLS to endpoints: who is trusted, and which failure is which.

use std::io::Write;
use std::net::TcpStream;

use promptpal_relay::inside::delivery::Caller;
use rcgen::{BasicConstraints, IsCa};
use test_support::openssl::{NAME, cases};

use crate::support::{
    AUTHORITY, Authority, OK, PATIENT, Peer, Receiver, caller, caller_with, certificate, kind, message, post,
    server_config, settings,
};

fn good(peer: &mut Peer) {
    while peer.request().is_some() && peer.send(OK) {}
}

#[test]
fn certificates_of_a_trusted_authority_for_the_right_name_are_accepted() {
    let caller = caller(PATIENT);
    let receiver = Receiver::tls(AUTHORITY.good(), good);
    let port = receiver.address.port();
    for host in ["good.example", "GOOD.example", "good.example."] {
        let call = post(&caller, &format!("https://{host}:{port}/"));
        assert_eq!(kind(&call), "success", "{host}: {}", message(&call));
    }
    for (name, host) in [("127.0.0.1", "127.0.0.1"), ("*.good.example", "a.good.example")] {
        let receiver = Receiver::tls(AUTHORITY.server(name, 2000..2999), good);
        let call = post(&caller, &format!("https://{host}:{}/", receiver.address.port()));
        assert_eq!(kind(&call), "success", "{name}: {}", message(&call));
    }
}

#[test]
fn certificates_that_are_not_trusted_are_tls_failures_that_say_why() {
    let (params, key) = certificate("good.example", 2000..2999);
    let self_signed = server_config(params.self_signed(&key).unwrap().der().clone(), &key);
    // As `openssl req -x509` makes it.
    let (mut params, key) = certificate("good.example", 2000..2999);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let like_openssl = server_config(params.self_signed(&key).unwrap().der().clone(), &key);
    let caller = caller(PATIENT);
    for (config, why) in [
        (AUTHORITY.server("good.example", 2000..2001), "expired"),
        (AUTHORITY.server("good.example", 2998..2999), "not valid yet"),
        (AUTHORITY.server("other.example", 2000..2999), "another name"),
        (Authority::new("another authority").good(), "authority that is not trusted"),
        (Authority::new("an authority").good(), "authority that is not trusted"),
        (self_signed, "self-signed"),
        (like_openssl, "self-signed"),
    ] {
        let receiver = Receiver::tls(config, good);
        let call = post(&caller, &receiver.https());
        assert_eq!(kind(&call), "tls", "{why}: {}", message(&call));
        assert!(message(&call).contains(why), "{why}: {}", message(&call));
        assert_eq!(
            (call.request_headers.as_str(), call.status_code),
            ("{}", None),
            "{why}: nothing was sent"
        );
        assert!(call.remote_addr.is_some(), "{why}");
    }
}

#[test]
fn the_log_says_truly_what_is_wrong_with_a_certificate_or_a_handshake() {
    for case in cases(false) {
        let server = case.start();
        let mut settings = settings(PATIENT);
        settings.ca_file = Some(server.trusted.clone());
        let call = post(&caller_with(settings), &format!("https://{NAME}:{}/", server.port));
        assert_eq!(kind(&call), "tls", "{}: {}", case.name, message(&call));
        assert!(message(&call).contains(case.said), "{}: {}", case.name, message(&call));
    }
}

/// Asserts that a message has no words of the libraries.

#[test]
fn without_a_trust_store_of_ours_the_authority_is_unknown() {
    let mut settings = settings(PATIENT);
    settings.ca_file = None;
    let receiver = Receiver::tls(AUTHORITY.good(), good);
    let call = post(&caller_with(settings), &receiver.https());
    assert_eq!(kind(&call), "tls", "{}", message(&call));
}

#[test]
fn a_ca_file_that_is_none_is_a_configuration_error() {
    let folder = tempfile::tempdir().unwrap();
    let bad = [("missing.pem", None), ("empty.pem", Some("")), ("text.pem", Some("no certificate"))];
    for (name, text) in bad {
        let path = folder.path().join(name);
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let mut settings = settings(PATIENT);
        settings.ca_file = Some(path);
        let error = Caller::new(settings).expect_err("no authority");
        assert_eq!(error.exit_code(), 78, "{name}: {error}");
        assert!(error.to_string().contains("--ca-file"), "{error}");
    }
}

/// A record of TLS.
fn record(kind: u8, version: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind, 3, version], &length[..], payload].concat()
}

/// What a server says that speaks no more than this version (1 is TLS 1.0, 2 is TLS 1.1): hello, with its version.
fn hello(version: u8) -> Vec<u8> {
    let mut hello = vec![3, version];
    hello.extend([7; 32]);
    // No session, TLS_RSA_WITH_AES_128_CBC_SHA, no compression.
    hello.extend([0, 0, 0x2f, 0]);
    let length = u8::try_from(hello.len()).unwrap();
    record(0x16, version, &[&[2, 0, 0, length], &hello[..]].concat())
}

#[test]
fn servers_of_old_versions_are_tls_failures_that_say_so() {
    let caller = caller(PATIENT);
    for answer in [
        // Alerts: protocol version, handshake failure.
        record(0x15, 1, &[2, 70]),
        record(0x15, 2, &[2, 70]),
        record(0x15, 1, &[2, 40]),
        hello(0),
        hello(1),
        hello(2),
    ] {
        let name = format!("{answer:x?}");
        let receiver = Receiver::start(move |peer| {
            peer.send(&answer);
            peer.until_closed();
        });
        let call = post(&caller, &receiver.https());
        assert_eq!(kind(&call), "tls", "{name}: {}", message(&call));
        assert!(message(&call).contains("1.2 or newer"), "{name}: {}", message(&call));
    }
}

type Script = Box<dyn Fn(&mut Peer) + Send + Sync>;

#[test]
fn a_handshake_that_is_none_is_a_tls_failure() {
    let caller = caller(PATIENT);
    let scripts: Vec<(&str, Script)> = vec![
        ("closed", Box::new(|_| {})),
        // Before the hello it may also come while the connection is made.
        (
            "reset after hello",
            Box::new(|peer| {
                assert!(peer.read(5));
                peer.reset();
            }),
        ),
        ("closed after hello", Box::new(|peer| assert!(peer.read(5)))),
        ("plain HTTP", Box::new(|peer| assert!(peer.send("HTTP/1.1 400 Bad Request\r\n\r\n")))),
        ("SSH", Box::new(|peer| assert!(peer.send("SSH-2.0-OpenSSH_9.2\r\n")))),
        ("half a record", Box::new(|peer| assert!(peer.send(b"\x16\x03\x03\x40\x00abc")))),
        ("an alert", Box::new(|peer| assert!(peer.send(record(0x15, 3, &[2, 80]))))),
        ("a flood", Box::new(|peer| assert!(peer.flood(b"\x16\x03\x03\x00\x01a") > 0))),
    ];
    for (name, script) in scripts {
        let receiver = Receiver::start(move |peer| script(peer));
        let call = post(&caller, &receiver.https());
        assert_eq!(kind(&call), "tls", "{name}: {}", message(&call));
        assert_eq!(receiver.connections(), 1, "{name}");
    }
}

#[test]
fn plain_http_to_a_tls_server_and_the_reverse_end() {
    let receiver = Receiver::tls(AUTHORITY.good(), good);
    let call = post(&caller(PATIENT), &receiver.url());
    assert!(["connect", "protocol"].contains(&kind(&call)), "{}", message(&call));
    // The receiver still works.
    TcpStream::connect(receiver.address).unwrap().write_all(b"x").unwrap();
    assert_eq!(kind(&post(&caller(PATIENT), &receiver.https())), "success");
}
