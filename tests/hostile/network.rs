//! The machine's own network and what may be called: its public addresses, its search list, its hosts file. Each test
//! runs again in a network of its own without a way out, because others own the addresses.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use promptpal_relay::inside::delivery::Machine;
use promptpal_relay::inside::delivery::{Caller, Settings};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{
    OK, PATIENT, Receiver, caller_to, is_alone, kind, message, post, run_alone, run_apart, settings, webhook,
};

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

/// The settings of a caller that may call these networks, and no other private ones.
fn allowing(nets: &[&str]) -> Settings {
    Settings { allow_net: nets.iter().map(|net| net.parse().unwrap()).collect(), ..settings(PATIENT) }
}

/// Listens on all addresses, of both families where there are two.
fn everywhere() -> Receiver {
    let listener = TcpListener::bind("[::]:0").unwrap();
    Receiver::on(listener, |peer| while peer.request().is_some() && peer.send(OK) {})
}

#[test]
fn this_machines_public_addresses_are_not_called_unless_the_operator_allows_them() {
    if !is_alone() {
        return run_apart(
            "network::this_machines_public_addresses_are_not_called_unless_the_operator_allows_them",
            // The second address of a network, and networks that are routed here as a whole. The kernel makes the local
            // route of a new IPv6 address a moment after it has taken the address.
            "ip addr add 8.8.4.4/24 dev lo; ip addr add 8.8.4.5/24 dev lo; ip route add local 9.9.9.0/24 dev lo;
             ip -6 addr add 2606:4700::1111/128 dev lo; ip -6 route add local 2a00:1450::/64 dev lo;
             timeout 30 sh -c 'until ip -6 route get 2606:4700::1111 | grep -q ^local; do sleep 0.01; done'",
        );
    }
    let receiver = everywhere();
    let port = receiver.address.port();
    let strict = caller_to(allowing(&[]), |name| match name {
        "own.example." => Ok(vec![[8, 8, 4, 4].into()]),
        // The first is another host's.
        "mixed.example." => Ok(vec![[1, 1, 1, 1].into(), [8, 8, 4, 5].into()]),
        name => panic!("{name} is asked for"),
    });
    let url = |host: &str| format!("http://{host}:{port}/metrics");
    for (host, address) in [
        ("8.8.4.4", "8.8.4.4"),
        ("134743044", "8.8.4.4"),
        ("0x8.010.0x4.4", "8.8.4.4"),
        ("8.8.4.5", "8.8.4.5"),
        ("9.9.9.9", "9.9.9.9"),
        ("[2606:4700::1111]", "2606:4700::1111"),
        ("[2a00:1450::5]", "2a00:1450::5"),
        ("[::ffff:8.8.4.4]", "::ffff:8.8.4.4"),
        ("[::ffff:9.9.9.9]", "::ffff:9.9.9.9"),
        ("[64:ff9b::8.8.4.5]", "64:ff9b::808:405"),
        ("[2002:808:404::1]", "2002:808:404::1"),
    ] {
        let call = post(&strict, &url(host));
        assert_eq!(kind(&call), "blocked_address", "{host}: {}", message(&call));
        assert_eq!(message(&call), format!("{address} may not be called: the relay's own"), "{host}");
        assert_eq!(strict.problem(&webhook(&url(host))).as_deref(), Some(message(&call)), "{host}");
        assert_eq!((call.remote_addr, call.response_body), (None, None), "{host}");
    }
    for name in ["own.example", "mixed.example"] {
        let call = post(&strict, &url(name));
        assert_eq!(kind(&call), "blocked_address", "{name}: {}", message(&call));
        assert!(!format!("{call:?}").contains("8.8.4."), "{name}: {call:?}");
    }
    assert_eq!(receiver.connections(), 0, "nothing was dialled");
    // What is not this machine's is dialled, in vain; until it is this machine's.
    assert_eq!(kind(&post(&strict, &url("8.8.8.8"))), "connect");
    assert_eq!(strict.problem(&webhook(&url("8.8.8.8"))), None);
    ip("addr add 8.8.8.8/32 dev lo");
    assert_eq!(kind(&post(&strict, &url("8.8.8.8"))), "blocked_address");
    ip("addr del 8.8.8.8/32 dev lo");
    assert_eq!(kind(&post(&strict, &url("8.8.8.8"))), "connect");
    // The operator may want them called.
    let nets = ["8.8.4.4/32", "9.9.9.0/24", "2606:4700::1111/128", "2a00:1450::/64"];
    let open = caller_to(allowing(&nets), |name| match name {
        "own.example." => Ok(vec![[8, 8, 4, 4].into()]),
        _ => Ok(vec![[8, 8, 4, 4].into(), [8, 8, 4, 5].into()]),
    });
    for host in
        ["8.8.4.4", "9.9.9.9", "[2606:4700::1111]", "[2a00:1450::5]", "[::ffff:8.8.4.4]", "own.example"]
    {
        let call = post(&open, &url(host));
        assert_eq!(
            (kind(&call), open.problem(&webhook(&url(host)))),
            ("success", None),
            "{host}: {}",
            message(&call)
        );
    }
    for host in ["8.8.4.5", "mixed.example"] {
        assert_eq!(kind(&post(&open, &url(host))), "blocked_address", "{host}: that one was not named");
    }
}

