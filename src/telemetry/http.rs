//! The little HTTP server of `--metrics-listen`: answers `/metrics`, `/healthz`, `/readyz` and `/livez`. A scrape asks what the
//! threads are doing, and never Postgres.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::error::{Error, Result};
use crate::model::load::Load;
use crate::telemetry::exposition::Format;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::terminal::escaped;

/// How long a request may take to come, and its answer to go.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Connections that are served at the same time. When one more comes, the oldest is closed: a client that asks is answered
/// within milliseconds, so the oldest ones are silent.
const CONNECTIONS_MAX: usize = 64;
/// Longest head of a request.
const HEAD_MAX: usize = 8 * 1024;
/// Pause after the listener failed, for want of descriptors.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// What all answers are but those of `/metrics`.
const TEXT: &str = "text/plain; charset=utf-8";

/// The listening socket of `--metrics-listen`.
pub(crate) struct Server(TcpListener);

impl Server {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] when the system does not give the address.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Server> {
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
    pub(crate) fn port(&self) -> Result<u16> {
        let address = self.0.local_addr().map_err(Error::io("asking for the port of the metrics"))?;
        Ok(address.port())
    }

    /// Answers a GET of each path, for ever. `load` tells what the threads do, and how many rows are in hand.
    pub(crate) async fn serve(
        &self,
        metrics: &Metrics,
        health: &Health,
        load: impl Fn() -> (Load, usize),
    ) -> Infallible {
        let mut connections = Connections(VecDeque::new());
        loop {
            let stream = tokio::select! {
                // Open connections come first: however many new ones come, a client that has asked is answered.
                biased;
                never = connections.serve() => match never {},
                stream = self.accept() => stream,
            };
            connections.add(Box::pin(in_time(answer(stream, metrics, health, &load))));
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
    if let Ok(Err(error)) = tokio::time::timeout(ANSWER_LIMIT, answer).await {
        tracing::debug!(%error, "answering a scrape");
    }
}

async fn answer(
    mut stream: TcpStream,
    metrics: &Metrics,
    health: &Health,
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
    let (status, kind, body) = match (request.method, path) {
        _ if !parsed => ("400 Bad Request", TEXT, "not a request\n".into()),
        (Some("GET" | "HEAD"), "/metrics") => {
            let (load, in_hand) = load();
            let format = wanted_format(request.headers);
            ("200 OK", format.content_type(), metrics.text(format, &load, in_hand, health.why().is_none()))
        }
        (Some("GET" | "HEAD"), "/healthz") => verdict(health.why().as_deref()),
        (Some("GET" | "HEAD"), "/readyz") => verdict(health.why_not_ready().as_deref()),
        (Some("GET" | "HEAD"), "/livez") => verdict(health.why_not_alive(Instant::now())),
        (Some("GET" | "HEAD"), _) => {
            ("404 Not Found", TEXT, "there are /metrics, /healthz, /readyz and /livez\n".into())
        }
        _ => ("405 Method Not Allowed", TEXT, "only GET\n".into()),
    };
    let length = body.len();
    let body = if request.method == Some("HEAD") { String::new() } else { body };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// The format of the metrics that a request asks for.
fn wanted_format(headers: &[httparse::Header]) -> Format {
    let accept = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("accept"));
    // A value that is no text says nothing.
    Format::wanted(accept.filter_map(|header| std::str::from_utf8(header.value).ok()))
}

/// The answer to a question about the daemon: all is well, or why not.
fn verdict(why_not: Option<&str>) -> (&'static str, &'static str, String) {
    match why_not {
        None => ("200 OK", TEXT, "ok\n".into()),
        // For a terminal, too: it says what Postgres and its triggers say.
        Some(why) => ("503 Service Unavailable", TEXT, format!("{}\n", escaped(why))),
    }
}
