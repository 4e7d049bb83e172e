//! Names to addresses, bounded in time and in threads.
//!
//! `getaddrinfo` cannot be given a limit, so it runs on threads of its own, a bounded number of them and one for
//! each name at a time; a caller waits no longer than its own deadline. Names that are slow to look up have half of
//! the threads at most, so that they leave some to the others. Answers are kept for a few seconds, and an older one
//! is used while it is asked for anew. What may be called is not decided here.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::descriptors::{self, Share};

/// Names that are asked for at once.
const THREADS_MAX: usize = 64;
/// Those of them that are slow.
const SLOW_THREADS_MAX: usize = THREADS_MAX / 2;
/// A lookup that takes longer is slow: a resolver asks its server again after 5 s, a cache answers in milliseconds.
const SLOW: Duration = Duration::from_secs(1);
/// How long an answer is used without asking.
const KEEP: Duration = Duration::from_secs(5);
/// How long addresses are used while they are asked for anew, so that a resolver that hangs for a moment fails no
/// call.
const KEEP_STALE: Duration = Duration::from_secs(30);
/// How long a failure is used: shorter, it may be a passing one.
const KEEP_FAILURE: Duration = Duration::from_secs(1);
/// Answers kept; beyond it all of them go.
const NAMES_MAX: usize = 10_000;
/// A name's lookup needs little stack.
const STACK_BYTES: usize = 256 * 1024;
/// File descriptors of a lookup: the hosts file or a socket to the name server, one over TCP, one to the kernel.
const DESCRIPTORS: usize = 3;

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
    /// It could not be asked for a lack of ours, with the reason.
    Shortage(String),
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
    /// Of the threads that are asking now.
    running: Vec<Running>,
}

#[derive(Default)]
struct Name {
    /// The last answer, and when it came.
    answer: Option<(Answer, Instant)>,
    /// A thread is asking.
    asked: bool,
    /// The last lookup was slow.
    slow: bool,
}

struct Running {
    name: String,
    since: Instant,
    /// The name's lookups are known to be slow.
    slow: bool,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl Name {
    fn fresh(&self, now: Instant) -> Option<&Answer> {
        let (answer, came) = self.answer.as_ref()?;
        let keep = if matches!(answer, Answer::Addresses(_)) { KEEP } else { KEEP_FAILURE };
        (now.duration_since(*came) < keep).then_some(answer)
    }

    fn stale(&self, now: Instant) -> Option<&Answer> {
        let (answer, came) = self.answer.as_ref()?;
        let good = matches!(answer, Answer::Addresses(_)) && now.duration_since(*came) < KEEP_STALE;
        good.then_some(answer)
    }
}

impl State {
    /// Whether another lookup may start. Those that have become slow while they run count as slow.
    fn has_room(&self, slow: bool, now: Instant) -> bool {
        let is_slow = |running: &&Running| running.slow || now.duration_since(running.since) > SLOW;
        self.running.len() < THREADS_MAX
            && (!slow || self.running.iter().filter(is_slow).count() < SLOW_THREADS_MAX)
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
            let known = state.names.get(name);
            if let Some(answer) = known.and_then(|known| known.fresh(now)) {
                return answer.clone();
            }
            let stale = known.and_then(|known| known.stale(now)).cloned();
            let asked = match known {
                Some(known) if known.asked => Ok(()),
                _ => self.ask(&mut state, name, now),
            };
            match (stale, asked) {
                (Some(answer), _) => return answer,
                (None, Err(reason)) => return Answer::Shortage(reason),
                (None, Ok(())) if now >= deadline => return Answer::Late,
                (None, Ok(())) => {}
            }
            let waited = self.0.answered.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Starts a thread for this name if there is room for one; if not, whoever waits asks again when an answer has
    /// come.
    fn ask(&self, state: &mut State, name: &str, now: Instant) -> Result<(), String> {
        let slow = state.names.get(name).is_some_and(|known| known.slow);
        if !state.has_room(slow, now) {
            return Ok(());
        }
        let descriptors =
            descriptors::take(DESCRIPTORS).ok_or("all file descriptors for calls are in use")?;
        let (shared, asked) = (self.0.clone(), name.to_owned());
        let thread = thread::Builder::new().name("resolve".into()).stack_size(STACK_BYTES);
        thread
            .spawn(move || shared.answer(&asked, descriptors))
            .map_err(|error| format!("no thread to look up a name: {error}"))?;
        state.running.push(Running { name: name.to_owned(), since: now, slow });
        state.names.entry(name.to_owned()).or_default().asked = true;
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, name: &str, descriptors: Share) {
        let answer = match (self.lookup)(name) {
            Ok(addresses) if !addresses.is_empty() => Answer::Addresses(addresses),
            Ok(_) => Answer::Failed("the name has no address".into()),
            // The system's resolver gives no better reason when it could open neither file nor socket.
            Err(_) if File::open("/dev/null").is_err() => {
                Answer::Shortage("no file descriptor is left".into())
            }
            Err(error) => Answer::Failed(error.to_string()),
        };
        drop(descriptors);
        let mut state = self.lock();
        let now = Instant::now();
        if state.names.len() >= NAMES_MAX {
            state.names.retain(|_, known| known.asked);
        }
        let mut slow = false;
        if let Some(at) = state.running.iter().position(|running| running.name == name) {
            slow = now.duration_since(state.running.swap_remove(at).since) > SLOW;
        }
        state.names.insert(name.to_owned(), Name { answer: Some((answer, now)), asked: false, slow });
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
        assert_eq!(resolver.0.lock().running.len(), THREADS_MAX);
        drop(open);
        assert_ne!(resolver.addresses("a", soon()), Answer::Late);
    }

    #[test]
    fn no_address_is_a_failure() {
        let resolver = Resolver::new(Box::new(|_| Ok(Vec::new())));
        assert!(matches!(resolver.addresses("a", soon()), Answer::Failed(_)));
    }
}
