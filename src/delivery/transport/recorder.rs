//! Our outermost link in ureq's chain of connectors: it records what goes over the wire.
//!
//! [`Recorder`] sees the bytes as HTTP: the head of the request, the answer as far as its head, the count of the rest. It ends
//! an answer that is longer than any body within the limit can be. ureq's parser is strict. The recorder mends a head or
//! chunks that it would refuse, by the rules of [`head`](crate::delivery::transport::head) and
//! [`chunks`](crate::delivery::transport::chunks). After that no other request uses the connection.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::delivery::broken;
use crate::delivery::transport::chunks::Chunks;
use crate::delivery::transport::deadline::rest;
use crate::delivery::transport::exchange::{self, note};
use crate::delivery::transport::head::{Fed, Heads, Step};
use crate::delivery::transport::repair::{HEAD_BYTES_MAX, Record};

/// Heads of our own requests are shorter; of a longer one the rest is not kept for the log.
const REQUEST_HEAD_BYTES_MAX: usize = 32 * 1024;

/// The link.
#[derive(Debug)]
pub(crate) struct Recorder;

impl<In: Transport> Connector<In> for Recorder {
    type Out = Recording<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let (remote, round_trip) = note(|exchange| (exchange.remote, exchange.round_trip));
        Ok(chained.map(|inner| Recording::new(inner, remote, round_trip)))
    }
}

/// A connection whose bytes are recorded.
#[derive(Debug)]
pub(crate) struct Recording<T: Transport> {
    inner: T,
    remote: Option<SocketAddr>,
    round_trip: Duration,
    /// The connection has carried a request before.
    used: bool,
    /// The last bytes that moved were an answer's, or none have moved: the next bytes that are sent begin a request.
    answering: bool,
    /// A head that goes out together with the body behind it: ureq writes them apart, and two packets wake the endpoint twice.
    held: Vec<u8>,
    phase: Phase,
    /// The bytes that ureq gets instead of those that came.
    mended: Option<Mended>,
    /// Readers may understand the answer differently. So no other request uses this connection: its answer could be taken for
    /// another request's.
    spent: bool,
    /// The rest of the answer is not read.
    over: bool,
}

/// The part of an answer that comes next.
#[derive(Debug)]
enum Phase {
    Head(Heads),
    Chunks(Chunks),
    Body,
}

/// Bytes for ureq, in the place of the input.
#[derive(Debug, Default)]
struct Mended {
    bytes: Vec<u8>,
    used: usize,
    /// ureq used some of it the last time.
    progress: bool,
}

impl Mended {
    fn left(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    fn extend(&mut self, bytes: &[u8]) {
        if self.used > 0 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }
}

impl<T: Transport> Recording<T> {
    fn new(inner: T, remote: Option<SocketAddr>, round_trip: Duration) -> Recording<T> {
        Recording {
            inner,
            remote,
            round_trip,
            used: false,
            answering: true,
            held: Vec::new(),
            phase: Phase::Head(Heads::default()),
            mended: None,
            spent: false,
            over: false,
        }
    }

    /// Bytes that ureq has not used.
    fn unused(&mut self) -> usize {
        match &self.mended {
            Some(mended) => mended.left().len(),
            None => self.inner.buffers().input().len(),
        }
    }

    /// Looks at what has come, all but the first `before` bytes of the input.
    fn look(&mut self, before: usize) {
        let Phase::Head(heads) = &mut self.phase else {
            let new = self.inner.buffers().input().len() - before;
            return self.look_at_body(new);
        };
        let Fed { step, kept, rest } = heads.feed(&self.inner.buffers().input()[before..]);
        let buffers = self.inner.buffers();
        let input = buffers.input().len();
        let over = match step {
            // The head is longer than the parser takes: [`Heads`] has it, and the input gets space for more.
            Step::More if kept > HEAD_BYTES_MAX => input,
            Step::Repaired { .. } => input - rest,
            _ => input.saturating_sub(kept),
        };
        if over > 0 {
            buffers.input_consume(over);
        }
        let chunked = match step {
            Step::More => return,
            Step::NotHttp => {
                self.spent = true;
                false
            }
            Step::Clean { chunked, reusable } => {
                self.spent |= !reusable;
                chunked
            }
            Step::Repaired { head, record, chunked } => {
                self.give_instead(&head, record);
                chunked
            }
        };
        self.phase = if chunked { Phase::Chunks(Chunks::default()) } else { Phase::Body };
        self.look_at_body(rest);
    }

