//! A stranger who may connect to the database, and nothing else, takes advisory locks and sends notifications. The relay
//! does its work all the same.

use std::time::{Duration, Instant};

use promptpal_relay::inside::config;
use promptpal_relay::inside::daemon::{Outcome, Retention};
use tokio_postgres::Client;

use crate::support::{Database, Receiver, Relay, as_user, connect, gated, outcome, scrape};

/// A login that is a member of nothing.
struct Stranger<'a> {
    database: &'a Database,
    name: String,
}

impl Stranger<'_> {
    async fn of<'a>(database: &'a Database, name: &str) -> Stranger<'a> {
        let name = format!("{name}_{}", std::process::id());
        run(database, &format!("CREATE ROLE {name} LOGIN PASSWORD 'x'")).await;
        Stranger { database, name }
    }

    async fn session(&self) -> Client {
        connect(&as_user(&self.database.url, &self.name, "x")).await
    }

    /// Sessions that hold each lock of the relays, or wait for it, one lock each.
    async fn on_each_lock(&self, mode: &str) -> Vec<Client> {
        let first = self.session().await;
        let keys = "SELECT classid::bigint, objid::bigint, objsubid FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                    WHERE locktype = 'advisory' AND d.datname = current_database() AND granted
                      AND classid NOT IN (1886415987, 1886415988, 1886415989) ORDER BY 1, 2";
        let mut sessions = Vec::new();
        for key in first.query(keys, &[]).await.unwrap() {
            let (class, object, parts): (i64, i64, i16) = (key.get(0), key.get(1), key.get(2));
            let key =
                if parts == 1 { format!("{}", class << 32 | object) } else { format!("{class}, {object}") };
            let session = self.session().await;
            let lock = format!("SELECT pg_advisory_lock{mode}({key})");
            // It may wait for the end of the relay; dropped with the session.
            let waits = session.simple_query(&lock);
            drop(tokio::time::timeout(Duration::from_millis(50), waits).await);
            sessions.push(session);
        }
        assert!(sessions.len() >= 3);
        sessions
    }

    async fn gone(self) {
        let none_left = format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = '{}'", self.name);
        self.database.eventually(&none_left).await;
        run(self.database, &format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name)).await;
    }
}

async fn run(database: &Database, sql: &str) {
    database.client.batch_execute(sql).await.unwrap();
}

/// Makes a login for a daemon; returns the URL with it.
async fn daemon(database: &Database, name: &str) -> String {
    let name = format!("{name}_{}", std::process::id());
    run(database, &format!("CREATE ROLE {name} LOGIN PASSWORD 'x' IN ROLE relay_daemon")).await;
    as_user(&database.url, &name, "x")
}

async fn drop_daemons(database: &Database, names: &[&str]) {
    for name in names {
        let name = format!("{name}_{}", std::process::id());
        let none_left = format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = '{name}'");
        database.eventually(&none_left).await;
        run(database, &format!("REVOKE relay_daemon FROM {name}; DROP ROLE {name}")).await;
    }
}

#[tokio::test]
async fn a_strangers_lock_on_a_living_instance_keeps_no_row_from_being_taken_over() {
    for mode in ["_shared", ""] {
        let database = Database::new().await;
        let stranger = Stranger::of(&database, "holder").await;
        let (receiver, gate) = gated();
        database.webhook(1, &receiver.url("/")).await;
        let killed = Relay::start(&database, &["--poll-interval", "1h"]);
        database.events(1, 1).await;
        receiver.wait_for(1);
        let held = stranger.on_each_lock(mode).await;
        killed.kill();
        let _peer = Relay::start(&database, &["--poll-interval", "1h"]);
        receiver.wait_for(2);
        gate.open();
        database.all_done().await;
        drop(held);
        stranger.gone().await;
    }
}

