//! What the tests stand on: a cluster for the run, a database for each test, a scripted receiver, and the relay as a
//! child process. Conditions are waited for with a deadline, never for a time.

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, geteuid};
use promptpal_relay::cli::Cli;
use promptpal_relay::command::demo::postgres::Cluster;
use promptpal_relay::config;
use promptpal_relay::outbox::{Role, Store};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, Row};

/// Until then a condition must have come true; long, because the machine may be busy with other tests.
const DEADLINE: Duration = Duration::from_secs(30);
/// Connections that wait for a receiver.
const BACKLOG: i32 = 4096;
/// Pause between two looks at a condition in the database.
const LOOK: Duration = Duration::from_millis(5);

pub const BINARY: &str = env!("CARGO_BIN_EXE_promptpal-relay");

// ---- databases ----------------------------------------------------------------------------------------------------

static CLUSTER: Mutex<Option<Cluster>> = Mutex::new(None);

extern "C" fn stop_cluster() {
    // Statics are not dropped.
    drop(CLUSTER.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
}

/// URL of a database on the server of this run.
fn server_url(database: &str) -> String {
    if let Ok(url) = env::var("TEST_DATABASE_URL") {
        let (base, query) =
            url.split_once('?').map_or((url.as_str(), String::new()), |(b, q)| (b, format!("?{q}")));
        let (server, _) = base.rsplit_once('/').expect("TEST_DATABASE_URL is a URL with a database name");
        return format!("{server}/{database}{query}");
    }
    static AT_EXIT: Once = Once::new();
    #[expect(unsafe_code, reason = "the handler takes a lock and stops a child process; it runs in exit()")]
    AT_EXIT.call_once(|| assert_eq!(unsafe { libc::atexit(stop_cluster) }, 0));
    let mut cluster = CLUSTER.lock().unwrap();
    cluster.get_or_insert_with(|| Cluster::start(&["max_connections=500"]).unwrap()).url(database)
}

/// A database of the test's own, dropped afterwards.
pub struct Database {
    pub url: String,
    // None: not ours to drop.
    name: Option<String>,
    pub client: Client,
}

impl Database {
    /// An empty one.
    pub async fn empty() -> Database {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("promptpal_relay_test_{}_{number}", std::process::id());
        let admin = connect(&server_url("postgres")).await;
        admin
            .batch_execute(&format!("CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0"))
            .await
            .unwrap();
        let url = server_url(&name);
        let client = connect(&url).await;
        Database { url, name: Some(name), client }
    }

    /// A database that exists, on a server of the test's own; gets the schema.
    pub async fn on(url: &str) -> Database {
        let database = Database::at(url).await;
        database.migrate();
        database
    }

    /// A database with the schema, on a server of the test's own.
    pub async fn at(url: &str) -> Database {
        Database { url: url.to_owned(), name: None, client: connect(url).await }
    }

    /// The same database after its server was restarted.
    pub async fn reconnect(self) -> Database {
        Database::at(&self.url).await
    }

    /// One with the schema.
    pub async fn new() -> Database {
        let database = Database::empty().await;
        database.migrate();
        database
    }

    fn migrate(&self) {
        let output = self.command(&["migrate"]).output().unwrap();
        assert!(output.status.success(), "migrate failed: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The program, on this database, with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        program(arguments, &self.url)
    }

    /// A session as the daemon has them.
    pub async fn session(&self, role: Role) -> Store {
        let cli = Cli::try_parse_from(["promptpal-relay", "--database-url", &self.url, "migrate"]).unwrap();
        Store::connect(&config::database(&cli.global).unwrap(), role).await.unwrap()
    }

    /// Adds a webhook; returns its id.
    pub async fn webhook(&self, project_id: i64, url: &str) -> i64 {
        let sql = "INSERT INTO relay.webhooks (project_id, name, url) VALUES ($1, 'test', $2) RETURNING id";
        self.client.query_one(sql, &[&project_id, &url]).await.unwrap().get(0)
    }

    /// Inserts plain events; returns the id of the first.
    pub async fn events(&self, project_id: i64, count: i64) -> i64 {
        let sql = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
                   SELECT $1::bigint, n, 'user', 0, 1, 1, 1 FROM generate_series(1, $2::bigint) AS n RETURNING id";
        self.client.query(sql, &[&project_id, &count]).await.unwrap()[0].get(0)
    }

    /// The calls, oldest first.
    pub async fn calls(&self) -> Vec<Row> {
        let sql = "SELECT *, request_headers::text AS request_headers_text, response_headers::text AS response_headers_text
                   FROM relay.webhook_calls ORDER BY outbox_id, webhook_id, id";
        self.client.query(sql, &[]).await.unwrap()
    }

    /// Waits until every row of the outbox is done.
    pub async fn all_done(&self) {
        self.eventually("SELECT NOT EXISTS (SELECT FROM relay.outbox WHERE done_at IS NULL)").await;
    }

    /// Waits until a query gives true.
    pub async fn eventually(&self, sql: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
            assert!(Instant::now() < deadline, "never true: {sql}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What a query gives.
    pub async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(name) = self.name.clone() else { return };
        let url = server_url("postgres");
        // Dropping is asynchronous and `drop` is not; a thread bridges them.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                connect(&url).await.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await
            })
        });
        if let Ok(Err(error)) = dropped.join() {
            eprintln!("cannot drop a test's database: {error}");
        }
    }
}

