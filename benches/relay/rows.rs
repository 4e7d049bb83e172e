//! What is measured: one function for each row, or group of rows, of the table.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::signal::Signal;
use promptpal_relay::inside::cli::Cli;
use promptpal_relay::inside::config;
use promptpal_relay::inside::outbox::{Role, Store};

use crate::measure::{Table, Target, percentile};
use crate::nginx::Nginx;
use crate::receiver::Receiver;
use crate::world::{BINARY, Database, INSERT, Relay, Server, connect, server_program};

/// Rows of a backlog that is drained.
pub const BACKLOG: u64 = 100_000;
/// Nothing is left to do.
pub const DRAINED: &str = "SELECT NOT EXISTS (SELECT FROM relay.outbox WHERE done_at IS NULL)";

pub struct Bench<'a> {
    pub server: Server,
    pub receiver: Receiver,
    /// Takes the drains when there is one: it needs less of the machine than our own.
    nginx: Option<Nginx>,
    pub full: bool,
    pub table: &'a mut Table,
}

/// Measures the rows that a word names, or all; the peers only when they are asked for.
pub async fn all(full: bool, peers: bool, words: &[&str], table: &mut Table) {
    let nginx = Nginx::start();
    eprintln!("the drains' receiver: {}", if nginx.is_some() { "nginx" } else { "our own" });
    let mut bench = Bench { server: Server::start(), receiver: Receiver::start(), nginx, full, table };
    let wants = |name: &str| {
        if words.is_empty() { !peers } else { words.iter().any(|word| name.contains(word)) }
    };
    if wants("drain") {
        bench.drain().await;
    }
    if wants("several") {
        bench.several().await;
    }
    if wants("slow") {
        bench.slow().await;
    }
    if wants("latency") {
        bench.latency().await;
    }
    if wants("steady") {
        bench.steady_load().await;
    }
    if wants("soak") {
        bench.soak().await;
    }
    if wants("insert") {
        bench.insert().await;
    }
    if wants("fairness") {
        bench.fairness().await;
    }
    if wants("takeover") {
        bench.takeover().await;
    }
    if wants("memory") {
        bench.memory().await;
    }
    crate::https::all(&bench.server, full, wants, bench.table).await;
    if wants("idle") {
        bench.idle().await;
    }
    if wants("top") {
        bench.top().await;
    }
    if peers {
        bench.peers().await;
    }
}

/// What a drain cost.
#[derive(Default)]
pub struct Drain {
    pub per_second: f64,
    pub relay_cpu: f64,
    pub postgres_cpu: f64,
    pub wal: f64,
    pub statements: f64,
    pub hot: f64,
    pub dead: f64,
}

/// What it is, the paths of the webhooks with how many there are of each, the rows, the flags.
type HostileInput<'a> = (&'a str, &'a [(&'a str, u16)], String, &'a [&'a str]);

