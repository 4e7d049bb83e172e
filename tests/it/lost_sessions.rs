//! An instance loses its sessions, or cannot get all of them: it keeps its rows, and no call is made twice.

use std::time::{Duration, Instant};

use promptpal_relay::inside::demo::Cluster;

use crate::scenes::{busy, cut_off, outcomes, terminate};
use crate::support::scrape::{until_answer, until_unhealthy};
use crate::support::{Database, Gate, Network, Receiver, Relay, as_user, connect, gated};

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
        // It has come back under a new epoch and adopted its row.
        let back =
            "SELECT EXISTS (SELECT FROM relay.outbox o JOIN relay.instances i ON i.epoch = o.claimed_by
                        WHERE i.dead_at IS NULL AND i.epoch <> (SELECT epoch FROM relay.instances ORDER BY started_at LIMIT 1))";
        database.eventually(back).await;
        gate.open();
        database.all_done().await;
        assert_eq!(outcomes(&database).await, [(true, false)], "{session}\n{}", relay.log());
        // The relay works on, by notification.
        database.events(1, 1).await;
        receiver.wait_for(2);
        database.all_done().await;
        assert_eq!(receiver.requests().len(), 2, "{session}");
        assert!(relay.reconnects() >= 1.0, "{session}");
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
        // The liveness lock tells this relay's session from the other relay's.
        let sql = "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                   JOIN relay.instances i ON (l.classid::bigint << 32 | l.objid::bigint) = ANY (i.locks)
                   WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND i.epoch = $1
                     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                     AND a.application_name = $2";
        assert_eq!(database.client.query(sql, &[&epoch, &session]).await.unwrap().len(), 1, "{session}");
        // The relay is back when all its sessions are.
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
    // The relay keeps two sessions and may have no more, which is one too few. A peer looks at it all the while.
    run(format!("ALTER ROLE {user} CONNECTION LIMIT 2")).await;
    terminate(&database, &user, "promptpal-relay finish").await;
    relay.until_refused(4);
    run(format!("ALTER ROLE {user} CONNECTION LIMIT 20")).await;
    relay.until_reconnected(1);
    gate.open();
    database.all_done().await;
    assert_eq!(peer.declared_dead(), [0; 0]);
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
        // A fourth session, which measures for the metrics, comes and goes.
        let flags = ["--poll-interval", "1h"];
        let relay = Relay::spawn(&as_user(&database.url, &user, "x"), &flags);
        database.events(1, 1).await;
        receiver.wait_for(1);
        let peer = Relay::start(&database, &[]);
        let sessions = ["promptpal-relay claim", "promptpal-relay finish", "promptpal-relay listen"];
        for (times, session) in (1..).zip(sessions) {
            terminate(&database, &user, session).await;
            relay.until_reconnected(times);
        }
        gate.open();
        database.all_done().await;
        assert_eq!(peer.declared_dead(), [0; 0], "{limit}");
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
    // The relay has its three sessions and the one that measures; the retention has ended.
    let four = "SELECT count(*) = 4 AND bool_or(application_name = 'promptpal-relay metrics')
                FROM pg_stat_activity WHERE usename = 'relay'";
    database.eventually(four).await;
    // The application takes all sessions that are left, but for those that only superusers may have.
    let mut others = Vec::new();
    while let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
        tokio::spawn(connection);
        others.push(client);
    }
    terminate(&database, "relay", "promptpal-relay finish").await;
    relay.until_reconnected(1);
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
    assert!(relay.reconnects() == 0.0 && !relay.was_refused(), "{}", relay.log());
    assert_eq!(outcomes(&database).await, [(true, false); 2]);
    drop(relay);
    run(format!("REVOKE relay_daemon FROM {user}; DROP ROLE {user}")).await;
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
    /// Starts it; what is sent takes `delay` in each direction.
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

/// Whether the server has the three sessions of one registration, and none of an older one.
const NONE_IS_LEFT: &str = "SELECT count(*) = 3 FROM pg_stat_activity WHERE application_name IN
    ('promptpal-relay claim', 'promptpal-relay finish', 'promptpal-relay listen')";

#[tokio::test]
async fn a_connection_that_has_gone_silent_is_noticed() {
    let Remote { relay, receiver, gate, database, network, _cluster } = Remote::start(Duration::ZERO).await;
    network.go_silent();
    let start = Instant::now();
    relay.until_reconnected(1);
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
    // The session, and whether the network drops the server's words or the client's.
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
        relay.until_reconnected(1);
        println!("noticed after {:?}", start.elapsed());
        database.eventually(NONE_IS_LEFT).await;
        gate.open();
        database.events(1, 1).await;
        database.all_done().await;
        assert_eq!(receiver.requests().len(), 2, "{session} {server}\n{}", relay.log());
        assert_eq!(outcomes(&database).await, [(true, false); 2], "{session} {server}");
    }
}

/// A server of the test's own, and a relay that has one call in flight.
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
    // This stands for a session of the relay that the server hears no more of, in the middle of a transaction.
    let left = connect(&cluster.url("postgres")).await;
    left.batch_execute("SELECT pg_advisory_lock(7); UPDATE relay.instances SET locks = locks || 7::bigint")
        .await
        .unwrap();
    left.batch_execute("BEGIN; UPDATE relay.outbox SET claimed_by = claimed_by").await.unwrap();
    terminate(&database, "%", "promptpal-relay claim").await;
    relay.until_reconnected(1);
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
    relay.until_reconnected(1);
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
    // The operator reads what holds the records up.
    until_unhealthy(relay.port(), |why| why.contains("Postgres has not committed the records"));
    lock.rollback().await.unwrap();
    database.all_done().await;
    until_answer(relay.port(), "/healthz", |status, _| status == 200);
    assert_eq!(relay.reconnects(), 0.0);
    assert_eq!(outcomes(&database).await, [(true, false)]);
}

#[tokio::test]
async fn a_distant_relay_that_loses_its_sessions_keeps_its_rows() {
    let Remote { relay, receiver, gate, database, network: _network, _cluster } =
        Remote::start(Duration::from_millis(60)).await;
    let peer = Relay::start(&database, &[]);
    cut_off(&database).await;
    let start = Instant::now();
    relay.until_reconnected(1);
    println!("back after {:?}", start.elapsed());
    gate.open();
    database.all_done().await;
    assert_eq!(peer.declared_dead(), [0; 0]);
    assert_eq!(receiver.requests().len(), 1);
    assert_eq!(outcomes(&database).await, [(true, false)]);
}
