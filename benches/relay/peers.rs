//! Other Rust queues on Postgres at the same work, in turns with the drain. A job is one POST to the same receiver and one row of
//! the call log, in the same Postgres with fsync on.
//!
//! They are in a package apart (`benches/peers`), which this builds. What it does for them, and their settings, stands there.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::measure::Target;
use crate::rows::{BACKLOG, Bench, Drain};
use crate::world::Database;

const ROUNDS: usize = 3;
/// The queues, and how each writes its log: rows of all jobs in batches, or each row alone as a plain handler does.
const PEERS: [(&str, &str); 4] =
    [("graphile_worker", "batches"), ("awa", "batches"), ("graphile_worker", "alone"), ("awa", "alone")];

/// What a peer tells of its run.
#[derive(Deserialize)]
struct Run {
    version: String,
    settings: String,
    jobs: u64,
    seconds: f64,
    cpu_seconds: f64,
}

impl Bench<'_> {
    pub async fn peers(&mut self) {
        let program = build();
        // They take longer for a job.
        let jobs = if self.full { BACKLOG } else { BACKLOG / 2 };
        let mut drains = vec![self.drain_plain(1).await];
        let mut peers: [Vec<Drain>; PEERS.len()] = Default::default();
        let mut names: [String; PEERS.len()] = Default::default();
        let mut ratios = Vec::new();
        for round in 0..ROUNDS {
            // Who is first changes.
            for turn in 0..PEERS.len() {
                let at = (round + turn) % PEERS.len();
                let (name, log) = PEERS[at];
                // A transaction for each row takes longer.
                let jobs = if log == "alone" { jobs / 5 } else { jobs };
                let (drain, run) = self.peer(&program, PEERS[at], jobs).await;
                names[at] = format!("{name} {}, log {log}, {jobs} jobs", run.version);
                eprintln!("  {}: {:.0} calls/s ({})", names[at], drain.per_second, run.settings);
                peers[at].push(drain);
            }
            let before = drains[round].per_second;
            drains.push(self.drain_plain(1).await);
            // The machine's speed changes within minutes: what the peers are compared with was before and after them.
            let ours = (before + drains[round + 1].per_second) / 2.0;
            let best = peers.iter().map(|runs| runs[round].per_second).fold(0.0, f64::max);
            ratios.push(ours / best);
        }
        let ours = std::iter::once((format!("the relay, {BACKLOG} rows"), &drains));
        for (name, runs) in ours.chain(names.into_iter().zip(&peers)) {
            let of = |pick: fn(&Drain) -> f64| runs.iter().map(pick).collect::<Vec<_>>();
            self.table.add(format!("peers: {name}"), "calls/s", Target::None, of(|d| d.per_second));
            self.table.add("  CPU of its process", "µs/call", Target::None, of(|d| d.relay_cpu));
            self.table.add("  CPU of Postgres", "µs/call", Target::None, of(|d| d.postgres_cpu));
            self.table.add("  WAL", "bytes/call", Target::None, of(|d| d.wal));
        }
        self.table.add("peers: the relay against the best of them", "", Target::AtLeast(8.0), ratios);
    }

    /// One run of a peer, in a database of its own.
    async fn peer(&mut self, program: &PathBuf, (name, log): (&str, &str), jobs: u64) -> (Drain, Run) {
        let database = self.server.database().await;
        self.start(program, &[name, "fill", &jobs.to_string()], &database);
        database.run("VACUUM ANALYZE").await;
        database.run("CHECKPOINT").await;
        let (requests, cpu, wal) = (self.drained(), self.server.cpu(), wal(&database).await);
        let output = self.start(program, &[name, "run", &jobs.to_string(), log], &database);
        let (cpu, wal) = (self.server.cpu() - cpu, self::wal(&database).await - wal);
        let run: Run = serde_json::from_slice(&output).unwrap();
        let calls = jobs as f64;
        assert_eq!(run.jobs, jobs);
        assert_eq!(self.drained() - requests, jobs, "one POST for each job");
        let logged = "SELECT count(DISTINCT outbox_id)::float8 FROM relay.webhook_calls WHERE succeeded";
        assert_eq!(database.number(logged).await, calls, "one log row for each job");
        let drain = Drain {
            per_second: calls / run.seconds,
            relay_cpu: run.cpu_seconds / calls * 1e6,
            postgres_cpu: cpu / calls * 1e6,
            wal: wal / calls,
            ..Drain::default()
        };
        database.drop().await;
        (drain, run)
    }

    fn start(&self, program: &PathBuf, arguments: &[&str], database: &Database) -> Vec<u8> {
        let mut command = Command::new(program);
        command.args(arguments).env("DATABASE_URL", &database.url).env("RECEIVER_URL", self.drain_url(0));
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", output.status);
        output.stdout
    }
}

async fn wal(database: &Database) -> f64 {
    database.number("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8").await
}

/// Builds the program of the peers; returns its path.
fn build() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (manifest, target) = (root.join("benches/peers/Cargo.toml"), root.join("target/peers"));
    eprintln!("peers: building benches/peers; the first time that takes some minutes");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--locked", "--manifest-path"]).arg(manifest);
    let built = command.arg("--target-dir").arg(&target).status().unwrap();
    assert!(built.success(), "benches/peers does not build");
    target.join("release/peers")
}
