//! Which addresses are called: by table, by property, and on the address that is dialled.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use promptpal_relay::inside::delivery::denial_reason as problem;
use promptpal_relay::inside::delivery::{Answer, Resolver};
use promptpal_relay::inside::model::Outcome;
use promptpal_relay::inside::model::Room;
use proptest::prelude::*;

use crate::support::{
    Dead, Gate, OK, PATIENT, Receiver, caller, caller_to, caller_with, cases, event, eventually, is_alone,
    kind, message, post, settings, webhook,
};

fn may(address: &str) -> bool {
    problem(address.parse().unwrap(), &[]).is_none()
}

/// IANA's registries of special-purpose addresses, as of 2025: each network, and whether it is globally reachable.
/// Multicast and what is reserved beyond them is added.
const IANA: &[(&str, bool)] = &[
    ("0.0.0.0/8", false),
    ("10.0.0.0/8", false),
    ("100.64.0.0/10", false),
    ("127.0.0.0/8", false),
    ("169.254.0.0/16", false),
    ("172.16.0.0/12", false),
    ("192.0.0.0/24", false),
    ("192.0.2.0/24", false),
    ("192.31.196.0/24", true),
    ("192.52.193.0/24", true),
    ("192.88.99.0/24", false),
    ("192.168.0.0/16", false),
    ("192.175.48.0/24", true),
    ("198.18.0.0/15", false),
    ("198.51.100.0/24", false),
    ("203.0.113.0/24", false),
    ("224.0.0.0/4", false),
    ("240.0.0.0/4", false),
    ("255.255.255.255/32", false),
    ("::1/128", false),
    ("::/128", false),
    ("64:ff9b:1::/48", false),
    ("100::/64", false),
    ("100:0:0:1::/64", false),
    ("2001::/23", false),
    ("2001::/32", false),
    ("2001:2::/48", false),
    ("2001:db8::/32", false),
    ("2620:4f:8000::/48", true),
    ("3fff::/20", false),
    ("5f00::/16", false),
    ("fc00::/7", false),
    ("fe80::/10", false),
    ("fec0::/10", false),
    ("ff00::/8", false),
];

/// Public networks that clouds use for services to their own machines.
const CLOUDS: &[&str] = &["161.26.0.0/16", "166.8.0.0/14", "168.63.129.16/32"];

#[test]
fn ianas_registries_are_kept() {
    for (net, reachable) in IANA {
        let net: IpNet = net.parse().unwrap();
        for address in [net.network(), net.broadcast()] {
            assert_eq!(problem(address, &[]).is_none(), *reachable, "{address} of {net}");
        }
    }
    // The neighbours of the networks, which are anybody's.
    for address in [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "2000::",
        "2001:200::",
        "2001:db7:ffff::",
        "2001:db9::",
        "2003::",
        "3ffe::",
        "3fff:1000::",
    ] {
        assert!(may(address), "{address}");
    }
}

#[test]
fn metadata_services_are_not_called() {
    for address in [
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fd00:42::42",
        // Public addresses, by their looks.
        "168.63.129.16",
        "161.26.0.6",
        "166.9.15.1",
    ] {
        assert!(!may(address), "{address}");
    }
    for neighbour in
        ["168.63.129.15", "168.63.129.17", "161.25.255.255", "161.27.0.0", "166.7.255.255", "166.12.0.0"]
    {
        assert!(may(neighbour), "{neighbour}");
    }
}

/// The ways to write an IPv4 address into an IPv6 one that get through to it.
fn embedding(v4: Ipv4Addr) -> Vec<Ipv6Addr> {
    let [a, b, c, d] = v4.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    vec![
        v4.to_ipv6_mapped(),
        Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
    ]
}

