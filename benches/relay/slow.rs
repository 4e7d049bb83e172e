//! One relay whose endpoints take long: whether all its threads are at work, and what that costs.
//!
//! The receiver is of its own kind. It holds thousands of connections on one thread, and answers each request some time after
//! it came.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::measure::Target;
use crate::receiver::{OK, request_end};
use crate::rows::Bench;
use crate::world::{INSERT, Relay};

const WORKERS: [u64; 3] = [256, 1024, 4096];
/// How long the endpoints take, and which part of the threads may call endpoints that are so slow.
const LATENCIES: [(Duration, f64); 2] =
    [(Duration::from_millis(100), 1.0), (Duration::from_millis(1200), 0.5)];
/// Webhooks, each of a project and on a host of its own.
const WEBHOOKS: u64 = 64;
/// Calls a second that no relay reaches on two cores: there are no more rows than for these.
const RATE_MAX: f64 = 15_000.0;

impl Bench<'_> {
    pub async fn slow(&mut self) {
        for (latency, share) in LATENCIES {
            for workers in WORKERS {
                self.slow_by(workers, latency, share).await;
            }
        }
    }

    async fn slow_by(&mut self, workers: u64, latency: Duration, share: f64) {
        let name = format!("endpoints take {} ms, {workers} threads", latency.as_millis());
        eprintln!("slow, {name}");
        let receiver = SlowReceiver::start(latency);
        let database = self.server.database().await;
        for n in 0..WEBHOOKS {
            database.webhook(n as i64, &receiver.url(n as u16)).await;
        }
        // No webhook's limit keeps threads idle: any quarter of the webhooks could have them all.
        let (workers_flag, per_webhook) = (workers.to_string(), (workers * 4 / WEBHOOKS).to_string());
        let relay = Relay::start(&database, &["--workers", &workers_flag, "--per-webhook", &per_webhook]);
        database.wait_until("SELECT count(*) = 1 FROM relay.instances").await;
        let idle = relay.memory().0;
        let possible = workers as f64 * share / latency.as_secs_f64();
        let warm_up = latency * 2 + Duration::from_secs(1);
        // The calls come in waves: as many whole ones as fit.
        let span = latency * (self.slow_span().as_millis() / latency.as_millis()) as u32;
        let rows = possible.min(RATE_MAX) * (warm_up + span).as_secs_f64() + 2.0 * workers as f64;
        database
            .run(&format!(
                "{INSERT} SELECT n % {WEBHOOKS}, 0, 'user-123', 0, 1250, 150, 300 FROM generate_series(1, {}) n",
                rows.ceil()
            ))
            .await;
        tokio::time::sleep(warm_up).await;
        let (answers, cpu, server_cpu, start) =
            (receiver.answers(), relay.cpu(), self.server.cpu(), Instant::now());
        tokio::time::sleep(span).await;
        let (calls, seconds) = ((receiver.answers() - answers) as f64, start.elapsed().as_secs_f64());
        let (cpu, server_cpu) = (relay.cpu() - cpu, self.server.cpu() - server_cpu);
        let pending =
            database.number("SELECT count(*)::float8 FROM relay.outbox WHERE claimed_by IS NULL").await;
        assert!(pending > 0.0, "the rows have run out");
        let (threads, (now, most)) = (relay.threads(), relay.memory());
        drop(relay);
        database.drop().await;
        let rate = calls / seconds;
        let table = &mut self.table;
        table.add(name, "calls/s", Target::None, vec![rate]);
        table.add("  part of the most that they allow", "%", Target::None, vec![100.0 * rate / possible]);
        table.add("  CPU of the relay", "µs/call", Target::None, vec![cpu / calls * 1e6]);
        table.add("  CPU of Postgres", "µs/call", Target::None, vec![server_cpu / calls * 1e6]);
        table.add("  threads", "", Target::None, vec![threads]);
        table.add("  memory at most", "MiB", Target::None, vec![most]);
        table.add("  memory of a thread", "KiB", Target::None, vec![(now - idle) * 1024.0 / threads]);
    }

    /// With the rest of a row it is ten seconds at most.
    fn slow_span(&self) -> Duration {
        Duration::from_secs(if self.full { 30 } else { 5 })
    }
}

/// Answers each request after the same time. One thread for all connections.
struct SlowReceiver {
    port: u16,
    answers: Arc<AtomicU64>,
}

impl SlowReceiver {
    /// Listens on all addresses of loopback, to the end of the process.
    fn start(latency: Duration) -> SlowReceiver {
        let answers = Arc::new(AtomicU64::new(0));
        let counted = answers.clone();
        let (to_port, port) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
                // All threads of the relay connect at once.
                let listener = socket.listen(4096).unwrap();
                to_port.send(listener.local_addr().unwrap().port()).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(answer_all(stream, latency, counted.clone()));
                }
            });
        });
        let port = port.recv().unwrap();
        SlowReceiver { port, answers }
    }

    fn url(&self, host: u16) -> String {
        let [high, low] = (host + 1).to_be_bytes();
        format!("http://127.0.{high}.{low}:{}/", self.port)
    }

    /// Answers so far.
    fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

/// Until the other side closes the connection.
async fn answer_all(mut stream: TcpStream, latency: Duration, answers: Arc<AtomicU64>) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    loop {
        while let Some(end) = request_end(&buffer).filter(|end| *end <= buffer.len()) {
            buffer.drain(..end);
            tokio::time::sleep(latency).await;
            if stream.write_all(OK).await.is_err() {
                return;
            }
            answers.fetch_add(1, Ordering::Relaxed);
        }
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

impl Relay {
    /// Its threads now.
    fn threads(&self) -> f64 {
        fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count() as f64
    }
}
