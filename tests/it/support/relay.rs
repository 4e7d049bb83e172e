//! The daemon as a child process, and the clock that it goes by.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use tempfile::TempDir;

use super::{BINARY, DEADLINE, Database, LOOK, ends, memory_peak, program, program_at, scrape};

/// A clock that only the programs which use it go by.
pub struct Clock {
    dir: TempDir,
}

impl Clock {
    /// Makes a clock that is right.
    pub fn new() -> Clock {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/clock.c");
        let library = dir.path().join("clock.so");
        let made =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).status().unwrap();
        assert!(made.success());
        File::create(dir.path().join("passed")).unwrap();
        Clock { dir }
    }

    /// Makes the program go by this clock, `seconds` ahead.
    pub fn ahead(&self, command: &mut Command, seconds: i64) {
        command.env("LD_PRELOAD", self.dir.path().join("clock.so"));
        command.env("CLOCK_PASSED", self.dir.path().join("passed")).env("CLOCK_AHEAD_S", seconds.to_string());
    }

    /// Puts the clock ahead by so many minutes, for the programs that run, too.
    pub fn pass(&self, minutes: usize) {
        let mut file = File::options().append(true).open(self.dir.path().join("passed")).unwrap();
        file.write_all(&vec![b'.'; minutes]).unwrap();
    }
}

/// The daemon's command, with loopback allowed: the receivers listen there.
const RUN: &[&str] = &["run", "--allow-net", "127.0.0.0/8"];

const RECONNECTS: &str = "promptpal_relay_reconnects_total";

/// Whether a line is about something that failed with Postgres, and that the relay tries again after `retry_ms`.
fn is_refusal(line: &Value) -> bool {
    line["retry_ms"].is_u64()
}

/// The daemon as a child process; killed on drop.
pub struct Relay {
    child: Child,
    dir: TempDir,
    // What it tells systemd.
    socket: UnixDatagram,
}

impl Relay {
    /// Starts it with loopback allowed.
    pub fn spawn(database_url: &str, arguments: &[&str]) -> Relay {
        Relay::spawn_with(program(RUN, database_url), arguments, |_| ())
    }

    /// Starts the daemon of another release with loopback allowed.
    pub fn spawn_at(path: &Path, database_url: &str, arguments: &[&str]) -> Relay {
        Relay::spawn_with(program_at(path, RUN, database_url), arguments, |_| ())
    }

    /// Starts it by this command.
    pub fn spawn_by(command: Command) -> Relay {
        Relay::spawn_with(command, &[], |_| ())
    }

    /// Starts it with a clock of its own.
    pub fn start_by(clock: &Clock, database_url: &str, arguments: &[&str]) -> Relay {
        let mut command = program(RUN, database_url);
        clock.ahead(&mut command, 0);
        Relay::spawn_with(command, arguments, |_| ()).ready()
    }

    /// Starts it with a notify socket that is full and that no process reads.
    pub fn spawn_unheard(database_url: &str) -> Relay {
        Relay::spawn_with(program(RUN, database_url), &[], |path| {
            let filler = UnixDatagram::unbound().unwrap();
            filler.set_nonblocking(true).unwrap();
            while filler.send_to(b"full", path).is_ok() {}
        })
    }

    /// Starts it with settings that suit tests. Calls may take a minute unless the test says otherwise, so that none ends
    /// while a slow machine gets ready for it. The relay serves metrics at a free port and writes its journal as JSON, so
    /// that a test need not know the words of a message.
    fn spawn_with(mut command: Command, arguments: &[&str], prepare: impl FnOnce(&Path)) -> Relay {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        prepare(&dir.path().join("notify"));
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        command.stdin(Stdio::null()).args(arguments).env("NOTIFY_SOCKET", dir.path().join("notify"));
        command.env("PROMPTPAL_RELAY_TIMEOUT", "60s");
        command.env("PROMPTPAL_RELAY_METRICS_LISTEN", "0").env("PROMPTPAL_RELAY_LOG_FORMAT", "json");
        command.stderr(File::create(dir.path().join("log")).unwrap());
        Relay { child: command.spawn().unwrap(), dir, socket }
    }

    /// Starts it with loopback allowed and waits until it says that it is ready.
    pub fn start(database: &Database, arguments: &[&str]) -> Relay {
        Relay::spawn(&database.url, arguments).ready()
    }

    /// Starts it with at most this many open files.
    pub fn start_with_few_files(database: &Database, arguments: &[&str], files: u32) -> Relay {
        Relay::start_by_shell(Command::new("sh"), database, &format!("ulimit -n {files}"), arguments)
    }

    /// Starts it in a network of its own, which has loopback, what `setup` adds to it, and no way out. None where this
    /// machine makes no such network.
    pub fn start_apart(database: &Database, setup: &str, arguments: &[&str]) -> Option<Relay> {
        let rights: &[&str] = if geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
        let apart = |program: &str| {
            let mut command = Command::new("unshare");
            command.args(rights).args(["--net", program]);
            command
        };
        let made = apart("ip").args(["link", "set", "lo", "up"]).status();
        let setup = format!("set -e; ip link set lo up; {setup}");
        made.is_ok_and(|status| status.success())
            .then(|| Relay::start_by_shell(apart("sh"), database, &setup, arguments))
    }

