//! A Postgres for the run, and a database of its own for each test.

use std::env;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once};
use std::thread;
use std::time::Instant;

use clap::Parser;
use promptpal_relay::inside::cli::Cli;
use promptpal_relay::inside::config;
use promptpal_relay::inside::demo::Cluster;
use promptpal_relay::inside::outbox::{Role, Store};
use tokio_postgres::{Client, NoTls, Row};

use super::{DEADLINE, LOOK, program};

static CLUSTER: Mutex<Option<Cluster>> = Mutex::new(None);

extern "C" fn stop_cluster() {
    // Statics are not dropped.
    drop(CLUSTER.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
}

/// The URL of a database on the server of this run.
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
    /// Makes an empty database.
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

    /// Takes a database that exists, on a server of the test's own, and gives it the schema.
    pub async fn on(url: &str) -> Database {
        let database = Database::at(url).await;
        database.migrate();
        database
    }

    /// Takes a database that has the schema, on a server of the test's own.
    pub async fn at(url: &str) -> Database {
        Database { url: url.to_owned(), name: None, client: connect(url).await }
    }

    /// Connects to the database again after its server was restarted.
    pub async fn reconnect(self) -> Database {
        Database::at(&self.url).await
    }

    /// Makes a database with the schema.
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

    /// Opens a session with the settings that the daemon's sessions have.
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

    /// The calls on record, in the order of their rows.
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

    /// The number that a query gives.
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

/// The URL with another user and password. A server that wants no password takes any.
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

/// The program psql.
pub fn psql() -> Command {
    server_program("psql")
}

/// A program of Postgres': the one beside the server's binaries, else the one of PATH.
pub fn server_program(name: &str) -> Command {
    let cluster = CLUSTER.lock().unwrap();
    let beside = cluster.as_ref().map(|cluster| cluster.bin().join(name)).filter(|path| path.is_file());
    Command::new(beside.unwrap_or_else(|| name.into()))
}