#[test]
fn the_database_and_the_metrics_are_refused_at_each_address_of_this_machine_whatever_is_allowed() {
    if !is_alone() {
        return run_apart(
            "network::the_database_and_the_metrics_are_refused_at_each_address_of_this_machine_whatever_is_allowed",
            "ip addr add 8.8.4.4/24 dev lo; ip addr add 8.8.4.5/24 dev lo; ip route add local 9.9.9.0/24 dev lo;
             ip -6 route add local 2a00:1450::/64 dev lo",
        );
    }
    let (database, metrics, beside) = (everywhere(), everywhere(), everywhere());
    let mut settings = allowing(&["0.0.0.0/0", "::/0"]);
    settings.refused = vec![("127.0.0.1".into(), database.address.port())];
    settings.metrics_port = Some(metrics.address.port());
    let caller = caller_to(settings, |name| panic!("{name} is asked for"));
    for host in [
        "127.0.0.1",
        "localhost",
        "8.8.4.4",
        "8.8.4.5",
        "9.9.9.9",
        "[::1]",
        "[2a00:1450::5]",
        "[::ffff:8.8.4.5]",
    ] {
        for (receiver, expected) in
            [(&database, "blocked_address"), (&metrics, "blocked_address"), (&beside, "success")]
        {
            let call = post(&caller, &format!("http://{host}:{}/metrics", receiver.address.port()));
            assert_eq!(kind(&call), expected, "{host}: {}", message(&call));
        }
    }
    assert_eq!((database.connections(), metrics.connections()), (0, 0));
}

#[test]
fn where_the_kernel_cannot_be_asked_for_them_nothing_starts() {
    if !is_alone() {
        return run_alone(
            "network::where_the_kernel_cannot_be_asked_for_them_nothing_starts",
            "ulimit -n 40",
        );
    }
    let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let error = Machine::open().expect_err("no file is left for the socket");
    drop(files);
    assert_eq!(error.exit_code(), 78);
    assert!(error.to_string().contains("allow netlink sockets"), "{error}");
    assert!(Machine::open().is_ok_and(|machine| machine.has([127, 0, 0, 1].into()).unwrap()));
}

