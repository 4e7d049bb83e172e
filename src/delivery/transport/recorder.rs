//! Our outermost link in ureq's chain of connectors, which sees what goes over the wire; and which addresses may be called.
//!
//! `Tap` sees the bytes as HTTP: the head of the request, the answer as far as its head, the count of the rest; and
//! it ends an answer that has more of it than any body within the cap could need. ureq's parser is strict: a head or
//! chunks that it would refuse are mended on their way to it, by the rules of [`head`](crate::delivery::transport::head) and
//! [`chunks`](crate::delivery::transport::chunks), and then the connection is used no more. What the links see is kept for the call that this
//! thread is making; a thread makes one at a time.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use ureq::{Error, Timeout, config::Config};

use crate::delivery::machine::Machine;
use crate::delivery::networks::{self};
use crate::delivery::resolver::{Answer, Resolver};
use crate::delivery::transport::chunks::Chunks;
use crate::delivery::transport::dial::alternate;
use crate::delivery::transport::head::{Fed, HEAD_BYTES_MAX, Heads, Record, Step};
use crate::model::database_addresses::Reached;

/// Heads of our own requests are shorter; beyond it they are not kept for the log.
const HEAD_MAX: usize = 32 * 1024;
/// All that a customer reads of a name whose address is refused: which address it is, and of what kind, would tell
/// somebody what the names of our network stand for.
const NAME_REFUSED: &str = "the name stands for a private address, or for one of the relay's own";
/// How much of an answer is kept until its head is complete.
const START_MAX: usize = 64 * 1024;

/// What the links saw of the current call of this thread.
#[derive(Debug, Default)]
pub struct Seen {
    /// Where the socket is connected to.
    pub remote: Option<SocketAddr>,
    /// The connection had carried a request before.
    pub reused: bool,
    /// The request as far as the end of its headers, perhaps with some of its body.
    pub head: Vec<u8>,
    /// Bytes of the answer.
    pub received: u64,
    /// The answer as it came, until its head was complete.
    pub start: Vec<u8>,
    /// Why the address may not be called, for the customer.
    pub refused: Option<String>,
    /// Why the name has no address.
    pub unresolved: Option<String>,
    /// What we ran short of, before anything was sent.
    pub shortage: Option<String>,
    /// Lookups of other names left no thread for this one's.
    pub crowded: bool,
    /// TLS was being agreed on when it ended.
    pub handshake: bool,
    /// The answer was longer than what was agreed to read.
    pub flooded: bool,
    /// What had come of a body and was not taken by whoever read it, when its connection was closed.
    pub rest: Vec<u8>,
    /// How the connection broke while the answer was read.
    pub broken: Option<String>,
    /// What the head of the answer says, when that is not what ureq was given.
    pub record: Option<Record>,
    /// Chunks of the answer ended with bare line feeds.
    pub bare: bool,
    /// Bytes that may come before it is a flood.
    room: u64,
    /// The head of the answer is not complete.
    in_head: bool,
}

thread_local! {
    // Written by the links below, on the thread that makes the call; taken by the endpoint.
    static SEEN: RefCell<Seen> = RefCell::default();
}

/// Begins to look at a call. Its answer's head, with all that comes before it, may have `room` bytes.
pub fn watch_head(room: u64) {
    SEEN.replace(Seen { room, in_head: true, ..Seen::default() });
}

/// Begins to look at the body of the answer, which may take `room` bytes on the wire.
pub fn watch_body(room: u64) {
    SEEN.replace(Seen { room, ..Seen::default() });
}

/// Takes what was seen since then.
pub fn take_seen() -> Seen {
    SEEN.with_borrow_mut(std::mem::take)
}

pub(crate) fn see<T>(change: impl FnOnce(&mut Seen) -> T) -> T {
    SEEN.with_borrow_mut(change)
}

/// Says whether TLS is being agreed on.
pub(crate) fn handshaking(now: bool) {
    see(|seen| seen.handshake = now);
}

/// Why an address may not be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// For whoever typed the address: its kind.
    pub kind: &'static str,
    /// For the operator.
    pub detail: String,
}

impl Denial {
    fn own(detail: impl Into<String>) -> Denial {
        Denial { kind: "the relay's own", detail: detail.into() }
    }

    /// In words, for whoever typed the address.
    pub fn message(&self, address: SocketAddr) -> String {
        format!("{} may not be called: {}", address.ip(), self.kind)
    }

    /// Notes that the call of this thread is refused, for what its URL's host stands for.
    pub(crate) fn note(&self, host: &str, address: SocketAddr) {
        tracing::debug!(host, %address, why = self.detail, "address refused");
        let typed = bare(host).parse::<IpAddr>().is_ok() || is_localhost(host);
        let message = if typed { self.message(address) } else { NAME_REFUSED.into() };
        see(|seen| seen.refused = Some(message));
    }
}