/// The URL with another user, who has this password. Whoever logs in with it, also on a server that wants none, is made
/// with it.
pub fn as_user(url: &str, user: &str, password: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (authority, path) = rest.split_once('/').expect("a URL with a database name");
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{user}:{password}@{host}/{path}")
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The program with these arguments, and nothing in its environment that belongs to whoever runs the tests.
pub fn program(arguments: &[&str], database_url: &str) -> Command {
    let mut command = Command::new(BINARY);
    for (variable, _) in env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("PG") || name.starts_with("PROMPTPAL_RELAY_") || name == "DATABASE_URL" {
            command.env_remove(variable);
        }
    }
    command.args(arguments).env("DATABASE_URL", database_url).stdin(Stdio::null());
    command
}

/// Exit code, standard output, standard error of a program that ends by itself.
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

/// Most memory that a child ever had, in bytes; none when it has ended and was not waited for.
pub fn memory_peak(pid: Pid) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024)
}

// ---- clocks -------------------------------------------------------------------------------------------------------

/// A clock of a program's own.
pub struct Clock {
    dir: TempDir,
}

impl Clock {
    /// One that goes right.
    pub fn new() -> Clock {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clock.c");
        let library = dir.path().join("clock.so");
        let made =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).status().unwrap();
        assert!(made.success());
        File::create(dir.path().join("passed")).unwrap();
        Clock { dir }
    }

    /// The program goes by this clock, and takes it to be so many seconds later than it is.
    pub fn ahead(&self, command: &mut Command, seconds: i64) {
        command.env("LD_PRELOAD", self.dir.path().join("clock.so"));
        command.env("CLOCK_PASSED", self.dir.path().join("passed")).env("CLOCK_AHEAD_S", seconds.to_string());
    }

    /// So many minutes pass at once.
    pub fn pass(&self, minutes: usize) {
        let mut file = File::options().append(true).open(self.dir.path().join("passed")).unwrap();
        file.write_all(&vec![b'.'; minutes]).unwrap();
    }
}

// ---- the relay ----------------------------------------------------------------------------------------------------

