//! Why a call failed or was not made: errors of the HTTP client, sorted by variant and by what the links saw. Each message says
//! what was sent. The client's own texts go to the journal (level debug).

use std::time::Duration;

use crate::delivery::broken;
use crate::delivery::transport::exchange::{BEFORE_BODY_BYTES_MAX, Exchange};
use crate::error::one_line;
use crate::model::call::ErrorKind;
use crate::tls::handshake;

/// Why a call failed, or was not made.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The call failed: its kind and its message for the log.
    Call(ErrorKind, String),
    /// The call was not made for a lack of this process's, with the reason.
    ResourceExhausted(String),
    /// The call was not made because something is wrong with the way out of this host, with the reason.
    NoWayOut(String),
    /// The call was not made because the proxy refuses the endpoint, and perhaps all of them.
    RefusalUnclear,
    /// The call was not made because the resolver had no thread for the name.
    ResolverBusy,
}

impl Failure {
    /// A failed call. The message may have foreign text in it.
    pub(crate) fn of(kind: ErrorKind, message: impl Into<String>) -> Failure {
        // Postgres cannot hold NUL.
        Failure::Call(kind, message.into().replace('\0', "\u{FFFD}"))
    }
}

/// A call that did not get as far as `what` in its time.
pub(crate) fn late(what: &str, timeout: Duration) -> Failure {
    let limit = humantime::format_duration(timeout);
    Failure::of(ErrorKind::Timeout, format!("{what} within {limit}"))
}

/// What the endpoint may know of the event. It may have acted upon a part: only the connection knows what arrived.
fn sent(exchange: &Exchange) -> &'static str {
    match (exchange.begun, exchange.asked) {
        (None, _) => "nothing was sent",
        (Some(_), false) => "a part of the request may have been sent",
        (Some(_), true) => "the request had been sent",
    }
}

/// The step that a call was at.
fn step(exchange: &Exchange) -> &'static str {
    match exchange {
        Exchange { handshake: true, .. } => "in the TLS handshake",
        Exchange { begun: None, remote: None, .. } => "before there was a connection",
        Exchange { begun: None, .. } => "before the request went out",
        Exchange { asked: false, .. } => "while the request went out",
        Exchange { received: 0, .. } => "while it waited for the answer",
        _ => "while it read the answer",
    }
}

/// Sorts an error of ureq's. `timeout` is the time that the whole call had.
pub(crate) fn sort(error: &ureq::Error, exchange: &Exchange, timeout: Duration) -> Failure {
    tracing::debug!(error = %one_line(error), step = step(exchange), "a call has failed");
    match sorted(error, exchange, timeout) {
        // Where no call may go, nothing goes: that need not be said.
        Failure::Call(kind, message) if !matches!(kind, ErrorKind::BadUrl | ErrorKind::BlockedAddress) => {
            Failure::Call(kind, format!("{message}; {}", sent(exchange)))
        }
        failure => failure,
    }
}

fn sorted(error: &ureq::Error, exchange: &Exchange, timeout: Duration) -> Failure {
    use ureq::Error as E;
    if let Some(problem) = &exchange.refused {
        return Failure::of(ErrorKind::BlockedAddress, problem.clone());
    }
    if let Some(reason) = &exchange.exhausted {
        return Failure::ResourceExhausted(reason.clone());
    }
    if let Some(reason) = &exchange.no_way_out {
        return Failure::NoWayOut(reason.clone());
    }
    if exchange.refusal_unclear {
        return Failure::RefusalUnclear;
    }
    if let Some(what) = &exchange.unreachable {
        return Failure::of(ErrorKind::Connect, what.clone());
    }
    if exchange.resolver_busy {
        return Failure::ResolverBusy;
    }
    if exchange.flooded {
        let text = format!("more than {BEFORE_BODY_BYTES_MAX} bytes came, and no answer among them");
        return Failure::of(ErrorKind::Protocol, text);
    }
    match error {
        E::Timeout(ureq::Timeout::Resolve) => late("the name was not resolved", timeout),
        E::Timeout(_) if exchange.remote.is_none() => late("no connection", timeout),
        E::Timeout(_) if exchange.handshake => late("no end of the TLS handshake", timeout),
        E::Timeout(_) if exchange.record.is_some() => late("the answer did not end", timeout),
        E::Timeout(_) => late("no answer", timeout),
        E::HostNotFound => {
            let reason = exchange.unresolved.clone().unwrap_or_else(|| "the name has no address".into());
            Failure::of(ErrorKind::Dns, reason)
        }
        E::Io(_) if exchange.handshake => {
            let reason = format!("the connection broke in the TLS handshake: {}", broken::reason(error));
            Failure::of(ErrorKind::Tls, reason)
        }
        E::Io(_) if exchange.received > 0 => {
            let reason = format!("the answer broke off within its head: {}", broken::reason(error));
            Failure::of(ErrorKind::Protocol, reason)
        }
        E::Io(_) if exchange.asked => {
            Failure::of(ErrorKind::Connect, format!("no answer came: {}", broken::reason(error)))
        }
        E::Io(_) => Failure::of(ErrorKind::Connect, broken::reason(error)),
        E::Rustls(tls) => Failure::of(ErrorKind::Tls, handshake::message(tls)),
        E::Tls(_) => Failure::of(ErrorKind::Tls, NO_NAME),
        E::Protocol(_) => Failure::of(ErrorKind::Protocol, "the answer is not HTTP/1.1"),
        E::LargeResponseHeader(_, max) => {
            Failure::of(ErrorKind::Protocol, format!("the answer's headers are longer than {max} bytes"))
        }
        E::Http(_) | E::BadUri(_) => Failure::of(ErrorKind::BadUrl, NO_REQUEST),
        _ => Failure::of(ErrorKind::Internal, format!("the HTTP client failed {}", step(exchange))),
    }
}

/// No certificate can have the host's name.
pub(crate) const NO_NAME: &str = "the host's name is not one that a certificate can have";
/// The URL looks right, and no request can be made of it.
pub(crate) const NO_REQUEST: &str = "no HTTP request can be made of the URL";