/// Which addresses may be called.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Networks that may be called although they are not globally reachable.
    pub allow: Vec<IpNet>,
    /// Hosts and ports that are never called: our Postgres. Names are looked up when somebody calls that port, so that
    /// what they stand for is what they stand for then.
    pub never: Vec<(String, u16)>,
    /// Never called either: where it was reached.
    pub reached: Reached,
    /// Never called at any address of this machine's: the port of our metrics.
    pub metrics_port: Option<u16>,
    /// Knows this machine's addresses, which are called only where the operator allows them.
    pub machine: Machine,
    /// Who is asked for names.
    pub names: Resolver,
}

impl Rules {
    /// Why an address may not be called; none when it may, if it is not one of this machine's. Blocks until `deadline`
    /// at most, for a name of our own Postgres; while that has no answer, any address at its port may be the database,
    /// and is refused.
    pub fn problem(&self, address: SocketAddr, deadline: Instant) -> Option<Denial> {
        if let Some(kind) = networks::problem(address.ip(), &self.allow) {
            return Some(Denial { kind, detail: kind.into() });
        }
        // What the kernel does not tell counts as this machine's.
        let is_own = |ip: IpAddr| self.is_own(ip).unwrap_or(true);
        if self.metrics_port == Some(address.port()) && is_own(address.ip()) {
            return Some(Denial::own("the relay's metrics"));
        }
        let mut database = self.reached.at(address.port());
        for (host, _) in self.never.iter().filter(|(_, port)| *port == address.port()) {
            match host.parse().map_or_else(|_| self.names.addresses(host, deadline), Answer::of) {
                Answer::Addresses(addresses) => database.extend(addresses),
                _ => return Some(Denial::own(format!("it may be the database: {host} is not resolved now"))),
            }
        }
        let ip = networks::plain(address.ip());
        let is_it = |known: IpAddr| known == ip || (is_own(known) && is_own(ip));
        let refused = database.into_iter().map(networks::plain).any(is_it);
        refused.then(|| Denial::own("the database"))
    }

    /// Why no connection may be made to an address now: it is one of this machine's, and the operator has not allowed
    /// it. The kernel routes it over loopback, past the firewall.
    ///
    /// # Errors
    ///
    /// When the kernel cannot tell, for a lack of memory.
    pub fn own(&self, address: SocketAddr) -> io::Result<Option<Denial>> {
        let allowed = networks::is_allowed(address.ip(), &self.allow);
        let own = !allowed && self.is_own(address.ip())?;
        Ok(own.then(|| Denial::own("an address of this machine's; --allow-net allows it")))
    }

    /// Whether packets to an address stay on this machine, also those to an address that it embeds.
    fn is_own(&self, ip: IpAddr) -> io::Result<bool> {
        let plain = networks::plain(ip);
        Ok(self.machine.has(ip)? || (plain != ip && self.machine.has(plain)?))
    }

    /// What `localhost` stands for: loopback, as far as the operator has allowed it.
    pub fn loopback(&self) -> Vec<IpAddr> {
        let both: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let allowed: Vec<_> =
            both.into_iter().filter(|address| networks::is_allowed(*address, &self.allow)).collect();
        if allowed.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { allowed }
    }
}

/// Names that are loopback everywhere (RFC 6761): nobody is asked for them.
pub(crate) fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

/// A host without the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// A name as it is looked up: with the dot that ends it, so that no domain of this machine's search list is put behind
/// it, and that no line of its hosts file has it.
fn absolute(name: &str) -> String {
    if name.ends_with('.') { name.to_owned() } else { format!("{name}.") }
}

/// Names to addresses, for ureq.
#[derive(Debug)]
pub struct Names {
    /// Who is asked, and what may be called: looked at here for all answers, and in [`Dial`](crate::delivery::transport::dial::Dial) for those that may be dialled.
    pub rules: Arc<Rules>,
}