proptest! {
    #![proptest_config(cases(20_000))]

    #[test]
    fn what_the_standard_library_knows_as_special_is_not_called(bits: u32) {
        let v4 = Ipv4Addr::from_bits(bits);
        let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast()
            || v4.is_documentation() || v4.is_multicast() || v4.is_unspecified();
        let refused = problem(v4.into(), &[]).is_some();
        prop_assert!(refused || !special, "{v4}");
        let mut listed = IANA.iter().copied().chain(CLOUDS.iter().map(|net| (*net, false))).filter_map(|(net, reachable)| {
            let net: IpNet = net.parse().unwrap();
            net.contains(&IpAddr::V4(v4)).then_some(!reachable)
        });
        prop_assert_eq!(refused, listed.any(|refused| refused), "{}", v4);
        for v6 in embedding(v4) {
            prop_assert_eq!(problem(v6.into(), &[]), problem(v4.into(), &[]), "{}", v6);
        }
    }

    #[test]
    fn ipv6_addresses_are_called_only_in_what_is_given_out(bits: u128, near in 0..12usize) {
        let bases: [u128; 12] = [0, 1, 0xffff_0000_0000, 0xfe80 << 112, 0xfc00 << 112, 0xff00 << 112, 0x2001 << 112,
            0x2001_0db8 << 96, 0x2002 << 112, 0x0064_ff9b << 96, 0x3fff << 112, 0x2000 << 112];
        for v6 in [Ipv6Addr::from_bits(bits), Ipv6Addr::from_bits(bases[near] | bits >> 40)] {
            let special = v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unique_local()
                || v6.is_unicast_link_local();
            let called = problem(v6.into(), &[]).is_none();
            prop_assert!(!called || !special, "{v6}");
            let given_out = v6.segments()[0] & 0xe000 == 0x2000;
            let embeds = v6.to_ipv4_mapped().is_some() || embedding(Ipv4Addr::UNSPECIFIED).iter().any(|net| {
                let (net, v6) = (net.segments(), v6.segments());
                net[0] == 0x2002 && v6[0] == 0x2002 || net[0] != 0x2002 && net[..6] == v6[..6]
            });
            prop_assert!(!called || given_out || embeds, "{v6}");
        }
    }

    #[test]
    fn what_the_operator_allows_is_called_and_nothing_else_changes(bits: u32, other: u32, prefix in 0u8..=32) {
        let net: IpNet = format!("{}/{prefix}", Ipv4Addr::from_bits(bits)).parse().unwrap();
        let (inside, other) = (Ipv4Addr::from_bits(bits), IpAddr::from(Ipv4Addr::from_bits(other)));
        prop_assert_eq!(problem(inside.into(), &[net]), None);
        for v6 in embedding(inside) {
            prop_assert_eq!(problem(v6.into(), &[net]), None, "{}", v6);
        }
        let expected = if net.contains(&other) { None } else { problem(other, &[]) };
        prop_assert_eq!(problem(other, &[net]), expected);
    }
}

#[test]
fn every_spelling_of_an_address_is_that_address() {
    // Not even loopback is allowed here.
    let mut strict = settings(PATIENT);
    strict.allow_net.clear();
    let strict = caller_with(strict);
    let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let open = caller(PATIENT);
    let port = receiver.address.port();
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "0x7f.1",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "0x7f.0x0.0x0.0x1",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "１２７.0.0.1",
        "127。0。0。1",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
    ] {
        let url = format!("http://{host}:{port}/");
        let call = post(&strict, &url);
        assert_eq!(kind(&call), "blocked_address", "{url}: {}", message(&call));
        assert_eq!(strict.problem(&webhook(&url)).as_deref(), Some(message(&call)), "{url}");
        // The address is one that can be called.
        let call = post(&open, &url);
        assert_eq!(
            (kind(&call), open.problem(&webhook(&url))),
            ("success", None),
            "{url}: {}",
            message(&call)
        );
    }
    for host in [
        "0",
        "0.0.0.0",
        "10.1",
        "[::]",
        "[::1]",
        "[fe80::1]",
        "[fd00::1]",
        "169.254.169.254",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "0xa9fea9fe",
        "3232235777",
    ] {
        let url = format!("http://{host}:{port}/");
        assert_eq!(kind(&post(&strict, &url)), "blocked_address", "{url}");
        assert!(strict.problem(&webhook(&url)).is_some(), "{url}");
    }
    // No numbers of an address at all.
    for host in [
        "256.256.256.256",
        "4294967296",
        "1.2.3.4.5",
        "0x100000000",
        "09.1.1.1",
        "[::1",
        "[fe80::1%25eth0]",
        "[1.2.3.4]",
    ] {
        let url = format!("http://{host}:{port}/");
        let call = post(&open, &url);
        assert_eq!(kind(&call), "bad_url", "{url}: {}", message(&call));
        assert_eq!(open.problem(&webhook(&url)).as_deref(), Some(message(&call)), "{url}");
    }
    assert!(receiver.connections() > 0);
}

