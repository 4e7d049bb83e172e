//! The daemon under a supervisor: started, watched, restarted and stopped as its unit says. Most machines that run the
//! tests have no systemd, so a supervisor of the test's own reads the unit as it ships, and does what systemd would.
//! tests/systemd/life-cycle tests the same life with systemd itself.

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::{Database, Gate, Receiver, Relay, Reply, program, repository_file};

/// The tests make the watchdog's limit this many times shorter than the unit does, so that they end soon.
const HASTE: u32 = 10;
/// How long a condition may take to come true; long, because the machine may be busy with other tests.
const DEADLINE: Duration = Duration::from_secs(60);

/// The text of a unit.
struct Unit(String);

impl Unit {
    fn setting(&self, name: &str) -> &str {
        let mut values = self.0.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        values.next_back().unwrap_or_else(|| panic!("the unit has no {name}="))
    }

    fn time(&self, name: &str) -> Duration {
        humantime::parse_duration(self.setting(name)).unwrap()
    }

    /// The watchdog's limit; none when the unit turns it off.
    fn watchdog(&self) -> Option<Duration> {
        let limit = self.time("WatchdogSec") / HASTE;
        Some(limit).filter(|limit| !limit.is_zero())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Activating,
    Active,
    /// Between a failure and the next start.
    Restarting,
    Inactive,
    Failed,
}

/// What systemd does for one unit. It works while the test waits [`until`](Supervisor::until) something has come true.
struct Supervisor {
    unit: Unit,
    database_url: String,
    // What is in the environment file.
    settings: Vec<(&'static str, String)>,
    folder: TempDir,
    socket: UnixDatagram,
    child: Option<Child>,
    state: State,
    asked_to_stop: bool,
    // The start, or the last sign of progress.
    heard: Instant,
    restart_at: Instant,
    // What the daemon has told since it was started.
    told: Vec<String>,
    starts: u32,
    watchdog_ends: u32,
    last_end: Option<ExitStatus>,
}

impl Supervisor {
    fn new(database: &Database) -> Supervisor {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        Supervisor {
            unit: Unit(repository_file("systemd/promptpal-relay.service")),
            database_url: database.url.clone(),
            settings: vec![("PROMPTPAL_RELAY_ALLOW_NET", "127.0.0.0/8".into())],
            folder,
            socket,
            child: None,
            state: State::Inactive,
            asked_to_stop: false,
            heard: Instant::now(),
            restart_at: Instant::now(),
            told: Vec::new(),
            starts: 0,
            watchdog_ends: 0,
            last_end: None,
        }
    }

    fn start(&mut self) {
        let arguments: Vec<&str> = self.unit.setting("ExecStart").split_whitespace().skip(1).collect();
        let mut command = program(&arguments, &self.database_url);
        command.envs(self.settings.iter().cloned()).env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        if let Some(limit) = self.unit.watchdog() {
            command.env("WATCHDOG_USEC", limit.as_micros().to_string());
        }
        // Failures are expected.
        command.stderr(Stdio::null());
        // A core dump of the watchdog's goes where the rest goes.
        self.child = Some(command.current_dir(self.folder.path()).spawn().unwrap());
        self.state = State::Activating;
        self.asked_to_stop = false;
        self.told.clear();
        self.heard = Instant::now();
        self.starts += 1;
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.as_ref().expect("it runs").id()).unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    fn ask_to_stop(&mut self) {
        self.asked_to_stop = true;
        self.signal(Signal::SIGTERM);
    }

    fn reload(&self) {
        // The shell has a kill of its own, and a small machine may have no other.
        let script = self.unit.setting("ExecReload").replace("/bin/kill", "kill");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).env("MAINPID", self.pid().to_string());
        assert!(command.status().unwrap().success());
    }

