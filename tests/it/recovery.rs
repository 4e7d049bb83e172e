//! Nothing lost, nothing recorded twice: kill, takeover, reconnect, stop.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use promptpal_relay::command::demo::postgres::{Cluster, Stop};
use promptpal_relay::outbox::Role;

use crate::monitoring;
use crate::support::{Database, Gate, Network, Receiver, Relay, Reply, as_user, connect, gated};

/// The relay that has rows in hand, and the others.
async fn busy(database: &Database, relays: Vec<Relay>) -> (Relay, Vec<Relay>) {
    let sql =
        "SELECT i.pid::bigint FROM relay.instances i JOIN relay.outbox o ON o.claimed_by = i.epoch LIMIT 1";
    let pid = database.number(sql).await;
    let (mut busy, others): (Vec<_>, Vec<_>) =
        relays.into_iter().partition(|relay| i64::from(relay.pid().as_raw()) == pid);
    (busy.pop().expect("one of them"), others)
}

/// Whether each call succeeded, and whether it is marked as repeated.
async fn outcomes(database: &Database) -> Vec<(bool, bool)> {
    database.calls().await.iter().map(|call| (call.get("succeeded"), call.get("repeated"))).collect()
}

#[tokio::test]
async fn the_next_start_finds_the_rows_of_a_killed_relay() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &["--poll-interval", "1h"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    relay.kill();
    let _next = Relay::start(&database, &["--poll-interval", "1h"]);
    receiver.wait_for(2);
    gate.open();
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true)]);
    // A row that nobody had in hand is not marked.
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true), (true, false)]);
}

#[tokio::test]
async fn a_peer_takes_the_rows_of_a_killed_relay_over() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--poll-interval", "1h"];
    let relays = vec![Relay::start(&database, &flags), Relay::start(&database, &flags)];
    database.events(1, 1).await;
    receiver.wait_for(1);
    let (killed, _others) = busy(&database, relays).await;
    let start = Instant::now();
    killed.kill();
    println!("kill to the peer's POST: {:?}", receiver.wait_for(2)[1].at - start);
    gate.open();
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true)]);
}

#[tokio::test]
async fn a_peer_finds_the_rows_that_a_killed_relay_had_parked() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--poll-interval", "1h", "--per-webhook", "1"];
    let relays = vec![Relay::start(&database, &flags), Relay::start(&database, &flags)];
    database.events(1, 1).await;
    receiver.wait_for(1);
    let (busy, others) = busy(&database, relays).await;
    // The other one sees none of them before they are parked.
    others[0].signal(Signal::SIGSTOP);
    database.events(1, 50).await;
    database.eventually("SELECT count(*) FILTER (WHERE parked) > 0 AND count(*) FILTER (WHERE NOT parked AND claimed_by IS NULL) = 0 FROM relay.outbox").await;
    busy.kill();
    others[0].signal(Signal::SIGCONT);
    gate.open();
    database.all_done().await;
}

#[tokio::test]
async fn who_prefers_at_most_once_gets_interrupted_calls_recorded() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/secret")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    relay.kill();
    gate.open();
    let _next = Relay::start(&database, &["--after-crash", "record"]);
    database.all_done().await;
    let calls = database.calls().await;
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].get::<_, Option<&str>>("error_kind"), Some("interrupted"));
    assert!(calls[0].get::<_, bool>("repeated"));
    assert_eq!(calls[0].get::<_, &str>("url"), receiver.url("/secret"));
    assert_eq!(receiver.requests().len(), 1, "not posted again");
}

/// Ends sessions of a user's relays.
async fn terminate(database: &Database, user: &str, application: &str) {
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND usename LIKE $1 AND application_name LIKE $2";
    let ended: i64 = database.client.query_one(sql, &[&user, &application]).await.unwrap().get(0);
    assert!(ended > 0, "no session is called {application}");
}

#[tokio::test]
async fn a_terminated_session_repeats_no_call() {
    let sessions =
        ["promptpal-relay claim", "promptpal-relay finish", "promptpal-relay listen", "promptpal-relay %"];
    for session in sessions {
        let database = Database::new().await;
        let (receiver, gate) = gated();
        database.webhook(1, &receiver.url("/")).await;
        let relay = Relay::start(&database, &["--poll-interval", "1h"]);
        database.events(1, 1).await;
        receiver.wait_for(1);
        terminate(&database, "%", session).await;
        // It has come back under a new epoch and taken its row over.
        let back =
            "SELECT EXISTS (SELECT FROM relay.outbox o JOIN relay.instances i ON i.epoch = o.claimed_by
                        WHERE i.dead_at IS NULL AND i.epoch <> (SELECT epoch FROM relay.instances ORDER BY started_at LIMIT 1))";
        database.eventually(back).await;
        gate.open();
        database.all_done().await;
        assert_eq!(outcomes(&database).await, [(true, false)], "{session}\n{}", relay.log());
        // And it works on, by notification.
        database.events(1, 1).await;
        receiver.wait_for(2);
        database.all_done().await;
        assert_eq!(receiver.requests().len(), 2, "{session}");
        let log = relay.log();
        assert!(log.contains("lost Postgres") && log.contains("found Postgres again"), "{log}");
    }
}