impl Bench<'_> {
    // ---- drain ------------------------------------------------------------------------------------------------

    async fn drain(&mut self) {
        let runs = 3;
        let mut plain = vec![self.drain_plain(1).await];
        let mut backlog = Vec::new();
        let mut horizon = Vec::new();
        let mut many = Vec::new();
        let waiting = if self.full { 10_000_000 } else { 300_000 };
        let delivered = if self.full { 600_000 } else { 100_000 };
        for run in 0..runs {
            eprintln!("drain, run {} of {runs}", run + 1);
            let with_backlog =
                if run == 0 || !self.full { Some(self.drain_with_backlog(waiting).await) } else { None };
            let with_horizon = self.drain_with_held_horizon(delivered).await;
            let to_many = if self.full { Some(self.drain_plain(1000).await.per_second) } else { None };
            // The machine's speed changes within minutes: what these are compared with was before and after them.
            let before = plain[run].per_second;
            plain.push(self.drain_plain(1).await);
            let reference = (before + plain[run + 1].per_second) / 2.0;
            backlog.extend(with_backlog.map(|rate| rate / reference));
            horizon.push(with_horizon / reference);
            many.extend(to_many.map(|rate| rate / reference));
        }
        let of = |pick: fn(&Drain) -> f64| plain.iter().map(pick).collect::<Vec<_>>();
        let table = &mut self.table;
        table.add(
            "drain of 100,000 rows, one webhook",
            "calls/s",
            Target::AtLeast(40_000.0),
            of(|d| d.per_second),
        );
        table.add("  CPU of the relay", "µs/call", Target::AtMost(18.0), of(|d| d.relay_cpu));
        table.add("  CPU of Postgres", "µs/call", Target::AtMost(22.0), of(|d| d.postgres_cpu));
        table.add("  WAL", "bytes/call", Target::AtMost(1300.0), of(|d| d.wal));
        table.add("  transactions", "1/1000 calls", Target::None, of(|d| d.statements));
        table.add("  heap-only updates of the outbox", "%", Target::None, of(|d| d.hot));
        table.add("  dead rows left in the outbox", "1/call", Target::None, of(|d| d.dead));
        table.add(
            format!("drain with {waiting} rows waiting, against it"),
            "",
            Target::AtLeast(0.9),
            backlog,
        );
        table.add(
            format!("drain after {delivered} under a held horizon, against it"),
            "",
            Target::AtLeast(0.9),
            horizon,
        );
        if self.full {
            table.add("drain to 1,000 endpoints, against it", "", Target::AtLeast(0.6), many);
        }
    }

    pub fn drain_url(&self, host: u16) -> String {
        self.nginx.as_ref().map_or_else(|| self.receiver.url(host, "/"), |nginx| nginx.url(host))
    }

    /// Requests of drains so far.
    pub fn drained(&self) -> u64 {
        self.nginx.as_ref().map_or_else(|| self.receiver.requests(), Nginx::requests)
    }

    /// Drains a backlog, spread over so many endpoints.
    pub async fn drain_plain(&mut self, endpoints: u16) -> Drain {
        let database = self.server.database().await;
        for n in 0..endpoints {
            database.webhook(i64::from(n), &self.drain_url(n)).await;
        }
        let sql = format!(
            "{INSERT} SELECT n % {endpoints}, 0, 'user-123', 0, 1250, 150, 300 FROM generate_series(1, {BACKLOG}) n"
        );
        database.run(&sql).await;
        database.run("CHECKPOINT").await;
        let (requests, cpu) = (self.drained(), self.server.cpu());
        let wal = database.number("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8").await;
        let transactions = transactions(&database).await;
        let start = Instant::now();
        let relay = Relay::start(&database, &[]);
        self.until(requests + BACKLOG, start).await;
        database.wait_until(DRAINED).await;
        let took = start.elapsed();
        let calls = BACKLOG as f64;
        let drain = Drain {
            per_second: calls / took.as_secs_f64(),
            relay_cpu: relay.cpu() / calls * 1e6,
            postgres_cpu: (self.server.cpu() - cpu) / calls * 1e6,
            wal: (database.number("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8").await - wal) / calls,
            statements: {
                relay.stop();
                (self::transactions(&database).await - transactions) / calls * 1e3
            },
            hot: database
                .number("SELECT 100.0::float8 * n_tup_hot_upd / n_tup_upd FROM pg_stat_user_tables WHERE relname = 'outbox'")
                .await,
            dead: database
                .number("SELECT n_dead_tup::float8 FROM pg_stat_user_tables WHERE relname = 'outbox'")
                .await
                / calls,
        };
        assert_eq!(
            database.number("SELECT count(*)::float8 FROM relay.webhook_calls WHERE succeeded").await,
            calls
        );
        database.drop().await;
        drain
    }

    /// Waits until so many requests have come; returns the time since `start`.
    pub async fn until(&self, requests: u64, start: Instant) -> Duration {
        while self.drained() < requests {
            assert!(start.elapsed() < Duration::from_secs(600), "it does not drain");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        start.elapsed()
    }

    /// Calls per second over the first rows of a long backlog.
    async fn drain_with_backlog(&mut self, waiting: u64) -> f64 {
        let database = self.server.database().await;
        database.webhook(1, &self.drain_url(0)).await;
        database.events(1, waiting).await;
        database.run("CHECKPOINT").await;
        let (start, requests) = (Instant::now(), self.drained());
        let relay = Relay::start(&database, &[]);
        let took = self.until(requests + BACKLOG, start).await;
        drop(relay);
        database.drop().await;
        BACKLOG as f64 / took.as_secs_f64()
    }

    /// As above, after deliveries whose dead rows cannot be cleaned away: a report is running.
    async fn drain_with_held_horizon(&mut self, delivered: u64) -> f64 {
        let database = self.server.database().await;
        database.webhook(1, &self.drain_url(0)).await;
        let report = connect(&database.url).await;
        report
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM relay.outbox")
            .await
            .unwrap();
        database.events(1, delivered).await;
        let relay = Relay::start(&database, &[]);
        database.wait_until(DRAINED).await;
        relay.stop();
        database.run("VACUUM relay.outbox").await;
        database.events(1, BACKLOG).await;
        database.run("CHECKPOINT").await;
        let (start, requests) = (Instant::now(), self.drained());
        let relay = Relay::start(&database, &[]);
        // Not by asking the database again and again: each answer would walk all the dead rows.
        let took = self.until(requests + BACKLOG, start).await;
        relay.stop();
        assert_eq!(
            database.number("SELECT count(*)::float8 FROM relay.outbox WHERE done_at IS NULL").await,
            0.0
        );
        drop(report);
        database.drop().await;
        BACKLOG as f64 / took.as_secs_f64()
    }

    // ---- latency ----------------------------------------------------------------------------------------------

    async fn latency(&mut self) {
        eprintln!("latency");
        let database = self.server.database().await;
        database.webhook(1, &self.receiver.url(0, "/")).await;
        let relay = Relay::start(&database, &[]);
        let samples = self.steady(&database, 1, 20.0, if self.full { 1000 } else { 200 }).await;
        self.table.add(
            "commit to arrival, 20 rows a second, p50",
            "ms",
            Target::AtMost(1.0),
            vec![percentile(&samples, 0.5)],
        );
        self.table.add(
            "commit to arrival, 20 rows a second, p99",
            "ms",
            Target::AtMost(3.0),
            vec![percentile(&samples, 0.99)],
        );
        let crossing = self.crossing(&database, 1).await;
        relay.stop();
        // Dead rows before the first live one: a report keeps them.
        let report = connect(&database.url).await;
        report
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM relay.outbox")
            .await
            .unwrap();
        let dead = if self.full { 600_000 } else { 100_000 };
        database.events(1, dead).await;
        database.run("UPDATE relay.outbox SET done_at = now() WHERE done_at IS NULL").await;
        let relay = Relay::start(&database, &[]);
        let crossing_dead = self.crossing(&database, 1).await;
        relay.stop();
        drop(report);
        let lower = "commit to arrival, an id below that of a row that came before".to_owned();
        for (what, samples) in
            [(lower, crossing), (format!("  the same, {dead} dead rows kept"), crossing_dead)]
        {
            for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
                self.table.add(
                    format!("{what}, {name}"),
                    "ms",
                    Target::None,
                    vec![percentile(&samples, share)],
                );
            }
        }
        database.drop().await;
    }

    /// What a call costs at a moderate load: single rows, each in a transaction of its own, from several sessions. The
    /// inserts are counted, too.
    async fn steady_load(&mut self) {
        for per_second in [100_u64, 1000, 5000] {
            eprintln!("steady, {per_second} rows/s");
            let seconds = if self.full { 30 } else { 5 };
            let (mut cpus, mut relays, mut claims, mut finishes, mut commits, mut p99) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for _ in 0..3 {
                let database = self.server.database().await;
                database.webhook(1, &self.receiver.url(0, "/")).await;
                let relay = Relay::start(&database, &[]);
                // The first second warms up.
                self.load(&database, per_second, per_second).await;
                let committed = transactions(&database).await;
                let (server_cpu, relay_cpu) = (self.server.cpu(), relay.cpu());
                let (claim, finish) =
                    (database.session_cpu("claim").await, database.session_cpu("finish").await);
                let count = per_second * seconds;
                let samples = self.load(&database, per_second, count).await;
                let calls = count as f64;
                claims.push((database.session_cpu("claim").await - claim) / calls * 1e6);
                finishes.push((database.session_cpu("finish").await - finish) / calls * 1e6);
                let relay_cpu = (relay.cpu() - relay_cpu) / calls * 1e6;
                relays.push(relay_cpu);
                cpus.push(relay_cpu + (self.server.cpu() - server_cpu) / calls * 1e6);
                p99.push(percentile(&samples, 0.99));
                relay.stop();
                commits.push((transactions(&database).await - committed) / calls);
                database.drop().await;
            }
            let (cpu, latency) = match per_second {
                1000 => (Target::AtMost(250.0), Target::AtMost(6.0)),
                _ => (Target::None, Target::None),
            };
            let table = &mut self.table;
            table.add(
                format!("steady {per_second} rows/s, CPU in all, inserts included"),
                "µs/call",
                cpu,
                cpus,
            );
            table.add("  of the relay", "µs/call", Target::None, relays);
            table.add("  of the session that claims", "µs/call", Target::None, claims);
            table.add("  of the session that finishes", "µs/call", Target::None, finishes);
            table.add("  commits, the insert's included", "1/call", Target::None, commits);
            table.add("  commit to arrival, p99", "ms", latency, p99);
        }
    }

    /// Inserts numbered rows at an even pace, and waits until all are done; returns the milliseconds from each commit to
    /// the arrival.
    async fn load(&self, database: &Database, per_second: u64, count: u64) -> Vec<f64> {
        const SESSIONS: u64 = 16;
        self.receiver.arrivals();
        let mut clients = Vec::new();
        for _ in 0..SESSIONS {
            clients.push(connect(&database.url).await);
        }
        let start = Instant::now();
        let tasks: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(first, client)| {
                tokio::spawn(async move {
                    let sql = format!("{INSERT} VALUES (1, $1, 'user-123', 0, 1250, 150, 300)");
                    let insert = client.prepare(&sql).await.unwrap();
                    let mut committed = Vec::new();
                    for number in (first as u64 + 1..=count).step_by(SESSIONS as usize) {
                        let at = start + Duration::from_secs_f64(number as f64 / per_second as f64);
                        tokio::time::sleep_until(at.into()).await;
                        client.execute(&insert, &[&(number as i64)]).await.unwrap();
                        committed.push((number, Instant::now()));
                    }
                    committed
                })
            })
            .collect();
        let mut committed = std::collections::HashMap::new();
        for task in tasks {
            committed.extend(task.await.unwrap());
        }
        database.wait_until(DRAINED).await;
        let arrivals = self.receiver.arrivals();
        assert_eq!(arrivals.len(), committed.len(), "each row arrives once");
        arrivals
            .into_iter()
            .map(|(number, at)| at.saturating_duration_since(committed[&number]).as_secs_f64() * 1e3)
            .collect()
    }

    /// Two transactions that cross: the one that has drawn the lower id commits when the other's row has arrived.
    /// Returns the milliseconds from that commit to the arrival.
    async fn crossing(&self, database: &Database, project_id: i64) -> Vec<f64> {
        let late = connect(&database.url).await;
        let mut rng = fastrand::Rng::with_seed(7);
        let mut samples = Vec::new();
        self.receiver.arrivals();
        for number in (1..=300).step_by(2) {
            tokio::time::sleep(Duration::from_secs_f64(rng.f64() * 0.1)).await;
            let insert = format!("{INSERT} VALUES ({project_id}, {number}, 'user-123', 0, 1250, 150, 300)");
            late.batch_execute(&format!("BEGIN; {insert}")).await.unwrap();
            database.numbered_event(project_id, number + 1).await;
            self.arrival().await;
            late.batch_execute("COMMIT").await.unwrap();
            let committed = Instant::now();
            samples.push(self.arrival().await.saturating_duration_since(committed).as_secs_f64() * 1e3);
        }
        samples
    }

    /// Inserts numbered rows at random times; returns the milliseconds from each commit to the arrival.
    async fn steady(&self, database: &Database, project_id: i64, per_second: f64, count: u64) -> Vec<f64> {
        self.receiver.arrivals();
        let mut rng = fastrand::Rng::with_seed(count);
        let mut committed = Vec::new();
        let (mut at, start) = (0.0, Instant::now());
        // The first ones warm the path up.
        for number in 1..=count + 10 {
            at += rng.f64() * 2.0 / per_second;
            tokio::time::sleep_until((start + Duration::from_secs_f64(at)).into()).await;
            database.numbered_event(project_id, number).await;
            committed.push(Instant::now());
        }
        let mut arrivals = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        while arrivals.len() < committed.len() {
            assert!(Instant::now() < deadline, "{} of {} arrived", arrivals.len(), committed.len());
            arrivals.extend(self.receiver.arrivals());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        arrivals
            .into_iter()
            .filter(|(number, _)| *number > 10)
            .map(|(number, at)| {
                at.saturating_duration_since(committed[number as usize - 1]).as_secs_f64() * 1e3
            })
            .collect()
    }

    // ---- the application's price ------------------------------------------------------------------------------

    async fn insert(&mut self) {
        let Some(pgbench) = server_program(&self.server, "pgbench") else {
            eprintln!("insert: skipped, there is no pgbench beside the server's binaries");
            return;
        };
        eprintln!("insert");
        let database = self.server.database().await;
        // A plain table has its rules as CHECK constraints; that of the outbox is a trigger, and a second one wakes.
        database
            .run(
                "CREATE TABLE plain (
                     LIKE relay.outbox INCLUDING ALL,
                     CHECK (event = 'onPromptFinished'),
                     CHECK (result IN (0, 1)),
                     CHECK (duration_ms >= 0),
                     CHECK (prompt_tokens >= 0),
                     CHECK (completion_tokens >= 0),
                     CHECK (total_tokens >= 0),
                     CHECK (created_at >= '1970-01-01 00:00:00+00' AND created_at < '10000-01-01 00:00:00+00'),
                     CHECK (finished_at >= '1970-01-01 00:00:00+00' AND finished_at < '10000-01-01 00:00:00+00'),
                     CHECK (webhook_id > 0),
                     CHECK (id BETWEEN 1 AND 9007199254740991),
                     CHECK (event_id <> '00000000-0000-0000-0000-000000000000'))",
            )
            .await;
        database.webhook(1, &self.receiver.url(0, "/hang")).await;
        let folder = tempfile::tempdir().unwrap();
        let values = "VALUES (1, 1, 'user-123', 0, 1250, 150, 300)";
        let many = format!("{values}{}", ", (1, 1, 'user-123', 0, 1250, 150, 300)".repeat(19));
        let script = |name: &str, sql: String| {
            let path = folder.path().join(name);
            fs::write(&path, sql + ";\n").unwrap();
            path.display().to_string()
        };
        let plain = INSERT.replace("relay.outbox", "plain");
        let one =
            (script("plain", format!("{plain} {values}")), script("outbox", format!("{INSERT} {values}")));
        let many =
            (script("plain20", format!("{plain} {many}")), script("outbox20", format!("{INSERT} {many}")));
        let seconds = if self.full { 3 } else { 1 };
        let rate = |file: &str, writers: u32| {
            let mut command = Command::new(&pgbench);
            command.args([
                "-n",
                "-j",
                "2",
                "-T",
                &seconds.to_string(),
                "-c",
                &writers.to_string(),
                "-f",
                file,
            ]);
            command.args(["-h", &self.server.cluster.socket_dir().display().to_string()]);
            command.args(["-p", &self.server.cluster.port().to_string(), "-U", "postgres"]);
            let name = database.url.rsplit_once('/').unwrap().1;
            let output = command.arg(name).stderr(Stdio::inherit()).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let line =
                text.lines().find(|line| line.starts_with("tps = ")).unwrap_or_else(|| panic!("{text}"));
            line.split_whitespace().nth(2).unwrap().parse::<f64>().unwrap()
        };
        // A relay whose only thread is busy is awake and does nothing that would cost the writers CPU.
        let busy = ["--workers", "1", "--timeout", "1h"];
        let full: &[(&str, u32, bool)] = &[
            ("awake", 1, false),
            ("awake", 8, false),
            ("awake", 32, false),
            ("awake", 64, false),
            ("awake", 32, true),
            ("asleep", 1, false),
            ("asleep", 8, false),
            ("asleep", 32, false),
            ("asleep", 64, false),
            ("stopped", 32, false),
            ("absent", 1, false),
            ("absent", 32, false),
            ("absent", 32, true),
        ];
        let short: &[(&str, u32, bool)] =
            &[("awake", 32, false), ("awake", 32, true), ("stopped", 32, false), ("absent", 32, false)];
        for (state, writers, in_bulk) in if self.full { full } else { short } {
            database.run("TRUNCATE relay.outbox, plain").await;
            let relay = match *state {
                "absent" => None,
                "asleep" => Some(Relay::start(&database, &["--poll-interval", "1h"])),
                _ => Some(Relay::start(&database, &busy)),
            };
            if matches!(*state, "awake" | "stopped") {
                database.events(1, 1).await;
                database.wait_until("SELECT count(claimed_by) > 0 FROM relay.outbox").await;
                database.wait_until("SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 1886415987 AND mode = 'ExclusiveLock')").await;
            }
            if *state == "stopped" {
                relay.as_ref().unwrap().signal(Signal::SIGSTOP);
            }
            let (plain, outbox) = if *in_bulk { &many } else { &one };
            let target =
                if *state == "awake" && *writers == 32 { Target::AtLeast(0.95) } else { Target::None };
            let rounds = if matches!(target, Target::None) { 6 } else { 12 };
            let mut ratios = Vec::new();
            for round in 0..rounds {
                // In turns, and who is first changes.
                let (p, o) = if round % 2 == 0 {
                    let p = rate(plain, *writers);
                    (p, rate(outbox, *writers))
                } else {
                    let o = rate(outbox, *writers);
                    (rate(plain, *writers), o)
                };
                ratios.push(o / p);
            }
            drop(relay);
            let rows = if *in_bulk { "20 rows" } else { "1 row" };
            self.table.add(
                format!("inserts of {rows} against a plain table, {writers} writers, relay {state}"),
                "",
                target,
                ratios,
            );
        }
        database.drop().await;
    }

    // ---- fairness ---------------------------------------------------------------------------------------------

    async fn fairness(&mut self) {
        let mut undisturbed = Vec::new();
        let mut disturbed = Vec::new();
        let mut crowded = Vec::new();
        let mut parking = Vec::new();
        let waiting = if self.full { 1_000_000 } else { 100_000 };
        let (runs, count) = if self.full { (3, 1000) } else { (3, 300) };
        for run in 0..runs {
            eprintln!("fairness, run {} of {runs}", run + 1);
            let database = self.server.database().await;
            let healthy = 5000;
            database.webhook(healthy, &self.receiver.url(0, "/")).await;
            let relay = Relay::start(&database, &[]);
            let reference = percentile(&self.steady(&database, healthy, 50.0, count).await, 0.99);
            relay.stop();
            // Three hanging webhooks of one project, and its rows at the head of the queue.
            for n in 1..=3 {
                database.webhook(1, &self.receiver.url(n, "/hang")).await;
            }
            database.events(1, waiting).await;
            let start = Instant::now();
            let relay = Relay::start(&database, &[]);
            let out_of_the_way = "SELECT NOT EXISTS (SELECT FROM relay.outbox WHERE done_at IS NULL AND NOT parked AND claimed_by IS NULL)";
            database.wait_until(out_of_the_way).await;
            parking.push(start.elapsed().as_secs_f64());
            tokio::time::sleep(Duration::from_secs(2)).await;
            disturbed.push(percentile(&self.steady(&database, healthy, 50.0, count).await, 0.99) / reference);
            relay.stop();
            // A hundred projects with a dead endpoint each.
            for n in 100..200 {
                database.webhook(n, &self.receiver.url(u16::try_from(n).unwrap(), "/hang")).await;
            }
            database.run(&format!("{INSERT} SELECT 100 + n % 100, 0, 'user-123', 0, 1250, 150, 300 FROM generate_series(1, 5000) n")).await;
            let relay = Relay::start(&database, &[]);
            tokio::time::sleep(Duration::from_secs(3)).await;
            crowded.push(percentile(&self.steady(&database, healthy, 50.0, count).await, 0.99) / reference);
            drop(relay);
            undisturbed.push(reference);
            database.drop().await;
        }
        self.table.add("p99 of a healthy webhook, undisturbed", "ms", Target::None, undisturbed);
        self.table.add(
            format!("  {waiting} rows of three hanging ones are put aside, once"),
            "s",
            Target::None,
            parking,
        );
        self.table.add(
            format!("  with {waiting} rows of three hanging ones, against it"),
            "",
            Target::AtMost(2.0),
            disturbed,
        );
        self.table.add("  with 100 dead endpoints besides, against it", "", Target::AtMost(2.0), crowded);
    }

    // ---- takeover ---------------------------------------------------------------------------------------------

    async fn takeover(&mut self) {
        eprintln!("takeover");
        let database = self.server.database().await;
        database.webhook(1, &self.receiver.url(0, "/hang")).await;
        let mut samples = Vec::new();
        let start = || Relay::start(&database, &["--poll-interval", "1h"]);
        for round in 0..20 {
            database.run("TRUNCATE relay.outbox").await;
            let mut relays = vec![start(), start()];
            database
                .wait_until(&format!(
                    "SELECT count(*) = 2 FROM relay.instances WHERE dead_at IS NULL AND pid IN ({}, {})",
                    relays[0].pid(),
                    relays[1].pid()
                ))
                .await;
            self.receiver.arrivals();
            database.numbered_event(1, round + 1).await;
            self.arrival().await;
            let pid = database.number("SELECT i.pid::float8 FROM relay.instances i JOIN relay.outbox o ON o.claimed_by = i.epoch").await;
            let at = relays.iter().position(|relay| f64::from(relay.pid()) == pid).unwrap();
            let killed = Instant::now();
            drop(relays.remove(at));
            samples.push((self.arrival().await - killed).as_secs_f64() * 1e3);
        }
        self.table.add("kill of a peer to the POST of its row", "ms", Target::AtMost(250.0), samples);
        database.drop().await;
    }

    async fn arrival(&self) -> Instant {
        let start = Instant::now();
        loop {
            if let Some((_, at)) = self.receiver.arrivals().pop() {
                return at;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "nothing arrives");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    // ---- memory and idle --------------------------------------------------------------------------------------

    async fn memory(&mut self) {
        eprintln!("memory");
        let database = self.server.database().await;
        let relay = Relay::start(&database, &[]);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let idle = relay.memory().0;
        relay.stop();
        for n in 0..32 {
            database.webhook(n, &self.receiver.url(u16::try_from(n).unwrap(), "/big")).await;
        }
        let calls = if self.full { 200_000 } else { 20_000 };
        database
            .run(&format!(
                "{INSERT} SELECT n % 32, 0, 'user-123', 0, 1250, 150, 300 FROM generate_series(1, {calls}) n"
            ))
            .await;
        let relay = Relay::start(&database, &[]);
        database.wait_until(DRAINED).await;
        let busy = relay.memory().1;
        relay.stop();
        self.table.add("memory, idle", "MiB", Target::AtMost(20.0), vec![idle]);
        self.table.add(
            "memory at most, 256 threads and answers of 64 KiB",
            "MiB",
            Target::AtMost(160.0),
            vec![busy],
        );
        database.drop().await;
        self.memory_of_hostile_inputs().await;
    }

    /// The most memory that the daemon takes for inputs that are more than it may take.
    async fn memory_of_hostile_inputs(&mut self) {
        const TEXT: &str =
            "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens,
                                                      completion_tokens, user_agent)
                            SELECT 1, 0, 'user-123', 0, 1250, 150, 300";
        let plain = |rows: u32| {
            format!("{INSERT} SELECT 1, 0, 'user-123', 0, 1250, 150, 300 FROM generate_series(1, {rows}) n")
        };
        let text = |text: &str, rows: u32| format!("{TEXT}, {text} FROM generate_series(1, {rows}) n");
        let huge = ["--max-response-body", "16MiB"];
        let inputs: [HostileInput; 9] = [
            ("66 rows, a webhook with 64 KiB and a slower one", &[("/big", 1), ("/slow", 1)], plain(66), &[]),
            (
                "20,000 rows, the same",
                &[("/big", 1), ("/slow", 1)],
                plain(if self.full { 20_000 } else { 2_000 }),
                &[],
            ),
            ("a row with 300 answers of 64 KiB", &[("/big", 300)], plain(1), &[]),
            ("a row with 24 answers of 16 MiB", &[("/huge", 24)], plain(1), &huge),
            ("50 rows with an answer of 16 MiB", &[("/huge", 1)], plain(50), &huge),
            ("a text of 200 MB, two webhooks", &[("/", 2)], text("repeat('x', 200000000)", 1), &[]),
            ("a text of 1 MB, 560 webhooks", &[("/", 560)], text("repeat('\"', 1000000)", 1), &[]),
            ("300 rows of 0.5 MB", &[("/", 1)], text("repeat('x', 500000)", 300), &[]),
            ("20,000 rows of 8 KB", &[("/", 1)], text("repeat('x', 8000)", 20_000), &[]),
        ];
        for (name, webhooks, rows, flags) in inputs {
            eprintln!("memory: {name}");
            let database = self.server.database().await;
            for (path, count) in webhooks {
                for n in 0..*count {
                    database.webhook(1, &self.receiver.url(n, path)).await;
                }
            }
            let relay = Relay::start(&database, flags);
            database.run(&rows).await;
            database.wait_until(DRAINED).await;
            let most = relay.memory().1;
            relay.stop();
            self.table.add(format!("memory at most, {name}"), "MiB", Target::AtMost(160.0), vec![most]);
            database.drop().await;
        }
    }

    async fn idle(&mut self) {
        eprintln!("idle");
        let database = self.server.database().await;
        database.webhook(1, &self.receiver.url(0, "/")).await;
        let relay = Relay::start(&database, &[]);
        database.events(1, 1).await;
        self.quiet(&database, relay, "idle").await;
        database.drop().await;
        // Endpoints that hang take all that they may take, and as many rows again wait for them.
        eprintln!("idle, while endpoints hang");
        let database = self.server.database().await;
        for n in 0..64 {
            database.webhook(n, &self.receiver.url(u16::try_from(n).unwrap(), "/hang")).await;
        }
        let rows = "SELECT n % 64, 0, 'user-123', 0, 1250, 150, 300 FROM generate_series(1, 6400) n";
        database.run(&format!("{INSERT} {rows}")).await;
        let relay = Relay::start(&database, &["--timeout", "10m"]);
        self.quiet(&database, relay, "idle, all places taken by endpoints that hang").await;
        database.drop().await;
    }

    /// What a relay costs that has nothing to do. Kills it: its calls may hang.
    async fn quiet(&mut self, database: &Database, relay: Relay, what: &str) {
        // It takes a while until it calls it quiet.
        tokio::time::sleep(Duration::from_secs(15)).await;
        let (before, cpu, start) = (transactions(database).await, relay.cpu(), Instant::now());
        tokio::time::sleep(Duration::from_secs(if self.full { 60 } else { 20 })).await;
        let seconds = start.elapsed().as_secs_f64();
        // One transaction is ours.
        let statements = (transactions(database).await - before - 1.0) / seconds;
        let share = (relay.cpu() - cpu) / seconds * 100.0;
        self.table.add(format!("statements, {what}"), "1/s", Target::AtMost(3.0), vec![statements]);
        self.table.add(format!("CPU, {what}"), "% of a core", Target::AtMost(0.2), vec![share]);
    }

    /// What those who look cost Postgres, with many calls on record and a busy quarter of an hour behind them.
    async fn top(&mut self) {
        let calls: u64 = if self.full { 10_000_000 } else { 300_000 };
        eprintln!("top, with {calls} calls");
        let database = self.server.database().await;
        seed_log(&database, calls).await;
        database.run(&format!("{INSERT} SELECT n % 500, 0, 'user-123', 0, 1250, 150, 300 FROM generate_series(1, 10000) AS n")).await;
        database.run("VACUUM ANALYZE relay.outbox").await;
        database
            .run("DROP ROLE IF EXISTS bench_reads; CREATE ROLE bench_reads LOGIN IN ROLE relay_reader")
            .await;
        let url = database.url.replacen("postgres://postgres@", "postgres://bench_reads@", 1);
        assert_ne!(url, database.url, "it is not a URL of postgres'");
        let runs = 5;
        let mut samples = Vec::new();
        for _ in 0..runs {
            let cli = Cli::try_parse_from(["promptpal-relay", "--database-url", &url, "top"]).unwrap();
            let settings = config::database(&cli.global).unwrap();
            let store = Store::connect(&settings, Role::Top).await.unwrap();
            let (now, last) = store.clock().await.unwrap();
            // The first one reads the catalogs and prepares.
            store.sample(now, last).await.unwrap();
            let start = Instant::now();
            for _ in 0..10 {
                let (now, last) = store.clock().await.unwrap();
                store.sample(now, last).await.unwrap();
            }
            samples.push(start.elapsed().as_secs_f64() * 1000.0 / 10.0);
        }
        let name = format!("a refresh of top, {calls} calls on record");
        self.table.add(name, "ms", Target::AtMost(100.0), samples);
        for arguments in [&["status"][..], &["calls", "--failed"]] {
            let mut samples = Vec::new();
            for _ in 0..runs {
                let before = active_ms(&database).await;
                let mut command = Command::new(BINARY);
                let output = command.args(arguments).env("DATABASE_URL", &url).output().unwrap();
                // No instance runs here, which status tells by 1.
                assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
                samples.push(active_ms(&database).await - before);
            }
            let name = format!("Postgres' time of {}, {calls} calls on record", arguments.join(" "));
            self.table.add(name, "ms", Target::AtMost(100.0), samples);
        }
        database.run("DROP OWNED BY bench_reads; DROP ROLE bench_reads").await;
        database.drop().await;
    }
}

