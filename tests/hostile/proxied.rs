//! Calls through a proxy: every scenario once more, and proxies that are away, refuse, or mean harm. What is wrong with the
//! proxy is a lack of ours; what is wrong beyond it is the endpoint's; and no endpoint makes the one look like the other.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use promptpal_relay::inside::delivery::{Caller, Proxy as ProxyUrl, Settings};
use promptpal_relay::inside::model::{Outcome, Room};
use test_support::http::Message;
use test_support::proxy::{Proxy, Reply};

use crate::support::{
    AUTHORITY, DEADLINE, OK, PATIENT, Peer, Receiver, caller_to, caller_with, event, eventually, is_proxied,
    kind, message, post, proxy_of_this_process, run_proxied, settings, webhook,
};

/// The timeout of calls that reach it.
const LIMIT: Duration = Duration::from_secs(2);
/// An answer after which the connection is closed, so that each call needs a tunnel of its own.
const CLOSED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

#[test]
fn every_scenario_holds_through_a_proxy_too() {
    if !is_proxied() {
        run_proxied();
        return;
    }
    let receiver = Receiver::start(good);
    assert_eq!(kind(&post(&caller_with(settings(PATIENT)), &receiver.url())), "success");
    let asked = proxy_of_this_process().targets();
    assert!(asked.contains(&receiver.address.to_string()), "the scenarios of this process use the proxy");
}

fn good(peer: &mut Peer) {
    while peer.request().is_some() && peer.send(OK) {}
}

/// Settings for calls through a proxy.
fn through(url: &str, timeout: Duration) -> Settings {
    Settings { proxy: Some(ProxyUrl::parse(url).unwrap()), ..settings(timeout) }
}

fn call(caller: &Caller, url: &str) -> Outcome {
    caller.call(&webhook(url), &event("{}"), &mut Room::without_end())
}

/// Asserts that a call was not made for a fault of the proxy's, which is told; what is told.
fn lack(caller: &Caller, url: &str, proxy: SocketAddr) -> String {
    let outcome = call(caller, url);
    let Outcome::NoWayOut(why) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains(&proxy.to_string()), "{why}");
    assert_eq!(caller.lack().as_deref(), Some(&*why));
    why
}

/// A proxy whose script can be changed.
fn changing(first: Reply) -> (Proxy, Arc<Mutex<Reply>>) {
    let reply = Arc::new(Mutex::new(first));
    let now = reply.clone();
    (Proxy::start(move |_| now.lock().unwrap().clone()), reply)
}

#[test]
fn http_and_https_go_through_a_tunnel_to_the_very_address() {
    for encrypted in [false, true] {
        let seen: Arc<Mutex<Vec<Message>>> = Arc::default();
        let kept = seen.clone();
        let script = move |peer: &mut Peer| {
            while let Some(request) = peer.request() {
                kept.lock().unwrap().push(request);
                peer.send(OK);
            }
        };
        let receiver =
            if encrypted { Receiver::tls(AUTHORITY.good(), script) } else { Receiver::start(script) };
        let port = receiver.address.port();
        let url = format!("http{}://good.example:{port}/hook", if encrypted { "s" } else { "" });
        let proxy = Proxy::open();
        let caller = caller_with(through(&proxy.url(), PATIENT));
        for _ in 0..3 {
            let call = post(&caller, &url);
            assert_eq!(kind(&call), "success", "{}", message(&call));
            assert_eq!(
                call.remote_addr,
                Some(receiver.address.to_string()),
                "the endpoint's, not the proxy's"
            );
            assert!(!call.request_headers.contains("proxy"), "{}", call.request_headers);
        }
        let asked = proxy.asked();
        assert_eq!(asked.len(), 1, "the tunnel is used again");
        assert_eq!(asked[0].line, format!("CONNECT {} HTTP/1.1", receiver.address));
        assert_eq!(asked[0].header("host"), Some(&*receiver.address.to_string()));
        for request in seen.lock().unwrap().iter() {
            assert_eq!(request.line, "POST /hook HTTP/1.1");
            assert_eq!(request.header("host"), Some(&*format!("good.example:{port}")));
            assert!(request.headers.iter().all(|(name, _)| !name.to_lowercase().starts_with("proxy")));
        }
    }
}