#[tokio::test]
async fn a_peer_does_not_take_the_rows_of_one_that_comes_right_back() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let relays = vec![Relay::start(&database, &[]), Relay::start(&database, &[])];
    database.events(1, 1).await;
    receiver.wait_for(1);
    let (relay, _peers) = busy(&database, relays).await;
    for session in ["promptpal-relay listen", "promptpal-relay claim", "promptpal-relay finish"] {
        let epoch = database.number("SELECT claimed_by FROM relay.outbox").await;
        let pid = relay.pid().as_raw();
        // One session of this relay, which is told from the other's by the liveness lock.
        let sql = "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                   JOIN relay.instances i ON (l.classid::bigint << 32 | l.objid::bigint) = ANY (i.locks)
                   WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND i.epoch = $1
                     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                     AND a.application_name = $2";
        assert_eq!(database.client.query(sql, &[&epoch, &session]).await.unwrap().len(), 1, "{session}");
        // It is back as soon as all its sessions are.
        let back = format!(
            "SELECT EXISTS (SELECT FROM relay.outbox o JOIN relay.instances i ON i.epoch = o.claimed_by
                 WHERE i.epoch <> {epoch} AND i.pid = {pid}
                   AND (SELECT count(*) FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 1
                            AND (l.classid::bigint << 32 | l.objid::bigint) = ANY (i.locks)
                            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())) = 3)"
        );
        database.eventually(&back).await;
    }
    gate.open();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 1);
    assert_eq!(outcomes(&database).await, [(true, false)]);
}

