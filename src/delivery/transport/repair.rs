//! Repair of a flawed head: a record of it for the log, and a short good head for the parser in its place.
//!
//! The status decides, whatever the header lines are, so a flawed head keeps its status and loses its flaws. Pure.

use crate::delivery::transport::framing::{Body, Framing};
use crate::delivery::transport::status_line::{StatusLine, is_blank};

/// Longest head of an answer that is kept. Node takes as much.
pub(crate) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Header lines that the record keeps: more than the parser takes.
pub(crate) const LINES_MAX: usize = 256;
/// Longest `Location` that the parser gets; the record has all of it.
const LOCATION_BYTES_MAX: usize = 4 * 1024;

/// What a flawed head says, as far as that can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The status.
    pub status: u16,
    /// The header lines that are kept: name, colon, value and a line feed.
    pub headers: Vec<u8>,
    /// What is wrong with it, for people.
    pub flaws: String,
    /// Something of it is not kept.
    pub lost: bool,
}

/// The head for the parser, the record for the log, and whether the body has chunks. An `unended` head ends with the
/// connection, perhaps within its last line, which is left out.
pub(crate) fn repair(head: &[u8], status: StatusLine, unended: bool) -> (Vec<u8>, Record, bool) {
    let mut flaws = Flaws::default();
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    if !is_good_status_line(first) {
        flaws.add("its status line is not as it should be");
    }
    let whole = if unended { head.iter().filter(|byte| **byte == b'\n').count() - 1 } else { usize::MAX };
    let mut kept = Kept::default();
    for line in lines.take(whole) {
        kept.add(line, &mut flaws);
    }
    let framing = Framing::of(kept.framing.iter().map(|(name, value)| (*name, value.as_slice())), status);
    if let Some(flaw) = framing.flaw {
        flaws.add(flaw);
    }
    let body = if unended { Body::Close } else { framing.body };
    let mut text = format!("HTTP/1.1 {}\r\nConnection: close\r\n", status.code).into_bytes();
    match body {
        Body::Length(length) => text.extend(format!("Content-Length: {length}\r\n").into_bytes()),
        Body::Chunked => text.extend(b"Transfer-Encoding: chunked\r\n"),
        Body::Close => {}
    }
    if let Some(location) = &kept.location {
        text.extend(b"Location: ");
        text.extend(location.iter().take(LOCATION_BYTES_MAX));
        text.extend(b"\r\n");
    }
    text.extend(b"\r\n");
    let record = Record { status: status.code, headers: kept.text(), flaws: flaws.text(), lost: kept.lost };
    (text, record, body == Body::Chunked)
}

fn is_good_status_line(line: &[u8]) -> bool {
    let parsed = httparse::Response::new(&mut []).parse(&[line, b"\n"].concat());
    parsed == Ok(httparse::Status::Partial)
}

/// What is wrong with the head, each flaw once.
#[derive(Default)]
struct Flaws(Vec<&'static str>);

impl Flaws {
    fn add(&mut self, flaw: &'static str) {
        if !self.0.contains(&flaw) {
            self.0.push(flaw);
        }
    }

    fn text(&self) -> String {
        if self.0.is_empty() { String::new() } else { format!("the answer's head: {}", self.0.join(", ")) }
    }
}

/// The header lines of a flawed head.
#[derive(Default)]
struct Kept<'a> {
    /// Each with its value as one line. Lines that do not fit into the log are left out.
    lines: Vec<Vec<u8>>,
    bytes: usize,
    /// The lines that say where the body ends. They are kept however many lines there are before them.
    framing: Vec<(&'a [u8], Vec<u8>)>,
    /// The value of the last `Location`, without bytes that are no text.
    location: Option<Vec<u8>>,
    /// The line that a folded line continues.
    last: Last,
    lost: bool,
}

/// What became of the last line.
#[derive(Clone, Copy, Default, PartialEq)]
enum Last {
    /// It was not kept, and a line that continues it is not kept either.
    #[default]
    Dropped,
    /// It is the last of the lines; and whether it is a line of the framing, or the `Location`.
    Kept { framing: bool, location: bool },
}

impl<'a> Kept<'a> {
    fn add(&mut self, line: &'a [u8], flaws: &mut Flaws) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().any(is_control) {
            flaws.add("it has characters in headers that may not be there");
        }
        let blanks = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r');
        let trimmed = line.len() - line.iter().rev().take_while(|byte| blanks(byte)).count();
        let trimmed = &line[..trimmed];
        if line.first().is_some_and(is_blank) {
            flaws.add("it has folded lines");
            return self.fold(trimmed.trim_ascii_start(), flaws);
        }
        if trimmed.is_empty() {
            return;
        }
        self.last = Last::Dropped;
        let colon = trimmed.iter().position(|byte| *byte == b':').unwrap_or_default();
        let name = trimmed[..colon].trim_ascii_end();
        if name.is_empty() || !name.iter().all(is_token) {
            self.lost = true;
            return flaws.add("it has lines that are no headers");
        }
        let value = trimmed[colon + 1..].trim_ascii_start();
        if name.len() < colon {
            flaws.add("it has blanks behind names");
        }
        let framing =
            [&b"content-length"[..], b"transfer-encoding"].iter().any(|own| name.eq_ignore_ascii_case(own));
        if framing && self.framing.len() < LINES_MAX {
            self.framing.push((name, value.to_vec()));
        }
        let location = name.eq_ignore_ascii_case(b"location");
        if location {
            self.location = Some(printable(value));
        }
        let full = [name, b": ", value].concat();
        if self.has_room(full.len(), flaws) {
            self.bytes += full.len();
            self.lines.push(full);
            self.last = Last::Kept { framing, location };
        }
    }

    /// Appends a folded line to the last line (RFC 9112, 5.2).
    fn fold(&mut self, more: &[u8], flaws: &mut Flaws) {
        let Last::Kept { framing, location } = self.last else {
            self.lost = true;
            return;
        };
        if more.is_empty() {
            return;
        }
        if !self.has_room(1 + more.len(), flaws) {
            self.last = Last::Dropped;
            return;
        }
        self.bytes += 1 + more.len();
        let add = |line: &mut Vec<u8>, more: &[u8]| {
            if !line.is_empty() {
                line.push(b' ');
            }
            line.extend_from_slice(more);
        };
        add(self.lines.last_mut().expect("it was kept"), more);
        if let Some((_, value)) = self.framing.last_mut().filter(|_| framing) {
            add(value, more);
        }
        if let Some(value) = self.location.as_mut().filter(|_| location) {
            add(value, &printable(more));
        }
    }

    fn has_room(&mut self, bytes: usize, flaws: &mut Flaws) -> bool {
        let long = self.bytes + bytes > HEAD_BYTES_MAX;
        if long {
            flaws.add("it is longer than 16 KiB");
        }
        let many = self.lines.len() >= LINES_MAX;
        if many {
            flaws.add("it has more than 256 lines");
        }
        self.lost |= long || many;
        !long && !many
    }

    fn text(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| [line, &b"\n"[..]]).flatten().copied().collect()
    }
}

/// Whether a byte may be in a header's name (RFC 9110, 5.6.2).
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// Whether a byte may not be in a header's value (RFC 9110, 5.5).
fn is_control(byte: &u8) -> bool {
    byte.is_ascii_control() && *byte != b'\t'
}

fn printable(value: &[u8]) -> Vec<u8> {
    value.iter().filter(|byte| !is_control(byte)).copied().collect()
}
