//! What is counted, under which names, and the little HTTP server that tells it (`--metrics-listen`).
//!
//! All of it happens on the relay's one asynchronous thread, a batch at a time. A scrape asks what the threads are doing.
//! Counting never waits, and never asks Postgres.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::task::Poll;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::error::{Error, Result};
use crate::model::call::{Call, ErrorKind};
use crate::model::load::Load;
use crate::telemetry::terminal::escaped;

/// How long a request may take to come, and its answer to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that are served at the same time. When one more comes, the oldest is closed: a client that asks is answered
/// within milliseconds, so the oldest ones are silent.
const CONNECTIONS_MAX: usize = 64;
/// Longest head of a request.
const HEAD_MAX: usize = 8 * 1024;
/// Pause after the listener failed, for want of descriptors.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

type Labels = [(&'static str, String); 1];
type Seconds = Gauge<f64, AtomicU64>;
type Count = Gauge<i64, AtomicI64>;

/// The counters.
pub struct Metrics {
    registry: Registry,
    durations: HashMap<&'static str, Histogram>,
    // The histograms' counts say so, too.
    recorded: Counter,
    /// Calls whose receivers may have seen them before.
    pub repeated: Counter,
    /// Rows of which nothing was recorded, because they were done, gone, or another instance's.
    pub fenced: Counter,
    /// Rows that were marked done.
    pub done: Counter,
    /// Those of them that met no webhook, so that no call was made.
    pub without_call: Counter,
    /// Claims of pending rows, whether or not they found any. Claims of parked rows are not counted.
    pub claims: Counter,
    /// Rows that were claimed, among them those that were parked before.
    pub claimed: Counter,
    /// Rows that were parked.
    pub parked: Counter,
    finishes: Histogram,
    wakeups: Family<Labels, Counter>,
    /// Session sets that were made anew.
    pub reconnects: Counter,
    /// Instances that this one has declared dead.
    pub takeovers: Counter,
    /// Webhooks that this daemon has paused.
    pub webhooks_paused: Counter,
    in_hand: Count,
    running: Count,
    waiting: Count,
    threads: Count,
    memory_bytes: Count,
    shortages: Count,
    places: Family<Labels, Count>,
    healthy: Count,
    oldest_pending: Seconds,
    oldest_parked: Seconds,
    retention: Seconds,
    // Why the daemon is not healthy, by source; empty when it is healthy. Each source writes its own entry.
    trouble: RefCell<BTreeMap<Source, String>>,
}

/// The parts of the daemon that may say that it does not work, in the order of telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// It is told to stop.
    Stop,
    /// The sessions with Postgres: not there yet, or lost.
    Sessions,
    /// Nothing moves.
    Stall,
    /// The claiming loop.
    Claim,
    /// The finishing loop.
    Finish,
}

/// For a call without an error.
const SUCCESS: &str = "success";

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("promptpal_relay");
        let r = &mut registry;
        let by_outcome = Family::<Labels, Histogram>::new_with_constructor(|| {
            // 1 ms to 33 s: beyond the longest usual --timeout.
            Histogram::new(exponential_buckets(0.001, 2.0, 16))
        });
        let text = "Duration of calls by outcome: success, or the error_kind";
        r.register_with_unit("call_duration", text, Unit::Seconds, by_outcome.clone());
        let outcomes = ErrorKind::ALL.map(ErrorKind::as_str).into_iter().chain([SUCCESS]);
        let durations = outcomes
            .map(|outcome| (outcome, by_outcome.get_or_create_owned(&label("outcome", outcome))))
            .collect();
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            r.register(name, help, counter.clone());
            counter
        };
        let repeated = counter("calls_repeated", "Calls that an instance that died may have made before");
        let fenced =
            counter("rows_fenced", "Rows of which nothing was recorded, because they were not ours any more");
        let done = counter("rows_done", "Rows that were marked done");
        let without_call =
            counter("rows_without_call", "Rows that were marked done without a call: they met no webhook");
        let claims = counter("claims", "Looks for rows");
        let claimed = counter("rows_claimed", "Rows that were claimed");
        let parked = counter("rows_parked", "Rows that were put into the slow lane");
        let reconnects = counter("reconnects", "Connections to Postgres that were made anew");
        let takeovers = counter("takeovers", "Dead instances that were found");
        let webhooks_paused =
            counter("webhooks_paused", "Webhooks that this daemon has paused (--pause-failing)");
        let finishes = Histogram::new(exponential_buckets(1.0, 4.0, 6));
        r.register("finish_rows", "Rows recorded in one transaction", finishes.clone());
        let wakeups = Family::<Labels, Counter>::default();
        r.register("wakeups", "Ends of a rest, by cause", wakeups.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Count::default();
            r.register(name, help, gauge.clone());
            gauge
        };
        let in_hand = gauge("rows_in_hand", "Rows that are claimed and not recorded");
        let running = gauge("calls_running", "Calls in flight");
        let waiting = gauge("calls_waiting", "Calls that wait for a place");
        let threads = gauge("threads", "Threads for calls");
        let memory_bytes = gauge("memory_bytes", "Memory of rows in hand, of what --memory allows");
        let shortages =
            gauge("shortage_pauses", "Pauses for want of descriptors, threads or memory, since the start");
        let healthy = gauge("healthy", "1 while rows can be delivered, as /healthz has it; else 0");
        let places = Family::<Labels, Count>::default();
        let text = "Calls in flight to the 20 webhooks that have most";
        r.register("webhook_calls_running", text, places.clone());
        let mut seconds = |name: &str, help: &str| {
            let gauge = Seconds::default();
            r.register_with_unit(name, help, Unit::Seconds, gauge.clone());
            gauge
        };
        let oldest_pending =
            seconds("oldest_pending_age", "Age of the oldest row that is not done and not parked");
        let oldest_parked = seconds("oldest_parked_age", "Age of the oldest row in the slow lane");
        let retention = seconds(
            "retention_age",
            "Time since old rows and partitions were last all thrown away, by any instance",
        );
        retention.set(f64::NAN);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "This program", Info::new(version));
        Metrics {
            registry,
            durations,
            recorded: Counter::default(),
            repeated,
            fenced,
            done,
            without_call,
            claims,
            claimed,
            parked,
            finishes,
            wakeups,
            reconnects,
            takeovers,
            webhooks_paused,
            in_hand,
            running,
            waiting,
            threads,
            memory_bytes,
            shortages,
            places,
            healthy,
            oldest_pending,
            oldest_parked,
            retention,
            trouble: RefCell::new(BTreeMap::from([(Source::Sessions, "starting".into())])),
        }
    }
}