#[tokio::test]
async fn a_relay_that_gets_some_of_its_sessions_keeps_its_rows() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let user = format!("few_sessions_{}", std::process::id());
    let run = async |sql: String| database.client.batch_execute(&sql).await.unwrap();
    run(format!("CREATE ROLE {user} LOGIN PASSWORD 'x' CONNECTION LIMIT 4 IN ROLE relay_daemon")).await;
    let url = as_user(&database.url, &user, "x");
    let relay = Relay::spawn(&url, &["--poll-interval", "100ms"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    let peer = Relay::start(&database, &[]);
    // Two sessions are left to it, and it may have no more: one too few. A peer looks at it all the while.
    run(format!("ALTER ROLE {user} CONNECTION LIMIT 2")).await;
    terminate(&database, &user, "promptpal-relay finish").await;
    relay.wait_for_log_of(4, "waiting for Postgres");
    run(format!("ALTER ROLE {user} CONNECTION LIMIT 20")).await;
    relay.wait_for_log("found Postgres again");
    gate.open();
    database.all_done().await;
    assert!(!peer.log().contains("dead instance"), "{}", peer.log());
    assert_eq!(receiver.requests().len(), 1);
    assert_eq!(outcomes(&database).await, [(true, false)]);
    drop(relay);
    run(format!("REVOKE relay_daemon FROM {user}; DROP ROLE {user}")).await;
}

#[tokio::test]
async fn a_limit_of_sessions_that_its_own_old_ones_use_up_keeps_no_relay_away() {
    for limit in 3..=6 {
        let database = Database::new().await;
        let (receiver, gate) = gated();
        database.webhook(1, &receiver.url("/")).await;
        let user = format!("limited_{limit}_{}", std::process::id());
        let run = async |sql: String| database.client.batch_execute(&sql).await.unwrap();
        run(format!("CREATE ROLE {user} LOGIN PASSWORD 'x' CONNECTION LIMIT {limit} IN ROLE relay_daemon"))
            .await;
        // With metrics, so that a fourth session comes and goes.
        let flags = ["--poll-interval", "1h", "--metrics-listen", "0"];
        let relay = Relay::spawn(&as_user(&database.url, &user, "x"), &flags);
        database.events(1, 1).await;
        receiver.wait_for(1);
        let peer = Relay::start(&database, &[]);
        let sessions = ["promptpal-relay claim", "promptpal-relay finish", "promptpal-relay listen"];
        for (times, session) in (1..).zip(sessions) {
            terminate(&database, &user, session).await;
            relay.wait_for_log_of(times, "found Postgres again");
        }
        gate.open();
        database.all_done().await;
        assert!(!peer.log().contains("dead instance"), "{limit}\n{}", peer.log());
        assert_eq!(receiver.requests().len(), 1, "{limit}\n{}", relay.log());
        assert_eq!(outcomes(&database).await, [(true, false)], "{limit}");
        drop((relay, peer));
        let none_left = format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = '{user}'");
        database.eventually(&none_left).await;
        run(format!("REVOKE relay_daemon FROM {user}; DROP ROLE {user}")).await;
    }
}

#[tokio::test]
async fn a_server_that_is_full_keeps_no_relay_away() {
    let cluster = Cluster::start(&["max_connections=12", "superuser_reserved_connections=3"]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    database.client.batch_execute("CREATE ROLE relay LOGIN IN ROLE relay_daemon").await.unwrap();
    let url = database.url.replacen("postgres@", "relay@", 1);
    let relay = Relay::spawn(&url, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    // Its three sessions and that for the status: the retention is done.
    let four = "SELECT count(*) = 4 AND bool_or(application_name = 'promptpal-relay metrics')
                FROM pg_stat_activity WHERE usename = 'relay'";
    database.eventually(four).await;
    // The application takes what is left, but for the places that only superusers may have.
    let mut others = Vec::new();
    while let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
        tokio::spawn(connection);
        others.push(client);
    }
    terminate(&database, "relay", "promptpal-relay finish").await;
    relay.wait_for_log("found Postgres again");
    gate.open();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 1, "{} others\n{}", others.len(), relay.log());
    assert_eq!(outcomes(&database).await, [(true, false)]);
}

#[tokio::test]
async fn time_limits_that_a_role_has_for_others_cut_nothing_off() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let user = format!("hurried_{}", std::process::id());
    let run = async |sql: String| database.client.batch_execute(&sql).await.unwrap();
    run(format!("CREATE ROLE {user} LOGIN PASSWORD 'x' IN ROLE relay_daemon")).await;
    // Those that this server has: `transaction_timeout` came with Postgres 17.
    let limits = database
        .client
        .query("SELECT name::text FROM pg_settings WHERE name ~ '^(statement|lock|transaction|idle_.*session)_timeout$'", &[])
        .await
        .unwrap();
    for limit in &limits {
        run(format!("ALTER ROLE {user} SET {} = '300ms'", limit.get::<_, &str>(0))).await;
    }
    assert!(limits.len() >= 4);
    let relay = Relay::spawn(&as_user(&database.url, &user, "x"), &["--poll-interval", "100ms"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    let waits = |session: &str| {
        format!(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                 AND application_name = 'promptpal-relay {session}' AND xact_start < clock_timestamp() - interval '1 s')"
        )
    };
    let other = connect(&database.url).await;
    other.batch_execute("BEGIN; LOCK TABLE relay.webhook_calls IN SHARE MODE").await.unwrap();
    gate.open();
    database.eventually(&waits("finish")).await;
    other.batch_execute("COMMIT").await.unwrap();
    database.all_done().await;
    other.batch_execute("BEGIN; LOCK TABLE relay.outbox IN ACCESS EXCLUSIVE MODE").await.unwrap();
    database.eventually(&waits("claim")).await;
    other.batch_execute("COMMIT").await.unwrap();
    database.events(1, 1).await;
    database.all_done().await;
    let log = relay.log();
    assert!(!log.contains("lost Postgres") && !log.contains("cannot be"), "{log}");
    assert_eq!(outcomes(&database).await, [(true, false); 2]);
    drop(relay);
    run(format!("REVOKE relay_daemon FROM {user}; DROP ROLE {user}")).await;
}

#[tokio::test]
async fn a_restart_of_postgres_repeats_no_call() {
    for how in [Stop::Fast, Stop::Immediate] {
        let mut cluster = Cluster::start(&[]).unwrap();
        let url = cluster.url("postgres");
        let (receiver, gate) = gated();
        let database = Database::on(&url).await;
        database.webhook(1, &receiver.url("/")).await;
        let relays = [Relay::start(&database, &[]), Relay::start(&database, &[])];
        database.events(1, 10).await;
        receiver.wait_for(2);
        // Claims are not flushed; a crash may lose them, and nobody may take the rows for unclaimed.
        cluster.halt(how);
        cluster.boot().unwrap();
        let database = database.reconnect().await;
        // Both are back.
        let alive = "SELECT count(*) = 2 FROM relay.instances WHERE dead_at IS NULL";
        database.eventually(alive).await;
        gate.open();
        database.all_done().await;
        assert_eq!(receiver.requests().len(), 10, "{how:?}\n{}\n{}", relays[0].log(), relays[1].log());
        assert_eq!(outcomes(&database).await, [(true, false); 10], "{how:?}");
    }
}

#[tokio::test]
async fn who_starts_after_a_crash_of_the_server_waits_for_those_that_come_back() {
    let mut cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let first = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    first.signal(Signal::SIGSTOP);
    cluster.halt(Stop::Immediate);
    cluster.boot().unwrap();
    let database = database.reconnect().await;
    // The crash may lose the claim, which is not flushed; here it has, even if some other process did flush it.
    database.client.batch_execute("UPDATE relay.outbox SET claimed_by = NULL").await.unwrap();
    let _second = Relay::start(&database, &[]);
    // It has looked at the locks, and more than once.
    let looks = "SELECT started_at < clock_timestamp() - interval '500 ms' FROM relay.instances ORDER BY started_at DESC LIMIT 1";
    database.eventually(looks).await;
    first.signal(Signal::SIGCONT);
    first.wait_for_log("found Postgres again");
    gate.open();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 1);
    assert_eq!(outcomes(&database).await, [(true, false)]);
}

#[tokio::test]
async fn a_frozen_relay_records_nothing_for_rows_that_a_peer_took() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let relays = vec![Relay::start(&database, &[]), Relay::start(&database, &[])];
    database.events(1, 1).await;
    receiver.wait_for(1);
    let (frozen, _peers) = busy(&database, relays).await;
    frozen.signal(Signal::SIGSTOP);
    cut_off(&database).await;
    receiver.wait_for(2);
    gate.open();
    database.all_done().await;
    frozen.signal(Signal::SIGCONT);
    // It is back, under a new epoch, and has tried to record its result.
    let back = format!(
        "SELECT EXISTS (SELECT FROM relay.instances WHERE pid = {} AND dead_at IS NULL AND started_at > (SELECT started_at FROM relay.instances ORDER BY started_at OFFSET 1 LIMIT 1))",
        frozen.pid()
    );
    database.eventually(&back).await;
    frozen.wait_for_log("nothing recorded");
    assert_eq!(outcomes(&database).await, [(true, true)]);
}