/// With loopback allowed.
const RUN: &[&str] = &["run", "--allow-net", "127.0.0.0/8"];

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

    /// Starts it with a clock of its own.
    pub fn start_by(clock: &Clock, database_url: &str, arguments: &[&str]) -> Relay {
        let mut command = program(RUN, database_url);
        clock.ahead(&mut command, 0);
        Relay::spawn_with(command, arguments, |_| ()).ready()
    }

    /// Starts it with a socket to systemd that is full, and that nobody reads.
    pub fn spawn_unheard(database_url: &str) -> Relay {
        Relay::spawn_with(program(RUN, database_url), &[], |path| {
            let filler = UnixDatagram::unbound().unwrap();
            filler.set_nonblocking(true).unwrap();
            while filler.send_to(b"full", path).is_ok() {}
        })
    }

    /// Calls may take a minute unless the test says otherwise: none shall end while a slow machine gets ready for it.
    fn spawn_with(mut command: Command, arguments: &[&str], prepare: impl FnOnce(&Path)) -> Relay {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        prepare(&dir.path().join("notify"));
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        command.stdin(Stdio::null()).args(arguments).env("NOTIFY_SOCKET", dir.path().join("notify"));
        command.env("PROMPTPAL_RELAY_TIMEOUT", "60s");
        command.stderr(File::create(dir.path().join("log")).unwrap());
        Relay { child: command.spawn().unwrap(), dir, socket }
    }

    /// Starts it with loopback allowed and waits until it says that it is ready.
    pub fn start(database: &Database, arguments: &[&str]) -> Relay {
        Relay::spawn(&database.url, arguments).ready()
    }

    /// The same with at most this many open files.
    pub fn start_with_few_files(database: &Database, arguments: &[&str], files: u32) -> Relay {
        Relay::start_by_shell(Command::new("sh"), database, &format!("ulimit -n {files}"), arguments)
    }

    /// The same in a network of its own, which has loopback, what `setup` adds to it, and no way out; none where this
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

    /// Starts it by a shell that first does what is in `setup`.
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

    /// Sends a signal; waits until all threads stand still if it is the one that stops them.
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

    /// Kills it without a word.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        ends(&mut self.child).unwrap_or_else(|| panic!("does not end:\n{}", self.log()))
    }

    /// Waits until it has logged a text.
    pub fn wait_for_log(&self, text: &str) {
        self.wait_for_log_of(1, text);
    }

    /// Waits until it has logged a text so many times.
    pub fn wait_for_log_of(&self, times: usize, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while self.log().matches(text).count() < times {
            assert!(Instant::now() < deadline, "not logged {times} times: {text:?}:\n{}", self.log());
            thread::sleep(LOOK);
        }
    }

    /// What it has logged.
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

// ---- a network ----------------------------------------------------------------------------------------------------

/// A way to a server over TCP, as long as wanted, that can be made silent: from then on what is sent over connections
/// that are open goes nowhere, and nobody is told. New ones work.
pub struct Network {
    pub port: u16,
    connections: Arc<Mutex<Vec<Arc<Carried>>>>,
}

/// One connection over it.
struct Carried {
    /// The port that the server sees.
    port: u16,
    /// What the client says, and what the server says, goes nowhere.
    silent: [AtomicBool; 2],
}

impl Network {
    /// A way to this port of loopback; everything takes so long to get there, and back.
    pub fn to(server: u16, delay: Duration) -> Network {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections: Arc<Mutex<Vec<Arc<Carried>>>> = Arc::default();
        let carried = connections.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let port = server.local_addr().unwrap().port();
                let connection = Arc::new(Carried { port, silent: Default::default() });
                carried.lock().unwrap().push(connection.clone());
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap(), connection.clone());
                thread::spawn(move || carry(&client, &server, &connection.silent[0], delay));
                thread::spawn(move || carry(&back.0, &back.1, &back.2.silent[1], delay));
            }
        });
        Network { port, connections }
    }

    /// Makes the connections silent that are open now.
    pub fn go_silent(&self) {
        let connections = std::mem::take(&mut *self.connections.lock().unwrap());
        connections
            .iter()
            .flat_map(|connection| &connection.silent)
            .for_each(|silent| silent.store(true, Ordering::Relaxed));
    }

    /// Makes one of them silent, which the server sees come from this port: what the client says, or what the server
    /// says.
    pub fn silence(&self, port: i32, server: bool) {
        let connections = self.connections.lock().unwrap();
        let connection = connections.iter().find(|connection| i32::from(connection.port) == port);
        connection.unwrap().silent[usize::from(server)].store(true, Ordering::Relaxed);
    }
}

fn carry(mut from: &TcpStream, mut to: &TcpStream, silent: &AtomicBool, delay: Duration) {
    let mut buffer = [0; 16 * 1024];
    // Both ends stay open until the program ends, as in a network that loses packets.
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        thread::sleep(delay);
        if !silent.load(Ordering::Relaxed) && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    if !silent.load(Ordering::Relaxed) {
        // The other end may be gone, too.
        thread::sleep(delay);
        to.shutdown(Shutdown::Both).ok();
    }
}

// ---- a receiver ---------------------------------------------------------------------------------------------------

