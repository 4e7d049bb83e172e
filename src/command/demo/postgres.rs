//! A private, throw-away Postgres for the demo. Tests and benches use it, too.
//!
//! Its data is a temporary folder; it listens on a Unix socket there and on a port of loopback that is free. It runs as an
//! ordinary user when root starts it (Postgres refuses to run as root), stops when it is dropped, and dies with this
//! process, however that ends. Never touches another cluster.

use std::env;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tempfile::TempDir;

use crate::error::{Error, Result};

/// The variable that names the folder of the server's binaries, when they are not in a usual place.
const BIN_VARIABLE: &str = "PROMPTPAL_RELAY_PG_BIN";
/// How long a start may take. Without fsync the slowest disks manage.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a stop may take before the server is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How often to look whether the server is there, or gone.
const LOOK: Duration = Duration::from_millis(10);
/// How many ports are tried: another process may take a free one before the server does.
const PORT_TRIES: usize = 5;
/// Pause before the server's own port is tried again.
const PORT_PAUSE: Duration = Duration::from_millis(200);
/// The lowest port that is tried.
const PORT_MIN: u16 = 10_000;
/// Where the system's range of ports for passing connections begins, unless it says otherwise.
const PORT_PASSING: u16 = 32_768;
/// Bytes of a path that are encoded in the host of a URL: all but those that RFC 3986, section 2.3, calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Ordinary users that the server runs as when this process is root's, in order of preference.
const USERS: &[&str] = &["postgres", "nobody"];

/// A running server.
pub struct Cluster {
    bin: PathBuf,
    // Removed on drop, after the server has stopped.
    dir: TempDir,
    owner: Option<User>,
    settings: Vec<String>,
    port: u16,
    server: Option<Child>,
}

/// How to end the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The server ends its sessions and writes its data.
    Fast,
    /// The server ends at once, as in a crash.
    Immediate,
}

impl Cluster {
    /// Makes a cluster and starts its server. `settings` are `name=value` pairs for the server; they win over the ones here.
    ///
    /// # Errors
    ///
    /// When there are no server binaries; the message says which package to install. When the server does not start.
    pub fn start(settings: &[&str]) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(settings)?;
        cluster.initdb()?;
        cluster.boot()?;
        Ok(cluster)
    }

    /// An empty folder for a server.
    fn prepare(settings: &[&str]) -> Result<Cluster> {
        let bin = find_binaries()?;
        let owner = ordinary_user()?;
        let dir = tempfile::Builder::new()
            .prefix("promptpal-relay-pg-")
            .tempdir()
            .map_err(Error::io("making a temporary folder"))?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))
            .and_then(|()| owner.as_ref().map_or(Ok(()), |user| give(dir.path(), user)))
            .map_err(Error::io(format!("preparing {}", dir.path().display())))?;
        Ok(Cluster {
            bin,
            dir,
            owner,
            settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
            port: 0,
            server: None,
        })
    }

    /// A URL for a database, over the Unix socket.
    pub fn url(&self, database: &str) -> String {
        let dir = percent_encode(self.dir.path().as_os_str().as_bytes(), RESERVED);
        format!("postgres://postgres@{dir}:{}/{database}", self.port)
    }

    /// Folder of the Unix socket. The server's data is below it, in `data`.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Port, of the socket and of loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Folder of the server's binaries.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Ends the server; the data stays. [`Cluster::boot`] starts it again.
    pub fn halt(&mut self, how: Stop) {
        let Some(mut server) = self.server.take() else { return };
        let signal = match how {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        // It may have ended by itself; then there is no process to signal.
        let told = kill(pid(&server), signal);
        let deadline = Instant::now() + STOP_LIMIT;
        while told.is_ok() && Instant::now() < deadline {
            if matches!(server.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(LOOK);
        }
        // Postgres' children notice within moments that their parent is gone.
        if let Err(error) = server.kill().and_then(|()| server.wait()) {
            tracing::warn!(%error, "cannot stop the throw-away Postgres");
        }
    }

    /// Starts the server, on the port that it had before.
    ///
    /// # Errors
    ///
    /// When it does not come up in time.
    pub fn boot(&mut self) -> Result<()> {
        let first = self.port == 0;
        for _ in 0..PORT_TRIES {
            if self.port == 0 {
                self.port = fastrand::u16(lasting_ports());
            }
            if self.try_boot()? {
                return Ok(());
            }
            if first {
                self.port = 0;
            } else {
                // A passing connection may have the port as its own end.
                thread::sleep(PORT_PAUSE);
            }
        }
        Err(Error::Failed(format!("the throw-away Postgres does not start; it says: {}", self.log_tail())))
    }

    /// Whether the server accepts connections: the first line of its `postmaster.pid` is its process id (a server that
    /// was killed leaves the file behind), the last one its state.
    fn is_ready(&self, pid: u32) -> bool {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        file.lines().next() == Some(pid.to_string().as_str())
            && file.lines().last().is_some_and(|state| state.trim() == "ready")
    }

    /// Whether the server came up. False: it ended by itself, perhaps because the port was taken meanwhile.
    fn try_boot(&mut self) -> Result<bool> {
        let log =
            fs::File::create(self.dir.path().join("log")).map_err(Error::io("making the server's log"))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.dir.path());
        command.arg("-p").arg(self.port.to_string()).stderr(log);
        let ours = [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "max_connections=200",
            "unix_socket_permissions=0777",
        ];
        for setting in ours.iter().copied().chain(self.settings.iter().map(String::as_str)) {
            command.arg("-c").arg(setting);
        }
        let mut server = spawn_for_life(command).map_err(Error::io("starting the throw-away Postgres"))?;
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if matches!(server.try_wait(), Ok(Some(_))) {
                return Ok(false);
            }
            if self.is_ready(server.id()) {
                self.server = Some(server);
                return Ok(true);
            }
            thread::sleep(LOOK);
        }
        self.server = Some(server);
        self.halt(Stop::Immediate);
        Err(Error::Failed(format!("the throw-away Postgres is not up after {} s", START_LIMIT.as_secs())))
    }

    fn initdb(&self) -> Result<()> {
        let data = self.data().display().to_string();
        let options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D", &data];
        let mut command = self.command("initdb");
        command.args(options).stderr(Stdio::piped());
        let output = spawn_for_life(command).and_then(Child::wait_with_output).map_err(|error| {
            match (&self.owner, error.kind()) {
                (Some(owner), io::ErrorKind::PermissionDenied) => Error::Failed(format!(
                    "Postgres runs as the user {}, who may not enter {}: set TMPDIR to a folder that everybody may \
                     enter, such as /tmp",
                    owner.name,
                    self.dir.path().display()
                )),
                _ => Error::io("running initdb")(error),
            }
        })?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
            return Err(Error::Failed(format!("initdb failed: {text}")));
        }
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A program of the server's, as the ordinary user, free of what the environment says about other servers.
    fn command(&self, name: &str) -> Command {
        self.as_owner(self.bin.join(name))
    }

    fn as_owner(&self, program: PathBuf) -> Command {
        let mut command = Command::new(program);
        // A group of its own: Ctrl-C reaches this process alone, which ends the server in order.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir(self.dir.path());
        for (variable, _) in env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        if let Some(user) = &self.owner {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    fn log_tail(&self) -> String {
        const LINES: usize = 5;
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join(" | ")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.halt(Stop::Fast);
    }
}

/// Ports that no passing connection has as its own end, so that a server that is restarted finds its own free. Where
/// the system leaves none above [`PORT_MIN`], any from there on.
fn lasting_ports() -> std::ops::Range<u16> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let passing = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(PORT_PASSING);
    if passing > PORT_MIN { PORT_MIN..passing } else { PORT_MIN..u16::MAX }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process ids are positive integers"))
}

