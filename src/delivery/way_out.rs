//! The way out of this host: the addresses that calls leave from, the proxy, and what is wrong with them.
//!
//! What is wrong with the way out is a lack of ours and no endpoint's failure: the calls wait. Written by the threads that make
//! calls; the daemon reads [`WayOut::lack`]. Opens no connection.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::delivery::proxy::Proxy;
use crate::delivery::refusals::Refusals;
use crate::delivery::sources::Sources;

/// A proxy that has had so long and gave no sign of life does not answer; half of `--timeout` where that is less. A call whose
/// time is over sooner, because a lookup took it, says nothing of the proxy.
const FAIR: Duration = Duration::from_secs(1);
/// How long a refused call waits for another one to get through: long enough that repeated tries cost nothing.
const OTHERS_WAIT: Duration = Duration::from_millis(250);
/// A lack is not told any more when no call has met it for the time that a call may take, and this.
const LACK_KEPT: Duration = Duration::from_secs(5);

/// A part of the way out that may be lacking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// An address of `--bind-address`.
    Source(IpAddr),
    /// The proxy.
    Proxy,
}

/// The way out; one for the process.
#[derive(Debug)]
pub(crate) struct WayOut {
    /// Where connections leave from.
    pub sources: Sources,
    /// The proxy that all calls go through.
    pub proxy: Option<Proxy>,
    /// Time that a call has.
    timeout: Duration,
    state: Mutex<State>,
    /// Rung when the proxy opens a tunnel.
    opened: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What is lacking, in words, and when a call last met it.
    lacks: BTreeMap<Part, (String, Instant)>,
    refusals: Refusals,
    /// When the proxy last answered anything.
    sign_of_life: Option<Instant>,
    /// When an answer of an endpoint last came through a tunnel.
    carried: Option<Instant>,
}

impl WayOut {
    /// A way out that nothing is wrong with yet, for calls that take `timeout` at most.
    pub(crate) fn new(sources: Sources, proxy: Option<Proxy>, timeout: Duration) -> WayOut {
        WayOut { sources, proxy, timeout, state: Mutex::default(), opened: Condvar::new() }
    }

    /// How long the proxy must have had before its silence counts.
    pub(crate) fn fair(&self) -> Duration {
        FAIR.min(self.timeout / 2)
    }

    /// A part is lacking, in words for the operator.
    pub(crate) fn note_lack(&self, part: Part, why: String) {
        self.lock().lacks.insert(part, (why, Instant::now()));
    }

    /// A part works.
    pub(crate) fn note_works(&self, part: Part) {
        self.lock().lacks.remove(&part);
    }

    /// What is lacking now; none when the way out is open, as far as calls have met it.
    pub(crate) fn lack(&self) -> Option<String> {
        let state = self.lock();
        let is_kept = |met: &Instant| met.elapsed() < self.timeout + LACK_KEPT;
        let all: Vec<&str> =
            state.lacks.values().filter(|(_, met)| is_kept(met)).map(|(why, _)| why.as_str()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// The proxy has answered, whatever it said.
    pub(crate) fn note_sign_of_life(&self) {
        self.lock().sign_of_life = Some(Instant::now());
    }

    /// Whether the proxy has answered anything since then.
    pub(crate) fn has_sign_since(&self, then: Instant) -> bool {
        self.lock().sign_of_life.is_some_and(|sign| sign >= then)
    }

    /// The proxy has opened a tunnel.
    pub(crate) fn note_opened(&self, endpoint: SocketAddr) {
        let mut state = self.lock();
        state.lacks.remove(&Part::Proxy);
        state.refusals.note_opened(endpoint, Instant::now());
        drop(state);
        self.opened.notify_all();
    }

    /// The proxy has refused a tunnel. Returns whether it refuses this endpoint alone.
    pub(crate) fn note_refused(&self, endpoint: SocketAddr) -> bool {
        self.lock().refusals.note_refused(endpoint, Instant::now())
    }

    /// An answer of an endpoint has come.
    pub(crate) fn note_carried(&self) {
        if self.proxy.is_some() {
            self.lock().carried = Some(Instant::now());
        }
    }

    /// Whether the proxy serves other calls: it has opened a tunnel since then, or one carried an answer. Waits for that for a
    /// moment, until `deadline` at most.
    pub(crate) fn serves_others(&self, since: Instant, deadline: Instant) -> bool {
        let limit = deadline.saturating_duration_since(Instant::now()).min(OTHERS_WAIT);
        let none_opened = |state: &mut State| !state.refusals.has_opened_since(since);
        let waited = self.opened.wait_timeout_while(self.lock(), limit, none_opened);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.refusals.has_opened_since(since) || state.carried.is_some_and(|carried| carried > since)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
