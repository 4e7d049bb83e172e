//! What the links in ureq's chain see of the call that a thread is making.
//!
//! A thread makes one call at a time, so the exchange is a thread-local value: the links write it on the thread that makes
//! the call, and [`client`](crate::delivery::client) takes it. Decides nothing.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::delivery::egress::Denial;
use crate::delivery::transport::repair::{HEAD_BYTES_MAX, Record};

/// All that may come before the body: the head, and the heads of interim answers (1xx) before it.
pub(crate) const BEFORE_BODY_BYTES_MAX: u64 = 4 * HEAD_BYTES_MAX as u64;
/// Most bytes of an answer that are kept until its head is complete.
const START_BYTES_MAX: usize = 64 * 1024;

/// What the links saw of the current call of this thread.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// The address that the socket is connected to.
    pub remote: Option<SocketAddr>,
    /// The round trip of that socket.
    pub round_trip: Duration,
    /// The connection had carried a request before.
    pub reused: bool,
    /// When the request began to go out.
    pub begun: Option<Instant>,
    /// The whole request has gone out: the call waits for the answer, or has read of it.
    pub asked: bool,
    /// The request as far as the end of its headers, perhaps with some of its body.
    pub request_head: Vec<u8>,
    /// Bytes of the answer.
    pub received: u64,
    /// The answer as it came, until its head was complete.
    pub start: Vec<u8>,
    /// Why the egress policy refuses the address, for the customer.
    pub refused: Option<String>,
    /// Why the name has no address.
    pub unresolved: Option<String>,
    /// What this process ran short of, before anything was sent.
    pub exhausted: Option<String>,
    /// The proxy, or the lack of an address to leave from, says that the endpoint cannot be reached: in words.
    pub unreachable: Option<String>,
    /// What is wrong with the way out of this host.
    pub no_way_out: Option<String>,
    /// The proxy refuses the endpoint, and it is not known yet whether it refuses this one alone.
    pub refusal_unclear: bool,
    /// Lookups of other names left no thread for the lookup of this one.
    pub resolver_busy: bool,
    /// The TLS handshake was going on when the call ended.
    pub handshake: bool,
    /// The answer was longer than the caller agreed to read.
    pub flooded: bool,
    /// Bytes of a body that had come and that the reader had not taken when its connection was closed.
    pub rest: Vec<u8>,
    /// How the connection broke while the answer was read.
    pub broken: Option<String>,
    /// What the head of the answer says, when ureq was given another head.
    pub record: Option<Record>,
    /// Chunks of the answer ended with bare line feeds.
    pub bare: bool,
    /// Bytes that may come before it is a flood.
    bytes_max: u64,
    /// The head of the answer is not complete.
    in_head: bool,
}

thread_local! {
    // The links write it, on the thread that makes the call; the caller takes it.
    static EXCHANGE: RefCell<Exchange> = RefCell::default();
}

/// Begins to watch a call, as far as the head of its answer.
pub(crate) fn begin_head() {
    EXCHANGE.replace(Exchange { bytes_max: BEFORE_BODY_BYTES_MAX, in_head: true, ..Exchange::default() });
}

/// Begins to watch the body of the answer, which may take `bytes_max` bytes on the wire.
pub(crate) fn begin_body(bytes_max: u64) {
    EXCHANGE.replace(Exchange { bytes_max, ..Exchange::default() });
}

/// Takes what the links saw since the beginning.
pub(crate) fn take() -> Exchange {
    EXCHANGE.with_borrow_mut(std::mem::take)
}

/// Notes something.
pub(super) fn note<T>(change: impl FnOnce(&mut Exchange) -> T) -> T {
    EXCHANGE.with_borrow_mut(change)
}

/// Notes bytes of a body that were not read, when a connection is closed. The thread may be ending, without a value and
/// without a call.
pub(super) fn note_rest(rest: &[u8]) {
    EXCHANGE.try_with(|exchange| exchange.borrow_mut().rest = rest.to_vec()).ok();
}

/// Notes that the egress policy refuses an address that the URL's host stands for.
pub(super) fn note_denial(denial: &Denial, host: &str, address: SocketAddr) {
    tracing::debug!(host, %address, why = denial.detail, "address refused");
    note(|exchange| exchange.refused = Some(denial.for_customer(host, address)));
}

impl Exchange {
    /// Counts new bytes of the answer, and keeps them until the head is complete.
    pub(super) fn receive(&mut self, new: &[u8]) {
        self.received += new.len() as u64;
        if self.in_head {
            let keep = new.len().min(START_BYTES_MAX.saturating_sub(self.start.len()));
            self.start.extend_from_slice(&new[..keep]);
        }
    }

    /// Whether more has come than may.
    pub(super) fn is_flood(&self) -> bool {
        self.received > self.bytes_max
    }
}
