//! Names to addresses, bounded in time and in threads.
//!
//! `getaddrinfo` cannot be given a limit, so it runs on threads of its own, at most a few of them and one for
//! each name at a time; a caller waits no longer than its own deadline. Answers are kept for a few seconds. What may
//! be called is not decided here.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Names that are asked for at once.
const THREADS_MAX: usize = 16;
/// How long an answer is used.
const KEEP: Duration = Duration::from_secs(5);
/// How long a failure is used: shorter, it may be a passing one.
const KEEP_FAILURE: Duration = Duration::from_secs(1);
/// Answers kept; beyond it old ones go, and then all.
const NAMES_MAX: usize = 10_000;
/// A name's lookup needs little stack.
const STACK_BYTES: usize = 256 * 1024;

/// Asks for the addresses of a name, blocking for as long as it takes.
pub type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// At least one address.
    Addresses(Vec<IpAddr>),
    /// None, with the reason.
    Failed(String),
    /// No answer before the deadline.
    Late,
}

/// The resolver of the process; cheap to clone.
#[derive(Clone)]
pub struct Resolver(Arc<Shared>);

struct Shared {
    lookup: Box<Lookup>,
    state: Mutex<State>,
    // Rung when an answer has come.
    answered: Condvar,
}

#[derive(Default)]
struct State {
    names: HashMap<String, Name>,
    threads: usize,
}

enum Name {
    Asked,
    Known { answer: Answer, until: Instant },
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    /// The system's resolver.
    pub fn system() -> Resolver {
        Resolver::new(Box::new(|name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())))
    }

    /// A resolver that asks `lookup`.
    pub fn new(lookup: Box<Lookup>) -> Resolver {
        let shared = Shared { lookup, state: Mutex::default(), answered: Condvar::new() };
        Resolver(Arc::new(shared))
    }

    /// The addresses of a name. Blocks until `deadline` at most.
    pub fn addresses(&self, name: &str, deadline: Instant) -> Answer {
        let mut state = self.0.lock();
        loop {
            let now = Instant::now();
            match state.names.get(name) {
                Some(Name::Known { answer, until }) if now < *until => return answer.clone(),
                Some(Name::Asked) => {}
                Some(Name::Known { .. }) | None => self.ask(&mut state, name),
            }
            if now >= deadline {
                return Answer::Late;
            }
            let waited = self.0.answered.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Starts a thread for this name if one is to be had; if not, whoever waits asks again when an answer has come.
    fn ask(&self, state: &mut State, name: &str) {
        if state.threads >= THREADS_MAX {
            return;
        }
        let (shared, asked) = (self.0.clone(), name.to_owned());
        let thread = thread::Builder::new().name("resolve".into()).stack_size(STACK_BYTES);
        match thread.spawn(move || shared.answer(&asked)) {
            Ok(_) => {
                state.threads += 1;
                state.names.insert(name.to_owned(), Name::Asked);
            }
            Err(error) => tracing::warn!(%error, "cannot start a resolver thread"),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, name: &str) {
        let (answer, keep) = match (self.lookup)(name) {
            Ok(addresses) if !addresses.is_empty() => (Answer::Addresses(addresses), KEEP),
            Ok(_) => (Answer::Failed("the name has no address".into()), KEEP_FAILURE),
            Err(error) => (Answer::Failed(error.to_string()), KEEP_FAILURE),
        };
        let mut state = self.lock();
        let now = Instant::now();
        if state.names.len() >= NAMES_MAX {
            state.names.retain(|_, name| match name {
                Name::Asked => true,
                Name::Known { until, .. } => now < *until && KEEP < *until - now,
            });
        }
        state.names.insert(name.to_owned(), Name::Known { answer, until: now + keep });
        state.threads -= 1;
        drop(state);
        self.answered.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn an_answer_is_asked_for_once() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let resolver = Resolver::new(Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
        }));
        for _ in 0..10 {
            let answer = resolver.addresses("a", soon());
            assert_eq!(answer, Answer::Addresses(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_resolver_that_hangs_is_bounded_in_time_and_threads() {
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let resolver = Resolver::new(Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            // Ends when the test drops its end.
            gate.lock().expect("held in turn").recv().ok();
            Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
        }));
        for n in 0..2 * THREADS_MAX {
            let deadline = Instant::now() + Duration::from_millis(1);
            assert_eq!(resolver.addresses(&n.to_string(), deadline), Answer::Late);
        }
        assert!(asked.load(Ordering::SeqCst) <= THREADS_MAX);
        assert_eq!(resolver.0.lock().threads, THREADS_MAX);
        drop(open);
        assert_ne!(resolver.addresses("31", soon()), Answer::Late);
    }

    #[test]
    fn no_address_is_a_failure() {
        let resolver = Resolver::new(Box::new(|_| Ok(Vec::new())));
        assert!(matches!(resolver.addresses("a", soon()), Answer::Failed(_)));
    }
}