#[tokio::test]
async fn a_row_that_was_taken_from_a_relay_and_came_back_has_one_record_and_is_marked() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    let good = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    database.webhook(2, &good.url("/")).await;
    let flags = ["--timeout", "1h", "--metrics-listen", "0"];
    let mut relays = vec![Relay::start(&database, &flags), Relay::start(&database, &flags)];
    database.events(1, 1).await;
    receiver.wait_for(1);
    let (first, peers) = busy(&database, relays).await;
    first.signal(Signal::SIGSTOP);
    cut_off(&database).await;
    receiver.wait_for(2);
    first.signal(Signal::SIGCONT);
    first.wait_for_log("found Postgres again");
    // Its call is in flight all the while.
    relays = peers;
    relays.pop().unwrap().kill();
    receiver.wait_for(3);
    // A commit that waits for the log's lock: what ends meanwhile is in the next one, both results of the first relay.
    let mut reader = connect(&database.url).await;
    let lock = reader.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE relay.webhook_calls IN SHARE MODE").await.unwrap();
    database.events(2, 1).await;
    database.eventually(COMMIT_WAITS).await;
    gate.open();
    monitoring::until(monitoring::port(&first), "promptpal_relay_calls_running", |running| running == 0.0);
    lock.rollback().await.unwrap();
    database.all_done().await;
    first.wait_for_log("nothing recorded");
    assert_eq!(outcomes(&database).await, [(true, true), (true, false)]);
}

/// A finish waits for a lock.
const COMMIT_WAITS: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
    AND application_name = 'promptpal-relay finish' AND wait_event_type = 'Lock')";

#[tokio::test]
async fn a_takeover_that_a_crash_of_the_server_loses_repeats_no_call() {
    let mut cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let killed = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    killed.kill();
    let relay = Relay::start(&database, &[]);
    receiver.wait_for(2);
    relay.signal(Signal::SIGSTOP);
    cluster.halt(Stop::Immediate);
    cluster.boot().unwrap();
    let database = database.reconnect().await;
    // The crash may lose the claim, which is not flushed; here it has.
    let lose = "UPDATE relay.outbox SET claimed_by = (SELECT epoch FROM relay.instances ORDER BY started_at LIMIT 1)";
    database.client.batch_execute(lose).await.unwrap();
    relay.signal(Signal::SIGCONT);
    relay.wait_for_log("found Postgres again");
    gate.open();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 2);
    assert_eq!(outcomes(&database).await, [(true, true)]);
}

#[tokio::test]
async fn a_failover_to_a_promoted_standby_repeats_no_call() {
    let mut primary = Cluster::start(&[]).unwrap();
    let standby = crate::standby::standby_of(&mut primary);
    let database = Database::on(&primary.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let both = format!(
        "host={},{} port={},{} user=postgres dbname=postgres",
        standby.socket_dir().display(),
        primary.socket_dir().display(),
        standby.port(),
        primary.port()
    );
    let relay = Relay::spawn(&both, &[]);
    database.events(1, 5).await;
    receiver.wait_for(2);
    database.eventually("SELECT count(claimed_by) = 5 FROM relay.outbox").await;
    // Flushes the claims, too. Up to there and not up to the end, which is behind the new file's header while no record
    // follows.
    let switched = database.client.query_one("SELECT pg_switch_wal()::text", &[]).await.unwrap();
    let switched: &str = switched.get(0);
    database
        .eventually(&format!("SELECT bool_and(replay_lsn >= '{switched}'::pg_lsn) FROM pg_stat_replication"))
        .await;
    primary.halt(Stop::Immediate);
    relay.wait_for_log("waiting for Postgres");
    let database = connect(&standby.url("postgres")).await;
    database.execute("SELECT pg_promote()", &[]).await.unwrap();
    let database = Database::at(&standby.url("postgres")).await;
    relay.wait_for_log("found Postgres again");
    gate.open();
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 6, "{}", relay.log());
    assert_eq!(outcomes(&database).await, [(true, false); 6]);
}

/// A relay that reaches its server over a [`Network`], with one call in flight.
struct Remote {
    relay: Relay,
    receiver: Receiver,
    gate: Gate,
    database: Database,
    network: Network,
    _cluster: Cluster,
}

impl Remote {
    /// Everything takes so long to get to the server, and back.
    async fn start(delay: Duration) -> Remote {
        let cluster = Cluster::start(&[]).unwrap();
        let network = Network::to(cluster.port(), delay);
        let database = Database::on(&cluster.url("postgres")).await;
        let (receiver, gate) = gated();
        database.webhook(1, &receiver.url("/")).await;
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", network.port);
        let relay = Relay::spawn(&url, &[]);
        database.events(1, 1).await;
        receiver.wait_for(1);
        Remote { relay, receiver, gate, database, network, _cluster: cluster }
    }
}

/// The server has the sessions of one registration, and none of an older one.
const NONE_IS_LEFT: &str = "SELECT count(*) = 3 FROM pg_stat_activity WHERE application_name IN
    ('promptpal-relay claim', 'promptpal-relay finish', 'promptpal-relay listen')";

