//! The innermost of our links in ureq's chain of connectors: makes the connection, to an address that may be called.
//!
//! The addresses of a name [`race`](crate::delivery::transport::race). The address that worked when one before it did not is
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
use crate::delivery::transport::deadline::left;
use crate::delivery::transport::exchange::{note, note_denial};
use crate::delivery::transport::race::{Hurdle, Lost, race};
use crate::delivery::transport::socket::{Attempt, Socket};

/// How long an address is tried first because it worked when the one before it did not: most calls to a dead address are
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

impl Dial {
    /// Refuses an address of this machine's, unless the operator has allowed it.
    fn may(&self, address: SocketAddr) -> Result<(), Hurdle> {
        match self.policy.own(address) {
            Ok(None) => Ok(()),
            Ok(Some(denial)) => Err(Hurdle::Refused(address, denial)),
            Err(error) => Err(Hurdle::Exhausted(format!("cannot tell this machine's addresses: {error}"))),
        }
    }

    /// Begins a connection to an address, if it may be called.
    fn begin(&self, address: SocketAddr, deadline: Instant, turn: Permit) -> Result<Attempt, Hurdle> {
        if let Some(denial) = self.policy.denial(address, deadline) {
            return Err(Hurdle::Refused(address, denial));
        }
        self.may(address)?;
        let lack = || Hurdle::Exhausted("all file descriptors for calls are in use".into());
        let descriptor = fd_budget::take(1).ok_or_else(lack)?;
        Attempt::begin(address, descriptor, turn).map_err(|error| Hurdle::of(error, address))
    }
}

/// Notes why there is no connection, when it is not for what the endpoint did.
fn give_up(lost: Lost, details: &ConnectionDetails) -> Error {
    match lost {
        Lost::Late => return Error::Timeout(details.timeout.reason),
        Lost::Hurdle(Hurdle::Failed(error)) => return Error::Io(error),
        Lost::Hurdle(Hurdle::Refused(address, denial)) => {
            note_denial(&denial, details.uri.host().unwrap_or_default(), address)
        }
        Lost::Hurdle(Hurdle::Exhausted(reason)) => note(|exchange| exchange.exhausted = Some(reason)),
    }
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
                .map_err(|hurdle| give_up(Lost::Hurdle(hurdle), details))?;
            self.worked.prefer(origin, &mut addresses, Instant::now());
        }
        let deadline = Instant::now() + left(details);
        let attempt = race(&addresses, deadline, |address, turn| self.begin(address, deadline, turn))
            .map_err(|lost| give_up(lost, details))?;
        let (address, round_trip) = (attempt.address, attempt.round_trip());
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