#[test]
fn the_proxy_gets_user_and_password_and_nothing_else_shows_them() {
    let receiver = Receiver::start(good);
    let proxy = Proxy::start(|request| match request.header("proxy-authorization") {
        // us3r:s3cr@t
        Some("Basic dXMzcjpzM2NyQHQ=") => Reply::Tunnel,
        _ => Reply::status(407),
    });
    let url = |user: &str| format!("http://{user}@{}", proxy.address());
    let caller = caller_with(through(&url("us3r:s3cr%40t"), PATIENT));
    let call = post(&caller, &receiver.url());
    assert_eq!(kind(&call), "success", "{}", message(&call));
    let wrong = caller_with(through(&url("us3r:s3cret"), PATIENT));
    let why = lack(&wrong, &receiver.url(), proxy.address());
    assert!(why.contains("407") && why.contains("correct user and password"), "{why}");
    let shown = format!("{call:?} {caller:?} {wrong:?} {why} {:?}", caller.try_proxy());
    assert!(!shown.contains("us3r") && !shown.contains("s3c") && !shown.contains("Basic"), "{shown}");
}

#[test]
fn what_is_wrong_with_the_proxy_is_a_lack_of_ours_until_it_works_again() {
    let receiver = Receiver::start(good);
    let endless = b"X-Long: ".iter().copied().chain(std::iter::repeat_n(b'a', 4096)).collect();
    let (proxy, reply) = changing(Reply::Tunnel);
    let caller = caller_with(through(&proxy.url(), LIMIT));
    for (wrong, told) in [
        (Reply::status(407), "407"),
        (Reply::status(403), "403"),
        (Reply::status(500), "500"),
        (Reply::status(503), "503"),
        (Reply::status(302), "302"),
        (Reply::Answer(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()), "no HTTP"),
        (Reply::Answer(b"HTTP/1.1 200 Connection".to_vec()), "without an answer"),
        (Reply::Flood(b"HTTP/1.1 200 OK\r\n".to_vec()), "HTTP"),
        (Reply::Flood(endless), "HTTP"),
        (Reply::Flood(b"\r\n".to_vec()), "does not end"),
        (Reply::Close, "without an answer"),
        (Reply::Never, "does not answer"),
    ] {
        *reply.lock().unwrap() = wrong.clone();
        let why = lack(&caller, &receiver.url(), proxy.address());
        // A connection that is closed with bytes unread may be reset.
        assert!(why.contains(told) || why.contains("breaks the connection"), "{wrong:?}: {why}");
        let before = receiver.connections();
        *reply.lock().unwrap() = Reply::Tunnel;
        let call = post(&caller_with(through(&proxy.url(), PATIENT)), &receiver.url());
        assert_eq!((kind(&call), receiver.connections()), ("success", before + 1), "{wrong:?}");
    }
    assert!(caller.lack().is_some(), "no call of this caller has got through since");
    assert_eq!((kind(&post(&caller, &receiver.url())), caller.lack()), ("success", None));
}

#[test]
fn a_proxy_that_is_away_is_a_lack_of_ours_until_it_is_back() {
    let receiver = Receiver::start(|peer| assert!(peer.request().is_none() || peer.send(CLOSED)));
    let proxy = Proxy::open();
    let (address, caller) = (proxy.address(), caller_with(through(&proxy.url(), PATIENT)));
    assert_eq!(kind(&post(&caller, &receiver.url())), "success");
    assert_eq!(caller.try_proxy(), Some(Ok(address.to_string())));
    proxy.stop();
    let why = lack(&caller, &receiver.url(), address);
    assert!(why.contains("cannot be reached") && why.contains("correct --proxy"), "{why}");
    assert!(
        caller.try_proxy().is_some_and(|tried| tried.is_err_and(|why| why.contains("cannot be reached")))
    );
    assert_eq!(receiver.connections(), 1, "nothing goes around the proxy");
    let back = Proxy::on(address, |_| Reply::Tunnel);
    assert_eq!((kind(&post(&caller, &receiver.url())), caller.lack()), ("success", None));
    assert_eq!(back.targets(), [receiver.address.to_string()]);
}