#[test]
fn urls_that_cannot_be_called_are_told_before_and_at_the_call() {
    let mut secure = settings(PATIENT);
    secure.https_only = true;
    let (open, secure) = (caller(PATIENT), caller_with(secure));
    let long = format!("http://a.example/{}", "x".repeat(9000));
    let grows = format!("http://a.example/{}", "é".repeat(4000));
    for url in [
        "",
        " ",
        "nonsense",
        "//a.example/",
        "/path",
        "http:",
        "http://",
        "http:///",
        "http://:80/",
        "https://?a",
        "ftp://a.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "gopher://a.example/",
        "ws://a.example/",
        "unix:/run/postgresql",
        "data:text/plain,a",
        "mailto:a@a.example",
        "http://a.example:65536/",
        "http://a.example:-1/",
        "http://a.example:0/",
        "http://a.example:22/",
        "https://a.example:25/",
        // Whatever the operator allows.
        "http://127.0.0.1:22/",
        "http://[::1]:6000/",
        "http://localhost:6379/",
        "http://a.example:http/",
        "http://a b/",
        "http://a<b/",
        "http://[a.example]/",
        "http://exa%mple/",
        "http://xn--a.example/",
        "http://user@/",
        &long,
        &grows,
    ] {
        let call = post(&open, url);
        assert_eq!(kind(&call), "bad_url", "{url:?}: {}", message(&call));
        assert_eq!(open.problem(&webhook(url)).as_deref(), Some(message(&call)), "{url:?}");
        assert_eq!((call.remote_addr, &*call.request_headers), (None, "{}"), "{url:?}");
    }
    let call = post(&secure, "http://a.example/");
    assert_eq!(kind(&call), "bad_url");
    assert!(message(&call).contains("https"), "{}", message(&call));
    assert!(secure.problem(&webhook("http://a.example/")).is_some());
    assert!(secure.problem(&webhook("https://a.example/")).is_none());
}

#[test]
fn hosts_of_all_kinds_reach_the_name_and_the_path_arrives() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (names, lines) = (seen.clone(), Arc::new(Mutex::new(Vec::new())));
    let noted = lines.clone();
    let receiver = Receiver::start(move |peer| {
        while let Some(request) = peer.request() {
            let host = request.header("host").unwrap().to_owned();
            noted.lock().unwrap().push((request.line, host));
            peer.send(OK);
        }
    });
    let caller = caller_to(settings(PATIENT), move |name| {
        names.lock().unwrap().push(name.to_owned());
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    });
    let port = receiver.address.port();
    let long = format!("/{}?{}", "p".repeat(4000), "q".repeat(3900));
    for (host, rest, name, path) in [
        ("a.example", "/hook", "a.example", "/hook"),
        ("A.Example", "", "a.example", "/"),
        ("a.example.", "/", "a.example.", "/"),
        ("bücher.example", "/", "xn--bcher-kva.example", "/"),
        ("xn--bcher-kva.example", "/", "xn--bcher-kva.example", "/"),
        ("faß.example", "/", "xn--fa-hia.example", "/"),
        ("例え.テスト", "/", "xn--r8jz45g.xn--zckzah", "/"),
        ("under_score.example", "/", "under_score.example", "/"),
        ("-a-.example", "/", "-a-.example", "/"),
        ("localhost", "/a/../b/./c", "localhost", "/b/c"),
        ("a.example", "/é?ü=ö#fragment", "a.example", "/%C3%A9?%C3%BC=%C3%B6"),
        (
            "a.example",
            "/a b\"<>`{}|^?a b\"<>`{}|^'",
            "a.example",
            "/a%20b%22%3C%3E%60%7B%7D|^?a%20b%22%3C%3E`{}|^%27",
        ),
        ("a.example", "?no=path", "a.example", "/?no=path"),
        ("a.example", "/%00%0d%0aX-Evil:%201", "a.example", "/%00%0d%0aX-Evil:%201"),
        ("a.example", "/a\tb\r\nX-Evil: 1", "a.example", "/abX-Evil:%201"),
        ("a.example", &long, "a.example", &long),
    ] {
        let url = format!(" http://{host}:{port}{rest}\n");
        let call = post(&caller, &url);
        assert_eq!(kind(&call), "success", "{url}: {}", message(&call));
        assert_eq!(caller.problem(&webhook(&url)), None, "{url}");
        let (line, sent_host) = lines.lock().unwrap().pop().unwrap();
        assert_eq!(line, format!("POST {path} HTTP/1.1"), "{url}");
        assert_eq!(sent_host, format!("{name}:{port}"), "{url}");
        // As an absolute name: no domain of ours is put behind it. Only the lookup has the dot.
        let (asked, absolute) = (seen.lock().unwrap().pop(), format!("{}.", name.trim_end_matches('.')));
        assert!(asked.is_none_or(|asked| asked == absolute), "{url}");
    }
}