#[tokio::test]
async fn a_strangers_locks_take_no_row_from_an_instance_that_lives_or_comes_back() {
    for mode in ["_shared", ""] {
        let database = Database::new().await;
        let stranger = Stranger::of(&database, "taker").await;
        let (receiver, gate) = gated();
        database.webhook(1, &receiver.url("/")).await;
        let names = ["first_daemon", "second_daemon"];
        // Two logins: each sees the other's sessions as little as a stranger's.
        let mut relays = Vec::new();
        for name in names {
            let flags = ["--poll-interval", "1h", "--log-level", "debug"];
            relays.push(Relay::spawn(&daemon(&database, name).await, &flags).ready());
        }
        database.events(1, 1).await;
        receiver.wait_for(1);
        let held = stranger.on_each_lock(mode).await;
        // The stranger holds the epochs that would be next if they were counted.
        let next = stranger.session().await;
        let many =
            "SELECT count(pg_advisory_lock(1886415986, n) IS NULL) + count(pg_advisory_lock(n) IS NULL)
                    FROM generate_series(3, 3000) AS n";
        next.batch_execute(many).await.unwrap();
        for (times, session) in (1..).zip(["promptpal-relay listen", "promptpal-relay %"]) {
            let sql = "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
                       WHERE a.datname = current_database() AND a.application_name LIKE $1
                         AND a.usename LIKE '%\\_daemon\\_%'";
            assert!(database.client.query(sql, &[&session]).await.unwrap().len() >= 2);
            relays.iter().for_each(|relay| relay.until_reconnected(times));
        }
        // Both have looked at each other for a while.
        let looked = format!(
            "SELECT count(*) = 2 FROM pg_stat_activity WHERE datname = current_database()
             AND application_name = 'promptpal-relay listen' AND query_start > '{}'::timestamptz + interval '500 ms'",
            database.client.query_one("SELECT now()::text", &[]).await.unwrap().get::<_, &str>(0)
        );
        database.eventually(&looked).await;
        gate.open();
        database.all_done().await;
        let logs = relays.iter().map(Relay::log).collect::<String>();
        assert_eq!(receiver.requests().len(), 1, "{mode}\n{logs}");
        for relay in &relays {
            assert_eq!(relay.declared_dead(), [0; 0], "{mode}");
            // At each reconnection the relay ends its older sessions, in two steps. Postgres refuses a step that would
            // end a stranger's session.
            let journal = relay.journal();
            let asked =
                journal.iter().filter(|line| line["level"] == "DEBUG" && line["ended"].is_u64()).count();
            assert!(asked as f64 >= 2.0 * relay.reconnects(), "{mode}: {asked}\n{logs}");
        }
        let calls = database.calls().await;
        assert!(calls.len() == 1 && !calls[0].get::<_, bool>("repeated"), "{mode}");
        drop((held, next, relays));
        stranger.gone().await;
        drop_daemons(&database, &names).await;
    }
}

#[tokio::test]
async fn a_stranger_who_holds_the_next_epochs_keeps_no_relay_from_starting() {
    let database = Database::new().await;
    let stranger = Stranger::of(&database, "occupier").await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let session = stranger.session().await;
    let many = "SELECT count(pg_advisory_lock(1886415986, n) IS NULL) + count(pg_advisory_lock(n) IS NULL)
                FROM generate_series(1, 3000) AS n";
    session.batch_execute(many).await.unwrap();
    let _relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    database.all_done().await;
    drop(session);
    stranger.gone().await;
}

#[tokio::test]
async fn a_refused_epoch_is_drawn_anew_a_few_times() {
    let database = Database::new().await;
    run(
        &database,
        "CREATE SEQUENCE tries;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF nextval(''public.tries'') <= TG_ARGV[0]::integer THEN RETURN NULL; END IF; RETURN NEW; END';
         CREATE TRIGGER refuse BEFORE INSERT ON relay.instances FOR EACH ROW EXECUTE FUNCTION refuse(3)",
    )
    .await;
    drop(Relay::start(&database, &[]));
    assert_eq!(database.number("SELECT last_value FROM tries").await, 4);
    let always = "DROP TRIGGER refuse ON relay.instances;
                  CREATE TRIGGER refuse BEFORE INSERT ON relay.instances FOR EACH ROW EXECUTE FUNCTION refuse(1000)";
    run(&database, always).await;
    let (code, _, err) = outcome(database.command(&["run"]));
    assert!(code == 1 && err.contains("8 random epochs were refused"), "{code} {err}");
    assert!(database.number("SELECT last_value FROM tries").await < 20);
}

/// Counts the wake-ups of this cause within three seconds.
fn wakeups(port: u16, cause: &str) -> f64 {
    let series = format!("promptpal_relay_wakeups_total{{cause=\"{cause}\"}}");
    let now = || scrape::value(&scrape::get(port, "/metrics").1, &series).unwrap_or_default();
    let before = now();
    // The count is of this time; the test waits for no condition here.
    std::thread::sleep(Duration::from_secs(3));
    now() - before
}

