//! Our links in ureq's chain of connectors: what is dialled, and what goes over the wire.
//!
//! `Dial` checks the very address that the socket connects to, and tries one after the other. `Tap`, the outermost
//! link, sees the bytes as HTTP: the head of the request, the count of the answer. What they see is kept for the call
//! that this thread is making; a thread makes one at a time.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, NextTimeout, RustlsConnector, TcpConnector, Transport,
    time,
};
use ureq::{Error, Timeout, config::Config};

use crate::address;
use crate::resolver::{Answer, Resolver};

/// Headers of our own requests are far shorter; beyond it they are not kept for the log.
const HEAD_MAX: usize = 16 * 1024;

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
    /// Why the address may not be called.
    pub refused: Option<String>,
    /// Why the name has no address.
    pub unresolved: Option<String>,
}

thread_local! {
    // Written by the links below, on the thread that makes the call; taken by the endpoint.
    static SEEN: RefCell<Seen> = RefCell::default();
}

/// Takes what was seen since the last time.
pub fn take_seen() -> Seen {
    SEEN.with_borrow_mut(std::mem::take)
}

fn see(change: impl FnOnce(&mut Seen)) {
    SEEN.with_borrow_mut(change);
}

/// Names to addresses, for ureq.
#[derive(Debug)]
pub struct Names(pub Resolver);

impl UreqResolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().unwrap_or_default();
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = match bare.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => match self.0.addresses(bare, Instant::now() + *timeout.after) {
                Answer::Addresses(addresses) => addresses,
                Answer::Late => return Err(Error::Timeout(Timeout::Resolve)),
                Answer::Failed(reason) => {
                    see(|seen| seen.unresolved = Some(reason));
                    return Err(Error::HostNotFound);
                }
            },
        };
        let mut resolved = self.empty();
        for address in addresses {
            if resolved.try_push(SocketAddr::new(address, port)).is_err() {
                // A name with more addresses than ureq takes; those will do.
                break;
            }
        }
        Ok(resolved)
    }
}

/// Opens the socket, to an address that may be called.
#[derive(Debug)]
pub struct Dial {
    /// Networks that may be called although they are not globally reachable.
    pub allow: Vec<IpNet>,
    /// Never called: our Postgres.
    pub never: Vec<SocketAddr>,
}

impl Dial {
    fn problem(&self, address: SocketAddr) -> Option<String> {
        if self.never.contains(&SocketAddr::new(address.ip().to_canonical(), address.port())) {
            return Some(format!("{address} is the database"));
        }
        address::problem(address.ip(), &self.allow)
            .map(|why| format!("{} may not be called: {why}", address.ip()))
    }
}

impl<In: Transport> Connector<In> for Dial {
    type Out = Either<In, Box<dyn Transport>>;

    fn connect(&self, details: &ConnectionDetails, _: Option<In>) -> Result<Option<Self::Out>, Error> {
        // One forbidden address among a name's answers refuses the call: which of them is tried is not for the owner
        // of the name to play with.
        if let Some(problem) = details.addrs.iter().find_map(|address| self.problem(*address)) {
            see(|seen| seen.refused = Some(problem));
            return Err(Error::ConnectionFailed);
        }
        let start = Instant::now();
        let mut failure = Error::HostNotFound;
        for (at, address) in details.addrs.iter().enumerate() {
            // The time that is left is shared by the addresses that are left.
            let left = details.timeout.after.saturating_sub(start.elapsed());
            let others = u32::try_from(details.addrs.len() - at).expect("at most 16");
            let share = left / others;
            if share.is_zero() {
                return Err(Error::Timeout(details.timeout.reason));
            }
            match dial_one(details, *address, share) {
                Ok(transport) => {
                    see(|seen| seen.remote = Some(*address));
                    return Ok(transport.map(Either::B));
                }
                Err(Error::Io(error)) if is_shortage(&error) => return Err(Error::Io(error)),
                Err(error @ (Error::Io(_) | Error::Timeout(_))) => failure = error,
                Err(error) => return Err(error),
            }
        }
        Err(failure)
    }
}

fn dial_one(
    details: &ConnectionDetails,
    address: SocketAddr,
    share: Duration,
) -> Result<Option<Box<dyn Transport>>, Error> {
    let mut addrs = details.resolver.empty();
    addrs.push(address);
    let details = ConnectionDetails {
        uri: details.uri,
        addrs,
        config: details.config,
        request_level: details.request_level,
        resolver: details.resolver,
        now: time::Instant::now(),
        timeout: NextTimeout { after: time::Duration::Exact(share), ..details.timeout },
        current_time: details.current_time.clone(),
        run_connector: details.run_connector.clone(),
        register_shutdown: details.register_shutdown.clone(),
    };
    let transport: Option<Either<(), _>> = TcpConnector::default().connect(&details, None)?;
    Ok(transport.map(|transport| transport.boxed()))
}

/// Whether an error of the system's is a lack of ours, not the endpoint's doing: file descriptors, memory, buffers,
/// local ports.
pub fn is_shortage(error: &io::Error) -> bool {
    use nix::errno::Errno;
    const OURS: [Errno; 6] =
        [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::EAGAIN, Errno::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| OURS.contains(&Errno::from_raw(code)))
}

/// One TLS configuration for all agents: building it reads the trust store.
#[derive(Clone, Debug)]
pub struct SharedTls(pub Arc<RustlsConnector>);

impl<In: Transport> Connector<In> for SharedTls {
    type Out = <RustlsConnector as Connector<In>>::Out;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        self.0.connect(details, chained)
    }
}

/// The outermost link.
#[derive(Debug)]
pub struct Tap;

impl<In: Transport> Connector<In> for Tap {
    type Out = Tapped<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let remote = SEEN.with_borrow(|seen| seen.remote);
        Ok(chained.map(|inner| Tapped { inner, remote, used: false, answering: true }))
    }
}

/// A connection whose bytes are seen.
#[derive(Debug)]
pub struct Tapped<T> {
    inner: T,
    remote: Option<SocketAddr>,
    /// Has carried a request before this one.
    used: bool,
    /// An answer, or nothing yet, was the last thing that moved: what is sent next begins a request.
    answering: bool,
}

impl<T: Transport> Transport for Tapped<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let begins = std::mem::replace(&mut self.answering, false);
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
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let before = self.inner.buffers().input().len();
        let result = self.inner.await_input(timeout);
        let after = self.inner.buffers().input().len();
        if after > before {
            self.answering = true;
            see(|seen| seen.received += (after - before) as u64);
        }
        result
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