#[test]
fn localhost_is_loopback_and_nobody_is_asked_for_it() {
    let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let asked = Arc::new(AtomicUsize::new(0));
    let caller_allowing = |nets: &[&str]| {
        let (mut settings, count) = (settings(PATIENT), asked.clone());
        settings.allow_net = nets.iter().map(|net| net.parse().unwrap()).collect();
        caller_to(settings, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(vec![Ipv4Addr::new(8, 8, 8, 8).into()])
        })
    };
    let port = receiver.address.port();
    for host in ["localhost", "LOCALHOST", "localhost.", "a.localhost", "a.b.localhost.", "loc%61lhost"] {
        let url = format!("http://{host}:{port}/");
        // Also where only one of its two families is allowed.
        for nets in [&["127.0.0.0/8"][..], &["127.0.0.0/8", "::1/128"]] {
            let caller = caller_allowing(nets);
            let call = post(&caller, &url);
            assert_eq!(
                (kind(&call), caller.problem(&webhook(&url))),
                ("success", None),
                "{url}: {}",
                message(&call)
            );
        }
        let caller = caller_allowing(&["10.0.0.0/8"]);
        let call = post(&caller, &url);
        assert_eq!(kind(&call), "blocked_address", "{url}");
        assert_eq!(message(&call), "127.0.0.1 may not be called: loopback", "{url}");
        assert_eq!(caller.problem(&webhook(&url)).as_deref(), Some(message(&call)), "{url}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    for host in ["localhost.example", "notlocalhost", "xlocalhost"] {
        assert_eq!(caller_allowing(&[]).problem(&webhook(&format!("http://{host}/"))), None, "{host}");
    }
}

#[test]
fn user_and_password_become_basic_authentication_and_are_shown_nowhere() {
    let receiver = Receiver::start(|peer| {
        while let Some(request) = peer.request() {
            let given = request.header("authorization").unwrap_or("none").to_owned();
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{given}", given.len()));
        }
    });
    let caller = caller(PATIENT);
    let address = receiver.address;
    for (user, expected) in [
        ("", "none"),
        ("us3r:s3cret@", "Basic dXMzcjpzM2NyZXQ="),
        ("us3r@", "Basic dXMzcjo="),
        (":s3cret@", "Basic OnMzY3JldA=="),
        ("us3r:s3cret:s3cret@", "Basic dXMzcjpzM2NyZXQ6czNjcmV0"),
        ("us3r:s3cret%40@", "Basic dXMzcjpzM2NyZXRA"),
        ("us3r@x:s3cret@", "Basic dXMzckB4OnMzY3JldA=="),
    ] {
        let webhook = webhook(&format!("http://{user}{address}/hook"));
        let call = crate::support::made(caller.call(&webhook, &event("{}"), &mut Room::without_end()));
        assert_eq!(call.response_body.as_deref(), Some(expected), "{}", webhook.url);
        assert_eq!(call.url, format!("http://{address}/hook"));
        // The endpoint itself said it back, which is its own business.
        let shown = format!("{:?} {:?} {webhook:?} {caller:?}", call.request_headers, call.error_message);
        assert!(!shown.contains("s3cret") && !shown.contains("Basic") && !shown.contains("us3r"), "{shown}");
    }
    // A long pair is not cut.
    let long = "s".repeat(5000);
    let call = post(&caller, &format!("http://us3r:{long}@{address}/"));
    assert_eq!(kind(&call), "success", "{}", message(&call));
    assert!(!call.request_headers.contains("authorization"));
    // What is no URL is not repeated when there may be a password in it.
    for text in [
        "http://us3r:s3cret@",
        "us3r:s3cret@host",
        "us3r:s3cret@127.0.0.1/x",
        "http://us3r:s3cret@ho st/",
        "http://us3r:s3cret%40host/",
        "http://us3r:s3cret＠host/",
    ] {
        let call = post(&caller, text);
        assert_eq!(kind(&call), "bad_url");
        let shown = format!("{call:?} {:?}", caller.problem(&webhook(text)));
        assert!(!shown.contains("s3cret") && !shown.contains("us3r"), "{shown}");
    }
}

/// A name that resolves to these addresses, and a receiver that counts on 127.0.0.1.
fn named(addresses: &[&str]) -> (promptpal_relay::inside::delivery::Caller, Receiver, String) {
    let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let caller = caller_to(settings(PATIENT), move |_| Ok(addresses.clone()));
    let url = format!("http://name.example:{}/", receiver.address.port());
    (caller, receiver, url)
}

