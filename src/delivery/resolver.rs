//! Names to addresses, bounded in time and in threads.
//!
//! `getaddrinfo` takes no limit, so it runs on threads of its own: a bounded number of them, and one for each name at a time.
//! A caller waits no longer than its own deadline. A name is *quick* when its last lookup was, *slow* when not, and *new* when
//! none has ended. A lookup that has been running for a second counts as slow whatever its name was. Slow lookups start on half
//! of the threads at most; slow and new ones together on seven eighths. So a zone that does not answer leaves threads for
//! names that are known. A new name that finds no thread gets that answer; it is no fault of the name's. Answers are kept for a
//! few seconds, and an older one is used while the name is asked for anew. The egress policy decides what may be called.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::delivery::bulkhead::{Bulkhead, Permit};
use crate::delivery::fd_budget;

/// Lookups that run at once.
const THREADS_MAX: usize = 64;
/// Threads on which slow lookups may start.
const SLOW_THREADS_MAX: usize = THREADS_MAX / 2;
/// Threads on which slow or new lookups may start. Some of the new ones turn out to be slow, and a quick one shall still find
/// a thread.
const NOT_QUICK_THREADS_MAX: usize = THREADS_MAX - THREADS_MAX / 8;
/// A lookup that takes longer is slow: a resolver asks its server again after 5 s, a cache answers in milliseconds.
const SLOW: Duration = Duration::from_secs(1);
/// How long a caller waits for a thread, or a quarter of its time where that is less: the lookup, and the call after it, shall
/// have the rest. Long enough that repeated tries cost nothing.
const THREAD_WAIT: Duration = Duration::from_millis(250);
/// How long an answer is used without asking.
const KEEP: Duration = Duration::from_secs(5);
/// How long addresses are used while they are asked for anew, so that no call fails when a name server hangs for a moment.
const KEEP_STALE: Duration = Duration::from_secs(30);
/// How long a failure is used: for less time than addresses, because it may pass.
const KEEP_FAILURE: Duration = Duration::from_secs(1);
/// Answers kept; beyond it all of them go.
const NAMES_MAX: usize = 10_000;
/// The system tells by a text only, in its own words, which of these it was.
const UNRESOLVED: &str =
    "the name could not be resolved: it does not exist, or its name servers do not answer";
/// Stack of a lookup's thread: a lookup needs little.
const STACK_BYTES: usize = 256 * 1024;
/// File descriptors of a lookup: the hosts file or a socket to the name server, one over TCP, one to the kernel.
const DESCRIPTORS: usize = 3;

/// Asks for the addresses of a name, blocking for as long as it takes.
pub(crate) type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// At least one address.
    Addresses(Vec<IpAddr>),
    /// None, with the reason.
    Failed(String),
    /// No answer before the deadline.
    Late,
    /// Other names have the threads, and this one was not asked for: try again.
    ResolverBusy,
    /// The name could not be asked for because this process lacks something, with the reason.
    ResourceExhausted(String),
}

impl Answer {
    /// The answer for an address, which needs no question.
    pub fn of(address: IpAddr) -> Answer {
        Answer::Addresses(vec![address])
    }
}

/// The resolver of the process; cheap to clone.
#[derive(Clone)]
pub struct Resolver(Arc<Shared>);

struct Shared {
    lookup: Box<Lookup>,
    threads: Bulkhead,
    // Callers write it, and the threads that look names up.
    state: Mutex<State>,
    // A thread rings it when an answer has come.
    answered: Condvar,
}

#[derive(Default)]
struct State {
    names: HashMap<String, Name>,
    /// The lookups that run now.
    running: Vec<Running>,
}

#[derive(Default)]
struct Name {
    /// The last answer, and when it came.
    answer: Option<(Answer, Instant)>,
    /// A thread is asking.
    asked: bool,
    pace: Pace,
}

struct Running {
    name: String,
    since: Instant,
    pace: Pace,
    /// For its thread.
    _permit: Permit,
}

/// What is known of a name's lookups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pace {
    Quick,
    #[default]
    New,
    Slow,
}

impl Running {
    fn pace(&self, now: Instant) -> Pace {
        if now.duration_since(self.since) > SLOW { Pace::Slow } else { self.pace }
    }
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
    /// Whether the slow, and those that are not quick, leave room for another lookup of this pace. A lookup becomes slow while
    /// it runs, so the two are counted, and hold no permits.
    fn may_start(&self, pace: Pace, now: Instant) -> bool {
        let taken =
            |by: &[Pace]| self.running.iter().filter(|running| by.contains(&running.pace(now))).count();
        (pace == Pace::Quick || taken(&[Pace::New, Pace::Slow]) < NOT_QUICK_THREADS_MAX)
            && (pace != Pace::Slow || taken(&[Pace::Slow]) < SLOW_THREADS_MAX)
    }
}