    /// Starts it by a shell that runs `setup` first.
    fn start_by_shell(mut shell: Command, database: &Database, setup: &str, arguments: &[&str]) -> Relay {
        let plain = program(RUN, &database.url);
        shell.args(["-c", &format!("{setup}; exec \"$0\" \"$@\""), BINARY]).args(plain.get_args());
        for (variable, value) in plain.get_envs() {
            match value {
                Some(value) => shell.env(variable, value),
                None => shell.env_remove(variable),
            };
        }
        Relay::spawn_with(shell, arguments, |_| ()).ready()
    }

    /// Waits until it says that it is ready.
    pub fn ready(self) -> Relay {
        let relay = self;
        let mut buffer = [0; 4096];
        loop {
            let Ok(length) = relay.socket.recv(&mut buffer) else {
                panic!("not ready in time:\n{}", relay.log())
            };
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == "READY=1") {
                return relay;
            }
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Most memory that it ever had, in bytes.
    pub fn memory_peak(&self) -> usize {
        memory_peak(self.pid()).expect("it runs")
    }

    /// Sends a signal. After SIGSTOP it waits until all threads stand still.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
        if signal == Signal::SIGSTOP {
            let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            waitid(Id::Pid(self.pid()), flags).unwrap();
        }
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Kills it with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        ends(&mut self.child).unwrap_or_else(|| panic!("does not end:\n{}", self.log()))
    }

    /// The port at which it serves metrics.
    pub fn port(&self) -> u16 {
        let line = self.until_told("where it serves metrics", |line| line["address"].is_string());
        let address: SocketAddr = line["address"].as_str().unwrap().parse().unwrap();
        address.port()
    }

    /// A metric as it is now.
    pub fn metric(&self, series: &str) -> f64 {
        let (_, metrics) = scrape::get(self.port(), "/metrics");
        scrape::value(&metrics, series).unwrap_or_else(|| panic!("no {series} in\n{metrics}"))
    }

    /// A metric as it is now; none before it was counted for the first time.
    pub fn metric_if_any(&self, series: &str) -> Option<f64> {
        scrape::value(&scrape::get(self.port(), "/metrics").1, series)
    }

    /// Waits until a metric has a value that is wanted.
    pub fn until(&self, series: &str, wanted: impl Fn(f64) -> bool) {
        scrape::until(self.port(), series, wanted);
    }

    /// Waits until it has made its sessions with Postgres anew so many times.
    pub fn until_reconnected(&self, times: u32) {
        self.until(RECONNECTS, |count| count >= f64::from(times));
    }

    /// How often it has made its sessions with Postgres anew.
    pub fn reconnects(&self) -> f64 {
        self.metric(RECONNECTS)
    }

    /// Waits until it has found so many rows of its own finished or taken over by another instance.
    pub fn until_fenced(&self, rows: u32) {
        self.until("promptpal_relay_rows_fenced_total", |count| count >= f64::from(rows));
    }

    /// Waits until something has failed with Postgres so many times that it tries again.
    pub fn until_refused(&self, times: usize) {
        self.until_told_of(times, "a try that failed", is_refusal);
    }

    /// Whether anything has failed with Postgres that it tries again.
    pub fn was_refused(&self) -> bool {
        self.journal().iter().any(is_refusal)
    }

    /// The epochs of instances that it has declared dead.
    pub fn declared_dead(&self) -> Vec<i64> {
        let journal = self.journal();
        journal
            .iter()
            .filter(|line| line["level"] == "WARN")
            .filter_map(|line| line["epoch"].as_i64())
            .collect()
    }

    /// Waits until it has given back what it has not begun, because it stops; how many rows.
    pub fn until_given_back(&self) -> u64 {
        let line = self.until_told("that it has given rows back", |line| line["given_back"].is_u64());
        line["given_back"].as_u64().unwrap()
    }

    /// Waits for a line of its journal; `what` is for the failure.
    pub fn until_told(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.until_told_of(1, what, is_it).remove(0)
    }

    /// Waits for so many lines of its journal; `what` is for the failure.
    pub fn until_told_of(&self, times: usize, what: &str, is_it: impl Fn(&Value) -> bool) -> Vec<Value> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let lines: Vec<Value> = self.journal().into_iter().filter(&is_it).collect();
            if lines.len() >= times {
                return lines;
            }
            assert!(Instant::now() < deadline, "not told {times} times: {what}:\n{}", self.log());
            thread::sleep(LOOK);
        }
    }

    /// Waits until a text that is not the relay's own stands in its journal so many times.
    pub fn until_written(&self, times: usize, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while self.log().matches(text).count() < times {
            assert!(Instant::now() < deadline, "not written {times} times: {text:?}:\n{}", self.log());
            thread::sleep(LOOK);
        }
    }

    /// The journal of a relay that writes JSON: each line has `level`, `message` and the fields of the event. Leaves out
    /// what is no JSON: the error that the program ends with, a panic, and a line that is not whole yet.
    pub fn journal(&self) -> Vec<Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
        if thread::panicking() {
            eprintln!("---- log of the relay\n{}----", self.log());
        }
    }
}