#[test]
fn a_proxys_name_is_looked_up_and_one_without_an_address_is_a_lack_of_ours() {
    let receiver = Receiver::start(good);
    let proxy = Proxy::open();
    let known = Arc::new(AtomicBool::new(false));
    let flag = known.clone();
    let url = format!("http://proxy.intern:{}", proxy.address().port());
    let caller = caller_to(through(&url, PATIENT), move |name| match name {
        // The operator's name, as the operator typed it.
        "proxy.intern" if flag.load(Ordering::SeqCst) => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
        name => Err(io::Error::other(format!("no {name}"))),
    });
    let outcome = call(&caller, &receiver.url());
    assert!(matches!(&outcome, Outcome::NoWayOut(why) if why.contains("has no address")), "{outcome:?}");
    known.store(true, Ordering::SeqCst);
    eventually("another look at the name", || matches!(call(&caller, &receiver.url()), Outcome::Called(_)));
    assert_eq!(caller.lack(), None);
}

#[test]
fn what_the_proxy_says_of_the_endpoint_is_the_endpoints_failure() {
    let receiver = Receiver::start(good);
    let (proxy, reply) = changing(Reply::Tunnel);
    let caller = caller_with(through(&proxy.url(), PATIENT));
    let squid = b"HTTP/1.1 503 Service Unavailable\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\n\r\n".to_vec();
    for (answer, status) in
        [(Reply::status(502), "502"), (Reply::status(504), "504"), (Reply::Answer(squid), "503")]
    {
        *reply.lock().unwrap() = answer;
        // The first one, and with no other endpoint to compare with.
        let call = post(&caller, &receiver.url());
        assert_eq!((kind(&call), &call.remote_addr), ("connect", &None), "{}", message(&call));
        assert!(message(&call).contains("does not reach the endpoint"), "{}", message(&call));
        assert!(
            message(&call).contains(status) && !message(&call).contains("127.0.0.1"),
            "{}",
            message(&call)
        );
        assert_eq!((call.request_headers.as_str(), caller.lack()), ("{}", None));
    }
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn what_closes_after_connect_is_the_endpoints_failure() {
    let receiver = Receiver::start(|_| {});
    let proxy = Proxy::open();
    let caller = caller_with(through(&proxy.url(), PATIENT));
    for (url, expected) in [(receiver.url(), "connect"), (receiver.https(), "tls")] {
        let call = post(&caller, &url);
        assert_eq!(kind(&call), expected, "{}", message(&call));
        assert_eq!((call.remote_addr, caller.lack()), (Some(receiver.address.to_string()), None));
    }
}

#[test]
fn what_comes_with_the_proxys_answer_is_the_endpoints() {
    let receiver = Receiver::start(Peer::until_closed);
    let said =
        b"HTTP/1.1 200 OK\r\nVia: 1.1 a\r\n\r\nHTTP/1.1 299 Early\r\nContent-Length: 2\r\n\r\nhi".to_vec();
    let proxy = Proxy::start(move |_| Reply::Say(said.clone()));
    let call = post(&caller_with(through(&proxy.url(), PATIENT)), &receiver.url());
    assert_eq!(
        (call.status_code, call.response_body.as_deref()),
        (Some(299), Some("hi")),
        "{}",
        message(&call)
    );
}

/// Refuses this port with 403, and makes all other tunnels.
fn refusing(port: u16) -> Proxy {
    let end = format!(":{port}");
    Proxy::start(
        move |request| {
            if request.path().ends_with(&end) { Reply::status(403) } else { Reply::Tunnel }
        },
    )
}

#[test]
fn an_endpoint_that_the_proxy_refuses_fails_when_another_gets_through_and_not_before() {
    let receiver = Receiver::start(good);
    let refused = Receiver::start(good);
    let proxy = refusing(refused.address.port());
    let caller = caller_with(through(&proxy.url(), PATIENT));
    // It may be the proxy that is broken, also when another got through before.
    assert_eq!(kind(&post(&caller, &receiver.url())), "success");
    for _ in 0..2 {
        assert!(lack(&caller, &refused.url(), proxy.address()).contains("403"));
    }
    let other = Receiver::start(good);
    assert_eq!((kind(&post(&caller, &other.url())), caller.lack()), ("success", None));
    for _ in 0..3 {
        let call = post(&caller, &refused.url());
        assert_eq!((kind(&call), caller.lack()), ("connect", None), "{}", message(&call));
        assert!(
            message(&call).contains("answers 403 to CONNECT, and connects to others"),
            "{}",
            message(&call)
        );
    }
    assert_eq!(refused.connections(), 0);
}

#[test]
fn an_endpoint_that_the_proxy_refuses_stops_nobody_while_others_are_served() {
    // With a tunnel for each call, and with one that is used again and again.
    for answer in [CLOSED, OK] {
        let receiver = Receiver::start(move |peer| while peer.request().is_some() && peer.send(answer) {});
        let refused = Receiver::start(good);
        let proxy = refusing(refused.address.port());
        let caller = caller_with(through(&proxy.url(), PATIENT));
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let others = scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    assert_eq!(kind(&post(&caller, &receiver.url())), "success");
                }
            });
            eventually("the others are served", || receiver.connections() > 0 || others.is_finished());
            // On a slow machine no other call may get through for a while: then the refused one is tried again.
            eventually("the refused one waits", || {
                let outcome = call(&caller, &refused.url());
                others.is_finished() || matches!(outcome, Outcome::RefusalUnclear) && caller.lack().is_none()
            });
            if answer == CLOSED {
                // Others get through between two refusals of it.
                eventually("the refused one fails", || {
                    let outcome = call(&caller, &refused.url());
                    let fails = matches!(outcome, Outcome::Called(call) if kind(&call) == "connect");
                    others.is_finished() || fails && caller.lack().is_none()
                });
            } else {
                // No other tunnel is opened: it goes on waiting.
                let outcome = call(&caller, &refused.url());
                assert!(!matches!(outcome, Outcome::Called(_)), "{outcome:?}");
            }
            over.store(true, Ordering::SeqCst);
        });
        assert_eq!(refused.connections(), 0);
    }
}