/// A request as it came over the wire.
#[derive(Clone, Debug)]
pub struct Request {
    pub line: String,
    /// In order, as written.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Request {
    pub fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What a receiver answers.
pub enum Reply {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing, for as long as the receiver lives.
    Never,
    /// Nothing, and the connection is closed.
    Close,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply::full(status, &[], b"{\"status\":\"received\"}")
    }

    pub fn full(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut bytes = format!("HTTP/1.1 {status} Whatever\r\n").into_bytes();
        for (name, value) in headers {
            bytes.extend(format!("{name}: {value}\r\n").bytes());
        }
        bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
        bytes.extend(body);
        Reply::Bytes(bytes)
    }
}

/// A door that a test opens.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open.
    pub fn pass(&self) {
        let (open, _) =
            self.0.1.wait_timeout_while(self.0.0.lock().unwrap(), DEADLINE, |open| !*open).unwrap();
        assert!(*open, "the gate was never opened");
    }
}

/// An HTTP server on loopback whose answers the test scripts. It records each request before it answers.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

struct Shared {
    requests: Mutex<Vec<Request>>,
    arrived: Condvar,
    remember: bool,
    script: Box<Script>,
    // Open ones, by number.
    connections: Mutex<HashMap<usize, TcpStream>>,
}

impl Receiver {
    /// One that remembers what came.
    pub fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Receiver {
        Receiver::listen(true, Box::new(script))
    }

    /// One that does not, for a great many requests.
    pub fn forgetful(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Receiver {
        Receiver::listen(false, Box::new(script))
    }

    fn listen(remember: bool, script: Box<Script>) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // With room for all the connections that wait while this process is not given the processor: what is too
        // many may be reset.
        socket2::SockRef::from(&listener).listen(BACKLOG).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            arrived: Condvar::new(),
            remember,
            script,
            connections: Mutex::default(),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let shared = accepting.clone();
                shared.connections.lock().unwrap().insert(number, stream.try_clone().unwrap());
                thread::spawn(move || {
                    serve(&stream, &shared);
                    shared.connections.lock().unwrap().remove(&number);
                });
            }
        });
        Receiver { address, shared }
    }

    /// Answers 200 to everything.
    pub fn good() -> Receiver {
        Receiver::start(|_| Reply::status(200))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.shared.requests.lock().unwrap()
    }

    /// What has come so far.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().clone()
    }

    /// Waits until so many requests have come.
    pub fn wait_for(&self, count: usize) -> Vec<Request> {
        let arrived = &self.shared.arrived;
        let (requests, _) = arrived.wait_timeout_while(self.lock(), DEADLINE, |r| r.len() < count).unwrap();
        assert!(requests.len() >= count, "{} of {count} requests came in time", requests.len());
        requests.clone()
    }
}

/// A receiver whose answers wait at a gate.
pub fn gated() -> (Receiver, Gate) {
    let gate = Gate::default();
    let door = gate.clone();
    let receiver = Receiver::start(move |_| {
        door.pass();
        Reply::status(200)
    });
    (receiver, gate)
}

impl Drop for Receiver {
    fn drop(&mut self) {
        for connection in self.shared.connections.lock().unwrap().values() {
            // Most are closed already.
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

/// Serves one connection until it ends.
fn serve(stream: &TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        if shared.remember {
            shared.requests.lock().unwrap().push(request.clone());
            shared.arrived.notify_all();
        }
        match (shared.script)(&request) {
            Reply::Bytes(bytes) => {
                let mut stream = stream;
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Reply::Never => {
                // Ends when the other side or our drop closes the connection.
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest).ok();
                return;
            }
            Reply::Close => {
                stream.shutdown(Shutdown::Both).ok();
                return;
            }
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = || {
        let mut text = String::new();
        reader.read_line(&mut text).ok().filter(|length| *length > 0)?;
        Some(text.trim_end().to_owned())
    };
    let first = line()?;
    let mut headers = Vec::new();
    loop {
        let text = line()?;
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':').expect("a header");
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Request { line: first, headers, body, at: Instant::now() })
}

/// A port on loopback where nobody listens.
pub fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A file in the repository.
pub fn repository_file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// psql, beside the server's binaries or on the path.
pub fn psql() -> Command {
    let cluster = CLUSTER.lock().unwrap();
    let beside = cluster.as_ref().map(|cluster| cluster.bin().join("psql")).filter(|path| path.is_file());
    Command::new(beside.unwrap_or_else(|| "psql".into()))
}