/// Records calls of ten days, and 100,000 more of the last quarter of an hour; one of twenty failed.
async fn seed_log(database: &Database, calls: u64) {
    database.run("SET ROLE relay_owner").await;
    for day in 1..11 {
        database
            .run(&format!(
                "DO $$ DECLARE day date := (now() AT TIME ZONE 'UTC')::date - {day}; BEGIN
                     EXECUTE format('CREATE TABLE IF NOT EXISTS relay.webhook_calls_%s PARTITION OF relay.webhook_calls
                                         FOR VALUES FROM (%L) TO (%L)',
                                    to_char(day, 'YYYYMMDD'), day || ' 00:00+00', day + 1 || ' 00:00+00'); END $$"
            ))
            .await;
    }
    database.run("RESET ROLE").await;
    for (count, span) in [(calls, "10 days"), (100_000, "15 minutes")] {
        database
            .run(&format!(
                "INSERT INTO relay.webhook_calls (outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body,
                     status_code, response_body, response_bytes, response_truncated, start_time, end_time, is_timeout, error_kind,
                     error_message, succeeded, repeated, user_agent, ip, event_id)
                 SELECT n, n % 500, n % 500, md5(n::text), 'https://hooks.example.com/' || n % 500, '{{}}', repeat('x', 300),
                        CASE WHEN n % 20 = 0 THEN 503 ELSE 200 END, 'received', 8, false, t, t + interval '20 ms', false,
                        CASE WHEN n % 20 = 0 THEN 'http_status' END, CASE WHEN n % 20 = 0 THEN 'status 503' END, n % 20 <> 0,
                        false, '', '', gen_random_uuid()
                   FROM generate_series(1, {count}) AS n,
                        LATERAL (SELECT now() - ({count} - n) * (interval '{span}' / {count}) AS t) AS t"
            ))
            .await;
    }
    database.run("VACUUM ANALYZE relay.webhook_calls").await;
}

/// How long the sessions of a database have run statements so far. A session tells it at its end.
async fn active_ms(database: &Database) -> f64 {
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // The statistics of a transaction are kept until its end.
    database.number("SELECT active_time FROM pg_stat_database WHERE datname = current_database()").await
}

/// Transactions of a database so far. Backends report what they did when they become idle, at most once a second.
async fn transactions(database: &Database) -> f64 {
    tokio::time::sleep(Duration::from_millis(1500)).await;
    database
        .number("SELECT (xact_commit + xact_rollback)::float8 FROM pg_stat_database WHERE datname = current_database()")
        .await
}
