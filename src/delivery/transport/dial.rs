//! The innermost of our links in ureq's chain of connectors: makes the connection, to an address that may be called.
//!
//! The addresses of a name race (RFC 8305): when one has not answered for a moment the next is tried beside it, and the
//! first that connects is taken. So a dead address, or a dead family of them, costs that moment and not a share of the
//! call's time. The address that worked instead is tried first for a minute. All of it happens on the thread of the call.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use ureq::Error;
use ureq::unversioned::transport::{ConnectionDetails, Connector, Either, Transport};

use crate::delivery::bulkhead::Bulkhead;
use crate::delivery::egress::{Denial, Policy};
use crate::delivery::fd_budget;
use crate::delivery::transport::deadline::left;
use crate::delivery::transport::exchange::{note, note_denial};
use crate::delivery::transport::socket::{Attempt, Socket, first_ended};

/// How long an address has before the next is tried beside it (RFC 8305, section 8), or its share of the time where that is
/// less.
const NEXT_AFTER: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried at once: each takes a file descriptor. Beyond it the oldest attempt gives way when it
/// has had its share of the time. Four are two addresses of each family, which alternate.
const ATTEMPTS_MAX: usize = 4;
/// How long an address is tried first because it worked when the one before it did not. So most calls to a dead address are
/// saved, and one that is back is used again soon.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Origins that are remembered with such an address: some hundred kilobytes. Beyond it all are forgotten, which costs each of
/// them one wait.
const ORIGINS_MAX: usize = 4096;

/// Opens the socket.
#[derive(Debug)]
pub(crate) struct Dial {
    /// Decides on the very address that is dialled.
    pub policy: Arc<Policy>,
    /// What worked lately.
    pub worked: Worked,
}

/// By origin, the address that worked when one before it did not, and since when that is known. Cheap to clone; all
/// clones are one. Read and written by all calls to names with several addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Worked(Arc<Mutex<HashMap<String, (SocketAddr, Instant)>>>);

impl Worked {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (SocketAddr, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what worked lately in front of the others; an address that is no longer among them is not tried.
    fn prefer(&self, origin: &str, addresses: &mut [SocketAddr], now: Instant) {
        let known =
            self.lock().get(origin).filter(|(_, since)| now.duration_since(*since) < REMEMBERED).copied();
        let at = known.and_then(|(known, _)| addresses.iter().position(|address| *address == known));
        if let Some(at) = at {
            addresses[..=at].rotate_right(1);
        }
    }

    /// Notes which address a call was connected to, and which one is the first of its name.
    fn note(&self, origin: &str, connected: SocketAddr, first: SocketAddr, now: Instant) {
        let mut known = self.lock();
        if connected == first {
            known.remove(origin);
            return;
        }
        let fresh = |(address, since): &(SocketAddr, Instant)| {
            *address == connected && now.duration_since(*since) < REMEMBERED
        };
        // The minute is not prolonged: after it the first address has another chance.
        if known.get(origin).is_some_and(fresh) {
            return;
        }
        if known.len() >= ORIGINS_MAX {
            known.clear();
        }
        known.insert(origin.to_owned(), (connected, now));
    }
}

/// Why an attempt was not begun, or failed.
enum Hurdle {
    /// This process lacks something, with the reason.
    Exhausted(String),
    Failed(io::Error),
    Refused(SocketAddr, Denial),
}

impl Hurdle {
    /// Notes why the call fails, when it is not for what the endpoint did.
    fn note(self, details: &ConnectionDetails) -> Error {
        match self {
            Hurdle::Failed(error) => return Error::Io(error),
            Hurdle::Refused(address, denial) => {
                note_denial(&denial, details.uri.host().unwrap_or_default(), address)
            }
            Hurdle::Exhausted(reason) => note(|exchange| exchange.exhausted = Some(reason)),
        }
        Error::ConnectionFailed
    }
}

impl Dial {
    /// Refuses an address of this machine's, unless the operator has allowed it.
    fn may(&self, address: SocketAddr) -> Result<(), Hurdle> {
        match self.policy.own(address) {
            Ok(None) => Ok(()),
            Ok(Some(denial)) => Err(Hurdle::Refused(address, denial)),
            Err(error) => Err(Hurdle::Exhausted(format!("cannot tell this machine's addresses: {error}"))),
        }
    }

    fn begin(&self, address: SocketAddr, deadline: Instant, attempts: &Bulkhead) -> Result<Attempt, Hurdle> {
        let lack = |what: &str| Hurdle::Exhausted(what.into());
        let turn = attempts.take(1).ok_or_else(|| lack("too many attempts"))?;
        if let Some(denial) = self.policy.denial(address, deadline) {
            return Err(Hurdle::Refused(address, denial));
        }
        self.may(address)?;
        let descriptor =
            fd_budget::take(1).ok_or_else(|| lack("all file descriptors for calls are in use"))?;
        Attempt::begin(address, descriptor, turn).map_err(|error| hurdle(error, address))
    }

