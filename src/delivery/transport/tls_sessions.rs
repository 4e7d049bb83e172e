//! The TLS sessions that may be resumed, by endpoint. However many endpoints there are, and whatever their servers send, all
//! sessions together take 16 MiB at most: [`SPARE_BYTES`], and [`ENDPOINT_BYTES`] for each of [`ENDPOINTS_MAX`].
//!
//! Pure: no clock, no lock, no rustls. What a session is and how large it is at most, the caller knows
//! ([`resumption`](crate::delivery::transport::resumption)).

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Instant;

/// Endpoints whose sessions are kept, and whose connections are. Beyond it the endpoint goes that was met longest ago.
pub(crate) const ENDPOINTS_MAX: usize = 1024;
/// Bytes that the sessions of each endpoint may take, whatever the others take: one to three sessions. Each has a copy of the
/// server's certificates, which are 2 to 4 KiB as a rule. A larger session is not kept: its endpoint pays for a whole handshake
/// each time.
pub(crate) const ENDPOINT_BYTES: usize = 12 * 1024;
/// While all sessions together take no more than this, one endpoint may have more than its [`ENDPOINT_BYTES`]. So where
/// there are few endpoints, each has [`TICKETS_MAX`] sessions.
const SPARE_BYTES: usize = 4 * 1024 * 1024;
/// Sessions of an endpoint that are used once, each by one connection: TLS 1.3. In a drain most calls find the session that another
/// one has just left. Measured with one endpoint: with 1 kept session 90 % of the connections resumed one, with 2 99.2 %, with 4 and
/// with 8 99.8 %.
pub(crate) const TICKETS_MAX: usize = 4;
/// What all sessions take at most.
#[cfg(test)]
const BYTES_MAX: usize = SPARE_BYTES + ENDPOINTS_MAX * ENDPOINT_BYTES;

/// A session that was kept.
#[derive(Clone, Debug)]
pub(crate) struct Session<S> {
    /// What TLS resumes.
    pub value: S,
    /// The bytes that it takes in memory, or more.
    pub bytes: usize,
    /// The server's certificate counts as verified until then; afterwards the session is not resumed.
    pub verified_until: Instant,
}

/// The sessions of all endpoints: `T` can be used once (TLS 1.3), `S` again and again (TLS 1.2).
#[derive(Debug)]
pub(crate) struct Sessions<E, T, S> {
    endpoints: HashMap<E, Endpoint<T, S>>,
    bytes: usize,
    /// Counts the uses of all endpoints.
    clock: u64,
}

#[derive(Debug)]
struct Endpoint<T, S> {
    /// The oldest first.
    tickets: VecDeque<Session<T>>,
    session: Option<Session<S>>,
    /// When it was met last, by the clock of all.
    met: u64,
}

impl<T, S> Endpoint<T, S> {
    fn bytes(&self) -> usize {
        let tickets: usize = self.tickets.iter().map(|ticket| ticket.bytes).sum();
        tickets + self.session.as_ref().map_or(0, |session| session.bytes)
    }

    fn is_empty(&self) -> bool {
        self.tickets.is_empty() && self.session.is_none()
    }
}

impl<E, T, S> Default for Sessions<E, T, S> {
    fn default() -> Sessions<E, T, S> {
        Sessions { endpoints: HashMap::new(), bytes: 0, clock: 0 }
    }
}

impl<E: Clone + Eq + Hash, T, S: Clone> Sessions<E, T, S> {
    /// Whether a session of so many bytes is kept at all.
    pub(crate) fn fits(bytes: usize) -> bool {
        bytes <= ENDPOINT_BYTES
    }

    /// Keeps a session that can be used once.
    pub(crate) fn add_ticket(&mut self, endpoint: &E, ticket: Session<T>) {
        if Self::fits(ticket.bytes) {
            self.change(endpoint, |endpoint| endpoint.tickets.push_back(ticket));
        }
    }

    /// Keeps a session that can be used again and again, in the place of the one before.
    pub(crate) fn set_session(&mut self, endpoint: &E, session: Session<S>) {
        if Self::fits(session.bytes) {
            self.change(endpoint, |endpoint| endpoint.session = Some(session));
        }
    }

    /// Takes the newest session that can be used once.
    pub(crate) fn take_ticket(&mut self, endpoint: &E, now: Instant) -> Option<Session<T>> {
        let known = self.meet(endpoint)?;
        let before = known.bytes();
        let ticket = known.tickets.pop_back();
        let after = known.bytes();
        let is_empty = known.is_empty();
        self.bytes = self.bytes + after - before;
        if is_empty {
            self.endpoints.remove(endpoint);
        }
        // One whose time is over is forgotten, and those before it are older.
        ticket.filter(|ticket| now < ticket.verified_until)
    }

