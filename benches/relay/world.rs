//! Postgres, a database with the schema, and the daemon as a child process; what they have used of the machine.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use promptpal_relay::inside::demo::Cluster;
use tokio_postgres::{Client, NoTls};

pub const BINARY: &str = env!("CARGO_BIN_EXE_promptpal-relay");

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// What a server in production has; the rest is Postgres' default.
const SETTINGS: &[&str] = &[
    "fsync=on",
    "shared_buffers=512MB",
    "max_wal_size=4GB",
    "checkpoint_timeout=30min",
    "max_connections=300",
];

pub struct Server {
    pub cluster: Cluster,
}

impl Server {
    pub fn start() -> Server {
        Server { cluster: Cluster::start(SETTINGS).unwrap() }
    }

    /// A new database with the schema.
    pub async fn database(&self) -> Database {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("bench{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let admin = connect(&self.cluster.url("postgres")).await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let url = self.cluster.url(&name);
        let migrate = Command::new(BINARY).arg("migrate").env("DATABASE_URL", &url).output().unwrap();
        assert!(migrate.status.success(), "{}", String::from_utf8_lossy(&migrate.stderr));
        Database { client: connect(&url).await, admin, name, url }
    }

    /// CPU seconds of the server and all its processes.
    pub fn cpu(&self) -> f64 {
        let pid_file = self.cluster.socket_dir().join("data/postmaster.pid");
        let postmaster: u32 = fs::read_to_string(pid_file).unwrap().lines().next().unwrap().parse().unwrap();
        let children: f64 =
            processes().filter(|(_, parent)| *parent == postmaster).map(|(pid, _)| cpu(pid)).sum();
        children + cpu(postmaster) + cpu_of_ended_children(postmaster)
    }
}

pub struct Database {
    pub client: Client,
    admin: Client,
    name: String,
    pub url: String,
}

impl Database {
    pub async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    pub async fn number(&self, sql: &str) -> f64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// CPU seconds so far of the backend of one of the relay's sessions, by its role.
    pub async fn session_cpu(&self, role: &str) -> f64 {
        let sql =
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1";
        let rows = self.client.query(sql, &[&format!("promptpal-relay {role}")]).await.unwrap();
        rows.iter().map(|row| cpu(u32::try_from(row.get::<_, i32>(0)).unwrap())).sum()
    }

    pub async fn webhook(&self, project_id: i64, url: &str) {
        self.run(&format!(
            "INSERT INTO relay.webhooks (project_id, name, url) VALUES ({project_id}, 'bench', '{url}')"
        ))
        .await;
    }

    /// Inserts events of a project.
    pub async fn events(&self, project_id: i64, count: u64) {
        self.run(&format!(
            "{INSERT} SELECT {project_id}, 0, 'user-123', 0, 1250, 150, 300 FROM generate_series(1, {count})"
        ))
        .await;
    }

    /// One event whose arrival the receiver notes.
    pub async fn numbered_event(&self, project_id: i64, number: u64) {
        self.run(&format!("{INSERT} VALUES ({project_id}, {number}, 'user-123', 0, 1250, 150, 300)")).await;
    }

    pub async fn wait_until(&self, sql: &str) {
        let start = Instant::now();
        while !self.client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
            assert!(start.elapsed() < DEADLINE, "never true: {sql}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn drop(self) {
        drop(self.client);
        self.admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await.unwrap();
    }
}

pub const INSERT: &str = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)";

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The daemon; killed on drop.
pub struct Relay {
    child: Child,
}

impl Relay {
    pub fn start(database: &Database, arguments: &[&str]) -> Relay {
        let mut command = Command::new(BINARY);
        command.args(["run", "--allow-net", "127.0.0.0/8", "--log-level", "error"]).args(arguments);
        command.env("DATABASE_URL", &database.url).stdin(Stdio::null());
        Relay { child: command.spawn().unwrap() }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn cpu(&self) -> f64 {
        cpu(self.child.id())
    }

    /// CPU seconds of its first thread, on which its loops run.
    pub fn cpu_of_loops(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{0}/task/{0}/stat", self.child.id())).unwrap();
        seconds(&fields(&text), [14, 15])
    }

    /// Resident memory in MiB: now, and the most there was.
    pub fn memory(&self) -> (f64, f64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let value = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
        };
        (value("VmRSS:"), value("VmHWM:"))
    }

    /// Stops it and waits for its end.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < DEADLINE);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// A program beside the server's, or wherever Postgres' programs are.
pub fn server_program(server: &Server, name: &str) -> Option<PathBuf> {
    let packaged = (14..30).rev().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        [server.cluster.bin().to_owned()].into_iter().chain(std::env::split_paths(&path)).chain(packaged);
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Fields of /proc/PID/stat, from the state (field 3) on.
fn stat(pid: u32) -> io::Result<Vec<String>> {
    Ok(fields(&fs::read_to_string(format!("/proc/{pid}/stat"))?))
}

fn fields(text: &str) -> Vec<String> {
    let (_, rest) = text.rsplit_once(')').unwrap();
    rest.split_whitespace().map(str::to_owned).collect()
}

fn ticks(pid: u32, fields: [usize; 2]) -> f64 {
    // A process that has ended meanwhile counts with its parent.
    let Ok(stat) = stat(pid) else { return 0.0 };
    seconds(&stat, fields)
}

fn seconds(stat: &[String], fields: [usize; 2]) -> f64 {
    let sum: f64 = fields.iter().map(|field| stat[field - 3].parse::<f64>().unwrap()).sum();
    // Always 100 on Linux: USER_HZ is part of its interface.
    sum / 100.0
}

pub fn cpu(pid: u32) -> f64 {
    ticks(pid, [14, 15])
}

fn cpu_of_ended_children(pid: u32) -> f64 {
    ticks(pid, [16, 17])
}

/// All processes with their parents.
fn processes() -> impl Iterator<Item = (u32, u32)> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, stat(pid).ok()?[1].parse().ok()?))
    })
}
