//! Hosts of the test's own: network namespaces that two bridges connect, and the cables between them that the test pulls.
//!
//! The process of the test is itself a host: it has the bridges, and is at number [`HERE`] of each network. Nothing leads out
//! of these networks. They end with the process, however it ends.

use std::env;
use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;

/// The variable that tells a process with a network of its own from the run of all tests.
const APART: &str = "PROMPTPAL_RELAY_TEST_HOSTS";
/// The number of the test itself, on both networks.
pub const HERE: u8 = 254;
/// The highest number of another host.
const HOSTS_MAX: u8 = 4;

/// A network that a bridge makes. Its name is that of the bridge, and of the interface of each host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// Leads to the databases.
    Db = 1,
    /// Leads to the receivers.
    Out = 2,
}

impl Net {
    fn name(self) -> &'static str {
        match self {
            Net::Db => "db",
            Net::Out => "out",
        }
    }

    /// The address of a host.
    pub fn address(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self as u8, number)
    }

    fn hardware(self, number: u8) -> String {
        format!("02:77:00:00:{:02x}:{number:02x}", self as u8)
    }

    /// The end of a host's cable at the bridge.
    fn port(self, number: u8) -> String {
        format!("{}{number}", self.name())
    }

    /// Commands that make the neighbours of a host known for ever. A host that is away is not noticed by its silence on ARP,
    /// as it would not be behind a router.
    fn neighbours(self) -> String {
        let known = |number| {
            let (address, hardware) = (self.address(number), self.hardware(number));
            format!("neigh replace {address} lladdr {hardware} dev {} nud permanent\n", self.name())
        };
        (1..=HOSTS_MAX).chain([HERE]).map(known).collect()
    }
}

/// Runs the case of a test in a process with networks of its own; says so where this machine makes none. `test` is the name of
/// the test with its module.
pub fn apart(test: &str, case: impl Future<Output = ()>) {
    if env::var_os(APART).is_some() {
        for net in [Net::Db, Net::Out] {
            let (name, hardware, address) = (net.name(), net.hardware(HERE), net.address(HERE));
            ip(&format!(
                "link add {name} address {hardware} type bridge\naddr add {address}/24 dev {name}\nlink set {name} up\n{}",
                net.neighbours()
            ));
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(case);
        return;
    }
    // Postgres refuses to run as root, so an ordinary user stays that user, and may make networks nevertheless.
    let rights: &[&str] =
        if geteuid().is_root() { &[] } else { &["--user", "--map-current-user", "--keep-caps"] };
    let apart = || {
        let mut command = Command::new("unshare");
        // All processes end with the first one of their own table of processes.
        let own = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
        command.args(rights).args(own).stdin(Stdio::null());
        command
    };
    let made = apart().args("ip link add name probe type veth peer name eborp".split(' ')).output();
    let bridged = apart().args("ip link add name probe type bridge".split(' ')).output();
    if ![made, bridged].iter().all(|made| made.as_ref().is_ok_and(|made| made.status.success())) {
        println!("skipped: this machine makes no network for a test (unshare, ip, veth, bridge)");
        return;
    }
    let mut again = apart();
    again.arg(env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(APART, "1");
    let output = again.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}{errors}");
    println!("{told}");
}

/// A host.
pub struct Host {
    number: u8,
    // Keeps the namespace.
    namespace: File,
}

impl Host {
    /// Makes a host that has a cable to each of these networks.
    pub fn new(number: u8, nets: &[Net]) -> Host {
        assert!((1..=HOSTS_MAX).contains(&number));
        let own = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let namespace = thread::scope(|scope| scope.spawn(own).join().unwrap());
        let host = Host { number, namespace };
        host.run(|| ip("link set lo up\n"));
        for net in nets {
            let (name, port, test) = (net.name(), net.port(number), std::process::id());
            let (hardware, address) = (net.hardware(number), net.address(number));
            let neighbours = net.neighbours();
            host.run(|| {
                ip(&format!(
                    "link add name {name} address {hardware} type veth peer name {port} netns {test}\n\
                     addr add {address}/24 dev {name}\nlink set {name} up\n{neighbours}"
                ));
            });
            ip(&format!("link set {port} master {name} up\n"));
        }
        host
    }

    /// Does something on the host: processes, sockets and threads that it makes are the host's.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let there = || {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
            job()
        };
        thread::scope(|scope| scope.spawn(there).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Its address.
    pub fn address(&self, net: Net) -> Ipv4Addr {
        net.address(self.number)
    }

    /// Cuts it off from a network: what it sends there is lost, and what is sent to it. Neither end is told.
    pub fn cut(&self, net: Net) {
        ip(&format!("link set {} nomaster\n", net.port(self.number)));
    }

    /// Ends the cut.
    pub fn heal(&self, net: Net) {
        ip(&format!("link set {} master {}\n", net.port(self.number), net.name()));
    }
}

/// Gives commands to `ip`, a line each.
fn ip(commands: &str) {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{commands}{}", String::from_utf8_lossy(&output.stderr));
}