    /// The session that can be used again and again.
    pub(crate) fn session(&mut self, endpoint: &E, now: Instant) -> Option<Session<S>> {
        let session = self.meet(endpoint)?.session.clone()?;
        (now < session.verified_until).then_some(session)
    }

    /// Forgets the session that can be used again and again.
    pub(crate) fn remove_session(&mut self, endpoint: &E) {
        if self.endpoints.contains_key(endpoint) {
            self.change(endpoint, |endpoint| endpoint.session = None);
        }
    }

    /// Forgets what may be resumed no longer, with its secrets.
    pub(crate) fn forget_old(&mut self, now: Instant) {
        for endpoint in self.endpoints.values_mut() {
            endpoint.tickets.retain(|ticket| now < ticket.verified_until);
            endpoint.session.take_if(|session| now >= session.verified_until);
        }
        self.endpoints.retain(|_, endpoint| !endpoint.is_empty());
        self.bytes = self.endpoints.values().map(Endpoint::bytes).sum();
    }

    /// Changes the sessions of an endpoint, and holds it to its limits.
    fn change(&mut self, endpoint: &E, change: impl FnOnce(&mut Endpoint<T, S>)) {
        if !self.endpoints.contains_key(endpoint) {
            self.make_place();
            let new = Endpoint { tickets: VecDeque::new(), session: None, met: 0 };
            self.endpoints.insert(endpoint.clone(), new);
        }
        let all = self.bytes;
        let known = self.meet(endpoint).expect("it was added");
        let others = all - known.bytes();
        change(known);
        let is_too_much =
            |known: &Endpoint<T, S>| known.bytes() > ENDPOINT_BYTES && others + known.bytes() > SPARE_BYTES;
        while known.tickets.len() > TICKETS_MAX || is_too_much(known) {
            if known.tickets.pop_front().is_none() {
                known.session = None;
            }
        }
        let (bytes, is_empty) = (known.bytes(), known.is_empty());
        self.bytes = others + bytes;
        if is_empty {
            self.endpoints.remove(endpoint);
        }
    }

    /// Forgets the endpoint that was met longest ago, if there are as many as there may be.
    fn make_place(&mut self) {
        if self.endpoints.len() < ENDPOINTS_MAX {
            return;
        }
        // It looks at all: a microsecond or two, beside a handshake that takes hundreds.
        let oldest = self.endpoints.iter().min_by_key(|(_, known)| known.met).map(|(name, _)| name.clone());
        if let Some(gone) = oldest.and_then(|oldest| self.endpoints.remove(&oldest)) {
            self.bytes -= gone.bytes();
        }
    }

    /// An endpoint that is known, which is met now.
    fn meet(&mut self, endpoint: &E) -> Option<&mut Endpoint<T, S>> {
        self.clock += 1;
        let known = self.endpoints.get_mut(endpoint)?;
        known.met = self.clock;
        Some(known)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    type Plain = Sessions<u32, u32, u32>;

    const HOUR: Duration = Duration::from_secs(3600);

    fn session(value: u32, bytes: usize, start: Instant) -> Session<u32> {
        Session { value, bytes, verified_until: start + HOUR }
    }

    /// The values of an endpoint's tickets, as they are taken.
    fn all(sessions: &mut Plain, endpoint: u32, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| sessions.take_ticket(&endpoint, now)).map(|ticket| ticket.value).collect()
    }

    #[test]
    fn a_ticket_is_used_once_and_the_newest_first_and_another_session_again_and_again() {
        let (mut sessions, now) = (Plain::default(), Instant::now());
        for value in 1..=3 {
            sessions.add_ticket(&7, session(value, 10, now));
        }
        sessions.set_session(&7, session(8, 10, now));
        sessions.set_session(&7, session(9, 10, now));
        assert_eq!(sessions.bytes, 40);
        assert!(sessions.take_ticket(&8, now).is_none() && sessions.session(&8, now).is_none());
        assert_eq!(all(&mut sessions, 7, now), [3, 2, 1]);
        for _ in 0..2 {
            assert_eq!(sessions.session(&7, now).map(|session| session.value), Some(9));
        }
        sessions.remove_session(&7);
        assert!(sessions.session(&7, now).is_none());
        assert!(sessions.endpoints.is_empty() && sessions.bytes == 0);
    }