impl UreqResolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().unwrap_or_default();
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port);
        let deadline = Instant::now() + *timeout.after;
        let addresses = match bare(host).parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) if is_localhost(host) => self.rules.loopback(),
            Err(_) => match self.rules.names.addresses(&absolute(host), deadline) {
                Answer::Addresses(addresses) => addresses,
                Answer::Late => return Err(Error::Timeout(Timeout::Resolve)),
                Answer::Crowded => {
                    see(|seen| seen.crowded = true);
                    return Err(Error::HostNotFound);
                }
                Answer::Shortage(reason) => {
                    see(|seen| seen.shortage = Some(reason));
                    return Err(Error::HostNotFound);
                }
                Answer::Failed(reason) => {
                    see(|seen| seen.unresolved = Some(reason));
                    return Err(Error::HostNotFound);
                }
            },
        };
        let addresses = alternate(addresses).into_iter().map(|address| SocketAddr::new(address, port));
        // One forbidden address among a name's answers refuses the call: which of them is tried is not for the owner
        // of the name to play with.
        let denied = |address| Some((address, self.rules.problem(address, deadline)?));
        if let Some((address, denial)) = addresses.clone().find_map(denied) {
            denial.note(host, address);
            return Err(Error::HostNotFound);
        }
        let mut resolved = self.empty();
        for address in addresses {
            if resolved.try_push(address).is_err() {
                // A name with more addresses than ureq takes; those will do.
                break;
            }
        }
        Ok(resolved)
    }
}

/// The outermost link.
#[derive(Debug)]
pub struct Tap;

impl<In: Transport> Connector<In> for Tap {
    type Out = Tapped<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let remote = SEEN.with_borrow(|seen| seen.remote);
        Ok(chained.map(|inner| Tapped::new(inner, remote)))
    }
}

/// A connection whose bytes are seen.
#[derive(Debug)]
pub struct Tapped<T: Transport> {
    inner: T,
    remote: Option<SocketAddr>,
    /// Has carried a request before this one.
    used: bool,
    /// An answer, or nothing yet, was the last thing that moved: what is sent next begins a request.
    answering: bool,
    /// A head that goes out together with the body behind it: ureq writes them apart, and two packets wake the other side
    /// twice.
    held: Vec<u8>,
    phase: Phase,
    /// What ureq is given instead of the bytes that came.
    mended: Option<Mended>,
    /// The answer is not one that everybody understands alike: no other request goes this way, lest an answer be taken for
    /// another one's.
    spent: bool,
    /// No more of the answer is read.
    over: bool,
}

/// What of an answer comes next.
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
    /// Some of it was of use the last time.
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

