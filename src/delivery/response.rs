//! The answer to a call: reads it, keeps of it what the log may have, and decides by its status.

use std::io::{self, Read};
use std::time::Duration;

use ureq::Body;
use ureq::http::response::Parts;
use ureq::http::{HeaderMap, Response};

use crate::delivery::body::BodyText;
use crate::delivery::broken;
use crate::delivery::failure::{Failure, late};
use crate::delivery::headers;
use crate::delivery::transport::exchange::{self, Exchange};
use crate::delivery::transport::repair::{HEAD_BYTES_MAX, Record};
use crate::model::call::{Call, ErrorKind};
use crate::model::memory::Room;
use crate::model::text::{self, storable};

/// Bytes on the wire for each byte of a body. Chunks of one byte take six; an answer that needs more is made to keep us busy.
const FRAMING: u64 = 8;
/// Trailers, and chunks of a body that is shorter than this.
const FRAMING_MIN: u64 = 64 * 1024;
/// Most bodies of answers that do not say how long they are are shorter than this.
const SHORT: u64 = 512;
/// A longer body is read in pieces of this size.
const PIECE_BYTES: u64 = 16 * 1024;
/// Longest headers of an answer in the log, as JSON. Headers that do not fit are left out.
const HEADERS_BYTES_MAX: usize = HEAD_BYTES_MAX;
/// Longest foreign text in a message.
const QUOTED_BYTES_MAX: usize = 1024;

/// How much of an answer is read, and how long the whole call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the body.
    pub body_bytes_max: usize,
    /// Wall time.
    pub timeout: Duration,
}

/// Reads an answer whose head has come, and decides by its status. `exchange` is what the links saw so far.
///
/// # Errors
///
/// A status that is not 2xx, and an answer that does not end in time.
pub(crate) fn read(
    response: Response<Body>,
    exchange: Exchange,
    limits: Limits,
    call: &mut Call,
    room: &mut Room,
) -> Result<(), Failure> {
    let (head, body) = response.into_parts();
    call.status_code = Some(head.status.as_u16());
    let headers_cut = keep_headers(&head.headers, exchange.record.as_ref(), call, room);
    let end = keep_body(body, limits.body_bytes_max, call, room);
    if let Some(ureq::Error::Timeout(_)) = end.error {
        call.response_truncated = true;
        return Err(late("the answer did not end", limits.timeout));
    }
    let flaw = end.flaw();
    let record = exchange.record;
    let lost = record.as_ref().is_some_and(|record| record.lost);
    call.response_truncated = end.cut || headers_cut || flaw.is_some() || lost;
    let bare = exchange.bare || end.exchange.bare;
    let bare = bare.then(|| "its chunks end with bare line feeds".to_owned());
    let flaws: Vec<_> = record.map(|record| record.flaws).into_iter().chain(bare).chain(flaw).collect();
    call.error_message = (!flaws.is_empty()).then(|| flaws.join("; ").replace('\0', "\u{FFFD}"));
    decide(&head, call)
}

/// Keeps what came of an answer whose head was never complete, or is none.
pub(crate) fn keep_broken(exchange: &Exchange, limits: Limits, call: &mut Call, room: &mut Room) {
    if !exchange.start.is_empty() {
        let mut body = BodyText::new(limits.body_bytes_max, room);
        body.push(&exchange.start);
        call.response_body = Some(body.end().0);
        call.response_bytes = exchange.received;
        call.response_truncated = true;
    }
    if let Some(record) = &exchange.record {
        call.status_code = Some(record.status);
        let most = HEADERS_BYTES_MAX.min(room.most());
        call.response_headers = Some(headers::that_fit(|| headers::pairs(&record.headers), most).0);
    }
}

/// Keeps the headers; those of the record, where ureq was given another head. Returns whether something was left out.
fn keep_headers(parsed: &HeaderMap, record: Option<&Record>, call: &mut Call, room: &Room) -> bool {
    let most = HEADERS_BYTES_MAX.min(room.most());
    let (kept, cut) = match record {
        Some(record) => headers::that_fit(|| headers::pairs(&record.headers), most),
        None => headers::that_fit(|| headers::parsed(parsed), most),
    };
    call.response_headers = Some(kept);
    cut
}

/// How the reading of a body ended.
struct End {
    /// None when the body was read to its end, or to its limit.
    error: Option<ureq::Error>,
    /// Something of the body was not kept.
    cut: bool,
    /// What the links saw while the body was read.
    exchange: Exchange,
}

impl End {
    /// What is wrong with the answer, when it was not cut by us.
    fn flaw(&self) -> Option<String> {
        if self.cut {
            return None;
        }
        if self.exchange.flooded {
            return Some("the answer is nearly nothing but framing; it was not read to its end".into());
        }
        match &self.error {
            Some(ureq::Error::Protocol(_)) => Some("the answer broke off: its chunks are malformed".into()),
            Some(error) => Some(format!("the answer broke off: {}", broken::reason(error))),
            // A body that ends with the connection ends for ureq also when the connection breaks.
            None => self.exchange.broken.as_ref().map(|broken| format!("the answer broke off: {broken}")),
        }
    }
}

/// Reads the body and keeps it.
fn keep_body(body: Body, limit: usize, call: &mut Call, room: &mut Room) -> End {
    exchange::begin_body(FRAMING * limit as u64 + FRAMING_MIN);
    let mut text = BodyText::new(limit, room);
    let (mut length, error) = read_body(body, limit as u64, &mut text);
    let exchange = exchange::take();
    if let Some(ureq::Error::Protocol(_)) = error {
        // Bad chunks, and good ones that came with them: ureq gives none of those. The log has them as they came.
        let rest = &exchange.rest[..exchange.rest.len().min((limit + 1).saturating_sub(length as usize))];
        text.push(rest);
        length += rest.len() as u64;
    }
    call.response_bytes = length;
    let (text, cut) = text.end();
    call.response_body = Some(text);
    End { error, cut, exchange }
}

/// Reads one byte more than the limit, to know whether there is more. Returns how many bytes came and how it ended.
fn read_body(body: Body, limit: u64, text: &mut BodyText) -> (u64, Option<ureq::Error>) {
    let most = limit.saturating_add(1);
    let piece = body.content_length().unwrap_or(SHORT).clamp(SHORT, PIECE_BYTES);
    let mut piece = vec![0; usize::try_from(piece).expect("some KiB")];
    let mut reader = body.into_reader().take(most);
    let mut length = 0;
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return (length, None),
            Ok(some) => {
                length += some as u64;
                if !text.push(&piece[..some]) {
                    return (length, None);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Some(ureq::Error::from(error))),
        }
    }
}

/// The status decides. What is wrong with the answer besides stands behind it in the message.
fn decide(head: &Parts, call: &mut Call) -> Result<(), Failure> {
    if head.status.is_success() {
        return Ok(());
    }
    let mut message = format!("status {}", head.status.as_u16());
    if let Some(location) = head.headers.get("location").filter(|_| head.status.is_redirection()) {
        let mut location = storable(location.as_bytes());
        text::cut(&mut location, QUOTED_BYTES_MAX);
        message.push_str(&format!(", not followed: {location}"));
    }
    if let Some(flaw) = call.error_message.take() {
        message.push_str(&format!("; {flaw}"));
    }
    Err(Failure::of(ErrorKind::HttpStatus, message))
}