    /// Looks at the last `new` bytes of the input, which are of the body.
    fn look_at_body(&mut self, new: usize) {
        let buffers = self.inner.buffers();
        let input = buffers.input();
        let (old, new) = input.split_at(input.len() - new);
        let given = match &mut self.phase {
            Phase::Chunks(chunks) => {
                let given = chunks.feed(new);
                if chunks.bare {
                    note(|exchange| exchange.bare = true);
                }
                given
            }
            _ => Cow::Borrowed(new),
        };
        if self.mended.is_none() && matches!(given, Cow::Borrowed(_)) {
            return;
        }
        self.spent = true;
        let mended = self.mended.get_or_insert_default();
        mended.extend(old);
        mended.extend(&given);
        let all = input.len();
        buffers.input_consume(all);
    }

    /// Gives ureq this head.
    fn give_instead(&mut self, head: &[u8], record: Record) {
        self.spent = true;
        self.mended.get_or_insert_default().extend(head);
        note(|exchange| exchange.record = Some(record));
    }

    /// The answer ends within its head. Returns whether its status is known nevertheless: then ureq gets an answer without a
    /// body.
    fn cut(&mut self, why: &str) -> bool {
        let Phase::Head(heads) = &mut self.phase else { return false };
        let Some((head, record)) = heads.cut(why) else { return false };
        self.give_instead(&head, record);
        (self.phase, self.over) = (Phase::Body, true);
        true
    }

    /// Reads once. Returns whether something came.
    fn read(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let before = self.inner.buffers().input().len();
        let result = self.inner.await_input(timeout);
        if let Err(error @ Error::Io(_)) = &result {
            note(|exchange| exchange.broken = Some(broken::reason(error)));
        }
        let input = self.inner.buffers().input();
        let new = input.get(before..).unwrap_or_default();
        let in_head = matches!(self.phase, Phase::Head(_));
        if !new.is_empty() {
            self.answering = true;
            note(|exchange| exchange.receive(new));
            self.look(before);
        }
        let still_in_head = matches!(self.phase, Phase::Head(_));
        let flooded = note(|exchange| exchange.is_flood()) && (still_in_head || !in_head);
        match result {
            _ if flooded => {
                if self.cut("the answer's head does not end; it was not read to its end") {
                    return Ok(true);
                }
                note(|exchange| exchange.flooded = true);
                Err(Error::ConnectionFailed)
            }
            Err(Error::Timeout(reason)) => {
                // The status is for the log.
                self.cut("");
                Err(Error::Timeout(reason))
            }
            Err(error)
                if self.cut(&format!("the answer broke off within its head: {}", broken::reason(&error))) =>
            {
                drop(error);
                Ok(true)
            }
            Ok(false) if self.cut("the answer broke off within its head") => Ok(true),
            result => result,
        }
    }

    /// Sends what is held, and `amount` of the output behind it.
    fn send(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.held.is_empty() {
            return self.inner.transmit_output(amount, timeout);
        }
        let mut bytes = std::mem::take(&mut self.held);
        let output = self.inner.buffers().output();
        bytes.extend_from_slice(&output[..amount]);
        let (most, start) = (output.len(), Instant::now());
        for piece in bytes.chunks(most) {
            self.inner.buffers().output()[..piece.len()].copy_from_slice(piece);
            self.inner.transmit_output(piece.len(), rest(timeout, start))?;
        }
        Ok(())
    }
}

impl<T: Transport> Transport for Recording<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        if self.mended.is_some() { self } else { self.inner.buffers() }
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let begins = std::mem::replace(&mut self.answering, false);
        if begins {
            self.phase = Phase::Head(Heads::default());
        }
        let (remote, round_trip, used) = (self.remote, self.round_trip, self.used);
        let output = &self.inner.buffers().output()[..amount];
        note(|exchange| {
            if begins {
                (exchange.remote, exchange.round_trip, exchange.reused) = (remote, round_trip, used);
                exchange.begun = Some(Instant::now());
                exchange.request_head.clear();
            }
            let head = &mut exchange.request_head;
            if head.len() < REQUEST_HEAD_BYTES_MAX && !head.windows(4).any(|end| end == b"\r\n\r\n") {
                head.extend_from_slice(output);
            }
        });
        self.used = true;
        if begins && output.ends_with(b"\r\n\r\n") {
            self.held.extend_from_slice(output);
            return Ok(());
        }
        self.send(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let mut timeout = timeout;
        if !self.held.is_empty() {
            let start = Instant::now();
            self.send(0, timeout)?;
            timeout = rest(timeout, start);
        }
        note(|exchange| exchange.asked = exchange.begun.is_some());
        if self.over {
            return Ok(false);
        }
        let (start, limit, unused) = (Instant::now(), timeout, self.unused());
        loop {
            let more = self.read(timeout)?;
            // ureq gets whole heads, and never an empty piece.
            let in_head = matches!(self.phase, Phase::Head(_));
            if !more || (!in_head && self.unused() > unused) {
                return Ok(more);
            }
            timeout = rest(limit, start);
        }
    }