#[tokio::test]
async fn a_connection_that_has_gone_silent_is_noticed() {
    let Remote { relay, receiver, gate, database, network, _cluster } = Remote::start(Duration::ZERO).await;
    network.go_silent();
    let start = Instant::now();
    relay.wait_for_log("found Postgres again");
    println!("noticed after {:?}", start.elapsed());
    database.eventually(NONE_IS_LEFT).await;
    gate.open();
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 2, "{}", relay.log());
    assert_eq!(outcomes(&database).await, [(true, false); 2]);
}

#[tokio::test]
async fn a_single_session_that_is_not_heard_is_noticed() {
    // The session, and whether it is the server's words that go astray.
    for (session, server) in [("claim", false), ("finish", false), ("finish", true)] {
        let Remote { relay, receiver, gate, database, network, _cluster } =
            Remote::start(Duration::ZERO).await;
        let port = format!(
            "SELECT client_port::bigint FROM pg_stat_activity WHERE application_name = 'promptpal-relay {session}'"
        );
        network.silence(i32::try_from(database.number(&port).await).unwrap(), server);
        if session == "finish" {
            gate.open();
        }
        let start = Instant::now();
        relay.wait_for_log("found Postgres again");
        println!("noticed after {:?}", start.elapsed());
        database.eventually(NONE_IS_LEFT).await;
        gate.open();
        database.events(1, 1).await;
        database.all_done().await;
        assert_eq!(receiver.requests().len(), 2, "{session} {server}\n{}", relay.log());
        assert_eq!(outcomes(&database).await, [(true, false); 2], "{session} {server}");
    }
}

/// A server of its own, and a relay that has one call in flight.
async fn one_in_flight() -> (Cluster, Database, Receiver, Gate, Relay) {
    let cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    (cluster, database, receiver, gate, relay)
}

#[tokio::test]
async fn a_session_of_an_older_epoch_that_has_the_rows_locked_is_ended() {
    let (cluster, database, receiver, gate, relay) = one_in_flight().await;
    // As the end of a session that the server hears no more of, in the middle of a statement.
    let left = connect(&cluster.url("postgres")).await;
    left.batch_execute("SELECT pg_advisory_lock(7); UPDATE relay.instances SET locks = locks || 7::bigint")
        .await
        .unwrap();
    left.batch_execute("BEGIN; UPDATE relay.outbox SET claimed_by = claimed_by").await.unwrap();
    terminate(&database, "%", "promptpal-relay claim").await;
    relay.wait_for_log("found Postgres again");
    gate.open();
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, false)], "{}", relay.log());
    assert_eq!(receiver.requests().len(), 1);
    assert!(left.batch_execute("COMMIT").await.is_err(), "it is there still");
}

#[tokio::test]
async fn rows_stay_ours_while_somebody_elses_lock_keeps_us_from_taking_them_over() {
    let (cluster, database, receiver, gate, relay) = one_in_flight().await;
    let _peer = Relay::start(&database, &[]);
    let other = connect(&cluster.url("postgres")).await;
    other.batch_execute("BEGIN; SELECT FROM relay.outbox FOR UPDATE").await.unwrap();
    let sql = "SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
               JOIN relay.outbox o ON o.claimed_by = (SELECT i.epoch FROM relay.instances i
                                                       WHERE (l.classid::bigint << 32 | l.objid::bigint) = ANY (i.locks))
               WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND a.application_name = 'promptpal-relay claim'";
    assert_eq!(database.number(sql).await, 1);
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity
                 WHERE application_name = 'promptpal-relay listen' AND wait_event_type = 'Lock')";
    database.eventually(waits).await;
    // Ten times as long as a lock must be free.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let dead = "SELECT count(*) FROM relay.instances WHERE dead_at IS NOT NULL";
    assert_eq!(database.number(dead).await, 0, "{}", relay.log());
    other.batch_execute("ROLLBACK").await.unwrap();
    relay.wait_for_log("found Postgres again");
    gate.open();
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, false)], "{}", relay.log());
    assert_eq!(receiver.requests().len(), 1);
}

#[tokio::test]
async fn a_session_that_waits_for_a_lock_is_not_taken_for_lost() {
    let (cluster, database, _receiver, gate, relay) = one_in_flight().await;
    let mut other = connect(&cluster.url("postgres")).await;
    let lock = other.transaction().await.unwrap();
    lock.batch_execute("LOCK relay.outbox").await.unwrap();
    gate.open();
    // Longer than a session may wait before the server is asked.
    let waits = "SELECT count(*) = 2 FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                 AND application_name IN ('promptpal-relay claim', 'promptpal-relay finish')
                 AND query_start < clock_timestamp() - interval '7 s'";
    database.eventually(waits).await;
    lock.rollback().await.unwrap();
    database.all_done().await;
    assert!(!relay.log().contains("lost Postgres"), "{}", relay.log());
    assert_eq!(outcomes(&database).await, [(true, false)]);
}

