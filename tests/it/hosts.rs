//! Two relays, a primary, its standby and a receiver, each on a host of its own, and an application that inserts all the
//! time. Servers switch and fail over, and hosts are cut off. Each event arrives once, and a call that was made again is marked.
//!
//! Each test prints what it measured. No time is asserted beyond the deadline of its conditions.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use promptpal_relay::inside::demo::{Cluster, Stop};

use crate::support::hosts::{HERE, Host, Net, apart};
use crate::support::scrape::{get, until_answer};
use crate::support::{Database, Receiver, Relay, Reply};

/// The port of each server: on a host of its own it is free.
const PORT: u16 = 5432;
/// The database and its user.
const WHO: &str = "user=postgres dbname=postgres";
const RECONNECTS: &str = "promptpal_relay_reconnects_total";
/// An application that uses the relay gives up a statement after this time, and connects anew.
const STATEMENT_MAX: Duration = Duration::from_secs(3);
/// Number of events that arrive before a test does harm, and afterwards.
const STEADY: usize = 150;

// ---- the hosts ----------------------------------------------------------------------------------------------------

/// A server and its host.
struct Server {
    host: Host,
    cluster: Cluster,
    /// Over the socket, which no cut reaches.
    url: String,
}

impl Server {
    /// Starts a server on a host; it follows the server of number `peer` whenever it is a standby.
    fn start(number: u8, peer: u8) -> Server {
        let host = Host::new(number, &[Net::Db]);
        // A standby asks a silent primary again soon.
        let primary = format!(
            "primary_conninfo=host={} port={PORT} user=postgres connect_timeout=2",
            Net::Db.address(peer)
        );
        let port = format!("port={PORT}");
        let settings = [
            port.as_str(),
            "listen_addresses=*",
            &primary,
            // For pg_rewind, which looks for where the servers parted.
            "wal_keep_size=256MB",
            // Each gives the other one up that is away.
            "wal_retrieve_retry_interval=200ms",
            "wal_receiver_timeout=5s",
            "wal_sender_timeout=5s",
        ];
        let cluster = host.run(|| Cluster::start(&settings).unwrap());
        let url = format!("host={} port={PORT} {WHO}", cluster.socket_dir().display());
        Server { host, cluster, url }
    }

    fn boot(&mut self) {
        let Server { host, cluster, .. } = self;
        host.run(|| cluster.boot().unwrap());
    }

    fn reboot(&mut self) {
        self.cluster.halt(Stop::Fast);
        self.boot();
    }

    /// Kills the server with SIGKILL; its other processes notice.
    fn kill(&mut self) {
        let file = fs::read_to_string(self.cluster.socket_dir().join("data/postmaster.pid")).unwrap();
        kill(Pid::from_raw(file.lines().next().unwrap().parse().unwrap()), Signal::SIGKILL).unwrap();
        self.cluster.halt(Stop::Fast);
    }

    /// Runs a program of Postgres' on its host, as the owner of its data.
    fn tool(&self, name: &str, arguments: &[&str]) {
        // The folder may have links to some of the programs only.
        let server = fs::canonicalize(self.cluster.bin().join("postgres")).unwrap();
        let mut command = Command::new(server.with_file_name(name));
        let owner = fs::metadata(self.cluster.socket_dir()).unwrap();
        command.args(arguments).current_dir("/").uid(owner.uid()).gid(owner.gid());
        let output = self.host.run(|| command.output().unwrap());
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn data(&self) -> String {
        self.cluster.socket_dir().join("data").to_str().unwrap().to_owned()
    }

    /// Takes its data anew from the other server, and follows that.
    fn follow(&mut self, primary: &Server) {
        self.cluster.halt(Stop::Fast);
        fs::remove_dir_all(self.data()).unwrap();
        let from = format!("host={} port={PORT} user=postgres", primary.host.address(Net::Db));
        self.tool("pg_basebackup", &["--checkpoint=fast", "--no-sync", "-d", &from, "-D", &self.data()]);
        self.stand_by();
    }

    /// Starts as a standby.
    fn stand_by(&mut self) {
        fs::write(format!("{}/standby.signal", self.data()), "").unwrap();
        self.boot();
    }
}

/// Two servers, of which one is the primary, and what is connected to them.
struct World {
    servers: [Server; 2],
    relays: [(Host, Relay); 2],
    app: App,
    posts: Arc<Mutex<Vec<Post>>>,
    _receiver: Receiver,
}

/// A POST as the receiver saw it.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "printed")]
struct Post {
    at: Instant,
    prompt: i64,
    id: String,
    relay: String,
}

/// Both servers, in this order, as libpq's parameters.
fn both() -> String {
    format!("host={},{} port={PORT} {WHO}", Net::Db.address(1), Net::Db.address(2))
}

impl World {
    /// The first server is the primary. With `synchronous` it waits for the standby with each commit.
    async fn start(synchronous: bool) -> World {
        World::start_with(synchronous, [""; 2]).await
    }

