//! Whom a proxy refuses: one endpoint, or all of them.
//!
//! A proxy's refusal (403, 503, no HTTP at all …) says neither. An endpoint that the proxy does not want must not stop the calls
//! to the others, and a proxy that refuses all must fail no call. So a refusal counts against an endpoint only when the proxy
//! has let another call through between two refusals of this one, within the last minute.
//!
//! A pure rule, without a clock: each function gets the time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Addresses that are remembered as refused: some hundred kilobytes. Beyond it all are forgotten, which costs each of them one
/// more try.
const REFUSED_MAX: usize = 4096;

/// A tunnel that was opened longer ago says nothing of the proxy as it is now.
const FRESH: Duration = Duration::from_secs(60);

/// What the proxy has refused, and when it last opened a tunnel.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Since when the proxy refuses an address, without having opened a tunnel to it.
    since: HashMap<SocketAddr, Instant>,
    opened: Option<Instant>,
}

impl Refusals {
    /// The proxy has opened a tunnel to this address.
    pub(crate) fn note_opened(&mut self, address: SocketAddr, now: Instant) {
        self.since.remove(&address);
        self.opened = Some(now);
    }

    /// The proxy has refused this address. Returns whether the refusal is about this address alone.
    pub(crate) fn note_refused(&mut self, address: SocketAddr, now: Instant) -> bool {
        if self.since.len() >= REFUSED_MAX && !self.since.contains_key(&address) {
            self.since.clear();
        }
        let since = self.since.entry(address).or_insert(now);
        match self.opened {
            Some(opened) if opened > *since && now - opened < FRESH => true,
            // All may be refused by now: it begins anew.
            Some(opened) if opened > *since => {
                *since = now;
                false
            }
            _ => false,
        }
    }

    /// Whether the proxy has opened a tunnel since then.
    pub(crate) fn has_opened_since(&self, then: Instant) -> bool {
        self.opened.is_some_and(|opened| opened > then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], last))
    }

    #[test]
    fn a_refusal_is_about_one_address_when_another_got_through_between_two_of_it() {
        let (start, mut refusals) = (Instant::now(), Refusals::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        refusals.note_opened(address(1), at(0));
        assert!(!refusals.note_refused(address(2), at(1)), "the proxy may have broken since");
        assert!(!refusals.note_refused(address(2), at(2)) && !refusals.note_refused(address(1), at(2)));
        refusals.note_opened(address(3), at(3));
        assert!(refusals.note_refused(address(2), at(4)) && refusals.note_refused(address(2), at(5)));
        // The proxy may have broken long since.
        assert!(
            !refusals.note_refused(address(2), at(3) + FRESH)
                && !refusals.note_refused(address(2), at(4) + FRESH)
        );
        refusals.note_opened(address(3), at(5) + FRESH);
        assert!(refusals.note_refused(address(2), at(6) + FRESH));
        // One that got through again begins anew.
        refusals.note_opened(address(2), at(7) + FRESH);
        assert!(!refusals.note_refused(address(2), at(8) + FRESH));
    }

    #[test]
    fn a_proxy_that_lets_nobody_through_blames_nobody() {
        let (start, mut refusals) = (Instant::now(), Refusals::default());
        for second in 0..1000 {
            let now = start + Duration::from_secs(second);
            assert!((1..10).all(|last| !refusals.note_refused(address(last), now)));
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (start, mut refusals) = (Instant::now(), Refusals::default());
        for n in 0..3 * REFUSED_MAX {
            refusals.note_refused(address(u16::try_from(n).expect("few")), start);
            assert!(refusals.since.len() <= REFUSED_MAX);
        }
    }
}