#[tokio::test]
async fn a_distant_relay_that_loses_its_sessions_keeps_its_rows() {
    let Remote { relay, receiver, gate, database, network: _network, _cluster } =
        Remote::start(Duration::from_millis(60)).await;
    let peer = Relay::start(&database, &[]);
    cut_off(&database).await;
    let start = Instant::now();
    relay.wait_for_log("found Postgres again");
    println!("back after {:?}", start.elapsed());
    gate.open();
    database.all_done().await;
    assert!(!peer.log().contains("dead instance"), "{}", peer.log());
    assert_eq!(receiver.requests().len(), 1);
    assert_eq!(outcomes(&database).await, [(true, false)]);
}

#[tokio::test]
async fn a_read_only_database_makes_it_wait_and_repeats_no_call() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    let name =
        database.number("SELECT oid::bigint FROM pg_database WHERE datname = current_database()").await;
    let read_only = |on| {
        format!(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {on}',
                 (SELECT datname FROM pg_database WHERE oid = {name})); END $$"
        )
    };
    database.client.batch_execute(&read_only("on")).await.unwrap();
    // What is set for a database holds for new sessions.
    terminate(&database, "%", "promptpal-relay %").await;
    relay.wait_for_log("cannot be written to");
    gate.open();
    database.client.batch_execute(&read_only("off")).await.unwrap();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 1);
    assert_eq!(outcomes(&database).await, [(true, false)]);
}

/// Ends the sessions of the relay that has rows in hand, found by the liveness lock: Postgres does not notice by itself
/// that a relay is frozen.
async fn cut_off(database: &Database) {
    let sql = "SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l
               JOIN relay.instances i ON (l.classid::bigint << 32 | l.objid::bigint) = ANY (i.locks)
               WHERE l.locktype = 'advisory' AND l.objsubid = 1
                 AND i.epoch IN (SELECT claimed_by FROM relay.outbox)
                 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(database.number(sql).await, 3);
}

#[tokio::test]
async fn a_thawed_relay_does_not_begin_calls_of_rows_that_a_peer_took() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--workers", "16", "--per-webhook", "2"];
    let frozen = Relay::start(&database, &flags);
    database.events(1, 8).await;
    receiver.wait_for(2);
    database.eventually("SELECT count(claimed_by) > 2 FROM relay.outbox").await;
    frozen.signal(Signal::SIGSTOP);
    cut_off(&database).await;
    let _peer = Relay::start(&database, &flags);
    receiver.wait_for(4);
    gate.open();
    database.all_done().await;
    // Longer than a relay goes on without having looked at the locks.
    database
        .eventually(
            "SELECT dead_at < clock_timestamp() - interval '500 ms' FROM relay.instances ORDER BY started_at LIMIT 1",
        )
        .await;
    frozen.signal(Signal::SIGCONT);
    frozen.wait_for_log("their calls are not begun");
    // It works on.
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 2 + 8 + 1, "{}", frozen.log());
    assert_eq!(outcomes(&database).await.len(), 9);
}

#[tokio::test]
async fn what_a_stopping_relay_gives_back_a_peer_posts_at_once() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--poll-interval", "1h", "--workers", "16", "--per-webhook", "2"];
    let mut first = Relay::start(&database, &flags);
    database.events(1, 8).await;
    receiver.wait_for(2);
    let _second = Relay::start(&database, &flags);
    first.signal(Signal::SIGTERM);
    // Two of the first are in flight; two more can only be the second's.
    receiver.wait_for(4);
    gate.open();
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 8);
    assert_eq!(outcomes(&database).await, [(true, false); 8]);
}

/// Rows whose dead versions stand before all that come after them, for as long as the report runs that is returned.
async fn dead_rows(database: &Database) -> tokio_postgres::Client {
    let report = connect(&database.url).await;
    let hold = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM relay.outbox";
    report.batch_execute(hold).await.unwrap();
    database.client.batch_execute("SET synchronous_commit = off").await.unwrap();
    database.events(1, 100_000).await;
    database.client.batch_execute("UPDATE relay.outbox SET done_at = now()").await.unwrap();
    report
}

#[tokio::test]
async fn a_row_that_appears_below_others_is_found_though_dead_rows_are_kept() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    gate.open();
    database.webhook(2, &receiver.url("/")).await;
    let _report = dead_rows(&database).await;
    let _relay = Relay::start(&database, &[]);
    let late = connect(&database.url).await;
    for round in 1..=20 {
        // Others come and go until the relay has looked beyond it more than once.
        late.batch_execute("BEGIN").await.unwrap();
        let sql = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
                   VALUES (2, 1, 'user', 0, 1, 1, 1)";
        late.batch_execute(sql).await.unwrap();
        for other in 1..=4 {
            database.events(2, 1).await;
            receiver.wait_for(5 * (round - 1) + other);
        }
        late.batch_execute("COMMIT").await.unwrap();
        receiver.wait_for(5 * round);
    }
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 100);
}

#[tokio::test]
async fn what_a_stopping_relay_gives_back_is_found_though_dead_rows_are_kept() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(2, &receiver.url("/")).await;
    let _report = dead_rows(&database).await;
    let flags = ["--workers", "16", "--per-webhook", "2"];
    let mut first = Relay::start(&database, &flags);
    database.events(2, 8).await;
    receiver.wait_for(2);
    let _second = Relay::start(&database, &flags);
    // It has seen what comes after the rows of the first.
    let (other, other_gate) = gated();
    other_gate.open();
    database.webhook(3, &other.url("/")).await;
    for count in 1..=20 {
        database.events(3, 1).await;
        other.wait_for(count);
    }
    first.signal(Signal::SIGTERM);
    // Two of the first are in flight; two more can only be the second's.
    receiver.wait_for(4);
    gate.open();
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 8);
}

