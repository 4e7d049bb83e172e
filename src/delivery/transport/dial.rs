//! The innermost of our links in ureq's chain of connectors: makes the connection, to an address that may be called.
//!
//! The addresses of a name [`race`](crate::delivery::transport::race). With a proxy it is the proxy that connects to them, one
//! after the other ([`tunnel`](crate::delivery::transport::tunnel)). The address that worked when one before it did not is
//! tried first for a minute.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::{ConnectionDetails, Connector, Either, Transport};

use crate::delivery::bulkhead::Permit;
use crate::delivery::egress::Policy;
use crate::delivery::fd_budget;
use crate::delivery::proxy::Proxy;
use crate::delivery::resolver::Resolver;
use crate::delivery::sources::Source;
use crate::delivery::transport::deadline::left;
use crate::delivery::transport::exchange::{Exchange, note, note_denial};
use crate::delivery::transport::race::{Hurdle, Lost, race};
use crate::delivery::transport::socket::{Attempt, Socket};
use crate::delivery::transport::tunnel::{Closed, Tunnel, Tunnels};
use crate::delivery::way_out::{Part, WayOut};

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
    /// Where calls leave from, and through which proxy.
    pub way_out: Arc<WayOut>,
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

impl Dial {
    /// Refuses an address of this machine's, unless the operator has allowed it.
    fn may(&self, address: SocketAddr) -> Result<(), Hurdle> {
        match self.policy.own(address) {
            Ok(None) => Ok(()),
            Ok(Some(denial)) => Err(Hurdle::Refused(address, denial)),
            Err(error) => Err(Hurdle::Exhausted(format!("cannot tell this machine's addresses: {error}"))),
        }
    }

    /// Refuses an address that the egress policy refuses.
    fn check(&self, address: SocketAddr, deadline: Instant) -> Result<(), Hurdle> {
        if let Some(denial) = self.policy.denial(address, deadline) {
            return Err(Hurdle::Refused(address, denial));
        }
        self.may(address)
    }

    /// Connects to one of the endpoint's addresses.
    fn straight(&self, details: &ConnectionDetails, addresses: &[SocketAddr]) -> Result<Tunnel, Error> {
        let deadline = Instant::now() + left(details);
        let begin = |address, turn| {
            self.check(address, deadline)?;
            begin(&self.way_out, address, turn)
        };
        let attempt = race(addresses, deadline, begin).map_err(|lost| self.give_up(lost, details))?;
        Ok(Tunnel { endpoint: attempt.address, round_trip: attempt.round_trip(), attempt })
    }

    /// Has the proxy connect to one of the endpoint's addresses.
    fn through(
        &self,
        proxy: &Proxy,
        details: &ConnectionDetails,
        addresses: &[SocketAddr],
    ) -> Result<Tunnel, Error> {
        let deadline = Instant::now() + left(details);
        let tunnels = Tunnels {
            way_out: &self.way_out,
            proxy,
            names: &self.policy.names,
            begin: |address, turn| begin(&self.way_out, address, turn),
            deadline,
        };
        let check = |endpoint: SocketAddr, proxies: &[SocketAddr]| {
            self.check(endpoint, deadline)?;
            match self.policy.proxy(endpoint, proxies) {
                Some(denial) => Err(Hurdle::Refused(endpoint, denial)),
                None => Ok(()),
            }
        };
        tunnels.open(addresses, check).map_err(|closed| match closed {
            Closed::Late => self.give_up(Lost::Late, details),
            Closed::Hurdle(hurdle) => self.give_up(Lost::Hurdle(hurdle), details),
            Closed::Unreachable(what) => failed(|exchange| exchange.unreachable = Some(what)),
            Closed::NoWayOut(why) => failed(|exchange| exchange.no_way_out = Some(why)),
            Closed::Unclear => failed(|exchange| exchange.refusal_unclear = true),
            Closed::ResolverBusy => failed(|exchange| exchange.resolver_busy = true),
        })
    }

    /// Notes why there is no connection, when it is not for what the endpoint did.
    fn give_up(&self, lost: Lost, details: &ConnectionDetails) -> Error {
        match lost {
            Lost::Late => Error::Timeout(details.timeout.reason),
            Lost::Hurdle(Hurdle::Failed(error)) => Error::Io(error),
            Lost::Hurdle(Hurdle::Refused(address, denial)) => {
                note_denial(&denial, details.uri.host().unwrap_or_default(), address);
                Error::ConnectionFailed
            }
            Lost::Hurdle(Hurdle::Exhausted(reason)) => failed(|exchange| exchange.exhausted = Some(reason)),
            Lost::Hurdle(Hurdle::Nowhere(ip)) => {
                let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                failed(|exchange| exchange.unreachable = Some(format!("no call leaves over {family}")))
            }
            Lost::Hurdle(Hurdle::NoSource(source, error)) => {
                let why = format!(
                    "no call can leave from {source}, which --bind-address names ({error}); give the host this address \
                     again, or restart the daemon with another one"
                );
                self.way_out.note_lack(Part::Source(source), why.clone());
                failed(|exchange| exchange.no_way_out = Some(why))
            }
        }
    }
}

/// Begins a connection, without asking whether the address may be called.
fn begin(way_out: &WayOut, address: SocketAddr, turn: Permit) -> Result<Attempt, Hurdle> {
    let source = match way_out.sources.towards(address.ip()) {
        Source::Any => None,
        Source::Own(source) => Some(source),
        Source::Nowhere => return Err(Hurdle::Nowhere(address.ip())),
    };
    let lack = || Hurdle::Exhausted("all file descriptors for calls are in use".into());
    let descriptor = fd_budget::take(1).ok_or_else(lack)?;
    let begun = Attempt::begin(address, source, descriptor, turn)
        .map_err(|unbegun| Hurdle::unbegun(unbegun, address))?;
    if let Some(source) = source {
        way_out.note_works(Part::Source(source));
    }
    Ok(begun)
}

/// Connects to the proxy, and asks it for nothing. Blocks until `deadline` at most.
///
/// # Errors
///
/// What is wrong with it, in words.
pub(crate) fn try_proxy(
    way_out: &WayOut,
    names: &Resolver,
    proxy: &Proxy,
    deadline: Instant,
) -> Result<(), String> {
    let begin = |address, turn| begin(way_out, address, turn);
    Tunnels { way_out, proxy, names, begin, deadline }.try_proxy()
}

/// Notes why there is no connection.
fn failed(change: impl FnOnce(&mut Exchange)) -> Error {
    note(change);
    Error::ConnectionFailed
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
                .map_err(|hurdle| self.give_up(Lost::Hurdle(hurdle), details))?;
            self.worked.prefer(origin, &mut addresses, Instant::now());
        }
        let Tunnel { attempt, endpoint: address, round_trip } = match &self.way_out.proxy {
            None => self.straight(details, &addresses)?,
            Some(proxy) => self.through(proxy, details, &addresses)?,
        };
        note(|exchange| (exchange.remote, exchange.round_trip) = (Some(address), round_trip));
        if let Some(first) = first.filter(|_| several) {
            self.worked.note(origin, address, first, Instant::now());
        }
        Ok(Some(Either::B(Socket::connected(details, attempt)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