impl<T: Transport> Tapped<T> {
    fn new(inner: T, remote: Option<SocketAddr>) -> Tapped<T> {
        Tapped {
            inner,
            remote,
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
            // Longer than what the parser takes: it is kept elsewhere, and here is room for more.
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
                    see(|seen| seen.bare = true);
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
        see(|seen| seen.record = Some(record));
    }

    /// The answer ends within its head. Whether its status is known nevertheless: then ureq is given an answer without a
    /// body.
    fn cut(&mut self, why: &str) -> bool {
        let Phase::Head(heads) = &mut self.phase else { return false };
        let Some((head, record)) = heads.cut(why) else { return false };
        self.give_instead(&head, record);
        (self.phase, self.over) = (Phase::Body, true);
        true
    }

    /// Reads once; whether something came.
    fn read(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let before = self.inner.buffers().input().len();
        let result = self.inner.await_input(timeout);
        if let Err(Error::Io(error)) = &result {
            see(|seen| seen.broken = Some(error.to_string()));
        }
        let input = self.inner.buffers().input();
        let new = input.get(before..).unwrap_or_default();
        let in_head = matches!(self.phase, Phase::Head(_));
        if !new.is_empty() {
            self.answering = true;
            see(|seen| {
                seen.received += new.len() as u64;
                if seen.in_head {
                    let keep = new.len().min(START_MAX.saturating_sub(seen.start.len()));
                    seen.start.extend_from_slice(&new[..keep]);
                }
            });
            self.look(before);
        }
        let still_in_head = matches!(self.phase, Phase::Head(_));
        let flooded = see(|seen| seen.received > seen.room) && (still_in_head || !in_head);
        match result {
            _ if flooded => {
                if self.cut("the answer's head does not end; it was not read to its end") {
                    return Ok(true);
                }
                see(|seen| seen.flooded = true);
                Err(Error::ConnectionFailed)
            }
            Err(Error::Timeout(reason)) => {
                // The status is for the log.
                self.cut("");
                Err(Error::Timeout(reason))
            }
            Err(error) if self.cut(&format!("the answer broke off within its head: {error}")) => {
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

/// What is left of the time since `start`.
fn rest(timeout: NextTimeout, start: Instant) -> NextTimeout {
    NextTimeout { after: timeout.after.saturating_sub(start.elapsed()).into(), ..timeout }
}

impl<T: Transport> Transport for Tapped<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        if self.mended.is_some() { self } else { self.inner.buffers() }
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let begins = std::mem::replace(&mut self.answering, false);
        if begins {
            self.phase = Phase::Head(Heads::default());
        }
        let (remote, used) = (self.remote, self.used);
        let output = &self.inner.buffers().output()[..amount];
        see(|seen| {
            if begins {
                (seen.remote, seen.reused) = (remote, used);
                seen.head.clear();
            }
            if seen.head.len() < HEAD_MAX && !seen.head.windows(4).any(|end| end == b"\r\n\r\n") {
                seen.head.extend_from_slice(output);
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
        if self.over {
            return Ok(false);
        }
        let (start, limit, unused) = (Instant::now(), timeout, self.unused());
        loop {
            let more = self.read(timeout)?;
            // ureq is given whole heads, and never nothing.
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

/// While ureq is given other bytes than those that came.
impl<T: Transport> Buffers for Tapped<T> {
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

impl<T: Transport> Drop for Tapped<T> {
    fn drop(&mut self) {
        // Connections that rest have none: what is here is of the call of this thread.
        let rest = self.buffers().input();
        if !rest.is_empty() {
            // Gone at the end of the thread, when there is no call either.
            SEEN.try_with(|seen| seen.borrow_mut().rest = rest.to_vec()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use ureq::unversioned::transport::LazyBuffers;

    use super::*;
    use crate::delivery::transport::dial::{Dial, Worked};

    /// Every name is 127.0.0.1.
    fn rules(allow: &[&str]) -> Rules {
        let allow = allow.iter().map(|net| net.parse().expect("a network")).collect();
        let names = Resolver::new(Box::new(|_| Ok(vec![Ipv4Addr::LOCALHOST.into()])));
        let machine = Machine::open().expect("netlink");
        Rules { allow, never: Vec::new(), reached: Reached::default(), metrics_port: None, machine, names }
    }

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
        let mut tapped = Tapped::new(inner, None);
        for write in writes {
            tapped.buffers().output()[..write.len()].copy_from_slice(write);
            tapped.transmit_output(write.len(), NextTimeout::default()).expect("it takes all");
        }
        tapped.await_input(NextTimeout::default()).expect("nothing");
        take_seen();
        std::mem::take(&mut tapped.inner.sent)
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
        // A body that looks like the end of a head is none.
        assert_eq!(packets(&[head, b"\r\n\r\n", b"y"]), [[head, b"\r\n\r\n"].concat(), b"y".to_vec()]);
    }

    #[test]
    fn the_database_is_refused_in_every_spelling_of_an_address_at_which_it_was_reached() {
        let (rules, soon) =
            (rules(&["0.0.0.0/0", "::/0"]), Instant::now() + std::time::Duration::from_secs(20));
        for (reached, same, others) in [
            (
                "192.0.2.1",
                &[
                    "192.0.2.1",
                    "::ffff:192.0.2.1",
                    "::ffff:0:192.0.2.1",
                    "64:ff9b::192.0.2.1",
                    "2002:c000:201::1",
                ][..],
                &["192.0.2.2", "64:ff9b::192.0.2.2", "2002:c000:202::1", "2001:db8::c000:201"][..],
            ),
            ("64:ff9b::198.51.100.7", &["198.51.100.7", "64:ff9b::198.51.100.7"], &["198.51.100.8"]),
            ("2001:db8::7", &["2001:db8::7"], &["2001:db8::8"]),
            ("127.0.0.1", &["127.9.9.9", "::1", "64:ff9b::127.0.0.1", "2002:7f00:1::"], &["192.0.2.9"]),
        ] {
            rules.reached.add(reached.parse().expect("an address"), 5499);
            let problem =
                |ip: &str, port| rules.problem(SocketAddr::new(ip.parse().expect("an address"), port), soon);
            for ip in same {
                assert!(
                    problem(ip, 5499).is_some_and(|denial| denial.detail == "the database"),
                    "{ip} is {reached}"
                );
                assert_eq!(problem(ip, 5498), None, "{ip}: the port is another one's");
            }
            for ip in others {
                assert_eq!(problem(ip, 5499), None, "{ip} is not {reached}");
            }
        }
    }

    #[test]
    fn the_address_that_is_dialled_is_looked_at_whatever_was_before() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let names = Names { rules: Arc::new(rules(&["127.0.0.0/8"])) };
        let chain = ().chain(Dial { rules: Arc::new(rules(&[])), worked: Worked::default() }).chain(Tap);
        let config = ureq::Agent::config_builder().timeout_global(Some(std::time::Duration::from_secs(5)));
        let agent = ureq::Agent::with_parts(config.build(), chain, names);
        let url = format!("http://a.example:{}/", listener.local_addr().expect("bound").port());
        take_seen();
        assert!(agent.get(url).call().is_err());
        assert_eq!(take_seen().refused.as_deref(), Some(NAME_REFUSED));
        listener.set_nonblocking(true).expect("an option");
        assert!(listener.accept().is_err(), "nothing was dialled");
    }
}