impl Resolver {
    /// The system's resolver.
    pub fn system() -> Resolver {
        Resolver::new(Box::new(|name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())))
    }

    /// A resolver that asks `lookup`.
    pub fn new(lookup: Box<Lookup>) -> Resolver {
        let threads = Bulkhead::new(THREADS_MAX);
        Resolver(Arc::new(Shared { lookup, threads, state: Mutex::default(), answered: Condvar::new() }))
    }

    /// The addresses of a name. Blocks until `deadline` at most.
    pub fn addresses(&self, name: &str, deadline: Instant) -> Answer {
        let start = Instant::now();
        let thread_by = start + (deadline.saturating_duration_since(start) / 4).min(THREAD_WAIT);
        let mut state = self.0.lock();
        loop {
            let now = Instant::now();
            let known = state.names.get(name);
            if let Some(answer) = known.and_then(|known| known.fresh(now)) {
                return answer.clone();
            }
            let stale = known.and_then(|known| known.stale(now)).cloned();
            let asked = match known {
                Some(known) if known.asked => Ok(true),
                _ => self.ask(&mut state, name, now),
            };
            let until = match (stale, asked) {
                (Some(answer), _) => return answer,
                (None, Err(reason)) => return Answer::ResourceExhausted(reason),
                (None, Ok(true)) if now >= deadline => return Answer::Late,
                (None, Ok(true)) => deadline,
                (None, Ok(false)) if now >= thread_by => return Answer::ResolverBusy,
                (None, Ok(false)) => thread_by,
            };
            let waited = self.0.answered.wait_timeout(state, until - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Starts a thread for this name; false when none is free. Then a waiting caller tries again when an answer has come.
    fn ask(&self, state: &mut State, name: &str, now: Instant) -> Result<bool, String> {
        let pace = state.names.get(name).map(|known| known.pace).unwrap_or_default();
        if !state.may_start(pace, now) {
            return Ok(false);
        }
        let Some(permit) = self.0.threads.take(1) else { return Ok(false) };
        let descriptors = fd_budget::take(DESCRIPTORS).ok_or("all file descriptors for calls are in use")?;
        let (shared, asked) = (self.0.clone(), name.to_owned());
        let thread = thread::Builder::new().name("resolve".into()).stack_size(STACK_BYTES);
        thread
            .spawn(move || shared.answer(&asked, descriptors))
            .map_err(|error| format!("no thread to look up a name: {error}"))?;
        state.running.push(Running { name: name.to_owned(), since: now, pace, _permit: permit });
        state.names.entry(name.to_owned()).or_default().asked = true;
        Ok(true)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, name: &str, descriptors: Permit) {
        let answer = match (self.lookup)(name) {
            Ok(addresses) if !addresses.is_empty() => Answer::Addresses(addresses),
            Ok(_) => Answer::Failed("the name has no address".into()),
            // The system's resolver gives no such reason itself when it can open neither file nor socket.
            Err(_) if File::open("/dev/null").is_err() => {
                Answer::ResourceExhausted("no file descriptor is left".into())
            }
            Err(error) => {
                tracing::debug!(name, %error, "a name was not resolved");
                Answer::Failed(UNRESOLVED.into())
            }
        };
        drop(descriptors);
        let mut state = self.lock();
        let now = Instant::now();
        if state.names.len() >= NAMES_MAX {
            state.names.retain(|_, known| known.asked);
        }
        let mut pace = Pace::Quick;
        if let Some(at) = state.running.iter().position(|running| running.name == name)
            && now.duration_since(state.running.swap_remove(at).since) > SLOW
        {
            pace = Pace::Slow;
        }
        state.names.insert(name.to_owned(), Name { answer: Some((answer, now)), asked: false, pace });
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
            let expected = if n < NOT_QUICK_THREADS_MAX { Answer::Late } else { Answer::ResolverBusy };
            assert_eq!(resolver.addresses(&n.to_string(), deadline), expected);
        }
        assert!(asked.load(Ordering::SeqCst) <= NOT_QUICK_THREADS_MAX);
        assert_eq!(resolver.0.lock().running.len(), NOT_QUICK_THREADS_MAX);
        drop(open);
        assert_ne!(resolver.addresses("a", soon()), Answer::Late);
    }

    #[test]
    fn no_address_is_a_failure() {
        let resolver = Resolver::new(Box::new(|_| Ok(Vec::new())));
        assert!(matches!(resolver.addresses("a", soon()), Answer::Failed(_)));
    }
}