    /// Makes connections to these addresses, one after the other or beside each other, and takes the first that is made.
    fn race(&self, details: &ConnectionDetails, addresses: &[SocketAddr]) -> Result<Attempt, Error> {
        let (limit, start) = (left(details), Instant::now());
        let deadline = start + limit;
        let share = limit / u32::try_from(addresses.len().max(1)).expect("at most 16");
        let pause = share.min(NEXT_AFTER);
        let mut waiting: VecDeque<_> = addresses.iter().copied().collect();
        let attempts = Bulkhead::new(ATTEMPTS_MAX);
        let mut running: Vec<Attempt> = Vec::new();
        let (mut next, mut failure) = (start, Error::HostNotFound);
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::Timeout(details.timeout.reason));
            }
            let mut hurdle = None;
            match waiting.front() {
                Some(address) if running.is_empty() || now >= next => {
                    match self.begin(*address, deadline, &attempts) {
                        Ok(attempt) => {
                            waiting.pop_front();
                            running.push(attempt);
                            next = now + pause;
                        }
                        Err(Hurdle::Exhausted(_))
                            if running.first().is_some_and(|oldest| now >= oldest.since + share) =>
                        {
                            running.remove(0);
                        }
                        Err(Hurdle::Exhausted(_)) if !running.is_empty() => next = now + pause,
                        Err(failed) => {
                            waiting.pop_front();
                            hurdle = Some(failed);
                        }
                    }
                }
                None if running.is_empty() => return Err(failure),
                more => {
                    let until = if more.is_some() { next.min(deadline) } else { deadline };
                    match first_ended(&running, until - now)? {
                        None => {}
                        Some((at, Ok(()))) => return Ok(running.swap_remove(at)),
                        Some((at, Err(error))) => {
                            hurdle = Some(self::hurdle(error, running.remove(at).address));
                            next = now;
                        }
                    }
                }
            }
            match hurdle {
                None => {}
                Some(Hurdle::Failed(error)) => failure = Error::Io(error),
                Some(hurdle) => return Err(hurdle.note(details)),
            }
        }
    }
}

impl<In: Transport> Connector<In> for Dial {
    type Out = Either<In, Socket>;

    fn connect(&self, details: &ConnectionDetails, _: Option<In>) -> Result<Option<Self::Out>, Error> {
        let mut addresses = details.addrs.to_vec();
        let first = addresses.first().copied();
        let several = addresses.len() > 1;
        let origin = details.uri.authority().map_or("", |authority| authority.as_str());
        if several {
            // One forbidden address refuses the call, whether it would be dialled or not. A single address is looked at when
            // it is dialled.
            addresses
                .iter()
                .try_for_each(|address| self.may(*address))
                .map_err(|hurdle| hurdle.note(details))?;
            self.worked.prefer(origin, &mut addresses, Instant::now());
        }
        let attempt = self.race(details, &addresses)?;
        let (address, round_trip) = (attempt.address, attempt.round_trip());
        note(|exchange| (exchange.remote, exchange.round_trip) = (Some(address), round_trip));
        if let Some(first) = first.filter(|_| several) {
            self.worked.note(origin, address, first, Instant::now());
        }
        Ok(Some(Either::B(Socket::connected(details, attempt)?)))
    }
}

fn hurdle(error: io::Error, address: SocketAddr) -> Hurdle {
    if is_exhaustion(&error, address) { Hurdle::Exhausted(error.to_string()) } else { Hurdle::Failed(error) }
}

/// Whether an error of the system's when connecting says that this process lacks something, and is not the endpoint's doing:
/// file descriptors, memory, buffers, local ports.
fn is_exhaustion(error: &io::Error, address: SocketAddr) -> bool {
    const OURS: [Errno; 5] = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::EAGAIN];
    let code = error.raw_os_error().map(Errno::from_raw);
    // The system says so when local ports have run out, and also where there is no address to call from (no IPv6 here),
    // which waiting does not mend. Datagrams have ports of their own.
    let ports = || code == Some(Errno::EADDRNOTAVAIL) && has_source(address);
    code.is_some_and(|code| OURS.contains(&code)) || ports()
}

fn has_source(address: SocketAddr) -> bool {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect(address).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_run_short_of_is_ours_and_a_missing_source_address_is_not() {
        let local = SocketAddr::from(([127, 0, 0, 1], 9));
        let error = |errno: Errno| io::Error::from_raw_os_error(errno as i32);
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EADDRNOTAVAIL] {
            assert!(is_exhaustion(&error(errno), local), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::ETIMEDOUT] {
            assert!(!is_exhaustion(&error(errno), local), "{errno}");
        }
        // Nothing can be sent to this address, as to an IPv6 address from a machine without IPv6.
        let nowhere = SocketAddr::from(([255, 255, 255, 255], 9));
        assert!(!is_exhaustion(&error(Errno::EADDRNOTAVAIL), nowhere));
        assert!(!is_exhaustion(&io::Error::other("no code"), local));
    }

    #[test]
    fn what_worked_is_tried_first_for_a_minute_and_no_longer() {
        let (worked, start) = (Worked::default(), Instant::now());
        let all = [1, 2, 3].map(|last| SocketAddr::from(([127, 0, 0, last], 9)));
        let order = |after: u64| {
            let mut addresses = all;
            worked.prefer("a.example:9", &mut addresses, start + Duration::from_secs(after));
            addresses
        };
        let note = |at: usize, after: u64| {
            worked.note("a.example:9", all[at], all[0], start + Duration::from_secs(after));
        };
        assert_eq!(order(0), all);
        note(2, 0);
        assert_eq!(order(59), [all[2], all[0], all[1]]);
        note(2, 59);
        assert_eq!(order(61), all, "having worked again does not prolong it");
        note(1, 62);
        assert_eq!(order(63), [all[1], all[0], all[2]]);
        note(0, 64);
        assert_eq!(order(65), all, "the first is back");
        note(1, 66);
        let mut others = [all[0], all[2]];
        worked.prefer("a.example:9", &mut others, start + Duration::from_secs(66));
        assert_eq!(others, [all[0], all[2]], "the name has it no more");
        for n in 0..2 * ORIGINS_MAX {
            worked.note(&n.to_string(), all[1], all[0], start);
        }
        assert!(worked.lock().len() <= ORIGINS_MAX);
    }
}