#[tokio::test]
async fn a_sleeping_peer_hears_of_the_parked_rows_that_a_stopping_relay_leaves() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--poll-interval", "1h", "--workers", "16", "--per-webhook", "2"];
    let mut first = Relay::start(&database, &flags);
    let second = Relay::start(&database, &flags);
    // It looks around when it begins; what is parked after that it must be told.
    second.signal(Signal::SIGSTOP);
    database.events(1, 4).await;
    receiver.wait_for(1);
    database.events(1, 4).await;
    database.eventually("SELECT count(*) = 4 FROM relay.outbox WHERE parked").await;
    second.signal(Signal::SIGCONT);
    first.signal(Signal::SIGTERM);
    first.wait_for_log("stopping: calls in flight");
    gate.open();
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 8);
}

#[tokio::test]
async fn what_is_taken_over_and_given_back_is_still_repeated() {
    let database = Database::new().await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--workers", "16", "--per-webhook", "2"];
    let killed = Relay::start(&database, &flags);
    database.events(1, 8).await;
    receiver.wait_for(2);
    database.eventually("SELECT count(claimed_by) = 8 FROM relay.outbox").await;
    killed.kill();
    let mut drained = Relay::start(&database, &flags);
    receiver.wait_for(4);
    database.eventually("SELECT bool_and(claimed_by = (SELECT epoch FROM relay.instances ORDER BY started_at DESC LIMIT 1)) FROM relay.outbox").await;
    drained.signal(Signal::SIGTERM);
    drained.wait_for_log("given_back=6");
    gate.open();
    assert_eq!(drained.wait().code(), Some(0), "{}", drained.log());
    assert_eq!(database.number("SELECT count(*) FROM relay.in_flight").await, 0);
    let _last = Relay::start(&database, &flags);
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true); 8]);
}

#[tokio::test]
async fn a_drain_takes_no_longer_than_the_timeout_of_the_last_call() {
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::Never);
    database.webhook(1, &receiver.url("/")).await;
    let mut relay = Relay::start(&database, &["--timeout", "1s"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(0), "{}", relay.log());
    let calls = database.calls().await;
    assert_eq!(calls.len(), 1);
    assert!(calls[0].get::<_, bool>("is_timeout"));
}

#[tokio::test]
async fn told_to_stop_while_postgres_is_away_it_does_not_wait_for_ever() {
    let mut cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let (receiver, gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let flags = ["--timeout", "1s"];
    let (mut idle, mut busy) = (Relay::start(&database, &flags), Relay::start(&database, &flags));
    database.events(1, 1).await;
    receiver.wait_for(1);
    let pid = database
        .number("SELECT i.pid::bigint FROM relay.instances i JOIN relay.outbox o ON o.claimed_by = i.epoch")
        .await;
    if i64::from(idle.pid().as_raw()) == pid {
        std::mem::swap(&mut idle, &mut busy);
    }
    cluster.halt(Stop::Fast);
    for relay in [&mut idle, &mut busy] {
        relay.wait_for_log("waiting for Postgres");
        relay.signal(Signal::SIGTERM);
    }
    assert_eq!(idle.wait().code(), Some(0), "it has nothing to lose: {}", idle.log());
    assert_eq!(busy.wait().code(), Some(1), "{}", busy.log());
    assert!(busy.log().contains("will be posted again: 1"), "{}", busy.log());
    // And so it is.
    cluster.boot().unwrap();
    gate.open();
    let database = database.reconnect().await;
    let _next = Relay::start(&database, &[]);
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true)]);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_who_has_the_outbox_locked() {
    let database = Database::new().await;
    let mut relay = Relay::start(&database, &["--timeout", "1s", "--poll-interval", "100ms"]);
    let mut reader = connect(&database.url).await;
    let lock = reader.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE relay.outbox IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let claim_waits = COMMIT_WAITS.replace("finish", "claim");
    database.eventually(&claim_waits).await;
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1), "{}", relay.log());
    assert!(relay.log().contains("will be posted again: 0"), "{}", relay.log());
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_disk_that_is_full() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    fill_disk(&database).await;
    let mut relay = Relay::start(&database, &["--timeout", "1s"]);
    database.events(1, 1).await;
    relay.wait_for_log("could not extend file");
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1), "{}", relay.log());
    assert!(relay.log().contains("will be posted again: 1"), "{}", relay.log());
    // And so it is.
    database.client.batch_execute("DROP TRIGGER full_disk ON relay.webhook_calls").await.unwrap();
    let _next = Relay::start(&database, &[]);
    database.all_done().await;
    assert_eq!(outcomes(&database).await, [(true, true)]);
}

#[tokio::test]
async fn what_is_left_of_a_row_that_has_begun_begins_at_once_when_it_stops() {
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::Never);
    for _ in 0..8 {
        database.webhook(1, &receiver.url("/")).await;
    }
    let mut relay = Relay::start(&database, &["--timeout", "5s", "--workers", "2"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(0), "{}", relay.log());
    let all_at_once =
        "SELECT count(*) = 8 AND max(start_time) < min(end_time) FROM relay.webhook_calls WHERE is_timeout";
    database.eventually(all_at_once).await;
}