    fn is_open(&mut self) -> bool {
        !self.spent && self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

/// The buffers that ureq uses while it gets other bytes than those that came.
impl<T: Transport> Buffers for Recording<T> {
    fn output(&mut self) -> &mut [u8] {
        self.inner.buffers().output()
    }

    fn input(&self) -> &[u8] {
        self.mended.as_ref().map(Mended::left).unwrap_or_default()
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.inner.buffers().input_append_buf()
    }

    fn input_appended(&mut self, amount: usize) {
        self.inner.buffers().input_appended(amount);
    }

    fn input_consume(&mut self, amount: usize) {
        if let Some(mended) = &mut self.mended {
            (mended.used, mended.progress) = (mended.used + amount, amount > 0);
        }
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.inner.buffers().tmp_and_output()
    }

    fn can_use_input(&self) -> bool {
        self.mended.as_ref().is_some_and(|mended| mended.progress && !mended.left().is_empty())
    }
}

impl<T: Transport> Drop for Recording<T> {
    fn drop(&mut self) {
        // Connections that rest have none: these bytes belong to the call of this thread.
        let rest = self.buffers().input();
        if !rest.is_empty() {
            exchange::note_rest(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use ureq::unversioned::transport::LazyBuffers;

    use super::*;

    /// Keeps what is sent, packet by packet.
    #[derive(Debug)]
    struct Packets {
        buffers: LazyBuffers,
        sent: Vec<Vec<u8>>,
    }

    impl Transport for Packets {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.buffers
        }

        fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
            self.sent.push(self.buffers.output()[..amount].to_vec());
            Ok(())
        }

        fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
            Ok(false)
        }

        fn is_open(&mut self) -> bool {
            true
        }
    }

    /// What goes out when these are written one after the other, and then an answer is waited for.
    fn packets(writes: &[&[u8]]) -> Vec<Vec<u8>> {
        let inner = Packets { buffers: LazyBuffers::new(64, 64), sent: Vec::new() };
        let mut recording = Recording::new(inner, None, Duration::ZERO);
        for write in writes {
            recording.buffers().output()[..write.len()].copy_from_slice(write);
            recording.transmit_output(write.len(), NextTimeout::default()).expect("it takes all");
        }
        recording.await_input(NextTimeout::default()).expect("nothing");
        exchange::take();
        std::mem::take(&mut recording.inner.sent)
    }

    #[test]
    fn a_head_goes_out_with_the_body_behind_it() {
        let (head, body) = (&b"POST / HTTP/1.1\r\nhost: a\r\n\r\n"[..], [b'x'; 60]);
        assert_eq!(packets(&[head, b"{}"]), [[head, b"{}"].concat()]);
        assert_eq!(packets(&[head]), [head], "at the latest when the answer is waited for");
        assert_eq!(packets(&[b"POST / HTTP/1.1\r\n", b"\r\n", b"{}"]).len(), 3, "a long head, in parts");
        let long = packets(&[head, &body, &body]);
        assert_eq!(long.concat(), [head, &body, &body].concat());
        assert_eq!(long.len(), 3);
        // A body that looks like the end of a head is a body.
        assert_eq!(packets(&[head, b"\r\n\r\n", b"y"]), [[head, b"\r\n\r\n"].concat(), b"y".to_vec()]);
    }
}
