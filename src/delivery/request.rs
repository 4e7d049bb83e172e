//! The request of a call: its headers, and sending it. Follows no redirect and repeats nothing by itself.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use ureq::http::{Request, Response};
use ureq::{Agent, Body};

use crate::delivery::failure::{Failure, NO_REQUEST};
use crate::delivery::signature;
use crate::delivery::target::Target;
use crate::delivery::transport::agents::OUTPUT_BYTES;
use crate::delivery::transport::exchange::{self, Exchange};
use crate::model::call::ErrorKind;
use crate::model::event::Webhook;
use crate::model::message::Message;

/// What a line of the request has besides a long value: its name, or the method and version.
const LINE_BYTES: usize = 64;

/// The longest time after which an end still counts as one that the request crossed, however long the round trip is. Few places
/// on earth are further apart.
const CROSSING_MAX: Duration = Duration::from_millis(100);
/// Round trips after which the end of a crossed connection is known: one, and another because routes and queues vary.
const ROUND_TRIPS: u32 = 2;
/// How late a busy machine notices an end. It is short: a nearby endpoint can act upon the event within this time, and die.
const NOTICED_AFTER: Duration = Duration::from_millis(10);
/// A call that has lost less time than this before it sends keeps the agent's own limit. A limit of its own costs a copy of the
/// agent's configuration.
const LOST_MAX: Duration = Duration::from_millis(5);

/// What came of sending a request: an answer as far as its head, or an error; and what the links saw until then.
pub(crate) struct Sent {
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

    /// The time from the first byte of the request to the known end of its connection, when the request may have crossed a
    /// close. That is so when the connection was used again, no byte of an answer came, and the time is within the
    /// connection's [`crossing_limit`].
    pub(crate) fn crossed_a_close(&self) -> Option<Duration> {
        let Sent { result, exchange, known } = self;
        if !exchange.reused || exchange.received > 0 || !result.as_ref().is_err_and(is_broken) {
            return None;
        }
        Some(known.duration_since(exchange.begun?))
            .filter(|after| *after <= crossing_limit(exchange.round_trip))
    }

    /// Whether nothing was sent because this process lacks something.
    pub(crate) fn lacks_resources(&self) -> bool {
        let Exchange { exhausted, resolver_busy, no_way_out, refusal_unclear, .. } = &self.exchange;
        exhausted.is_some() || no_way_out.is_some() || *resolver_busy || *refusal_unclear
    }
}

/// The request of a row's call to a webhook, signed where the webhook has a secret. `span_id` is the call's own, for the
/// trace context of the event, if it has one.
///
/// # Errors
///
/// When the webhook's secret cannot sign, or the HTTP client refuses the URL.
pub(crate) fn build<'a>(
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
    request.body(&*message.body).map_err(|error| {
        tracing::debug!(%error, "a request could not be made");
        Failure::of(ErrorKind::BadUrl, NO_REQUEST)
    })
}

/// Sends a request. `start` is when the call began, and `timeout` its whole time, the agent's. Blocks for what is left of it.
pub(crate) fn send(
    agent: &Agent,
    request: Request<&str>,
    target: &Target,
    start: Instant,
    timeout: Duration,
) -> Sent {
    let line = longest_line(&request, target);
    let lost = start.elapsed();
    exchange::begin_head();
    let result = if line <= OUTPUT_BYTES && lost < LOST_MAX {
        agent.run(request)
    } else {
        let request = agent.configure_request(request).timeout_global(Some(timeout.saturating_sub(lost)));
        agent.run(request.output_buffer_size(line.max(OUTPUT_BYTES)).build())
    };
    Sent::now(result)
}

/// Sends a request on a connection of its own. Blocks for `left` at most.
pub(crate) fn send_afresh(agent: &Agent, request: Request<&str>, left: Duration) -> Sent {
    let request = agent
        .configure_request(request)
        .timeout_global(Some(left))
        // A configuration other than the agent's keeps ureq from taking a pooled connection.
        .output_buffer_size(OUTPUT_BYTES + 1)
        .build();
    exchange::begin_head();
    Sent::now(agent.run(request))
}

/// How long after a request began to go out the end of its connection may come and the request have crossed it. A request
/// crosses the endpoint's close only while it is on its way, so the end is known within a round trip. An endpoint that ends
/// the connection later may have read the request and acted upon it.
fn crossing_limit(round_trip: Duration) -> Duration {
    round_trip.saturating_mul(ROUND_TRIPS).saturating_add(NOTICED_AFTER).min(CROSSING_MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_counts_as_crossed_for_two_round_trips_and_never_for_longer_than_a_tenth_of_a_second() {
        let limit = |round_trip_us| crossing_limit(Duration::from_micros(round_trip_us)).as_micros();
        assert_eq!(limit(0), 10_000, "a machine needs a moment");
        assert_eq!(limit(20), 10_040, "loopback");
        assert_eq!(limit(1_000), 12_000, "one building");
        assert_eq!(limit(30_000), 70_000, "one continent");
        assert_eq!(limit(45_000), 100_000);
        assert_eq!(limit(300_000), 100_000, "the other side of the earth");
        assert_eq!(crossing_limit(Duration::MAX), CROSSING_MAX);
    }
}