    /// As [`World::start`], with more in the relays' URLs.
    async fn start_with(synchronous: bool, more: [&str; 2]) -> World {
        let servers = thread::scope(|scope| {
            [(1, 2), (2, 1)]
                .map(|(number, peer)| scope.spawn(move || Server::start(number, peer)))
                .map(|server| server.join().unwrap())
        });
        let [mut first, mut second] = servers;
        // The standby gets both with the data. The second is for pg_rewind, which starts the server by itself.
        let lines = [
            ("pg_hba.conf", "host all,replication all 10.77.1.0/24 trust\n"),
            ("postgresql.conf", "wal_log_hints = on\n"),
        ];
        for (file, line) in lines {
            let file = fs::OpenOptions::new().append(true).open(format!("{}/{file}", first.data()));
            file.unwrap().write_all(line.as_bytes()).unwrap();
        }
        first.reboot();
        let database = Database::on(&first.url).await;
        second.follow(&first);
        let follows = |state: &str| format!("SELECT count(*) = 1 FROM pg_stat_replication WHERE {state}");
        database.eventually(&follows("state = 'streaming'")).await;
        if synchronous {
            database.client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.unwrap();
            database.client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
            database.eventually(&follows("sync_state = 'sync'")).await;
        }
        let posts = Arc::<Mutex<Vec<Post>>>::default();
        let receiver = receiver(posts.clone());
        database.webhook(1, &receiver.url("/")).await;
        let relay = |number: u8, more: &str| {
            let host = Host::new(number, &[Net::Db, Net::Out]);
            let name = format!("relay{number}");
            let flags =
                ["--allow-net", "10.77.2.0/24", "--user-agent-version", &name, "--log-level", "debug"];
            let url = format!("{} target_session_attrs=read-write {more}", both());
            let relay = host.run(|| Relay::spawn(&url, &flags).ready());
            (host, relay)
        };
        let relays = [relay(3, more[0]), relay(4, more[1])];
        let app = App::start();
        let world = World { servers: [first, second], relays, app, posts, _receiver: receiver };
        world.until_steady().await;
        world
    }

