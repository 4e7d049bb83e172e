//! Sessions of TLS that calls resume: whose they are, and what hostile servers can make of them.

use std::sync::{Arc, Mutex};

use rustls::pki_types::CertificateDer;
use rustls::server::ProducesTickets;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use crate::support::{
    AUTHORITY, PATIENT, Peer, Receiver, caller, caller_with, is_alone, kind, message, post, run_alone,
    settings,
};

/// The certificates of these tests are for all hosts of a domain.
const DOMAIN: &str = "hosts.example";
const CLOSING: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Tickets that are this much longer than they need be. All servers with it can read each other's.
#[derive(Debug)]
struct Tickets(usize);

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        24 * 3600
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        Some([plain, &vec![7; self.0]].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        Some(ticket[..ticket.len() - self.0].to_vec())
    }
}

/// A server with these versions, whose tickets are so long, and that sends so many certificates of so many bytes with its own.
fn server(
    versions: &[&'static SupportedProtocolVersion],
    ticket: usize,
    (certificates, bytes): (usize, usize),
) -> Arc<ServerConfig> {
    let (own, key) = AUTHORITY.sign(&format!("*.{DOMAIN}"));
    let more = std::iter::repeat_n(CertificateDer::from(vec![7; bytes]), certificates);
    let chain = std::iter::once(own).chain(more).collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.ticketer = Arc::new(Tickets(ticket));
    config.send_tls13_tickets = 2;
    Arc::new(config)
}

fn answer(peer: &mut Peer) {
    peer.request();
    peer.send(CLOSING);
}

#[test]
fn a_session_is_resumed_with_the_endpoint_that_gave_it_and_with_no_other() {
    for version in [&TLS13, &TLS12] {
        let config = server(&[version], 0, (0, 0));
        let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
        let receiver = || {
            let seen = seen.clone();
            Receiver::tls(config.clone(), move |peer| {
                seen.lock().unwrap().push(peer.resumed);
                answer(peer);
            })
        };
        let (one, another) = (receiver(), receiver());
        let caller = caller(PATIENT);
        let mut expected = Vec::new();
        for (host, receiver, resumed) in [
            ("a", &one, false),
            ("a", &one, true),
            ("A", &one, true),
            // The servers would take it: they have one key for all tickets.
            ("b", &one, false),
            ("a", &another, false),
            ("a", &one, true),
            ("b", &one, true),
            ("a", &another, true),
        ] {
            let call = post(&caller, &format!("https://{host}.{DOMAIN}:{}/", receiver.address.port()));
            assert_eq!(kind(&call), "success", "{}", message(&call));
            expected.push(resumed);
            assert_eq!(*seen.lock().unwrap(), expected, "{version:?} {host}");
        }
        // Another daemon, or one that was started again, trusts by its own certificates.
        let mut settings = settings(PATIENT);
        settings.ca_file = None;
        let call = post(&caller_with(settings), &format!("https://a.{DOMAIN}:{}/", one.address.port()));
        assert_eq!(kind(&call), "tls", "{}", message(&call));
    }
}

#[test]
fn a_server_that_sends_certificates_without_end_is_refused() {
    for version in [&TLS13, &TLS12] {
        for (count, expected) in [(16, "success"), (17, "tls"), (10_000, "tls")] {
            let receiver = Receiver::tls(server(&[version], 0, (count, 1)), answer);
            let call = post(&caller(PATIENT), &format!("https://a.{DOMAIN}:{}/", receiver.address.port()));
            assert_eq!(kind(&call), expected, "{count}: {}", message(&call));
            assert!(expected == "success" || message(&call).contains(&format!("{count} certificates")));
        }
    }
}

/// Memory of this process in KiB.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn sessions_of_hostile_servers_take_no_more_memory_than_they_may() {
    if !is_alone() {
        return run_alone("resumption::sessions_of_hostile_servers_take_no_more_memory_than_they_may", ":");
    }
    const HOSTS: usize = 512;
    const MAY_TAKE: usize = 40 * 1024;
    // Each server sends two tickets, and each would be kept with the certificates: 81 MiB in all.
    let receiver = Receiver::tls(server(&[&TLS13], 25_000, (16, 3_500)), answer);
    let caller = caller(PATIENT);
    let call = |host: usize| {
        let call = post(&caller, &format!("https://h{host}.{DOMAIN}:{}/", receiver.address.port()));
        assert_eq!(kind(&call), "success", "{}", message(&call));
    };
    (0..16).for_each(call);
    let before = memory();
    (16..HOSTS + 16).for_each(call);
    let taken = memory().saturating_sub(before);
    println!("{HOSTS} hosts: {taken} KiB");
    assert!(taken < MAY_TAKE, "{HOSTS} hosts with tickets of 25 KB take {taken} KiB");
}
