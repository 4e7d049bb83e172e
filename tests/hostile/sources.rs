//! The addresses that calls leave from (`--bind-address`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex};

use promptpal_relay::inside::delivery::{Caller, Proxy, Settings, Sources};
use promptpal_relay::inside::model::{Outcome, Room};

use crate::support::{
    OK, PATIENT, Receiver, caller_to, caller_with, event, is_alone, kind, makes_no_sense_proxied, message,
    post, run_apart, settings, webhook,
};

const WHY: &str = "the proxy sees the address, and the endpoint sees the proxy's";

fn leaving_from(addresses: &[&str]) -> Settings {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Settings { sources: Sources::new(&addresses).unwrap(), ..settings(PATIENT) }
}

/// A receiver, and the addresses that its calls come from.
fn noting(listener: TcpListener) -> (Receiver, Arc<Mutex<Vec<IpAddr>>>) {
    let seen: Arc<Mutex<Vec<IpAddr>>> = Arc::default();
    let noted = seen.clone();
    let receiver = Receiver::on(listener, move |peer| {
        while peer.request().is_some() {
            noted.lock().unwrap().push(peer.from());
            peer.send(OK);
        }
    });
    (receiver, seen)
}

#[test]
fn calls_leave_from_the_address_that_is_named() {
    if makes_no_sense_proxied(WHY) {
        return;
    }
    let (receiver, seen) = noting(TcpListener::bind("127.0.0.1:0").unwrap());
    let port = receiver.address.port();
    for (named, host, from) in [
        (&[][..], "127.0.0.1", "127.0.0.1"),
        (&["127.0.0.2"], "127.0.0.1", "127.0.0.2"),
        (&["127.0.0.2", "::1"], "127.0.0.1", "127.0.0.2"),
        (&["127.0.0.2"], "[::ffff:127.0.0.1]", "127.0.0.2"),
        (&["127.0.0.3"], "any.example", "127.0.0.3"),
    ] {
        let call = post(&caller_with(leaving_from(named)), &format!("http://{host}:{port}/"));
        assert_eq!(kind(&call), "success", "{named:?} {host}: {}", message(&call));
        let from: IpAddr = from.parse().unwrap();
        assert_eq!(seen.lock().unwrap().pop(), Some(from), "{named:?} {host}");
    }
}

#[test]
fn a_family_without_an_address_is_not_dialled() {
    if makes_no_sense_proxied(WHY) {
        return;
    }
    if TcpListener::bind("[::1]:0").is_err() {
        println!("this machine has no IPv6");
        return;
    }
    // A port that is free in one family may be taken in the other.
    let both = std::iter::repeat_with(|| {
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        let v4 = TcpListener::bind(("127.0.0.1", v6.local_addr().unwrap().port()));
        v4.map(|v4| (v6, v4))
    });
    let (v6, v4) = both.take(100).find_map(Result::ok).expect("a port that is free in both families");
    let (receiver, seen) = noting(v6);
    let port = receiver.address.port();
    let (_v4, from_v4) = noting(v4);
    let caller = caller_to(leaving_from(&["127.0.0.2"]), |name| match name {
        "both.example." => Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]),
        _ => Ok(vec![Ipv6Addr::LOCALHOST.into()]),
    });
    for host in ["[::1]", "six.example"] {
        let url = format!("http://{host}:{port}/");
        let call = post(&caller, &url);
        assert_eq!(
            (kind(&call), message(&call)),
            ("connect", "no call leaves over IPv6; nothing was sent"),
            "{host}"
        );
        assert_eq!(caller.problem(&webhook(&url)).is_some(), host == "[::1]", "{host}");
    }
    let call = post(&caller, &format!("http://both.example:{port}/"));
    assert_eq!(kind(&call), "success", "{}", message(&call));
    assert_eq!(from_v4.lock().unwrap().pop(), Some([127, 0, 0, 2].into()));
    assert!(seen.lock().unwrap().is_empty() && caller.lack().is_none());
    let call = post(&caller_with(leaving_from(&["127.0.0.2", "::1"])), &format!("http://[::1]:{port}/"));
    assert_eq!(kind(&call), "success", "{}", message(&call));
    assert_eq!(seen.lock().unwrap().pop(), Some(Ipv6Addr::LOCALHOST.into()));
}

#[test]
fn with_a_proxy_it_is_the_connection_to_the_proxy_that_leaves_from_the_address() {
    let (receiver, _) = noting(TcpListener::bind("127.0.0.1:0").unwrap());
    let proxy = test_support::proxy::Proxy::open();
    let through =
        |url: &str| Settings { proxy: Some(Proxy::parse(url).unwrap()), ..leaving_from(&["127.0.0.2"]) };
    let call = post(&caller_with(through(&proxy.url())), &receiver.url());
    assert_eq!(kind(&call), "success", "{}", message(&call));
    assert_eq!(proxy.clients(), [IpAddr::from([127, 0, 0, 2])]);
    // What the operator has set so is no failure of the endpoint's.
    let caller = caller_with(through("http://[::1]:3128"));
    let outcome = caller.call(&webhook(&receiver.url()), &event("{}"), &mut Room::without_end());
    let Outcome::NoWayOut(why) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains("--bind-address has no address of its family"), "{why}");
}

#[test]
fn an_address_that_is_not_this_hosts_keeps_the_daemon_from_starting_until_it_is() {
    let error = Caller::new(leaving_from(&["192.0.2.1"])).expect_err("it is documentation's");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("192.0.2.1, which --bind-address names"), "{error}");
}

#[test]
fn an_address_that_goes_away_is_a_lack_of_ours_until_it_is_back() {
    if !is_alone() {
        return run_apart(
            "sources::an_address_that_goes_away_is_a_lack_of_ours_until_it_is_back",
            "ip addr add 10.9.9.9/32 dev lo",
        );
    }
    let ip = |what: &str| {
        let arguments = ["addr", what, "10.9.9.9/32", "dev", "lo"];
        assert!(Command::new("ip").args(arguments).status().unwrap().success());
    };
    // Each call needs a connection of its own.
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let receiver = Receiver::start(move |peer| assert!(peer.request().is_none() || peer.send(answer)));
    let caller = caller_with(leaving_from(&["10.9.9.9"]));
    assert_eq!(kind(&post(&caller, &receiver.url())), "success");
    ip("del");
    for _ in 0..2 {
        let outcome = caller.call(&webhook(&receiver.url()), &event("{}"), &mut Room::without_end());
        let Outcome::NoWayOut(why) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains("10.9.9.9, which --bind-address names"), "{why}");
        assert_eq!(caller.lack(), Some(why));
    }
    ip("add");
    assert_eq!((kind(&post(&caller, &receiver.url())), caller.lack()), ("success", None));
}