fn label(name: &'static str, value: impl ToString) -> Labels {
    [(name, value.to_string())]
}

impl Metrics {
    /// Counts a call that was recorded.
    pub fn call(&self, call: &Call, repeated: bool) {
        let took = call.end_time.duration_since(call.start_time).unwrap_or_default();
        let outcome = call.error_kind.map_or(SUCCESS, ErrorKind::as_str);
        self.durations[outcome].observe(took.as_secs_f64());
        self.recorded.inc();
        if repeated {
            self.repeated.inc();
        }
    }

    /// How many calls were recorded.
    pub fn calls(&self) -> u64 {
        self.recorded.get()
    }

    /// Counts a transaction that recorded so many rows.
    pub fn finish(&self, rows: usize) {
        self.finishes.observe(rows as f64);
        self.done.inc_by(rows as u64);
    }

    /// Counts a wait of the claiming loop that ended, by its reason.
    pub fn wakeup(&self, cause: &str) {
        self.wakeups.get_or_create(&label("cause", cause)).inc();
    }

    /// Sets how old the oldest pending and the oldest parked row are, in seconds; NaN when it is not known.
    pub fn oldest(&self, (pending, parked): (f64, f64)) {
        self.oldest_pending.set(pending);
        self.oldest_parked.set(parked);
    }

    /// Sets how long ago the retention last did all of its work, in seconds; NaN when it is not known.
    pub fn retention_age(&self, age: f64) {
        self.retention.set(age);
    }

    /// Notes why the daemon does not work, or with none that this source knows no reason.
    pub fn trouble(&self, source: Source, why: Option<String>) {
        let mut trouble = self.trouble.borrow_mut();
        match why {
            Some(why) => _ = trouble.insert(source, why),
            None => _ = trouble.remove(&source),
        }
    }

