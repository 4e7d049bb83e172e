//! The record of one call: what was sent to one webhook and what came of it, a row of `relay.webhook_calls`.
//!
//! Plain data, shared by the HTTP side, which fills it, and the store, which writes it. Knows neither HTTP nor
//! Postgres.

use std::sync::Arc;
use std::time::SystemTime;

use crate::model::event::Webhook;
use crate::model::text::cut;

/// Why a call failed, the column `error_kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The webhook's URL is not one that can be called.
    BadUrl,
    /// The egress policy refuses the address.
    BlockedAddress,
    /// The name has no address, or the lookup failed. A lookup that does not end in time is a [`ErrorKind::Timeout`].
    Dns,
    /// No connection, or it broke before the first byte of an answer.
    Connect,
    /// TLS handshake or certificate.
    Tls,
    /// The wall-time limit of the call passed.
    Timeout,
    /// No status line of HTTP/1 was read: something else came, the answer broke off before the line's end, or too many bytes
    /// came without one.
    Protocol,
    /// The answer's status is not 2xx.
    HttpStatus,
    /// The instance that had the call in hand died, and the daemon records such calls instead of making them
    /// (`--after-crash record`).
    Interrupted,
    /// The webhook or its project is paused: the call was not made.
    Paused,
    /// The relay could not make or record the call. The webhook's secret cannot sign, the call ended in a panic, or the HTTP
    /// client gave an error that no other kind has. Or Postgres refused the record, and only a bare one is stored.
    Internal,
}

impl ErrorKind {
    /// Each kind.
    pub const ALL: [ErrorKind; 11] = [
        ErrorKind::BadUrl,
        ErrorKind::BlockedAddress,
        ErrorKind::Dns,
        ErrorKind::Connect,
        ErrorKind::Tls,
        ErrorKind::Timeout,
        ErrorKind::Protocol,
        ErrorKind::HttpStatus,
        ErrorKind::Interrupted,
        ErrorKind::Paused,
        ErrorKind::Internal,
    ];

    /// Whether it says something about the endpoint: the call was made, and did not fail for a reason of ours.
    pub fn is_of_the_endpoint(self) -> bool {
        !matches!(self, ErrorKind::Paused | ErrorKind::Interrupted | ErrorKind::Internal)
    }

    /// The word in the column and in the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::BadUrl => "bad_url",
            ErrorKind::BlockedAddress => "blocked_address",
            ErrorKind::Dns => "dns",
            ErrorKind::Connect => "connect",
            ErrorKind::Tls => "tls",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Protocol => "protocol",
            ErrorKind::HttpStatus => "http_status",
            ErrorKind::Interrupted => "interrupted",
            ErrorKind::Paused => "paused",
            ErrorKind::Internal => "internal",
        }
    }
}

/// One call, finished. All texts are such that Postgres can hold them (UTF-8 without NUL).
#[derive(Clone, Debug)]
pub struct Call {
    /// The webhook that was called.
    pub webhook_id: i64,
    /// Its URL, without user and password.
    pub url: String,
    /// The request's headers as a JSON object; empty (`{}`) when nothing was sent. Never a secret.
    pub request_headers: String,
    /// The request's body.
    pub request_body: Arc<str>,
    /// The answer's status, when one was read.
    pub status_code: Option<u16>,
    /// The answer's headers as a JSON object.
    pub response_headers: Option<String>,
    /// The answer's body, at most `--max-response-body` bytes of it; the bytes that came when the answer is no HTTP.
    pub response_body: Option<String>,
    /// Bytes of the answer's body that came over the wire before reading stopped.
    pub response_bytes: u64,
    /// Whether the body or the headers of the answer are less than what the endpoint meant to send.
    pub response_truncated: bool,
    /// First byte of work.
    pub start_time: SystemTime,
    /// Last byte read, or the failure.
    pub end_time: SystemTime,
    /// The failure's kind; none is a success.
    pub error_kind: Option<ErrorKind>,
    /// What happened, for people. Set for each failure, for a success with a flaw, for a request that was sent twice, and for a
    /// record of which something was cut.
    pub error_message: Option<String>,
    /// Address and port that the socket was connected to.
    pub remote_addr: Option<String>,
}

