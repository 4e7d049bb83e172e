//! Names with several addresses, some of which are dead: they race, and what worked is remembered.

use std::io::{BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::time::{Duration, Instant};

use promptpal_relay::inside::delivery::Caller;
use test_support::http::Message;

use crate::support::{
    Dead, PATIENT, Receiver, caller_to, kind, makes_no_sense_proxied, message, post, settings,
};

const WHY: &str = "the proxy is asked for one address after the other; proxied.rs has what comes of that";
/// The longest that a call may take which does not wait for a dead address. A dead address would cost it more, and a busy
/// machine needs less.
const SOON: Duration = Duration::from_secs(5);
/// An answer after which the connection is closed, so that each call needs one of its own.
const CLOSED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn live(ip: impl Into<IpAddr>, port: u16) -> Receiver {
    let listener = TcpListener::bind((ip.into(), port)).unwrap();
    Receiver::on(listener, |peer| assert!(peer.request().is_none() || peer.send(CLOSED)))
}

fn caller(limit: Duration, addresses: &[IpAddr]) -> Caller {
    let addresses = addresses.to_vec();
    caller_to(settings(limit), move |_| Ok(addresses.clone()))
}

/// Calls a name that has these addresses, at this port; asserts that it soon gets through to `expected`.
fn assert_reaches(caller: &Caller, port: u16, expected: IpAddr) {
    let start = Instant::now();
    let call = post(caller, &format!("http://many.example:{port}/"));
    assert_eq!(kind(&call), "success", "{}", message(&call));
    assert_eq!(call.remote_addr, Some(std::net::SocketAddr::new(expected, port).to_string()));
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    println!("reached after {:?}", start.elapsed());
}

#[test]
fn a_dead_address_costs_a_moment_and_not_a_share_of_the_time() {
    if makes_no_sense_proxied(WHY) {
        return;
    }
    let live = live([127, 0, 0, 1], 0);
    let port = live.address.port();
    let dead = Dead::on([127, 0, 0, 2], port);
    let (dead, live) = (dead.address.ip(), live.address.ip());
    for addresses in [[dead, live], [live, dead]] {
        assert_reaches(&caller(PATIENT, &addresses), port, live);
    }
}

#[test]
fn a_dead_family_costs_a_moment_and_not_a_share_of_the_time() {
    if makes_no_sense_proxied(WHY) {
        return;
    }
    let live = live([127, 0, 0, 1], 0);
    let port = live.address.port();
    let Ok(dead) = Dead::try_on(Ipv6Addr::LOCALHOST, port) else {
        eprintln!("this machine has no IPv6");
        return;
    };
    let (dead, live) = (dead.address.ip(), live.address.ip());
    for addresses in [[dead, live], [live, dead]] {
        assert_reaches(&caller(PATIENT, &addresses), port, live);
    }
    // Addresses of this family take all the places but one, when they come first.
    let mut many = vec![dead; 30];
    many.push(live);
    assert_reaches(&caller(PATIENT, &many), port, live);
}

#[test]
fn what_worked_is_tried_first_the_next_time() {
    if makes_no_sense_proxied(WHY) {
        return;
    }
    let working = live([127, 0, 0, 1], 0);
    let port = working.address.port();
    let dead = Dead::on([127, 0, 0, 2], port);
    let (first, second) = (dead.address.ip(), working.address.ip());
    let known = caller(PATIENT, &[first, second]);
    assert_reaches(&known, port, second);
    // From now on the first works as well: who tries it first gets through to it.
    drop(dead);
    let revived = live(first, port);
    assert_reaches(&known, port, second);
    assert_eq!(revived.connections(), 0, "it was not even tried");
    assert_reaches(&caller(PATIENT, &[first, second]), port, first);
}

#[test]
fn what_worked_and_works_no_more_costs_a_moment() {
    if makes_no_sense_proxied(WHY) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (second, port) = (listener.local_addr().unwrap().ip(), listener.local_addr().unwrap().port());
    let dead = Dead::on([127, 0, 0, 2], port);
    let third = IpAddr::from([127, 0, 0, 3]);
    let caller = caller(PATIENT, &[dead.address.ip(), second, third]);
    // One connection and no more.
    let once = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        Message::request(&mut BufReader::new(&stream)).unwrap();
        stream.write_all(CLOSED.as_bytes()).unwrap();
    });
    assert_reaches(&caller, port, second);
    once.join().unwrap();
    let _died = Dead::on(second, port);
    let _third = live(third, port);
    assert_reaches(&caller, port, third);
}

#[test]
fn refused_addresses_cost_nothing() {
    if makes_no_sense_proxied(WHY) {
        return;
    }
    let live = live([127, 0, 0, 1], 0);
    let port = live.address.port();
    // No server listens on these; a moment for each of them would be too long.
    let mut addresses: Vec<IpAddr> = (2..17).map(|last| IpAddr::from([127, 0, 0, last])).collect();
    addresses.push(live.address.ip());
    let start = Instant::now();
    assert_reaches(&caller(PATIENT, &addresses), port, live.address.ip());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    addresses.pop();
    let call = post(&caller(PATIENT, &addresses), &format!("http://many.example:{port}/"));
    assert_eq!(kind(&call), "connect");
    assert!(message(&call).contains("refused"), "{}", message(&call));
    assert_eq!(call.remote_addr, None);
}

#[test]
fn more_dead_addresses_than_are_tried_at_once_are_all_tried() {
    if makes_no_sense_proxied(WHY) {
        return;
    }
    let live = live([127, 0, 0, 1], 0);
    let port = live.address.port();
    let dead: Vec<_> = (2..9).map(|last| Dead::on([127, 0, 0, last], port)).collect();
    let mut addresses: Vec<_> = dead.iter().map(|dead| dead.address.ip()).collect();
    addresses.push(live.address.ip());
    // A share is a second and a quarter; seven of them would be too long.
    let limit = Duration::from_secs(10);
    assert_reaches(&caller(limit, &addresses), port, live.address.ip());
    // Far more than a name may have: those that are tried are among the first.
    let mut many = vec![Ipv4Addr::LOCALHOST.into()];
    many.extend((0..1000).map(|n| IpAddr::from(Ipv4Addr::from(0x7f01_0000 + n))));
    assert_reaches(&caller(limit, &many), port, live.address.ip());
}

#[test]
fn a_dead_and_a_refused_address_are_a_timeout() {
    if makes_no_sense_proxied(WHY) {
        return;
    }
    let dead = Dead::on([127, 0, 0, 2], 0);
    let port = dead.address.port();
    let limit = Duration::from_millis(700);
    for addresses in [[[127, 0, 0, 3], [127, 0, 0, 2]], [[127, 0, 0, 2], [127, 0, 0, 3]]] {
        let start = Instant::now();
        let call = post(&caller(limit, &addresses.map(IpAddr::from)), &format!("http://two.example:{port}/"));
        assert_eq!(kind(&call), "timeout", "{}", message(&call));
        assert!(message(&call).starts_with("no connection within"), "{}", message(&call));
        assert!(start.elapsed() >= limit && start.elapsed() < SOON, "{:?}", start.elapsed());
    }
}