    /// Supervises until a condition is true.
    fn until(&mut self, what: &str, condition: impl Fn(&Supervisor) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "never {what}: {:?}, told {:?}", self.state, self.told);
            self.turn();
        }
    }

    /// Supervises for a time.
    fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.until("over", |_| Instant::now() >= end);
    }

    fn until_active_again(&mut self, before: Pid) {
        self.until("active again", |it| it.state == State::Active && it.pid() != before);
    }

    fn turn(&mut self) {
        let mut text = [0; 4096];
        // The supervisor reads what the daemon has told before it judges the daemon.
        if let Ok(length) = self.socket.recv(&mut text) {
            let text = String::from_utf8(text[..length].to_vec()).unwrap();
            for line in text.lines() {
                match line {
                    "READY=1" => self.state = State::Active,
                    "WATCHDOG=1" => self.heard = Instant::now(),
                    _ => (),
                }
                self.told.push(line.to_owned());
            }
            return;
        }
        let Some(child) = &mut self.child else {
            if self.state == State::Restarting && Instant::now() >= self.restart_at {
                self.start();
            }
            return;
        };
        if let Some(status) = child.try_wait().unwrap() {
            self.child = None;
            self.ended(status);
        } else if self.state == State::Active
            && self.unit.watchdog().is_some_and(|limit| self.heard.elapsed() > limit)
        {
            self.watchdog_ends += 1;
            self.heard = Instant::now();
            // A stopped process gets the signal when it goes on.
            self.signal(Signal::SIGABRT);
            self.signal(Signal::SIGCONT);
        }
    }

    fn ended(&mut self, status: ExitStatus) {
        self.last_end = Some(status);
        let clean_signals = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGPIPE];
        let clean = status.success()
            || status
                .signal()
                .is_some_and(|signal| clean_signals.map(|clean| clean as i32).contains(&signal));
        let prevented = self.unit.setting("RestartPreventExitStatus").split_whitespace();
        let prevented = prevented.map(|code| code.parse().unwrap()).any(|code| status.code() == Some(code));
        let restart = match self.unit.setting("Restart") {
            "no" => false,
            "on-failure" => !clean,
            "always" => true,
            other => panic!("Restart={other} is not known here"),
        };
        self.state = if restart && !prevented && !self.asked_to_stop {
            self.restart_at = Instant::now() + self.unit.time("RestartSec");
            State::Restarting
        } else if clean {
            State::Inactive
        } else {
            State::Failed
        };
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // An error: it has ended.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// The only file in the folder.
fn only_file(folder: &Path) -> PathBuf {
    std::fs::read_dir(folder).unwrap().next().expect("there is a log file").unwrap().path()
}

