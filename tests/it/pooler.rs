//! Behind PgBouncer: session mode works, and the modes that give sessions away are refused before anything is set.
//!
//! Uses pgbouncer where it is found (`scripts/with-postgres` installs it), and says so where it is not.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use promptpal_relay::inside::demo::Cluster;
use tempfile::TempDir;

use crate::support::{Database, Receiver, Relay, connect, gated, outcome, program};

/// The port in the name of PgBouncer's socket. PgBouncer listens on no TCP port.
const PORT: u16 = 6432;

struct Pooler {
    dir: TempDir,
    process: Child,
    server: u16,
}

impl Pooler {
    /// Starts PgBouncer in front of that server. None where this machine has no pgbouncer.
    fn start(cluster: &Cluster, mode: &str, size: u32) -> Option<Pooler> {
        let Some(program) = find() else {
            eprintln!("NOT TESTED: there is no pgbouncer on this machine; scripts/with-postgres installs it");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(program);
        command.arg("-q").arg(dir.path().join("ini")).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(dir.path().join("log")).unwrap());
        if geteuid().is_root() {
            // It refuses to run as root.
            let user = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).unwrap()).unwrap();
            chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        fs::write(dir.path().join("users"), "\"postgres\" \"\"\n").unwrap();
        configure(dir.path(), cluster.port(), mode, size);
        let pooler = Pooler { process: command.spawn().unwrap(), dir, server: cluster.port() };
        let deadline = Instant::now() + Duration::from_secs(30);
        // The socket is there a moment before PgBouncer listens on it.
        while UnixStream::connect(pooler.dir.path().join(format!(".s.PGSQL.{PORT}"))).is_err() {
            assert!(Instant::now() < deadline, "pgbouncer does not start: {}", pooler.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(pooler)
    }

    fn url(&self) -> String {
        let dir = self.dir.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{dir}:{PORT}/postgres")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Changes the mode of the running PgBouncer.
    fn change(&self, mode: &str, size: u32) {
        configure(self.dir.path(), self.server, mode, size);
        kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), Signal::SIGHUP).unwrap();
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join("pgbouncer"))
        .find(|file| file.is_file())
}

fn configure(dir: &Path, server: u16, mode: &str, size: u32) {
    let text = format!(
        "[databases]\n* = host=127.0.0.1 port={server}\n\
         [pgbouncer]\nunix_socket_dir = {dir}\nunix_socket_mode = 0777\nlisten_port = {PORT}\n\
         auth_type = trust\nauth_file = {dir}/users\npool_mode = {mode}\ndefault_pool_size = {size}\n\
         ignore_startup_parameters = extra_float_digits\n",
        dir = dir.display()
    );
    fs::write(dir.join("ini"), text).unwrap();
}

/// Asserts that the relay left no advisory lock in the database.
async fn nothing_is_left(database: &Database) {
    let locks = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                 WHERE l.locktype = 'advisory' AND d.datname = current_database()";
    assert_eq!(database.number(locks).await, 0);
}

/// Reads the settings that the relay sets on its sessions and that an application would feel.
const SETTINGS: &str =
    "SELECT current_setting('synchronous_commit') || ' ' || current_setting('enable_seqscan') || ' '
                            || current_setting('plan_cache_mode') || ' ' || current_setting('jit') || ' '
                            || (SELECT count(*) FROM pg_listening_channels())";

#[tokio::test]
async fn a_pooler_that_gives_sessions_away_is_refused_and_keeps_nothing_of_ours() {
    let cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let plain = database.client.query_one(SETTINGS, &[]).await.unwrap().get::<_, String>(0);
    for (mode, size, others) in [
        ("transaction", 1, 0),
        ("transaction", 20, 0),
        ("transaction", 3, 2),
        ("statement", 1, 0),
        ("statement", 20, 0),
    ] {
        let Some(pooler) = Pooler::start(&cluster, mode, size) else { return };
        let what = format!("{mode}, {size} backends, {others} others");
        // The application's sessions come and go in the same pool.
        let mut applications = Vec::new();
        for _ in 0..others {
            let application = connect(&pooler.url()).await;
            applications.push(tokio::spawn(async move {
                loop {
                    application.simple_query("SELECT 1").await.unwrap();
                }
            }));
        }
        for arguments in [&["run"][..], &["check"], &["status"], &["migrate"], &["calls"]] {
            let (code, out, err) = outcome(program(arguments, &pooler.url()));
            let told = format!("{out}{err}");
            assert_eq!(code, 78, "{what}: {arguments:?}: {told}");
            assert!(told.contains("pool_mode = transaction or statement"), "{what}: {arguments:?}: {told}");
            assert!(!told.contains("READY"), "{told}");
            let last = err.trim_end().lines().count();
            assert_eq!(last, 1, "{what}: {arguments:?}: {err}");
        }
        applications.iter().for_each(tokio::task::JoinHandle::abort);
        nothing_is_left(&database).await;
        let after = connect(&pooler.url()).await;
        for _ in 0..5 {
            let messages = after.simple_query(SETTINGS).await.unwrap();
            let found = messages.iter().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            assert_eq!(found, Some(plain.as_str()), "{what}");
        }
    }
}

#[tokio::test]
async fn behind_a_pooler_that_keeps_sessions_it_hears_of_rows_and_peers_take_over() {
    let cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let Some(pooler) = Pooler::start(&cluster, "session", 20) else { return };
    let (code, out, err) = outcome(program(&["check"], &pooler.url()));
    assert_eq!(code, 0, "{out}{err}");
    // Only a notification can tell the relay of rows.
    let flags = ["--poll-interval", "1h"];
    let relay = Relay::spawn(&pooler.url(), &flags).ready();
    let asleep = "SELECT EXISTS (SELECT FROM pg_locks WHERE classid = 1886415987 AND mode = 'ExclusiveLock' AND granted)";
    database.eventually(asleep).await;
    let start = Instant::now();
    database.events(1, 1).await;
    println!("insert to POST: {:?}", receiver.wait_for(1)[0].at - start);
    relay.kill();
    let mut next = Relay::spawn(&pooler.url(), &flags).ready();
    receiver.wait_for(2);
    gate.open();
    database.all_done().await;
    next.signal(Signal::SIGTERM);
    assert_eq!(next.wait().code(), Some(0), "{}", next.log());
    let none = "SELECT count(*) = 0 FROM pg_locks l WHERE l.locktype = 'advisory'";
    database.eventually(none).await;
    let plain = database.client.query_one(SETTINGS, &[]).await.unwrap().get::<_, String>(0);
    for _ in 0..5 {
        let after = connect(&pooler.url()).await;
        assert_eq!(after.query_one(SETTINGS, &[]).await.unwrap().get::<_, String>(0), plain);
    }
}

#[tokio::test]
async fn a_pooler_that_begins_to_give_sessions_away_ends_the_daemon() {
    let cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let Some(pooler) = Pooler::start(&cluster, "session", 20) else { return };
    let mut relay = Relay::spawn(&pooler.url(), &["--poll-interval", "50ms"]).ready();
    database.events(1, 1).await;
    database.all_done().await;
    pooler.change("transaction", 20);
    assert_eq!(relay.wait().code(), Some(78), "{}", relay.log());
    assert!(relay.log().contains("pool_mode = transaction or statement"), "{}", relay.log());
}