#[tokio::test]
async fn who_keeps_the_relay_awake_costs_it_little_and_is_named() {
    let database = Database::new().await;
    let stranger = Stranger::of(&database, "waker").await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let (code, out, err) = outcome(database.command(&["check"]));
    assert!(code == 0 && out.contains("no other session holds them"), "{out}{err}");
    // One session holds the lock before the relay can sleep. The other has inserted, and its transaction stays open.
    let (holder, inserter) = (stranger.session().await, connect(&database.url).await);
    holder.batch_execute("SELECT pg_advisory_lock_shared(1886415987, 0)").await.unwrap();
    let relay = Relay::start(&database, &["--poll-interval", "1h"]);
    let port = relay.port();
    let sql = "BEGIN; INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
               VALUES (1, 1, 'user', 0, 1, 1, 1)";
    inserter.batch_execute(sql).await.unwrap();
    database.events(1, 1).await;
    database.eventually("SELECT count(*) = 1 FROM relay.webhook_calls").await;
    scrape::until(port, "promptpal_relay_wakeups_total{cause=\"dozing\"}", |count| count >= 9.0);
    let dozed = wakeups(port, "dozing");
    assert!(dozed <= 20.0, "looked {dozed} times in 3 s\n{}", relay.log());
    assert!(dozed >= 1.0, "nobody keeps it awake");
    for command in ["check", "status"] {
        let (code, out, err) = outcome(database.command(&[command]));
        assert_eq!(code, 0, "{out}{err}");
        for (backend, user, state) in [
            (pid(&holder).await, stranger.name.as_str(), "(idle)"),
            (pid(&inserter).await, "postgres", "(idle in transaction)"),
        ] {
            let who = format!("session {backend} of {user} {state} holds the sleep lock");
            assert!(out.contains(&who), "{who}\n{out}");
        }
    }
    let (_, out, _) = outcome(database.command(&["status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status["lock_holders"].as_array().unwrap().len(), 2, "{out}");
    // The relay finds the row that was inserted meanwhile.
    inserter.batch_execute("COMMIT").await.unwrap();
    database.all_done().await;
    drop((holder, inserter));
    stranger.gone().await;
}

async fn pid(session: &Client) -> i32 {
    session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_stranger_who_has_the_sleep_lock_and_lets_it_go_leaves_no_row_waiting() {
    let database = Database::new().await;
    let stranger = Stranger::of(&database, "sleeper").await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let session = stranger.session().await;
    session.batch_execute("SELECT pg_advisory_lock(1886415987, 0)").await.unwrap();
    let relay = Relay::start(&database, &["--poll-interval", "1h"]);
    let port = relay.port();
    // The relay hears a notification also then.
    database.events(1, 1).await;
    database.all_done().await;
    // The relay looks by itself, again and again.
    scrape::until(port, "promptpal_relay_wakeups_total{cause=\"dozing\"}", |count| count >= 24.0);
    session.batch_execute("SELECT pg_advisory_unlock(1886415987, 0)").await.unwrap();
    database.events(1, 1).await;
    database.all_done().await;
    drop(session);
    stranger.gone().await;
}

#[tokio::test]
async fn of_two_idle_relays_neither_looks_more_often_than_it_polls() {
    let database = Database::new().await;
    let flags = ["--poll-interval", "1s"];
    let relays = [Relay::start(&database, &flags), Relay::start(&database, &flags)];
    for relay in &relays {
        let port = relay.port();
        scrape::until(port, "promptpal_relay_wakeups_total{cause=\"poll\"}", |count| count >= 1.0);
        for cause in ["own", "last_look"] {
            let count = wakeups(port, cause);
            assert!(count <= 12.0, "{count} looks in 3 s for {cause}");
        }
    }
}

#[tokio::test]
async fn notifications_without_end_cost_a_look_each_20_ms() {
    let database = Database::new().await;
    let stranger = Stranger::of(&database, "caller").await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &["--poll-interval", "1h"]);
    let port = relay.port();
    let session = stranger.session().await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let calling = tokio::spawn(async move {
        while stopped.try_recv().is_err() {
            session.batch_execute("NOTIFY promptpal_relay").await.unwrap();
        }
    });
    let counted = tokio::task::spawn_blocking(move || {
        scrape::until(port, "promptpal_relay_wakeups_total{cause=\"notified\"}", |count| count >= 20.0);
        wakeups(port, "notified")
    });
    let heard = counted.await.unwrap();
    assert!(heard <= 160.0, "{heard} looks in 3 s");
    let start = Instant::now();
    database.events(1, 1).await;
    database.all_done().await;
    println!("a row among them took {:?}", start.elapsed());
    stop.send(()).unwrap();
    calling.await.unwrap();
    stranger.gone().await;
}

#[tokio::test]
async fn a_stranger_keeps_nobody_from_the_retention_or_from_migrating() {
    let database = Database::new().await;
    let stranger = Stranger::of(&database, "keeper").await;
    let session = stranger.session().await;
    session
        .batch_execute("SELECT pg_advisory_lock(1886415988, 0), pg_advisory_lock(1886415989, 0)")
        .await
        .unwrap();
    let cli = <promptpal_relay::inside::cli::Cli as clap::Parser>::try_parse_from([
        "promptpal-relay",
        "--database-url",
        &database.url,
        "migrate",
    ]);
    let settings = config::database(&cli.unwrap().global).unwrap();
    let day = Duration::from_secs(86400);
    let outcome_of_run = Retention::default().run_once(&settings, 30 * day, day).await.unwrap();
    assert_ne!(outcome_of_run, Outcome::Busy);
    let (code, _, err) = outcome(database.command(&["migrate"]));
    assert!(code == 0 && !err.contains("waiting for it"), "{code} {err}");
    let (_, out, _) = outcome(database.command(&["check"]));
    for lock in ["migrate", "retention"] {
        let who =
            format!("session {} of {} (idle) holds the {lock} lock", pid(&session).await, stranger.name);
        assert!(out.contains(&who), "{out}");
    }
    // The script waits for no advisory lock either.
    let (_, script, _) = outcome(database.command(&["migrate", "--print"]));
    tokio::time::timeout(Duration::from_secs(20), database.client.batch_execute(&script))
        .await
        .expect("it waits")
        .unwrap();
    drop(session);
    stranger.gone().await;
}