impl Call {
    /// A call that has no answer: it failed before anything was sent, or what came of it cannot be told.
    pub fn unanswered(
        webhook: &Webhook,
        body: &Arc<str>,
        kind: ErrorKind,
        message: impl Into<String>,
    ) -> Call {
        let url = crate::model::redact::without_credentials(&webhook.url);
        Call::begun(webhook.id, url, body, kind, message)
    }

    /// A call that has begun and has no answer, with the URL as it may be shown.
    pub fn begun(
        webhook_id: i64,
        url: String,
        body: &Arc<str>,
        kind: ErrorKind,
        message: impl Into<String>,
    ) -> Call {
        let now = SystemTime::now();
        Call {
            webhook_id,
            url,
            request_headers: "{}".into(),
            request_body: body.clone(),
            status_code: None,
            response_headers: None,
            response_body: None,
            response_bytes: 0,
            response_truncated: false,
            start_time: now,
            end_time: now,
            error_kind: Some(kind),
            error_message: Some(message.into()),
            remote_addr: None,
        }
    }

    /// Whether the endpoint took the event: a 2xx within the time limit.
    pub fn succeeded(&self) -> bool {
        self.error_kind.is_none()
    }

    /// Whether the wall-time limit ended the call.
    pub fn is_timeout(&self) -> bool {
        self.error_kind == Some(ErrorKind::Timeout)
    }

    /// Bytes that the answer keeps in memory until the record is written.
    pub fn answer_bytes(&self) -> usize {
        let text = |t: &Option<String>| t.as_ref().map_or(0, String::len);
        text(&self.response_headers) + text(&self.response_body) + text(&self.error_message)
    }

    /// Bytes that the record has on the way to Postgres, roughly.
    pub fn record_bytes(&self) -> usize {
        size_of::<Call>()
            + self.url.len()
            + self.request_headers.len()
            + self.request_body.len()
            + self.answer_bytes()
    }

    /// Cuts the answer's body to so many bytes at most, and notes that. Headers that are longer become an empty object.
    pub fn shorten(&mut self, most: usize, why: &str) {
        let body = self.response_body.as_mut().is_some_and(|body| cut(body, most));
        let headers = self.response_headers.as_ref().is_some_and(|headers| headers.len() > most);
        if headers {
            // A part of a JSON object is none.
            self.response_headers = Some("{}".into());
        }
        if body || headers {
            self.response_truncated = true;
            self.note(why);
        }
    }

    /// Adds a remark to what the record says.
    pub fn note(&mut self, remark: &str) {
        match &mut self.error_message {
            None => self.error_message = Some(remark.to_owned()),
            Some(text) if text.ends_with(remark) => {}
            Some(text) => {
                cut(text, MESSAGE_BYTES_MAX);
                text.push_str("; ");
                text.push_str(remark);
            }
        }
    }
}

/// What came of a call.
#[derive(Debug)]
pub enum Outcome {
    /// The call was made, or failed for good. It is recorded.
    Called(Call),
    /// The call was not made because this process lacks something (file descriptors, memory, ports), with the reason: nothing
    /// was sent, try again later.
    ResourceExhausted(String),
    /// The call was not made because something is wrong with the way out of this host: the proxy, or the address that calls leave
    /// from. It has the reason. Nothing was sent, try again later. It concerns all calls.
    NoWayOut(String),
    /// The call was not made because the proxy refuses the endpoint, and has not shown yet whether it refuses this one alone.
    /// Nothing was sent, and the turn of the call comes again. The call has waited a while already, and calls to other
    /// endpoints are not concerned.
    RefusalUnclear,
    /// The call was not made because lookups of other names have all the resolver's threads: nothing was sent, and the turn of
    /// the call comes again. The call has waited a while already, and calls to other names are not concerned.
    ResolverBusy,
}

/// Longest message of a record in bytes, but for the remark that comes last: enough for a reason, and little beside an
/// answer.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comment_of_the_call_log_names_these_kinds_and_no_others() {
        let migration = include_str!("../../sql/migrations/0003_call_log.sql");
        let between = |start: &str, end: &str| {
            let rest = migration.split(start).nth(1).expect("the migration has it");
            rest.split(end).next().expect("a split has a first part")
        };
        let known = ErrorKind::ALL.map(ErrorKind::as_str);
        let comment = between("webhook_calls.error_kind IS 'Null for a success; else ", ".'");
        assert_eq!(comment.split(", ").flat_map(|some| some.split(" or ")).collect::<Vec<_>>(), known);
    }
}