#[test]
fn an_endpoint_that_says_nothing_is_a_timeout_while_the_proxy_lives() {
    let receiver = Receiver::start(good);
    for (alive, signs) in [(Reply::status(400), true), (Reply::Close, true), (Reply::Never, false)] {
        let reply = alive.clone();
        let proxy =
            Proxy::start(
                move |request| {
                    if request.line.starts_with("CONNECT ") { Reply::Never } else { reply.clone() }
                },
            );
        let caller = caller_with(through(&proxy.url(), LIMIT));
        let start = Instant::now();
        let outcome = call(&caller, &receiver.url());
        assert!(start.elapsed() >= LIMIT && start.elapsed() < DEADLINE);
        let asked: HashSet<String> = proxy.asked().into_iter().map(|request| request.line).collect();
        let connect = format!("CONNECT {} HTTP/1.1", receiver.address);
        assert_eq!(asked, HashSet::from([connect, "OPTIONS * HTTP/1.1".into()]), "{alive:?}");
        match outcome {
            Outcome::Called(call) if signs => {
                assert_eq!((kind(&call), &call.remote_addr), ("timeout", &None), "{alive:?}");
                assert_eq!(
                    (message(&call), caller.lack()),
                    ("no connection within 2s; nothing was sent", None),
                    "{alive:?}"
                );
            }
            Outcome::NoWayOut(why) if !signs => assert!(why.contains("does not answer"), "{why}"),
            outcome => panic!("{alive:?}: {outcome:?}"),
        }
    }
}

