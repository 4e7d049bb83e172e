//! A steady load for a long time, while reports hold back vacuum: does a call stay as fast, and do table and indexes stay as
//! small?
//!
//! The rows that are done are deleted after a minute, as the retention does after `--retain-outbox`. So what is left in the
//! table is what a horizon holds back, and what vacuum has not taken yet.

use std::time::{Duration, Instant};

use crate::measure::{Target, percentile};
use crate::rows::{Bench, DRAINED};
use crate::world::{Database, INSERT, Relay, connect};

const PER_SECOND: u64 = 1000;
const SESSIONS: u64 = 16;
/// Seconds of the load, with `--full` and without. `SOAK_SECONDS` is another number of them.
const SECONDS: (u64, u64) = (900, 20);
/// Figures are of a minute each; of a load of less than three minutes, of a quarter of it.
const MINUTE: Duration = Duration::from_secs(60);
/// Between two deletions of done rows.
const TRIM: Duration = Duration::from_secs(5);

/// What stands in the database at the end of a minute.
struct Standing {
    dead: f64,
    live: f64,
    table: f64,
    indexes: f64,
    memory: f64,
}

impl Bench<'_> {
    pub async fn soak(&mut self) {
        let seconds = std::env::var("SOAK_SECONDS")
            .map_or(if self.full { SECONDS.0 } else { SECONDS.1 }, |text| {
                text.parse().expect("SOAK_SECONDS is a number")
            });
        let total = Duration::from_secs(seconds);
        let minute = if total < 3 * MINUTE { total / 4 } else { MINUTE };
        eprintln!(
            "soak, {PER_SECOND} rows/s for {seconds} s; a report begins each {minute:?} and holds the horizon for {:?}",
            2 * minute
        );
        let database = self.server.database().await;
        database.webhook(1, &self.receiver.url(0, "/")).await;
        let relay = Relay::start(&database, &[]);
        self.receiver.arrivals();
        let start = Instant::now();
        let load: Vec<_> = {
            let mut tasks = Vec::new();
            for first in 1..=SESSIONS {
                let client = connect(&database.url).await;
                tasks.push(tokio::spawn(insert(client, first, PER_SECOND * seconds, start)));
            }
            tasks
        };
        let trimming = tokio::spawn(trim(connect(&database.url).await, minute));
        let (mut reports, mut standing, mut arrivals) = (Vec::new(), Vec::new(), Vec::new());
        while start.elapsed() < total {
            reports.push(report(&database).await);
            // Two overlap at all times; the older one ends.
            if reports.len() > 2 {
                drop(reports.remove(0));
            }
            let end = start + minute * u32::try_from(standing.len() + 1).unwrap();
            tokio::time::sleep_until(end.into()).await;
            arrivals.extend(self.receiver.arrivals());
            standing.push(stands(&database, &relay).await);
        }
        drop(reports);
        let mut committed = vec![start; usize::try_from(PER_SECOND * seconds).unwrap() + 1];
        for task in load {
            for (number, at) in task.await.unwrap() {
                committed[usize::try_from(number).unwrap()] = at;
            }
        }
        trimming.abort();
        database.wait_until(DRAINED).await;
        arrivals.extend(self.receiver.arrivals());
        assert_eq!(arrivals.len() + 1, committed.len(), "each row arrives once");
        let mut samples = vec![Vec::new(); standing.len()];
        for (number, at) in arrivals {
            let committed = committed[usize::try_from(number).unwrap()];
            let minute = (committed - start).as_secs_f64() / minute.as_secs_f64();
            let minute = (minute as usize).min(samples.len() - 1);
            samples[minute].push(at.saturating_duration_since(committed).as_secs_f64() * 1e3);
        }
        let p99: Vec<f64> = samples.iter().map(|samples| percentile(samples, 0.99)).collect();
        eprintln!("  part   p99, ms   dead rows   live rows   table, MiB   indexes, MiB   relay, MiB");
        for (part, (p99, s)) in p99.iter().zip(&standing).enumerate() {
            eprintln!(
                "  {:>4} {:>9.2} {:>11} {:>11} {:>12.1} {:>14.1} {:>12.1}",
                part + 1,
                p99,
                s.dead,
                s.live,
                s.table,
                s.indexes,
                s.memory
            );
        }
        let peak = relay.memory().1;
        relay.stop();
        database.drop().await;
        self.tell_minutes(&p99, &standing, minute, peak);
    }

    fn tell_minutes(&mut self, p99: &[f64], standing: &[Standing], minute: Duration, peak: f64) {
        let of = |pick: fn(&Standing) -> f64| standing.iter().map(pick).collect::<Vec<_>>();
        let size = of(|s| s.table + s.indexes);
        // The first two reports have ended by then, and what they held back is free for new rows.
        let (settled, late) = (&size[size.len() / 3..size.len() * 2 / 3], &size[size.len() * 2 / 3..]);
        let growth = percentile(late, 1.0) / percentile(settled, 1.0);
        let bounded = if self.full { Target::AtMost(1.2) } else { Target::None };
        let largest = percentile(p99, 1.0) / percentile(p99, 0.5);
        let what = format!("soak at {PER_SECOND} rows/s, p99 of each {} s", minute.as_secs());
        let table = &mut self.table;
        table.add(what, "ms", Target::None, p99.to_vec());
        table.add("  the largest against the median", "", Target::AtMost(2.0), vec![largest]);
        table.add("  dead rows at the end of each", "", Target::None, of(|s| s.dead));
        table.add("  table", "MiB", Target::None, of(|s| s.table));
        table.add("  indexes", "MiB", Target::None, of(|s| s.indexes));
        table.add("  largest size of the last third against the third before", "", bounded, vec![growth]);
        table.add("  memory of the relay", "MiB", Target::None, of(|s| s.memory));
        table.add("  memory of the relay at most", "MiB", Target::AtMost(160.0), vec![peak]);
    }
}