#[test]
fn one_forbidden_address_among_a_names_answers_refuses_the_call() {
    let many: Vec<String> = (1..=30).map(|last| format!("127.0.0.{last}")).collect();
    let mut last_of_many: Vec<&str> = many.iter().map(String::as_str).collect();
    last_of_many.push("10.0.0.1");
    for addresses in [
        &["10.0.0.1"][..],
        &["127.0.0.1", "10.0.0.1"],
        &["10.0.0.1", "127.0.0.1"],
        &["127.0.0.1", "8.8.8.8", "::ffff:10.0.0.1"],
        // Beyond what the HTTP client would try.
        &last_of_many,
    ] {
        let (caller, receiver, url) = named(addresses);
        let call = post(&caller, &url);
        assert_eq!(kind(&call), "blocked_address", "{addresses:?}: {}", message(&call));
        assert_eq!((call.remote_addr, receiver.connections()), (None, 0), "{addresses:?}");
    }
}

#[test]
fn a_customer_does_not_read_what_a_refused_name_stands_for() {
    let database = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let call = |name: &'static str, address: &str, port: u16| {
        let address: IpAddr = address.parse().unwrap();
        let mut settings = settings(PATIENT);
        settings.refused =
            vec![("127.0.0.1".into(), database.port()), ("db.corp.example".into(), database.port())];
        settings.metrics_port = Some(metrics.port());
        let caller = caller_to(settings, move |asked| match asked {
            "db.corp.example" => Err(io::Error::other("no such name")),
            _ => Ok(vec![address]),
        });
        post(&caller, &format!("http://{name}:{port}/"))
    };
    let told: HashSet<String> = [
        ("10.0.0.1", 80),
        ("100.64.0.1", 80),
        ("169.254.169.254", 80),
        ("168.63.129.16", 80),
        ("192.0.2.1", 80),
        ("fd00::1", 80),
        ("::ffff:10.0.0.1", 80),
        ("64:ff9b::10.0.0.1", 80),
        ("127.0.0.1", database.port()),
        ("8.8.8.8", database.port()),
        ("127.0.0.1", metrics.port()),
    ]
    .into_iter()
    .map(|(address, port)| {
        let call = call("intern.corp.example", address, port);
        assert_eq!((kind(&call), &call.remote_addr), ("blocked_address", &None), "{address}:{port}");
        // Nothing of it, wherever it is.
        let shown = format!("{call:?}").replace(&call.url, "");
        assert!(!shown.contains(address) && !shown.contains("db.corp.example"), "{address}: {shown}");
        message(&call).to_owned()
    })
    .collect();
    assert_eq!(told.len(), 1, "all are told alike: {told:?}");
    assert!(told.iter().all(|told| told.contains("private")), "{told:?}");
    // A customer who typed the address knows it already.
    assert_eq!(message(&call("10.0.0.1", "10.0.0.1", 80)), "10.0.0.1 may not be called: private");
}

#[test]
fn the_next_address_is_tried_when_one_is_dead() {
    let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let port = receiver.address.port();
    let hanging = [Dead::on([127, 0, 0, 2], port), Dead::on([127, 0, 0, 3], port)];
    let mut addresses: Vec<IpAddr> = hanging.iter().map(|dead| dead.address.ip()).collect();
    // No server listens on these.
    addresses.extend((4..10).map(|last| IpAddr::from([127, 0, 0, last])));
    addresses.push(Ipv4Addr::LOCALHOST.into());
    let limit = Duration::from_secs(5);
    let caller = caller_to(settings(limit), move |_| Ok(addresses.clone()));
    let start = Instant::now();
    let call = post(&caller, &format!("http://many.example:{port}/"));
    assert_eq!(kind(&call), "success", "{}", message(&call));
    assert_eq!(call.remote_addr.unwrap(), format!("127.0.0.1:{port}"));
    println!("two hanging addresses and six refusing ones of nine: {:?} of {limit:?}", start.elapsed());
}

