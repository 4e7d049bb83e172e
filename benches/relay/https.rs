//! Calls over TLS: what a handshake costs, how often a session is resumed, and what connections that rest take.

use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::measure::{Table, Target};
use crate::nginx::{CLOSES, CLOSES_TLS_1_2, KEEPS, Nginx, free_port};
use crate::rows::DRAINED;
use crate::world::{Database, INSERT, Relay, Server};

/// Hosts below it are loopback (RFC 6761), and one certificate is for all of them.
const DOMAIN: &str = "hosts.localhost";
/// Each host is called twice before anything is counted: sessions are met for the first time, threads are started.
const WARM_UP: u64 = 2;

/// How many hosts, and what their server does with a connection.
const ROWS: [(u64, usize); 7] = [
    (1, CLOSES),
    (100, CLOSES),
    (1000, CLOSES),
    (1000, CLOSES_TLS_1_2),
    (1, KEEPS),
    (100, KEEPS),
    (1000, KEEPS),
];

fn name(hosts: u64, how: usize) -> String {
    let how = match how {
        CLOSES => "closed after each answer",
        CLOSES_TLS_1_2 => "closed, TLS 1.2",
        _ => "kept",
    };
    format!("https, {hosts} host{}, connections {how}", if hosts == 1 { "" } else { "s" })
}

/// A TLS receiver, and the authority that the relay is to trust.
struct World {
    nginx: Nginx,
    ports: [u16; 3],
    folder: TempDir,
}

/// What a run cost.
struct Run {
    per_second: f64,
    relay_cpu: f64,
    postgres_cpu: f64,
    resumed: f64,
    memory: f64,
}

/// Calls over HTTPS to so many hosts; with connections that are kept, and with connections that the server closes.
pub async fn all(server: &Server, full: bool, wants: impl Fn(&str) -> bool, table: &mut Table) {
    let wanted: Vec<_> = ROWS.iter().map(|(hosts, how)| (*hosts, *how, name(*hosts, *how))).collect();
    let wanted: Vec<_> = wanted.into_iter().filter(|(_, _, name)| wants(name)).collect();
    if wanted.is_empty() {
        return;
    }
    let Some(world) = World::start() else {
        eprintln!("https: skipped, there is no nginx");
        return;
    };
    let calls = if full { 100_000 } else { 20_000 };
    let runs = if full { 3 } else { 1 };
    for (hosts, how, name) in wanted {
        let closes = how != KEEPS;
        eprintln!("{name}");
        let mut measured = Vec::new();
        for _ in 0..runs {
            measured.push(world.run(server, hosts, how, calls).await);
        }
        let of = |pick: fn(&Run) -> f64| measured.iter().map(pick).collect::<Vec<_>>();
        let (resumed, cpu, memory) = match (hosts, closes) {
            (1000, true) => (Target::AtLeast(95.0), Target::AtMost(300.0), Target::None),
            (1000, false) => (Target::None, Target::None, Target::AtMost(64.0)),
            _ => (Target::None, Target::None, Target::None),
        };
        table.add(name, "calls/s", Target::None, of(|r| r.per_second));
        if closes {
            table.add("  resumed sessions", "%", resumed, of(|r| r.resumed));
        }
        table.add("  CPU of the relay", "µs/call", cpu, of(|r| r.relay_cpu));
        table.add("  CPU of Postgres, inserts included", "µs/call", Target::None, of(|r| r.postgres_cpu));
        table.add("  memory at most", "MiB", memory, of(|r| r.memory));
    }
}

impl World {
    fn start() -> Option<World> {
        let authority = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), params.self_signed(&authority).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, authority);
        // rcgen's usual key is of the curve P-256, as most servers have it.
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([format!("*.{DOMAIN}")]).unwrap();
        let chain = params.signed_by(&key, &issuer).unwrap().pem();
        let ports = [free_port(), free_port(), free_port()];
        let nginx = Nginx::with_tls(ports, &chain, &key.serialize_pem())?;
        Some(World { nginx, ports, folder })
    }

    /// Drains so many calls, spread evenly over the hosts, behind a warm-up.
    async fn run(&self, server: &Server, hosts: u64, how: usize, calls: u64) -> Run {
        let port = self.ports[how];
        let database = server.database().await;
        for host in 0..hosts {
            database.webhook(host as i64, &format!("https://h{host}.{DOMAIN}:{port}/")).await;
        }
        let file = self.folder.path().join("ca.pem");
        let relay = Relay::start(&database, &["--ca-file", file.to_str().unwrap()]);
        // Enough for every thread, too.
        self.drain(&database, hosts, (WARM_UP * hosts).max(2000)).await;
        let (seen, seen_resumed) = self.nginx.resumed(port);
        let (cpu, postgres_cpu, start) = (relay.cpu(), server.cpu(), Instant::now());
        self.drain(&database, hosts, calls).await;
        let took = start.elapsed();
        let per_call = 1e6 / calls as f64;
        let (relay_cpu, postgres_cpu) =
            ((relay.cpu() - cpu) * per_call, (server.cpu() - postgres_cpu) * per_call);
        let (all, resumed) = self.nginx.resumed(port);
        assert_eq!(all - seen, calls, "each call came once");
        let failed = "SELECT count(*)::float8 FROM relay.webhook_calls WHERE NOT succeeded";
        assert_eq!(database.number(failed).await, 0.0);
        let memory = relay.memory().1;
        relay.stop();
        database.drop().await;
        Run {
            per_second: calls as f64 / took.as_secs_f64(),
            relay_cpu,
            postgres_cpu,
            resumed: (resumed - seen_resumed) as f64 / calls as f64 * 100.0,
            memory,
        }
    }
    /// Inserts events for all hosts, and waits until their calls are recorded.
    async fn drain(&self, database: &Database, hosts: u64, calls: u64) {
        let (start, before) = (Instant::now(), self.nginx.requests());
        database
            .run(&format!(
                "{INSERT} SELECT n % {hosts}, 0, 'user-123', 0, 1250, 150, 300 FROM generate_series(1, {calls}) AS n"
            ))
            .await;
        // Not by asking the database again and again, which would be a part of its CPU.
        while self.nginx.requests() < before + calls {
            assert!(start.elapsed() < Duration::from_secs(300), "it does not drain");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        database.wait_until(DRAINED).await;
    }
}