/// Inserts one of so many rows at a time, at an even pace; returns when each was committed.
async fn insert(
    client: tokio_postgres::Client,
    first: u64,
    count: u64,
    start: Instant,
) -> Vec<(u64, Instant)> {
    let sql = format!("{INSERT} VALUES (1, $1, 'user-123', 0, 1250, 150, 300)");
    let insert = client.prepare(&sql).await.unwrap();
    let mut committed = Vec::new();
    for number in (first..=count).step_by(SESSIONS as usize) {
        let at = start + Duration::from_secs_f64(number as f64 / PER_SECOND as f64);
        tokio::time::sleep_until(at.into()).await;
        client.execute(&insert, &[&i64::try_from(number).unwrap()]).await.unwrap();
        committed.push((number, Instant::now()));
    }
    committed
}

/// A report that reads the outbox, and holds the horizon until its session is dropped.
async fn report(database: &Database) -> tokio_postgres::Client {
    let session = connect(&database.url).await;
    session
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM relay.outbox")
        .await
        .unwrap();
    session
}

/// Deletes done rows, as the retention does.
async fn trim(session: tokio_postgres::Client, keep: Duration) {
    let sql = format!(
        "DELETE FROM relay.outbox
          WHERE id < (SELECT min(id) FROM relay.outbox WHERE created_at >= now() - interval '{} s')
            AND done_at IS NOT NULL",
        keep.as_secs()
    );
    loop {
        tokio::time::sleep(TRIM).await;
        session.batch_execute(&sql).await.unwrap();
    }
}

async fn stands(database: &Database, relay: &Relay) -> Standing {
    let row = database
        .client
        .query_one(
            "SELECT n_dead_tup::float8, n_live_tup::float8, pg_table_size(relid) / 1048576.0::float8,
                    pg_indexes_size(relid) / 1048576.0::float8
               FROM pg_stat_user_tables WHERE relid = 'relay.outbox'::regclass",
            &[],
        )
        .await
        .unwrap();
    Standing {
        dead: row.get(0),
        live: row.get(1),
        table: row.get(2),
        indexes: row.get(3),
        memory: relay.memory().0,
    }
}