    /// Why the daemon does not work; none when it works.
    pub fn why(&self) -> Option<String> {
        let trouble = self.trouble.borrow();
        let all: Vec<&str> = trouble.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// How old the oldest row is that is not done, in seconds; none when it is not known.
    pub fn oldest_age(&self) -> Option<f64> {
        let age = self.oldest_pending.get().max(self.oldest_parked.get());
        (!age.is_nan()).then_some(age)
    }

    fn text(&self, load: &Load, in_hand: usize) -> String {
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.in_hand.set(number(in_hand));
        self.running.set(number(load.running));
        self.waiting.set(number(load.waiting));
        self.threads.set(number(load.threads));
        self.memory_bytes.set(number(load.memory_bytes));
        self.healthy.set(i64::from(self.trouble.borrow().is_empty()));
        self.shortages.set(i64::try_from(load.shortages).unwrap_or(i64::MAX));
        self.places.clear();
        for (webhook_id, calls) in &load.busiest {
            self.places.get_or_create(&label("webhook", webhook_id)).set(number(*calls));
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }
}

/// The listening socket of `--metrics-listen`.
pub struct Server(TcpListener);

impl Server {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] when the system does not give the address.
    pub async fn bind(address: SocketAddr) -> Result<Server> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| {
            Error::Config(format!("cannot listen on {address} (--metrics-listen): {error}"))
        })?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "metrics");
        }
        Ok(Server(listener))
    }

    /// The port that it listens on.
    ///
    /// # Errors
    ///
    /// When the system cannot tell.
    pub fn port(&self) -> Result<u16> {
        let address = self.0.local_addr().map_err(Error::io("asking for the port of the metrics"))?;
        Ok(address.port())
    }

    /// Answers `GET /metrics` and `GET /healthz`, for ever. `load` tells what the threads do, and how many rows are in hand.
    pub async fn serve(&self, metrics: &Metrics, load: impl Fn() -> (Load, usize)) -> Infallible {
        let mut connections = Connections(VecDeque::new());
        loop {
            let stream = tokio::select! {
                // Open connections come first: however many new ones come, a client that has asked is answered.
                biased;
                never = connections.serve() => match never {},
                stream = self.accept() => stream,
            };
            connections.add(Box::pin(in_time(answer(stream, metrics, &load))));
        }
    }

    /// The next connection.
    async fn accept(&self) -> TcpStream {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    tracing::warn!(%error, "metrics cannot be scraped");
                    tokio::time::sleep(LISTEN_PAUSE).await;
                }
            }
        }
    }
}

/// Connections that are open, the oldest first.
struct Connections<'a>(VecDeque<Pin<Box<dyn Future<Output = ()> + 'a>>>);

impl<'a> Connections<'a> {
    /// Takes one more.
    fn add(&mut self, connection: Pin<Box<dyn Future<Output = ()> + 'a>>) {
        if self.0.len() >= CONNECTIONS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(connection);
    }

    /// Serves all of them; never resolves. Cancel-safe. They are few, so all are polled when one is ready.
    async fn serve(&mut self) -> Infallible {
        poll_fn(|context| {
            self.0.retain_mut(|connection| connection.as_mut().poll(context).is_pending());
            Poll::Pending
        })
        .await
    }
}

/// Answers unless it takes too long.
async fn in_time(answer: impl Future<Output = std::io::Result<()>>) {
    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, answer).await {
        tracing::debug!(%error, "answering a scrape");
    }
}

async fn answer(
    mut stream: TcpStream,
    metrics: &Metrics,
    load: &impl Fn() -> (Load, usize),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(&head).is_ok();
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
    let text = "text/plain; charset=utf-8";
    let (status, kind, body) = match (request.method, path) {
        _ if !parsed => ("400 Bad Request", text, "not a request\n".into()),
        (Some("GET" | "HEAD"), "/metrics") => {
            let (load, in_hand) = load();
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ("200 OK", kind, metrics.text(&load, in_hand))
        }
        (Some("GET" | "HEAD"), "/healthz") => match metrics.why() {
            None => ("200 OK", text, "ok\n".into()),
            // For a terminal, too: it says what Postgres and its triggers say.
            Some(why) => ("503 Service Unavailable", text, format!("{}\n", escaped(&why))),
        },
        (Some("GET" | "HEAD"), _) => ("404 Not Found", text, "there are /metrics and /healthz\n".into()),
        _ => ("405 Method Not Allowed", text, "only GET\n".into()),
    };
    let length = body.len();
    let body = if request.method == Some("HEAD") { String::new() } else { body };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_of_trouble_speaks_for_itself() {
        let metrics = Metrics::default();
        assert_eq!(metrics.why().as_deref(), Some("starting"));
        metrics.trouble(Source::Sessions, None);
        assert_eq!(metrics.why(), None);
        metrics.trouble(Source::Finish, Some("no record".into()));
        metrics.trouble(Source::Claim, Some("no claim".into()));
        assert_eq!(metrics.why().as_deref(), Some("no claim; no record"));
        metrics.trouble(Source::Finish, None);
        assert_eq!(
            metrics.why().as_deref(),
            Some("no claim"),
            "what one has overcome says nothing of the other"
        );
        metrics.trouble(Source::Claim, None);
        assert_eq!(metrics.why(), None);
    }
}