/// A log in memory.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Lines;

    fn make_writer(&self) -> Lines {
        self.clone()
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Starts a name server on the usual port, which knows the addresses of these names. Returns the names that it is asked
/// for.
fn name_server(known: Vec<(&'static str, Ipv4Addr)>) -> Arc<Mutex<Vec<String>>> {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let names = asked.clone();
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            // The question: labels, each behind its length; then type and class.
            let (mut at, mut labels) = (12, Vec::new());
            while query[at] > 0 {
                let end = at + 1 + usize::from(query[at]);
                labels.push(String::from_utf8_lossy(&query[at + 1..end]).into_owned());
                at = end;
            }
            let (name, is_a) = (labels.join("."), query[at + 1..at + 3] == [0, 1]);
            let address = known.iter().find(|(known, _)| *known == name).map(|(_, address)| address);
            names.lock().unwrap().push(name);
            let mut answer = query[..at + 5].to_vec();
            // An answer that needs no other server; no such name, or no error.
            answer[2..4].copy_from_slice(&[0x85, if address.is_some() { 0x80 } else { 0x83 }]);
            answer[4..12].copy_from_slice(&[0, 1, 0, u8::from(address.is_some() && is_a), 0, 0, 0, 0]);
            if let Some(address) = address.filter(|_| is_a) {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(address.octets());
            }
            assert!(length > 12 && socket.send_to(&answer, from).is_ok());
        }
    });
    asked
}

#[test]
fn names_are_absolute_and_neither_search_list_nor_hosts_file_has_a_part_in_it() {
    if !is_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            format!("mount --bind {} /etc/{name}", path.display())
        };
        let setup = [
            file("resolv.conf", "nameserver 127.0.0.1\nsearch corp.example example\noptions ndots:3\n"),
            file("hosts", "127.0.0.1 localhost\n127.0.0.1 filed filed.example\n"),
            file("nsswitch.conf", "hosts: files dns\n"),
        ];
        return run_apart(
            "network::names_are_absolute_and_neither_search_list_nor_hosts_file_has_a_part_in_it",
            &setup.join("; "),
        );
    }
    let log = Lines::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(log.clone())
        .init();
    let asked = name_server(vec![
        ("dbhost.corp.example", Ipv4Addr::LOCALHOST),
        ("db.intern.corp.example", Ipv4Addr::LOCALHOST),
        ("good.example", Ipv4Addr::LOCALHOST),
        ("inner.corp.example", Ipv4Addr::new(10, 20, 30, 40)),
    ]);
    let hosts = Arc::new(Mutex::new(Vec::new()));
    let seen = hosts.clone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let receiver = Receiver::on(listener, move |peer| {
        while let Some(request) = peer.request() {
            seen.lock().unwrap().push(request.header("host").unwrap().to_owned());
            peer.send(OK);
        }
    });
    let port = receiver.address.port();
    let caller = Caller::new(settings(PATIENT)).unwrap();
    // Relative to this machine they would be hosts of its domain, or have a line in its hosts file.
    for host in ["dbhost", "db.intern", "filed", "filed.example", "third.", "inner"] {
        let call = post(&caller, &format!("http://{host}:{port}/"));
        assert_eq!(kind(&call), "dns", "{host}: {}", message(&call));
        let names = std::mem::take(&mut *asked.lock().unwrap());
        assert!(
            !names.is_empty() && names.iter().all(|name| name == host.trim_end_matches('.')),
            "{host}: {names:?}"
        );
    }
    assert_eq!(receiver.connections(), 0);
    for host in ["good.example", "good.example.", "dbhost.corp.example"] {
        let call = post(&caller, &format!("http://{host}:{port}/"));
        assert_eq!(kind(&call), "success", "{host}: {}", message(&call));
        assert_eq!(hosts.lock().unwrap().pop(), Some(format!("{host}:{port}")), "as it was typed");
    }
    // The customer reads no address. The log has it at this level.
    let call = post(&caller, "http://inner.corp.example/");
    assert_eq!((kind(&call), &call.remote_addr), ("blocked_address", &None));
    assert!(!format!("{call:?}").contains("10.20.30.40"), "{call:?}");
    let log = log.text();
    let line = log.lines().find(|line| line.contains("address refused")).unwrap();
    assert!(line.contains("inner.corp.example") && line.contains("10.20.30.40:80"), "{line}");
}