    #[test]
    fn no_session_is_resumed_when_its_server_counts_as_verified_no_longer() {
        let (mut sessions, now) = (Plain::default(), Instant::now());
        for endpoint in 1..=3 {
            sessions.add_ticket(&endpoint, session(1, 10, now));
            sessions.set_session(&endpoint, session(2, 10, now));
        }
        let before = now + HOUR - Duration::from_nanos(1);
        assert!(sessions.session(&1, before).is_some());
        assert_eq!(all(&mut sessions, 1, before), [1]);
        assert!(sessions.session(&2, now + HOUR).is_none());
        assert!(all(&mut sessions, 2, now + HOUR).is_empty());
        sessions.forget_old(before);
        assert_eq!(sessions.endpoints.len(), 3);
        sessions.forget_old(now + HOUR);
        assert!(sessions.endpoints.is_empty() && sessions.bytes == 0, "their secrets are gone");
    }

    #[test]
    fn beyond_the_limit_the_endpoint_that_was_met_longest_ago_is_forgotten() {
        let (mut sessions, now) = (Plain::default(), Instant::now());
        let most = u32::try_from(ENDPOINTS_MAX).expect("few");
        for endpoint in 0..most {
            sessions.add_ticket(&endpoint, session(1, 10, now));
            sessions.add_ticket(&endpoint, session(2, 10, now));
        }
        assert!(sessions.take_ticket(&0, now).is_some(), "so it was met");
        sessions.add_ticket(&most, session(1, 10, now));
        assert_eq!(sessions.endpoints.len(), ENDPOINTS_MAX);
        assert!(all(&mut sessions, 1, now).is_empty(), "this one was met longest ago");
        for endpoint in [0, 2, most] {
            assert!(!all(&mut sessions, endpoint, now).is_empty(), "{endpoint}");
        }
    }

    #[test]
    fn an_endpoint_with_large_sessions_takes_nothing_from_the_others() {
        let (mut sessions, now) = (Plain::default(), Instant::now());
        sessions.add_ticket(&0, session(1, 5_000, now));
        sessions.add_ticket(&0, session(1, ENDPOINT_BYTES + 1, now));
        sessions.set_session(&0, session(1, ENDPOINT_BYTES + 1, now));
        assert_eq!(sessions.bytes, 5_000, "what is too large is not kept, and drives nothing out");
        // While there is room, an endpoint has as many as there may be, and never more.
        for value in 0..100 {
            sessions.add_ticket(&1, session(value, ENDPOINT_BYTES, now));
        }
        assert_eq!(sessions.bytes, 5_000 + TICKETS_MAX * ENDPOINT_BYTES);
        for endpoint in 2..500 {
            for value in 0..10 {
                sessions.add_ticket(&endpoint, session(value, ENDPOINT_BYTES, now));
            }
        }
        sessions.add_ticket(&0, session(2, 5_000, now));
        sessions.add_ticket(&0, session(3, 5_000, now));
        assert_eq!(all(&mut sessions, 0, now), [3, 2], "its own oldest one goes");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ticket(u32, usize),
        Session(u32, usize),
        Take(u32),
        Get(u32),
        Remove(u32),
        Old,
    }

    fn step() -> impl Strategy<Value = Step> {
        let endpoint = || 0..2 * u32::try_from(ENDPOINTS_MAX).expect("few");
        let bytes = || prop_oneof![1..2 * ENDPOINT_BYTES, Just(ENDPOINT_BYTES), Just(ENDPOINT_BYTES + 1)];
        prop_oneof![
            20 => (endpoint(), bytes()).prop_map(|(endpoint, bytes)| Step::Ticket(endpoint, bytes)),
            5 => (endpoint(), bytes()).prop_map(|(endpoint, bytes)| Step::Session(endpoint, bytes)),
            3 => endpoint().prop_map(Step::Take),
            1 => endpoint().prop_map(Step::Get),
            1 => endpoint().prop_map(Step::Remove),
            1 => Just(Step::Old),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn whatever_comes_in_whatever_order_the_bytes_are_counted_and_bounded(
            steps in prop::collection::vec(step(), 4_000..5_000)
        ) {
            let (mut sessions, start) = (Plain::default(), Instant::now());
            for (at, step) in steps.into_iter().enumerate() {
                let now = start + Duration::from_secs(at as u64);
                match step {
                    Step::Ticket(endpoint, bytes) => sessions.add_ticket(&endpoint, session(1, bytes, now)),
                    Step::Session(endpoint, bytes) => sessions.set_session(&endpoint, session(2, bytes, now)),
                    Step::Take(endpoint) => drop(sessions.take_ticket(&endpoint, now)),
                    Step::Get(endpoint) => drop(sessions.session(&endpoint, now)),
                    Step::Remove(endpoint) => sessions.remove_session(&endpoint),
                    Step::Old => sessions.forget_old(now),
                }
                let known: usize = sessions.endpoints.values().map(Endpoint::bytes).sum();
                prop_assert_eq!(known, sessions.bytes);
                prop_assert!(sessions.bytes <= BYTES_MAX);
                prop_assert!(sessions.endpoints.len() <= ENDPOINTS_MAX);
            }
        }
    }
}
