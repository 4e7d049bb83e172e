//! The request of a call: its headers, and sending it. Follows no redirect and repeats nothing by itself.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use ureq::http::{Request, Response};
use ureq::{Agent, Body};

use crate::delivery::failure::Failure;
use crate::delivery::signature;
use crate::delivery::target::Target;
use crate::delivery::transport::agents::OUTPUT_BYTES;
use crate::delivery::transport::exchange::{self, Exchange};
use crate::model::call::ErrorKind;
use crate::model::event::Webhook;
use crate::model::message::Message;

/// What a line of the request has besides a long value: its name, or the method and version.
const LINE_BYTES: usize = 64;

/// A request crosses the endpoint's close only while it is on its way. So the end of the connection is known within a round
/// trip, and between any two places on earth few round trips take longer than this. An endpoint that ends the connection
/// later may have read the request and acted upon it.
pub const CROSSING_MAX: Duration = Duration::from_millis(100);

/// What came of sending a request: an answer as far as its head, or an error; and what the links saw until then.
pub struct Sent {
    /// What the HTTP client says.
    pub result: Result<Response<Body>, ureq::Error>,
    /// What the links saw.
    pub exchange: Exchange,
    /// When this was known.
    known: Instant,
}

impl Sent {
    fn now(result: Result<Response<Body>, ureq::Error>) -> Sent {
        Sent { result, exchange: exchange::take(), known: Instant::now() }
    }

    /// How long after the request began to go out its connection was known to have ended, when the request may have crossed
    /// a close: the connection was used again, no byte of an answer came, and the time is at most [`CROSSING_MAX`].
    pub fn crossed_a_close(&self) -> Option<Duration> {
        let Sent { result, exchange, known } = self;
        if !exchange.reused || exchange.received > 0 || !result.as_ref().is_err_and(is_broken) {
            return None;
        }
        Some(known.duration_since(exchange.begun?)).filter(|after| *after <= CROSSING_MAX)
    }

    /// Whether nothing was sent because this process lacks something.
    pub fn lacks_resources(&self) -> bool {
        self.exchange.exhausted.is_some() || self.exchange.resolver_busy
    }
}

/// The request of a row's call to a webhook, signed where the webhook has a secret. `span_id` is the call's own, for the
/// trace context of the event, if it has one.
///
/// # Errors
///
/// When the webhook's secret cannot sign, or the HTTP client refuses the URL.
pub fn build<'a>(
    target: &Target,
    webhook: &Webhook,
    message: &'a Message,
    span_id: u64,
) -> Result<Request<&'a str>, Failure> {
    let id = message.id(webhook.id);
    let mut request = Request::post(target.uri.clone())
        .header("Content-Type", "application/json")
        .header("webhook-id", &id);
    if let Some(authorization) = &target.authorization {
        request = request.header("Authorization", authorization);
    }
    if let Some(secret) = &webhook.signing_secret {
        let signed = signature::sign(secret, &id, SystemTime::now(), &message.body)
            .map_err(|problem| Failure::of(ErrorKind::Internal, problem))?;
        request = request
            .header("webhook-timestamp", signed.timestamp)
            .header("webhook-signature", signed.signature);
    }
    if let Some(parent) = &message.traceparent {
        request = request.header("traceparent", parent.header(span_id));
    }
    request.body(&*message.body).map_err(|error| Failure::of(ErrorKind::BadUrl, error.to_string()))
}

/// Sends a request. Blocks for `left` at most; without it, for the agent's time-out.
pub fn send(agent: &Agent, request: Request<&str>, target: &Target, left: Option<Duration>) -> Sent {
    let line = longest_line(&request, target);
    exchange::begin_head();
    let result = if line <= OUTPUT_BYTES && left.is_none() {
        agent.run(request)
    } else {
        let configured = agent.configure_request(request).output_buffer_size(line.max(OUTPUT_BYTES));
        agent.run(match left {
            Some(_) => configured.timeout_global(left).build(),
            None => configured.build(),
        })
    };
    Sent::now(result)
}

/// Sends a request on a connection of its own. Blocks for `left` at most.
pub fn send_afresh(agent: &Agent, request: Request<&str>, left: Duration) -> Sent {
    let request = agent
        .configure_request(request)
        .timeout_global(Some(left))
        // A configuration other than the agent's keeps ureq from taking a pooled connection.
        .output_buffer_size(OUTPUT_BYTES + 1)
        .build();
    exchange::begin_head();
    Sent::now(agent.run(request))
}

/// Whether the connection ended without a word.
fn is_broken(error: &ureq::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error, ureq::Error::Io(e) if matches!(
        e.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
    ))
}

/// Bytes of the longest line that ureq has to write in one piece.
fn longest_line(request: &Request<&str>, target: &Target) -> usize {
    let longest = request.headers().values().map(ureq::http::HeaderValue::len).max().unwrap_or_default();
    longest.max(target.url.as_str().len()) + LINE_BYTES
}
