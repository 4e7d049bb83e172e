//! Several relays on one database, against one: they share the two cores and the rows, so together they should be as fast.

use std::time::Instant;

use crate::measure::Target;
use crate::rows::{BACKLOG, Bench, DRAINED};
use crate::world::{Database, Relay, cpu};

/// How many relays are compared with one.
const RELAYS: [usize; 3] = [2, 4, 8];

/// What a drain by some relays cost.
struct Drain {
    per_second: f64,
    /// CPU of all of them.
    relay_cpu: f64,
    postgres_cpu: f64,
    claims: f64,
    empty: f64,
    finishes: f64,
    read: f64,
    /// CPU of the threads that all the daemons' loops run on.
    loops: f64,
    /// CPU of the sessions that claim, finish, and listen.
    sessions: [f64; 3],
}

impl Bench<'_> {
    /// Drains by 2, 4 and 8 relays. A drain by one relay is before and after each of them, because the machine's speed changes.
    pub async fn several(&mut self) {
        let runs = if self.full { 5 } else { 3 };
        let mut alone = vec![self.drain_by(1).await];
        let mut ratios = RELAYS.map(|_| Vec::new());
        let mut drains = RELAYS.map(|_| Vec::new());
        for run in 0..runs {
            eprintln!("several, run {} of {runs}", run + 1);
            let mut order: Vec<usize> = (0..RELAYS.len()).collect();
            if run % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let drain = self.drain_by(RELAYS[at]).await;
                let before = alone[alone.len() - 1].per_second;
                alone.push(self.drain_by(1).await);
                let reference = (before + alone[alone.len() - 1].per_second) / 2.0;
                ratios[at].push(drain.per_second / reference);
                drains[at].push(drain);
            }
        }
        self.tell(1, None, &alone);
        for ((relays, ratios), drains) in RELAYS.into_iter().zip(ratios).zip(drains) {
            self.tell(relays, Some(ratios), &drains);
        }
    }

    fn tell(&mut self, relays: usize, ratios: Option<Vec<f64>>, drains: &[Drain]) {
        let of = |pick: fn(&Drain) -> f64| drains.iter().map(pick).collect::<Vec<_>>();
        let table = &mut self.table;
        let name = match relays {
            1 => "drain by one relay that slept".to_owned(),
            _ => format!("drain by {relays} relays that slept"),
        };
        table.add(name.clone(), "calls/s", Target::None, of(|d| d.per_second));
        if let Some(ratios) = ratios {
            table.add(format!("{name}, against one"), "", Target::AtLeast(0.9), ratios);
        }
        table.add("  CPU of all relays", "µs/call", Target::None, of(|d| d.relay_cpu));
        table.add("    of it the loops, one thread a relay", "µs/call", Target::None, of(|d| d.loops));
        table.add("  CPU of Postgres", "µs/call", Target::None, of(|d| d.postgres_cpu));
        table.add("    of it the sessions that claim", "µs/call", Target::None, of(|d| d.sessions[0]));
        table.add("    of it the sessions that finish", "µs/call", Target::None, of(|d| d.sessions[1]));
        table.add("    of it the sessions that listen", "µs/call", Target::None, of(|d| d.sessions[2]));
        table.add("  claims and looks at the head", "1/1000 calls", Target::None, of(|d| d.claims));
        table.add("    that claimed nothing", "%", Target::None, of(|d| d.empty));
        table.add("  finishes", "1/1000 calls", Target::None, of(|d| d.finishes));
        table.add("  index entries read by both", "1/call", Target::None, of(|d| d.read));
    }

    /// A backlog appears all at once, while so many relays sleep.
    async fn drain_by(&mut self, relays: usize) -> Drain {
        let database = self.server.database().await;
        database.webhook(1, &self.drain_url(0)).await;
        let running: Vec<Relay> = (0..relays).map(|_| Relay::start(&database, &[])).collect();
        database
            .wait_until(&format!("SELECT count(*) = {relays} FROM relay.instances WHERE dead_at IS NULL"))
            .await;
        database.run("CHECKPOINT").await;
        let sessions = sessions(&database).await;
        let sessions_cpu = || sessions.each_ref().map(|pids| pids.iter().map(|pid| cpu(*pid)).sum::<f64>());
        let loops_cpu = || running.iter().map(Relay::cpu_of_loops).sum::<f64>();
        let relays_cpu = || running.iter().map(Relay::cpu).sum::<f64>();
        database.run("BEGIN").await;
        database.events(1, BACKLOG).await;
        let (requests, relay_cpu, postgres_cpu) = (self.drained(), relays_cpu(), self.server.cpu());
        let (before, loops) = (sessions_cpu(), loops_cpu());
        let transactions = transactions(&database).await;
        let start = Instant::now();
        database.run("COMMIT").await;
        self.until(requests + BACKLOG, start).await;
        database.wait_until(DRAINED).await;
        let took = start.elapsed();
        let calls = BACKLOG as f64;
        let (relay_cpu, postgres_cpu) = (relays_cpu() - relay_cpu, self.server.cpu() - postgres_cpu);
        let loops = (loops_cpu() - loops) / calls * 1e6;
        let mut sessions = sessions_cpu();
        sessions.iter_mut().zip(before).for_each(|(after, before)| *after = (*after - before) / calls * 1e6);
        let transactions = self::transactions(&database).await - transactions;
        running.into_iter().for_each(Relay::stop);
        // Sessions that have ended have told what they did. A claim, or a look at the head, is one scan of this index.
        let of_index = "FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_pending'";
        let claims = database.number(&format!("SELECT idx_scan::float8 {of_index}")).await;
        let read = database.number(&format!("SELECT idx_tup_read::float8 {of_index}")).await;
        let finishes = database.number("SELECT count(DISTINCT done_at)::float8 FROM relay.outbox").await;
        let once =
            "SELECT count(*) = count(DISTINCT outbox_id) AND count(*) = (SELECT count(*) FROM relay.outbox)
                           AND bool_and(succeeded) AND NOT bool_or(repeated)
                      FROM relay.webhook_calls";
        assert!(
            database.client.query_one(once, &[]).await.unwrap().get::<_, bool>(0),
            "each row has one call"
        );
        database.drop().await;
        Drain {
            per_second: calls / took.as_secs_f64(),
            relay_cpu: relay_cpu / calls * 1e6,
            postgres_cpu: postgres_cpu / calls * 1e6,
            claims: claims / calls * 1e3,
            // Claims that find rows write, and so do finishes.
            empty: (100.0 * (1.0 - (transactions - finishes) / claims)).max(0.0),
            finishes: finishes / calls * 1e3,
            read: read / calls,
            loops,
            sessions,
        }
    }
}

/// Transactions that wrote, so far, in all databases.
async fn transactions(database: &Database) -> f64 {
    database.number("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::float8").await
}

/// Process ids of the backends of all relays: of the sessions that claim, finish, and listen.
async fn sessions(database: &Database) -> [Vec<u32>; 3] {
    let sql = "SELECT pid, split_part(application_name, ' ', 2) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name LIKE 'promptpal-relay %'";
    let rows = database.client.query(sql, &[]).await.unwrap();
    let of = |role| {
        rows.iter()
            .filter(|row| row.get::<_, &str>(1) == role)
            .map(|row| u32::try_from(row.get::<_, i32>(0)).unwrap())
            .collect()
    };
    ["claim", "finish", "listen"].map(of)
}