#[tokio::test]
async fn the_daemon_lives_as_its_unit_says() {
    let database = Database::new().await;
    let gate = Gate::default();
    let slow = gate.clone();
    let receiver = Receiver::start(move |request| {
        if request.path() == "/slow" {
            slow.pass();
        }
        Reply::status(200)
    });
    database.webhook(1, &receiver.url("/")).await;
    database.webhook(2, &receiver.url("/slow")).await;
    let delivers = async || {
        database.events(1, 1).await;
        database.all_done().await;
    };
    let logs = tempfile::tempdir().unwrap();
    let mut systemd = Supervisor::new(&database);
    systemd.settings.push(("PROMPTPAL_RELAY_LOG_DIR", logs.path().to_str().unwrap().into()));
    systemd.start();
    systemd.until("idle", |it| it.told.iter().any(|line| line.starts_with("STATUS=idle")));
    assert_eq!(systemd.state, State::Active);
    delivers().await;

    // Reloaded: the log file is opened anew.
    let pid = systemd.pid();
    let log = only_file(logs.path());
    std::fs::rename(&log, logs.path().join("moved")).unwrap();
    systemd.reload();
    systemd.until("a new log file", |_| log.exists());
    delivers().await;

    // Longer than the watchdog's limit, with nothing to do.
    let limit = systemd.unit.watchdog().expect("the unit has a watchdog");
    systemd.pass(limit * 3 / 2);
    assert_eq!((systemd.pid(), systemd.state), (pid, State::Active));

    // Killed, and back.
    systemd.signal(Signal::SIGKILL);
    systemd.until_active_again(pid);
    assert_eq!(systemd.watchdog_ends, 0);
    delivers().await;

    // Frozen, and restarted by the watchdog.
    let pid = systemd.pid();
    systemd.signal(Signal::SIGSTOP);
    systemd.until_active_again(pid);
    assert_eq!((systemd.watchdog_ends, systemd.starts), (1, 3));
    delivers().await;

    // Drained, with a call in flight.
    let so_far = receiver.requests().len();
    database.events(2, 1).await;
    receiver.wait_for(so_far + 1);
    systemd.ask_to_stop();
    systemd.until("stopping", |it| it.told.iter().any(|line| line == "STOPPING=1"));
    assert!(systemd.child.is_some());
    gate.open();
    systemd.until("drained", |it| it.child.is_none());
    assert_eq!((systemd.state, systemd.last_end.unwrap().code()), (State::Inactive, Some(0)));
    let recorded = "SELECT count(*) FROM relay.webhook_calls WHERE project_id = 2 AND succeeded";
    assert_eq!(database.number(recorded).await, 1);
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox WHERE done_at IS NULL").await, 0);

    // A configuration that cannot work: not tried again.
    systemd.settings.push(("PROMPTPAL_RELAY_RETAIN_CALLS", "1h".into()));
    systemd.start();
    systemd.until("failed", |it| it.child.is_none());
    systemd.pass(systemd.unit.time("RestartSec") * 2);
    assert_eq!((systemd.state, systemd.last_end.unwrap().code()), (State::Failed, Some(78)));
    assert_eq!(systemd.starts, 4);

    // A database that is away: tried again, until it is there.
    systemd.settings.pop();
    let there = std::mem::replace(&mut systemd.database_url, "postgres://127.0.0.1:1/nowhere".into());
    systemd.start();
    systemd.until("tried again", |it| it.starts == 6);
    systemd.database_url = there;
    systemd.until("active", |it| it.state == State::Active);
    delivers().await;
}

#[tokio::test]
async fn a_systemd_that_does_not_read_holds_nothing_up() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::spawn_unheard(&database.url);
    database.events(1, 3).await;
    database.all_done().await;
    drop(relay);
    assert_eq!(receiver.requests().len(), 3);
}

/// A daemon that ends with the test, also when the test fails.
struct Daemon(Child);

impl Daemon {
    fn start(mut command: Command) -> Daemon {
        Daemon(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn drain(mut self) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // An error: it has ended.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// While the relay waits for a host that does not answer, it is not hanging, and tells the watchdog so.
#[tokio::test]
async fn the_watchdog_is_told_while_hosts_do_not_answer() {
    let database = Database::new().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let (head, tail) = database.url.split_once('@').unwrap();
    let separator = if tail.contains('?') { '&' } else { '?' };
    let url = format!("{head}@{silent},{tail}{separator}connect_timeout=2");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = database.command(&["run", "--database-url", &url]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let daemon = Daemon::start(command);
    let said = |limit: Duration| {
        socket.set_read_timeout(Some(limit)).unwrap();
        let mut text = [0; 1000];
        let length = socket.recv(&mut text).expect("something is said in time");
        String::from_utf8(text[..length].to_vec()).unwrap()
    };
    assert_eq!(said(Duration::from_secs(60)), "READY=1");
    let sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name LIKE 'promptpal-relay%'";
    assert!(!database.client.query(sessions, &[]).await.unwrap().is_empty());
    // Three sessions, two seconds each.
    let reconnected = "SELECT count(*) > 1 FROM relay.instances";
    while !database.client.query_one(reconnected, &[]).await.unwrap().get::<_, bool>(0) {
        said(Duration::from_millis(1500));
    }
    for _ in 0..20 {
        said(Duration::from_millis(1500));
    }
    daemon.drain();
}