#[test]
fn an_answer_that_changes_after_the_check_is_checked_again() {
    // Good for the first question, the database's network for the second and later ones.
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let caller = caller_to(settings(PATIENT), move |_| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        Ok(vec![if first { Ipv4Addr::LOCALHOST } else { Ipv4Addr::new(10, 0, 0, 1) }.into()])
    });
    let url = format!("http://rebinding.example:{}/", receiver.address.port());
    let start = Instant::now();
    loop {
        let call = post(&caller, &url);
        if kind(&call) == "blocked_address" {
            assert_eq!(call.remote_addr, None);
            break;
        }
        // Until it is asked for again, the first answer holds, and is what is dialled.
        assert_eq!(kind(&call), "success", "{}", message(&call));
        assert_eq!(call.remote_addr.unwrap(), receiver.address.to_string());
        assert!(start.elapsed() < Duration::from_secs(20), "never asked again");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(asked.load(Ordering::SeqCst) >= 2);
}

#[test]
fn names_without_an_address_are_dns_failures() {
    for lookup in [|_: &str| Ok(Vec::new()), |_: &str| Err(io::Error::other("no such\0 name"))] {
        let call = post(&caller_to(settings(PATIENT), lookup), "http://nowhere.example/");
        assert_eq!(kind(&call), "dns", "{}", message(&call));
        assert!(!message(&call).contains('\0'));
    }
}

#[test]
fn slow_names_have_half_of_the_threads() {
    let slow_ones = Arc::new((Mutex::new(HashSet::new()), AtomicBool::new(true)));
    let state = slow_ones.clone();
    let resolver = Resolver::new(Box::new(move |name| {
        if name.starts_with("slow") {
            state.0.lock().unwrap().insert(name.to_owned());
            let start = Instant::now();
            while state.1.load(Ordering::SeqCst) || start.elapsed() < Duration::from_millis(1100) {
                thread::sleep(Duration::from_millis(5));
            }
            state.0.lock().unwrap().remove(name);
            return Err(io::Error::other("hangs"));
        }
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }));
    let running = || slow_ones.0.lock().unwrap().len();
    let soon = || Instant::now() + Duration::from_millis(1);
    let names: Vec<String> = (0..60).map(|n| format!("slow{n}")).collect();
    for name in &names {
        assert!(matches!(resolver.addresses(name, soon()), Answer::Late | Answer::ResolverBusy));
    }
    // They fail, late; that is what is remembered.
    slow_ones.1.store(false, Ordering::SeqCst);
    eventually("the end of the slow lookups", || running() == 0);
    slow_ones.1.store(true, Ordering::SeqCst);
    // A failure is kept for a second; then they are asked for again, all of them, again and again.
    eventually("more of them", || {
        // New ones apart: the last four found no thread before.
        for name in &names[..56] {
            resolver.addresses(name, soon());
        }
        running() >= 32
    });
    for name in &names[..56] {
        resolver.addresses(name, soon());
    }
    assert_eq!(running(), 32, "and no more");
    for n in 0..100 {
        let answer = resolver.addresses(&format!("good{n}"), Instant::now() + PATIENT);
        assert!(matches!(answer, Answer::Addresses(_)), "{answer:?}");
    }
    slow_ones.1.store(false, Ordering::SeqCst);
}