    /// Waits until the receiver has got some more events.
    async fn until_steady(&self) {
        let before = self.posts.lock().unwrap().len();
        self.until("events arrive", || self.posts.lock().unwrap().len() >= before + STEADY).await;
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            if Instant::now() > deadline {
                let told = |(_, relay): &(Host, Relay)| format!("runs: {}\n{}", runs(relay), relay.log());
                let logs: Vec<String> = self.relays.iter().map(told).collect();
                panic!("never: {what}\n{}", logs.join("\n----\n"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The value of a metric of a relay.
    fn metric(&self, relay: usize, series: &str) -> f64 {
        let (host, relay) = &self.relays[relay];
        host.run(|| relay.metric(series))
    }

    /// Stops the application, waits until all is done at this server, and audits the books.
    async fn settle(self, what: &str, harm: Instant, server: usize) -> Books {
        let written = self.app.stop();
        let database = Database::at(&self.servers[server].url).await;
        let open = "SELECT count(*) FROM relay.outbox WHERE done_at IS NULL";
        let deadline = Instant::now() + Duration::from_secs(30);
        while database.number(open).await > 0 {
            if Instant::now() > deadline {
                let logs: Vec<String> = self.relays.iter().map(|(_, relay)| relay.log()).collect();
                panic!("rows are left\n{}", logs.join("\n----\n"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let posts = self.posts.lock().unwrap().clone();
        let books = Books::audit(&database, &written, &posts, harm).await;
        println!("{what}: {books:?}; {} inserts without an answer", written.unknown);
        for (_, relay) in &self.relays {
            assert!(!relay.log().contains("panicked"), "{}", relay.log());
        }
        books
    }
}

/// A receiver that answers within 20 ms, and one event in ten after a second.
fn receiver(posts: Arc<Mutex<Vec<Post>>>) -> Receiver {
    Receiver::at(Net::Out.address(HERE), move |request| {
        let prompt = request.json()["promptId"].as_i64().unwrap();
        let of = |name| request.header(name).unwrap().to_owned();
        let (id, agent) = (of("webhook-id"), of("user-agent"));
        let relay = agent.rsplit_once('@').unwrap().1.to_owned();
        posts.lock().unwrap().push(Post { at: Instant::now(), prompt, id, relay });
        thread::sleep(Duration::from_millis(if prompt % 10 == 0 { 1000 } else { 20 }));
        Reply::status(200)
    })
}

// ---- the application ----------------------------------------------------------------------------------------------

/// Inserts events, each in a transaction of its own, until it is told to stop.
struct App {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Written>,
}

/// What the application knows.
#[derive(Default)]
struct Written {
    /// Prompts of the inserts that the server has committed.
    committed: Vec<i64>,
    /// How many inserts had no answer: only the database knows.
    unknown: usize,
}

impl App {
    fn start() -> App {
        let stop = Arc::<AtomicBool>::default();
        let told = stop.clone();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(insert(&told))
        };
        App { stop, thread: thread::spawn(work) }
    }

    fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

async fn insert(stop: &AtomicBool) -> Written {
    let mut written = Written::default();
    let mut prompt = 0;
    let url = format!("{} target_session_attrs=read-write connect_timeout=1", both());
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        tokio::spawn(connection);
        let sql = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
                   VALUES (1, $1, 'user', 0, 1, 1, 1)";
        while !stop.load(Ordering::Relaxed) {
            prompt += 1;
            match tokio::time::timeout(STATEMENT_MAX, client.execute(sql, &[&prompt])).await {
                Ok(Ok(_)) => written.committed.push(prompt),
                Ok(Err(_)) | Err(_) => {
                    written.unknown += 1;
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    written
}

// ---- the books ----------------------------------------------------------------------------------------------------

/// What came of the events.
#[derive(Debug)]
#[expect(dead_code, reason = "printed")]
struct Books {
    events: usize,
    posts: usize,
    /// POSTs beyond the first one of an event.
    repeated: usize,
    /// Events that arrived more than once and whose record does not say so.
    unmarked: Vec<i64>,
    /// Records that say so, for whatever reason.
    marked: usize,
    /// Events that the application knows to be committed and that are not on record.
    lost: usize,
    /// Events that arrived and that the database does not have.
    vanished: usize,
    /// The longest time without a new event since the harm.
    pause: Duration,
}

impl Books {
    async fn audit(database: &Database, written: &Written, posts: &[Post], harm: Instant) -> Books {
        let sql = "SELECT o.prompt_id, c.repeated, c.event_id = o.event_id AS same FROM relay.outbox o
                     LEFT JOIN relay.webhook_calls c ON c.outbox_id = o.id";
        let mut records: HashMap<i64, bool> = HashMap::new();
        for row in database.client.query(sql, &[]).await.unwrap() {
            let prompt = row.get(0);
            assert_eq!(row.get::<_, Option<bool>>("same"), Some(true), "{prompt}: a record of its own");
            assert!(records.insert(prompt, row.get(1)).is_none(), "{prompt}: one record");
        }
        let mut by_prompt: HashMap<i64, Vec<&Post>> = HashMap::new();
        let mut prompts: HashMap<&str, i64> = HashMap::new();
        for post in posts {
            by_prompt.entry(post.prompt).or_default().push(post);
            assert_eq!(*prompts.entry(&post.id).or_insert(post.prompt), post.prompt, "one id, two events");
        }
        let unmarked =
            by_prompt.iter().filter(|(prompt, posts)| posts.len() > 1 && records.get(prompt) == Some(&false));
        let mut unmarked: Vec<i64> = unmarked.map(|(prompt, _)| *prompt).collect();
        unmarked.sort_unstable();
        for prompt in &unmarked {
            println!("unmarked: {:?}", by_prompt[prompt]);
        }
        let mut firsts: Vec<Instant> = by_prompt.values().map(|posts| posts[0].at).collect();
        firsts.sort_unstable();
        let pauses = firsts.windows(2).filter(|pair| pair[1] > harm).map(|pair| pair[1] - pair[0]);
        let delivered: HashSet<i64> = by_prompt.keys().copied().collect();
        Books {
            events: records.len(),
            posts: posts.len(),
            repeated: posts.len() - by_prompt.len(),
            unmarked,
            marked: records.values().filter(|marked| **marked).count(),
            lost: written
                .committed
                .iter()
                .filter(|prompt| !records.contains_key(prompt) || !delivered.contains(prompt))
                .count(),
            vanished: delivered.iter().filter(|prompt| !records.contains_key(prompt)).count(),
            pause: pauses.max().unwrap_or_default(),
        }
    }
}

// ---- the cases ----------------------------------------------------------------------------------------------------

/// Promotes the second server, as an operator does.
async fn promote(server: &Server) {
    let database = Database::at(&server.url).await;
    assert!(database.client.query_one("SELECT pg_promote()", &[]).await.unwrap().get::<_, bool>(0));
}

/// Whether a relay has lost its sessions and looks for Postgres.
fn is_looking(relay: &Relay) -> bool {
    relay.journal().iter().any(|line| line["level"] == "WARN")
}

/// Whether the process of a relay has not ended.
fn runs(relay: &Relay) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(relay.pid()), flags).unwrap() == WaitStatus::StillAlive
}

/// Ends all sessions of relays at a server: each relay looks for the primary again.
async fn end_sessions(server: &Server) {
    let database = Database::at(&server.url).await;
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'promptpal-relay %'";
    assert!(database.number(sql).await >= 6);
}

#[test]
fn a_switchover_repeats_no_call() {
    apart("hosts::a_switchover_repeats_no_call", async {
        let mut world = World::start(true).await;
        let harm = Instant::now();
        world.servers[0].cluster.halt(Stop::Fast);
        promote(&world.servers[1]).await;
        world.until_steady().await;
        // The old primary follows the new one, and is the first that the relays try.
        world.servers[0].stand_by();
        end_sessions(&world.servers[1]).await;
        world.until_steady().await;
        let books = world.settle("switchover", harm, 1).await;
        assert_eq!((books.repeated, books.lost, books.vanished), (0, 0, 0));
    });
}

#[test]
fn a_failover_repeats_no_call_whatever_becomes_of_the_old_primary() {
    apart("hosts::a_failover_repeats_no_call_whatever_becomes_of_the_old_primary", async {
        let mut world = World::start(true).await;
        let harm = Instant::now();
        world.servers[0].kill();
        promote(&world.servers[1]).await;
        world.until_steady().await;
        // It comes back as a primary, which takes writes. The relays have it first in their URL.
        world.servers[0].boot();
        let old = Database::at(&world.servers[0].url).await;
        let open = old.number("SELECT count(*) FROM relay.outbox WHERE done_at IS NULL").await;
        println!("the old primary has {open} rows that it takes for pending");
        end_sessions(&world.servers[1]).await;
        world.until_steady().await;
        let here = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'promptpal-relay %'";
        assert_eq!(old.number(here).await, 0, "no relay works on the old primary");
        // The operator reads it, although another server is there.
        for (_, relay) in &world.relays {
            relay.until_told("the old primary", |line| {
                line["error"].as_str().is_some_and(|error| error.contains("it is an old primary"))
            });
        }
        drop(old);
        // It becomes a standby.
        let [old, new] = &mut world.servers;
        old.cluster.halt(Stop::Fast);
        Database::at(&new.url).await.client.batch_execute("CHECKPOINT").await.unwrap();
        let from = format!("host={} port={PORT} {WHO}", new.host.address(Net::Db));
        old.tool("pg_rewind", &["--no-sync", "--target-pgdata", &old.data(), "--source-server", &from]);
        old.stand_by();
        end_sessions(&world.servers[1]).await;
        world.until_steady().await;
        let books = world.settle("failover", harm, 1).await;
        assert_eq!((books.repeated, books.lost, books.vanished), (0, 0, 0));
    });
}

#[test]
fn a_failover_from_a_host_that_is_gone_repeats_no_call() {
    apart("hosts::a_failover_from_a_host_that_is_gone_repeats_no_call", async {
        // One of the relays waits for a silent host for longer than its peer waits for it.
        let mut world = World::start_with(true, ["connect_timeout=30", ""]).await;
        let harm = Instant::now();
        world.servers[0].host.cut(Net::Db);
        world.servers[0].kill();
        // Both wait for the host that is gone.
        world
            .until("both look for Postgres", || world.relays.iter().all(|(_, relay)| is_looking(relay)))
            .await;
        let promoted = Instant::now();
        promote(&world.servers[1]).await;
        world.until_steady().await;
        println!("promoted {:?} after the cut", promoted - harm);
        let books = world.settle("failover from a host that is gone", harm, 1).await;
        assert_eq!((books.repeated, books.lost, books.vanished), (0, 0, 0));
    });
}

#[test]
fn a_standby_that_is_cut_off_makes_relays_wait_and_repeats_no_call() {
    apart("hosts::a_standby_that_is_cut_off_makes_relays_wait_and_repeats_no_call", async {
        let world = World::start(true).await;
        let harm = Instant::now();
        world.servers[1].host.cut(Net::Db);
        // At least one of them has a record to write; the other may have nothing in hand.
        let tells = |(host, relay): &(Host, Relay)| host.run(|| get(relay.port(), "/healthz")).0 == 503;
        world.until("a relay tells", || world.relays.iter().any(tells)).await;
        println!("told after {:?}", harm.elapsed());
        world.servers[1].host.heal(Net::Db);
        world.until_steady().await;
        for (host, relay) in &world.relays {
            host.run(|| until_answer(relay.port(), "/healthz", |status, _| status == 200));
        }
        let books = world.settle("the standby is cut off", harm, 0).await;
        assert_eq!((books.repeated, books.lost, books.vanished), (0, 0, 0));
    });
}

#[test]
fn a_failover_that_loses_events_mixes_up_none() {
    apart("hosts::a_failover_that_loses_events_mixes_up_none", async {
        let mut world = World::start(false).await;
        // The standby gets nothing any more of what is delivered.
        world.servers[1].host.cut(Net::Db);
        world.until_steady().await;
        let harm = Instant::now();
        world.servers[0].kill();
        world.servers[1].host.heal(Net::Db);
        promote(&world.servers[1]).await;
        world.until_steady().await;
        let books = world.settle("failover to a standby that lagged", harm, 1).await;
        assert!(books.lost >= STEADY && books.vanished >= STEADY, "lost at the database");
    });
}

#[test]
fn a_relay_that_is_cut_off_loses_its_rows_to_the_other_one() {
    apart("hosts::a_relay_that_is_cut_off_loses_its_rows_to_the_other_one", async {
        let world = World::start(false).await;
        let harm = Instant::now();
        world.relays[0].0.cut(Net::Db);
        let takeovers = "promptpal_relay_takeovers_total";
        world.until("the other relay takes over", || world.metric(1, takeovers) >= 1.0).await;
        println!("taken over after {:?}", harm.elapsed());
        let healed = Instant::now();
        world.relays[0].0.heal(Net::Db);
        world.until("the relay is back", || world.metric(0, RECONNECTS) >= 1.0).await;
        println!("back {:?} after the end of the cut", healed.elapsed());
        world.until_steady().await;
        println!("fenced {}", world.metric(0, "promptpal_relay_rows_fenced_total"));
        let books = world.settle("a relay is cut off", harm, 0).await;
        assert_eq!((books.unmarked.len(), books.lost, books.vanished), (0, 0, 0));
        assert!(books.repeated > 0);
    });
}

#[test]
fn a_database_that_is_cut_off_and_comes_back_goes_on() {
    apart("hosts::a_database_that_is_cut_off_and_comes_back_goes_on", async {
        let world = World::start(false).await;
        let harm = Instant::now();
        world.servers[0].host.cut(Net::Db);
        let database = Database::at(&world.servers[0].url).await;
        let none =
            "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'promptpal-relay %'";
        database.eventually(none).await;
        println!("the server has ended all sessions after {:?}", harm.elapsed());
        // Each relay is somewhere between two tries.
        let refused = world.relays.iter().map(|(_, relay)| relay.journal().len()).collect::<Vec<_>>();
        world
            .until("both try", || {
                world
                    .relays
                    .iter()
                    .zip(&refused)
                    .all(|((_, relay), before)| relay.journal().len() > before + 1)
            })
            .await;
        let healed = Instant::now();
        world.servers[0].host.heal(Net::Db);
        world
            .until("the relays are back", || (0..2).all(|relay| world.metric(relay, RECONNECTS) >= 1.0))
            .await;
        println!("both are back {:?} after the end of the cut of {:?}", healed.elapsed(), healed - harm);
        world.until_steady().await;
        let books = world.settle("the database is cut off", harm, 0).await;
        assert_eq!((books.unmarked.len(), books.lost, books.vanished), (0, 0, 0));
    });
}