fn give(path: &Path, user: &User) -> io::Result<()> {
    chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
}

/// Starts a process that gets SIGINT (for Postgres a fast shutdown, for the daemon a drain) when this process dies, however it
/// dies. The kernel ties that to the *thread* that forked, so a thread of its own forks, and stays.
pub(crate) fn spawn_for_life(mut command: Command) -> io::Result<Child> {
    let me = nix::unistd::getpid();
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGINT)?;
        // The parent may have died before the call above.
        if nix::unistd::getppid() == me { Ok(()) } else { Err(io::Error::other("the parent is gone")) }
    };
    #[expect(
        unsafe_code,
        reason = "two system calls that are safe between fork and exec, no allocation before exec"
    )]
    unsafe {
        command.pre_exec(prepare);
    }
    let (sender, child) = mpsc::channel();
    thread::Builder::new().name("postgres-parent".into()).spawn(move || {
        if sender.send(command.spawn()).is_ok() {
            loop {
                thread::park();
            }
        }
    })?;
    child.recv().unwrap_or_else(|_| Err(io::Error::other("the starting thread ended")))
}

/// The user that the server runs as, when this process is root's.
fn ordinary_user() -> Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    USERS.iter().find_map(|name| User::from_name(name).ok().flatten()).map(Some).ok_or_else(|| {
        Error::Failed("Postgres refuses to run as root, and there is no user postgres or nobody".into())
    })
}

fn find_binaries() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(BIN_VARIABLE) {
        let dir = PathBuf::from(dir);
        return if has_binaries(&dir) {
            Ok(dir)
        } else {
            Err(Error::Config(format!(
                "{BIN_VARIABLE} is {}, and there is no initdb and postgres in it",
                dir.display()
            )))
        };
    }
    let on_path =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let by_config = Command::new("pg_config").arg("--bindir").output().ok().filter(|o| o.status.success());
    let by_config = by_config.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    on_path
        .into_iter()
        .chain(by_config)
        .chain(versioned("/usr/lib/postgresql", "bin"))
        .chain(versioned("/usr", "bin").filter(|dir| dir.to_string_lossy().contains("/pgsql-")))
        .chain(["/usr/local/pgsql/bin", "/opt/homebrew/bin"].map(PathBuf::from))
        .find(|dir| has_binaries(dir))
        .ok_or_else(|| {
            Error::Failed(
                "no Postgres server binaries (initdb, postgres) found: apt install postgresql, dnf install \
                 postgresql-server, or brew install postgresql"
                    .into(),
            )
        })
}

fn has_binaries(dir: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|name| dir.join(name).is_file())
}

/// Folders `<parent>/<version>/<child>`, the newest version first.
fn versioned(parent: &str, child: &'static str) -> impl Iterator<Item = PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            Some((name.rsplit('-').next()?.parse().ok()?, entry.path().join(child)))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, path)| path)
}
