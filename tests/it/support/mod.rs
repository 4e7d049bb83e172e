//! What the tests stand on: a cluster for the run, a database for each test, a scripted receiver, and the relay as a
//! child process. Conditions are waited for with a deadline, never for a time.

mod database;
pub mod hosts;
mod network;
mod pty;
mod receiver;
mod relay;
pub mod scrape;

use std::env;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use self::database::{Database, as_user, connect, psql, server_program};
pub use self::network::Network;
pub use self::pty::Terminal;
pub use self::receiver::{Gate, Receiver, Reply, gated};
pub use self::relay::{Clock, Relay};

/// How long a condition may take to come true; long, because the machine may be busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(5);

pub const BINARY: &str = env!("CARGO_BIN_EXE_promptpal-relay");

/// The program with these arguments, and without the settings that the environment of the tests has for it.
pub fn program(arguments: &[&str], database_url: &str) -> Command {
    program_at(Path::new(BINARY), arguments, database_url)
}

/// The program of another release, with these arguments.
pub fn program_at(path: &Path, arguments: &[&str], database_url: &str) -> Command {
    let mut command = Command::new(path);
    for (variable, _) in env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("PG") || name.starts_with("PROMPTPAL_RELAY_") || name == "DATABASE_URL" {
            command.env_remove(variable);
        }
    }
    command.args(arguments).env("DATABASE_URL", database_url).stdin(Stdio::null());
    command
}

/// Waits for a program that ends by itself; returns exit code, standard output and standard error.
pub fn outcome(mut command: Command) -> (i32, String, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |mut pipe: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).map(|_| text)
        })
    };
    let (stdout, stderr) = (read(Box::new(stdout)), read(Box::new(stderr)));
    let status = ends(&mut child);
    if status.is_none() {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    let (stdout, stderr) = (stdout.join().unwrap().unwrap(), stderr.join().unwrap().unwrap());
    let status = status.unwrap_or_else(|| panic!("does not end: {command:?}\n{stdout}{stderr}"));
    (status.code().expect("not killed"), stdout, stderr)
}

/// Waits for the end of a child; none when it does not come in time.
fn ends(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(LOOK);
    }
    None
}

/// The most memory that a child ever had, in bytes; none when it has ended and was not waited for.
pub fn memory_peak(pid: Pid) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024)
}

/// A port on loopback where no server listens.
pub fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The text of a file of the repository.
pub fn repository_file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}