#[test]
fn new_names_that_hang_leave_threads_to_those_that_are_known_and_no_call_fails_for_want_of_one() {
    let (gate, hanging, asked) =
        (Gate::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (door, count, times) = (gate.clone(), hanging.clone(), asked.clone());
    let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let caller = Arc::new(caller_to(settings(Duration::from_secs(5)), move |name| {
        if name.starts_with("hang") {
            count.fetch_add(1, Ordering::SeqCst);
            door.pass();
        }
        // No address at first: the call after that asks again.
        if name == "known.example." && times.fetch_add(1, Ordering::SeqCst) == 0 {
            return Ok(Vec::new());
        }
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }));
    let port = receiver.address.port();
    let url = |name: &str| format!("http://{name}.example:{port}/");
    assert_eq!(kind(&post(&caller, &url("known"))), "dns");
    let crowded = Arc::new(AtomicUsize::new(0));
    let strangers: Vec<_> = (0..100)
        .map(|n| {
            let (caller, crowded, webhook) =
                (caller.clone(), crowded.clone(), webhook(&url(&format!("hang{n}"))));
            thread::spawn(move || match caller.call(&webhook, &event("{}"), &mut Room::without_end()) {
                Outcome::ResolverBusy => _ = crowded.fetch_add(1, Ordering::SeqCst),
                called => assert_eq!(kind(&crate::support::made(called)), "timeout"),
            })
        })
        .collect();
    eventually("all that may hang at once", || {
        hanging.load(Ordering::SeqCst) + crowded.load(Ordering::SeqCst) == 100
    });
    let new = webhook(&url("new"));
    assert!(
        matches!(caller.call(&new, &event("{}"), &mut Room::without_end()), Outcome::ResolverBusy),
        "a lack of ours, not a failure"
    );
    // A failure is kept for a second.
    eventually("another look at a name that is known", || kind(&post(&caller, &url("known"))) == "success");
    strangers.into_iter().for_each(|stranger| stranger.join().unwrap());
    assert_eq!(hanging.load(Ordering::SeqCst), 56);
    gate.open();
    eventually("a thread for the new one", || {
        match caller.call(&new, &event("{}"), &mut Room::without_end()) {
            Outcome::ResolverBusy => false,
            called => kind(&crate::support::made(called)) == "success",
        }
    });
}

#[test]
fn a_resolver_that_hangs_for_a_moment_fails_no_call_to_a_known_name() {
    let hangs = Arc::new(AtomicBool::new(false));
    let (flag, asked) = (hangs.clone(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    let resolver = Resolver::new(Box::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        while flag.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }));
    let soon = || Instant::now() + Duration::from_millis(50);
    assert!(matches!(resolver.addresses("a", Instant::now() + PATIENT), Answer::Addresses(_)));
    hangs.store(true, Ordering::SeqCst);
    eventually("another question", || {
        assert!(matches!(resolver.addresses("a", soon()), Answer::Addresses(_)));
        asked.load(Ordering::SeqCst) == 2
    });
    assert!(matches!(resolver.addresses("a", soon()), Answer::Addresses(_)), "while it hangs");
    hangs.store(false, Ordering::SeqCst);
}

fn run_alone(test: &str, setup: &str) {
    crate::support::run_alone(&format!("address::{test}"), setup);
}

#[test]
fn a_name_that_cannot_be_looked_up_for_want_of_files_is_a_shortage_of_ours() {
    if !is_alone() {
        return run_alone(
            "a_name_that_cannot_be_looked_up_for_want_of_files_is_a_shortage_of_ours",
            "ulimit -n 40",
        );
    }
    let ask = |name| Resolver::system().addresses(name, Instant::now() + PATIENT);
    let shares: Vec<_> =
        std::iter::from_fn(|| promptpal_relay::inside::delivery::fd_budget::take(1)).collect();
    assert_eq!(shares.len(), 20, "half of a low limit");
    assert!(matches!(ask("localhost"), Answer::ResourceExhausted(_)), "all are given to calls");
    drop(shares);
    let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let answer = ask("localhost");
    drop(files);
    assert!(matches!(answer, Answer::ResourceExhausted(_)), "somebody else has taken them: {answer:?}");
    assert!(matches!(ask("localhost"), Answer::Addresses(_)));
}

#[test]
fn a_connection_for_want_of_files_is_a_shortage_of_ours() {
    if !is_alone() {
        return run_alone("a_connection_for_want_of_files_is_a_shortage_of_ours", "ulimit -n 60");
    }
    let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let (caller, webhook) = (caller(PATIENT), webhook(&receiver.url()));
    let call = || caller.call(&webhook, &event("{}"), &mut Room::without_end());
    let shares: Vec<_> =
        std::iter::from_fn(|| promptpal_relay::inside::delivery::fd_budget::take(1)).collect();
    assert!(matches!(call(), Outcome::ResourceExhausted(_)), "all are given to others");
    drop(shares);
    let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let outcome = call();
    drop(files);
    assert!(matches!(outcome, Outcome::ResourceExhausted(_)), "somebody else has taken them: {outcome:?}");
    assert_eq!(receiver.connections(), 0);
    assert_eq!(kind(&crate::support::made(call())), "success");
}

#[test]
fn a_dead_address_gives_its_file_to_the_next_when_there_is_no_other_and_has_had_its_time() {
    if !is_alone() {
        return run_alone(
            "a_dead_address_gives_its_file_to_the_next_when_there_is_no_other_and_has_had_its_time",
            "true",
        );
    }
    let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let port = receiver.address.port();
    let dead = Dead::on([127, 0, 0, 2], port);
    let addresses = vec![dead.address.ip(), receiver.address.ip()];
    let caller = caller_to(settings(Duration::from_secs(4)), move |_| Ok(addresses.clone()));
    // Known for some seconds: looking it up takes files, too.
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(kind(&post(&caller, &format!("http://two.example:{}/", unused.port()))), "connect");
    let mut shares: Vec<_> =
        std::iter::from_fn(|| promptpal_relay::inside::delivery::fd_budget::take(1)).collect();
    let call = |caller: &promptpal_relay::inside::delivery::Caller| {
        caller.call(&webhook(&format!("http://two.example:{port}/")), &event("{}"), &mut Room::without_end())
    };
    assert!(matches!(call(&caller), Outcome::ResourceExhausted(_)), "none is left");
    shares.pop();
    let made = crate::support::made(call(&caller));
    assert_eq!(kind(&made), "success", "{}", message(&made));
    assert_eq!(made.remote_addr, Some(receiver.address.to_string()));
    // The connection that lost the race gives its file back.
    let before = shares.len() + 1;
    drop((shares, caller));
    let addresses = vec![dead.address.ip(), receiver.address.ip()];
    let caller = caller_to(settings(PATIENT), move |_| Ok(addresses.clone()));
    assert_eq!(kind(&crate::support::made(call(&caller))), "success");
    drop(caller);
    eventually("all are back", || {
        std::iter::from_fn(|| promptpal_relay::inside::delivery::fd_budget::take(1)).collect::<Vec<_>>().len()
            == before
    });
}

#[test]
fn our_own_postgres_is_refused_under_each_of_its_addresses() {
    let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let port = receiver.address.port();
    // Another server beside it: its port is its own.
    let beside = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    for host in ["127.0.0.1", "localhost"] {
        let mut settings = settings(PATIENT);
        settings.allow_net = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).to_vec();
        settings.refused = vec![(host.to_owned(), port)];
        let caller = caller_with(settings);
        let own = own_address().map(|own| own.to_string());
        for host in [
            "127.0.0.1",
            "127.0.0.2",
            "0.0.0.0",
            "2130706433",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "db.example",
        ]
        .into_iter()
        .chain(own.as_deref())
        {
            let url = format!("http://{host}:{port}/");
            let call = post(&caller, &url);
            assert_eq!(kind(&call), "blocked_address", "{url}: {}", message(&call));
            assert!(message(&call).contains("the relay's own"), "{}", message(&call));
            let told = caller.problem(&webhook(&url));
            assert_eq!(told.is_none(), host == "db.example", "{url}: {told:?}");
        }
        assert_eq!(kind(&post(&caller, &beside.url())), "success");
    }
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn a_name_of_our_own_postgres_is_looked_up_when_its_port_is_called_and_until_it_has_an_answer_nobody_is() {
    let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let beside = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
    let answer = Arc::new(Mutex::new(None));
    let now = answer.clone();
    let mut settings = settings(PATIENT);
    settings.refused = vec![("10.0.0.9".into(), 5499), ("db2.example".into(), receiver.address.port())];
    settings.reached.add([127, 0, 0, 3].into(), beside.address.port());
    let caller = caller_to(settings, move |name| match name {
        "db2.example" => now.lock().unwrap().map(|ip| vec![ip]).ok_or(io::Error::other("no such name")),
        _ => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
    });
    // Not this machine's, so that it is told apart from the receiver's.
    let elsewhere = IpAddr::from([192, 0, 2, 1]);
    let refused = "127.0.0.1 may not be called: the relay's own";
    let outcome = |url: &str| message(&post(&caller, url)).to_owned();
    // Customers do not read where the database is, or what it is called.
    assert_eq!(outcome(&receiver.url()), refused, "not resolved yet");
    assert_eq!(caller.problem(&webhook(&receiver.url())).as_deref(), Some(refused));
    for (ip, is_refused) in
        [(Ipv4Addr::LOCALHOST.into(), true), (elsewhere, false), ([127, 0, 0, 4].into(), true)]
    {
        *answer.lock().unwrap() = Some(ip);
        // An answer is kept for some seconds.
        eventually("the next answer", || (outcome(&receiver.url()) == refused) == is_refused);
    }
    assert_eq!(outcome(&beside.url()), refused, "where it was reached");
}

/// This machine's address in its network; none where it is in none.
fn own_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Documentation: nothing is sent.
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

#[test]
fn no_proxy_is_taken_from_the_environment() {
    if is_alone() {
        let receiver = Receiver::start(|peer| while peer.request().is_some() && peer.send(OK) {});
        assert_eq!(kind(&post(&caller(PATIENT), &receiver.url())), "success");
        assert_eq!(receiver.connections(), 1);
        return;
    }
    let proxy = Receiver::start(|peer| assert!(peer.send(OK)));
    let variables = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
        .map(|variable| format!("{variable}={}", proxy.url()));
    run_alone("no_proxy_is_taken_from_the_environment", &format!("export {}", variables.join(" ")));
    assert_eq!(proxy.connections(), 0);
}