#[tokio::test]
async fn rows_that_nobody_is_called_for_are_not_claimed_without_end() {
    let database = Database::new().await;
    let mut reader = connect(&database.url).await;
    let lock = reader.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE relay.webhook_calls IN SHARE MODE").await.unwrap();
    database.events(1, 20_000).await;
    let _relay = Relay::start(&database, &[]);
    // It has not claimed for a while although there is more.
    let rests = "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()
                 AND application_name = 'promptpal-relay claim' AND state_change < clock_timestamp() - interval '500 ms'";
    database.eventually(COMMIT_WAITS).await;
    database.eventually(rests).await;
    let claimed = database.number("SELECT count(claimed_by) FROM relay.outbox").await;
    assert!(claimed < 5000, "{claimed}");
    lock.rollback().await.unwrap();
    database.all_done().await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let database = Database::new().await;
    let (receiver, _gate) = gated();
    database.webhook(1, &receiver.url("/")).await;
    let mut relay = Relay::start(&database, &["--timeout", "1h"]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    relay.signal(Signal::SIGTERM);
    relay.wait_for_log("stopping");
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1), "{}", relay.log());
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

#[tokio::test]
async fn several_relays_share_the_work_and_each_row_is_posted_once() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let _relays = [Relay::start(&database, &[]), Relay::start(&database, &[]), Relay::start(&database, &[])];
    let writers = (0..4).map(|_| async {
        let client = connect(&database.url).await;
        for _ in 0..10 {
            let sql = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
                       SELECT 1, n, 'user', 0, 1, 1, 1 FROM generate_series(1, 50) AS n";
            client.batch_execute(sql).await.unwrap();
        }
    });
    for writer in writers {
        writer.await;
    }
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 2000);
    assert_eq!(
        database.number("SELECT count(*) FROM relay.webhook_calls WHERE succeeded AND NOT repeated").await,
        2000
    );
    assert_eq!(database.number("SELECT count(DISTINCT outbox_id) FROM relay.webhook_calls").await, 2000);
}

#[tokio::test]
async fn a_record_that_postgres_refuses_does_not_hold_up_the_others() {
    let database = Database::new().await;
    let receiver = Receiver::start(|request| {
        let poison = request.json()["promptId"] == 7;
        Reply::full(200, &[], if poison { b"poison" } else { b"fine" })
    });
    database.webhook(1, &receiver.url("/")).await;
    let sql = "ALTER TABLE relay.webhook_calls ADD CONSTRAINT poison CHECK (response_body <> 'poison')";
    database.client.batch_execute(sql).await.unwrap();
    database.events(1, 50).await;
    let _relay = Relay::start(&database, &[]);
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 50);
    let calls = database.calls().await;
    assert_eq!(calls.len(), 50);
    let bad: Vec<_> = calls.iter().filter(|call| !call.get::<_, bool>("succeeded")).collect();
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0].get::<_, Option<&str>>("error_kind"), Some("internal"));
    assert_eq!(bad[0].get::<_, Option<i32>>("status_code"), Some(200), "what can be kept is kept");
}

/// From now on nothing can be added to the call log, until the trigger is dropped.
async fn fill_disk(database: &Database) {
    let sql = "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
                   'BEGIN RAISE EXCEPTION ''could not extend file'' USING ERRCODE = ''disk_full''; END';
               CREATE TRIGGER full_disk BEFORE INSERT ON relay.webhook_calls FOR EACH ROW EXECUTE FUNCTION full_disk()";
    database.client.batch_execute(sql).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_makes_it_try_the_commit_again_and_never_the_post() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    fill_disk(&database).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 3).await;
    relay.wait_for_log("could not extend file");
    database.client.batch_execute("DROP TRIGGER full_disk ON relay.webhook_calls").await.unwrap();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 3);
    assert_eq!(outcomes(&database).await, [(true, false); 3]);
}

#[tokio::test]
async fn a_dead_instance_is_cleared_when_it_has_no_rows_left_and_all_of_them_were_looked_at() {
    let database = Database::new().await;
    let run = async |sql: &str| database.client.batch_execute(sql).await.unwrap();
    let died = "INSERT INTO relay.instances (epoch, locks, host, pid, version, dead_at) SELECT n, ARRAY[n], 'h', 1, '1', now() - interval '1 hour'";
    run(&format!("{died} FROM generate_series(1, 3) AS n")).await;
    database.events(1, 12_000).await;
    // One has a parked row, one another; the third has none.
    run("UPDATE relay.outbox SET claimed_by = id, parked = id = 2 WHERE id <= 2").await;
    let session = database.session(Role::Retention).await;
    assert_eq!(session.clear_dead().await.unwrap(), [0; 0], "the backlog is too long to know");
    run("UPDATE relay.outbox SET done_at = now() WHERE id > 5000").await;
    assert_eq!(session.clear_dead().await.unwrap(), [3]);
    run("UPDATE relay.outbox SET done_at = now() WHERE id = 1").await;
    assert_eq!(session.clear_dead().await.unwrap(), [1]);
    run("UPDATE relay.outbox SET claimed_by = 0 WHERE id = 2").await;
    assert_eq!(session.clear_dead().await.unwrap(), [2]);
}
