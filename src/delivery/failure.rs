//! Why a call failed or was not made: errors of the HTTP client, sorted by variant and by what the links saw.

use std::time::Duration;

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

/// Sorts an error of ureq's. `timeout` is the time that the whole call had.
pub(crate) fn sort(error: &ureq::Error, exchange: &Exchange, timeout: Duration) -> Failure {
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
        E::Io(e) if exchange.handshake => {
            Failure::of(ErrorKind::Tls, format!("the connection broke in the TLS handshake: {}", one_line(e)))
        }
        E::Io(e) if exchange.received > 0 => {
            Failure::of(ErrorKind::Protocol, format!("the answer broke off within its head: {}", one_line(e)))
        }
        E::Io(e) => Failure::of(ErrorKind::Connect, one_line(e)),
        E::Rustls(tls) => Failure::of(ErrorKind::Tls, handshake::message(tls)),
        E::Tls(text) => Failure::of(ErrorKind::Tls, *text),
        E::TlsRequired => Failure::of(ErrorKind::Tls, error.to_string()),
        E::Protocol(e) => Failure::of(ErrorKind::Protocol, e.to_string()),
        E::LargeResponseHeader(_, max) => {
            Failure::of(ErrorKind::Protocol, format!("the answer's headers are longer than {max} bytes"))
        }
        E::Http(e) => Failure::of(ErrorKind::Protocol, e.to_string()),
        E::BadUri(e) => Failure::of(ErrorKind::BadUrl, e.clone()),
        other => Failure::of(ErrorKind::Internal, one_line(other)),
    }
}