#[test]
fn a_name_whose_lookup_takes_the_time_does_not_make_the_proxy_look_dead() {
    let proxy = Proxy::start(|_| Reply::Never);
    let caller = caller_to(through(&proxy.url(), LIMIT), |_| {
        // It is this time that is tested: what is left is less than a proxy may take.
        thread::sleep(LIMIT / 4 * 3);
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    });
    let outcome = call(&caller, "http://slow.example:8080/");
    let Outcome::Called(call) = outcome else { panic!("{outcome:?}") };
    assert_eq!((kind(&call), caller.lack()), ("timeout", None), "{}", message(&call));
}

#[test]
fn the_addresses_of_a_name_are_tried_one_after_the_other_and_what_worked_is_remembered() {
    let receiver = Receiver::start(|peer| assert!(peer.request().is_none() || peer.send(CLOSED)));
    let port = receiver.address.port();
    let addresses: Vec<IpAddr> = [[127, 0, 0, 3], [127, 0, 0, 2], [127, 0, 0, 1]].map(IpAddr::from).to_vec();
    // The first is silent for its share, and the proxy cannot connect to the second.
    let proxy = Proxy::start(|request| match request.path() {
        path if path.starts_with("127.0.0.3:") => Reply::Never,
        "*" => Reply::status(400),
        _ => Reply::Tunnel,
    });
    let caller = caller_to(through(&proxy.url(), 3 * LIMIT), move |_| Ok(addresses.clone()));
    for _ in 0..2 {
        let call = post(&caller, &format!("http://many.example:{port}/"));
        assert_eq!(kind(&call), "success", "{}", message(&call));
        assert_eq!(call.remote_addr, Some(receiver.address.to_string()));
    }
    let asked = ["127.0.0.3", "127.0.0.2", "127.0.0.1", "127.0.0.1"].map(|ip| format!("{ip}:{port}"));
    assert_eq!(proxy.targets(), asked);
}

#[test]
fn the_egress_rules_hold_although_the_proxy_could_reach_the_address() {
    let receiver = Receiver::start(good);
    let port = receiver.address.port();
    let proxy = Proxy::open();
    let mut strict = through(&proxy.url(), PATIENT);
    strict.allow_net.clear();
    let strict = caller_to(strict, |name| match name {
        "mixed.example." => Ok(vec![Ipv4Addr::new(8, 8, 8, 8).into(), Ipv4Addr::LOCALHOST.into()]),
        _ => Ok(vec![Ipv4Addr::new(10, 0, 0, 1).into()]),
    });
    for host in
        ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "10.0.0.1", "intern.example", "mixed.example"]
    {
        let call = post(&strict, &format!("http://{host}:{port}/"));
        assert_eq!(kind(&call), "blocked_address", "{host}: {}", message(&call));
    }
    assert!(proxy.asked().is_empty(), "{:?}", proxy.targets());
    // The proxy itself stands on a private address, and is no endpoint, whatever is allowed.
    let open = caller_with(through(&proxy.url(), PATIENT));
    assert_eq!(kind(&post(&open, &receiver.url())), "success");
    let call = post(&open, &format!("http://127.0.0.1:{}/", proxy.address().port()));
    assert_eq!(kind(&call), "blocked_address", "{}", message(&call));
    assert_eq!(proxy.targets(), [receiver.address.to_string()]);
}

#[test]
fn a_name_that_rebinds_gets_no_tunnel_to_its_second_address() {
    let receiver = Receiver::start(|peer| assert!(peer.request().is_none() || peer.send(CLOSED)));
    let proxy = Proxy::open();
    let rebound = Arc::new(AtomicBool::new(false));
    let flag = rebound.clone();
    let caller = caller_to(through(&proxy.url(), PATIENT), move |_| {
        let second = flag.swap(true, Ordering::SeqCst);
        Ok(vec![if second { Ipv4Addr::new(10, 0, 0, 1) } else { Ipv4Addr::LOCALHOST }.into()])
    });
    let url = format!("http://rebinding.example:{}/", receiver.address.port());
    eventually("the second answer", || kind(&post(&caller, &url)) == "blocked_address");
    let targets: HashSet<String> = proxy.targets().into_iter().collect();
    assert_eq!(targets, HashSet::from([receiver.address.to_string()]));
}
