//! When to claim again after a claim that found nothing more: the rules of the sleep lock, of polling and of backing off.
//!
//! Pure: given the state and what happened, what now. Holds no session and waits for nothing; `sleeper`
//! does that. The model checker (`tests/models/sleep_lock.rs`) runs [`State`].
//!
//! The protocol: an inserting transaction tries the sleep lock shared and keeps it until it ends; when it cannot have it, it
//! notifies at commit. A daemon that found nothing tries the lock exclusively. If it gets the lock, it claims one last time
//! and sleeps: whatever was inserted before has been committed before that claim, whatever is inserted later notifies. If it
//! does not get the lock, some transaction has inserted and not committed: the daemon claims again in a moment. When it finds
//! rows it releases the lock. Without NOTIFY the daemon loses latency and nothing else: polling finds every row. While rows
//! come briskly, the daemon does not try the lock: it claims again after a moment (`pace`).
//!
//! Every role that can connect may hold the lock for as long as it likes, and may notify as often as it likes. The first
//! costs a try of the lock and a claim each quarter of a second. Of notifications the daemon hears one each 20 ms. It then
//! rescans, where that is cheap. Elsewhere it claims above the cursor, and rescans as soon as the cursor allows: two statements, or
//! three where the rescan takes a snapshot. Beside a peer that sleeps it also tries the lock after each.

use std::time::{Duration, Instant};

use crate::daemon::pace::{LINGER, Pace};
use crate::outbox::Sleep;

/// First pause while an inserting transaction is open; doubles each time.
const BACK_OFF_MIN: Duration = Duration::from_millis(1);
/// Longest pause while an inserting transaction is open: a session may stay idle in its transaction for hours.
const BACK_OFF_MAX: Duration = Duration::from_millis(250);
/// After so many notifications in a row without rows the daemon hears them less often. Notifications for rows that a peer
/// claims are among them.
const FRUITLESS_MAX: u32 = 16;
/// The daemon then hears one notification at most in this time.
const DEAF: Duration = Duration::from_millis(20);

/// Why the daemon claims again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The last claim before it sleeps.
    LastLook,
    /// An inserting transaction was open at the last claim.
    BackedOff,
    /// An inserter or a peer notified it.
    Notified,
    /// The poll interval is over.
    Poll,
    /// Rows come briskly: it has stayed awake for a moment.
    Lingered,
    /// An event of the claiming loop came.
    Other,
}

impl Cause {
    /// Its name in the metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Cause::LastLook => "last_look",
            Cause::BackedOff => "dozing",
            Cause::Notified => "notified",
            Cause::Poll => "poll",
            Cause::Lingered => "lingered",
            Cause::Other => "own",
        }
    }
}

/// Where one daemon stands with the sleep lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// It claims without being told; inserters do not notify it.
    Awake,
    /// It could not have the sleep lock, and claims again after a pause.
    BackingOff,
    /// It holds the sleep lock: inserters notify it.
    Asleep,
    /// A peer holds the sleep lock: inserters notify every instance.
    PeerSleeps,
    /// A peer held the lock when this daemon fell asleep, and this daemon has claimed since. If a peer holds it still, or
    /// again, no last claim is needed. Every instance that was awake in between claimed by itself, and notified when it had
    /// more than it could do.
    PeerSlept,
}

/// What to do after the sleep lock was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// Claim one last time.
    ClaimOnce,
    /// Wait for a notification or the poll interval.
    Sleep,
    /// Wait for a moment: an inserting transaction is open, or a stranger holds the lock.
    BackOff,
}

impl State {
    /// A claim found rows. True: this daemon held the sleep lock, and must release it.
    pub fn found_rows(&mut self) -> bool {
        std::mem::replace(self, State::Awake) == State::Asleep
    }

    /// A claim found nothing more: whether to try the sleep lock before waiting.
    pub fn tries_lock(self) -> bool {
        match self {
            State::Awake | State::BackingOff | State::PeerSlept => true,
            State::Asleep | State::PeerSleeps => false,
        }
    }

    /// The sleep lock was tried.
    pub fn tried(&mut self, lock: Sleep) -> Tried {
        let before = *self;
        let (state, next) = match lock {
            Sleep::Taken => (State::Asleep, Tried::ClaimOnce),
            Sleep::Peer if before == State::PeerSlept => (State::PeerSleeps, Tried::Sleep),
            Sleep::Peer => (State::PeerSleeps, Tried::ClaimOnce),
            Sleep::Inserting | Sleep::Other => (State::BackingOff, Tried::BackOff),
        };
        *self = state;
        next
    }

    /// The waiting is over.
    pub fn woken(&mut self) {
        if *self == State::PeerSleeps {
            // The peer may have woken up, or be gone.
            *self = State::PeerSlept;
        }
    }
}

/// How to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// The longest wait.
    pub longest: Duration,
    /// Why the daemon claims again when that time is over.
    pub over: Cause,
    /// A notification is not heard before this time.
    pub deaf: Duration,
}

/// What to do when a claim found nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Claim again now, for this reason.
    Claim(Cause),
    /// Wait, then claim again.
    Wait(Wait),
}

/// The state with its pauses.
#[derive(Clone, Debug)]
pub(crate) struct Wakeup {
    state: State,
    poll_interval: Duration,
    /// The next pause.
    back_off: Duration,
    /// Notifications since rows were found, or since the poll interval was last over.
    fruitless: u32,
    pace: Pace,
}

impl Wakeup {
    /// Awake.
    pub(crate) fn new(poll_interval: Duration, now: Instant) -> Wakeup {
        let pace = Pace::new(now);
        Wakeup { state: State::Awake, poll_interval, back_off: BACK_OFF_MIN, fruitless: 0, pace }
    }

    /// A claim ended `now`, and found so many rows.
    pub(crate) fn claimed(&mut self, rows: usize, now: Instant) {
        self.pace.claimed(rows, now);
    }

    /// A claim found nothing more: how long to stay awake, without the sleep lock, before the next one. None: rows do not come
    /// so briskly, or this daemon sleeps. No insert notifies meanwhile, so a claim must follow.
    pub(crate) fn linger(&self) -> Option<Duration> {
        (self.state == State::Awake && self.pace.is_brisk()).then_some(LINGER)
    }

    /// As [`State::found_rows`].
    pub(crate) fn found_rows(&mut self) -> bool {
        self.fruitless = 0;
        self.state.found_rows()
    }

    /// A claim found nothing more: how to wait. None: the sleep lock is to be tried first.
    pub(crate) fn wait(&self) -> Option<Wait> {
        (!self.state.tries_lock()).then(|| self.sleep())
    }

    /// The sleep lock was tried: what now.
    pub(crate) fn tried(&mut self, lock: Sleep) -> Next {
        if self.state != State::BackingOff {
            self.back_off = BACK_OFF_MIN;
        }
        match self.state.tried(lock) {
            Tried::ClaimOnce => Next::Claim(Cause::LastLook),
            Tried::Sleep => Next::Wait(self.sleep()),
            Tried::BackOff => {
                let longest = self.back_off;
                self.back_off = (longest * 2).min(BACK_OFF_MAX);
                Next::Wait(Wait { longest, over: Cause::BackedOff, deaf: self.deaf() })
            }
        }
    }

    /// The waiting is over, for this reason.
    pub(crate) fn woken(&mut self, cause: Cause) {
        self.state.woken();
        match cause {
            Cause::Notified => self.fruitless = self.fruitless.saturating_add(1),
            Cause::Poll => self.fruitless = 0,
            Cause::LastLook | Cause::BackedOff | Cause::Lingered | Cause::Other => {}
        }
    }

    fn sleep(&self) -> Wait {
        Wait { longest: self.poll_interval, over: Cause::Poll, deaf: self.deaf() }
    }

    fn deaf(&self) -> Duration {
        if self.fruitless >= FRUITLESS_MAX { DEAF } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_secs(1);

    fn awake() -> Wakeup {
        Wakeup::new(POLL, Instant::now())
    }

    #[test]
    fn it_sleeps_only_after_a_last_claim_with_the_lock() {
        let mut wakeup = awake();
        assert_eq!(wakeup.wait(), None, "the lock comes first");
        assert_eq!(wakeup.tried(Sleep::Taken), Next::Claim(Cause::LastLook));
        let sleep = Wait { longest: POLL, over: Cause::Poll, deaf: Duration::ZERO };
        assert_eq!(wakeup.wait(), Some(sleep));
        wakeup.woken(Cause::Notified);
        assert_eq!(wakeup.wait(), Some(sleep), "it has the lock still");
        assert!(wakeup.found_rows(), "the lock is to be released");
        assert!(!wakeup.found_rows(), "once");
        assert_eq!(wakeup.wait(), None);
    }

    #[test]
    fn while_a_transaction_is_open_the_pauses_grow_to_a_bound() {
        let mut wakeup = awake();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let Next::Wait(wait) = wakeup.tried(Sleep::Inserting) else { panic!("it waits") };
            assert_eq!(wait.over, Cause::BackedOff);
            pauses.push(wait.longest.as_millis());
            wakeup.woken(Cause::BackedOff);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 250, 250]);
        wakeup.found_rows();
        let Next::Wait(wait) = wakeup.tried(Sleep::Other) else { panic!("it waits") };
        assert_eq!(wait.longest, BACK_OFF_MIN, "the next one is another");
    }

    #[test]
    fn beside_a_peer_it_claims_once_and_then_sleeps_on() {
        let mut wakeup = awake();
        assert_eq!(wakeup.tried(Sleep::Peer), Next::Claim(Cause::LastLook));
        assert!(wakeup.wait().is_some());
        wakeup.woken(Cause::Poll);
        assert_eq!(wakeup.wait(), None, "the peer may be gone");
        assert!(matches!(wakeup.tried(Sleep::Peer), Next::Wait(_)), "it is not");
        wakeup.woken(Cause::Poll);
        assert!(!wakeup.found_rows(), "the lock is the peer's");
    }

    #[test]
    fn while_rows_come_briskly_it_stays_awake_but_never_with_the_lock() {
        let mut wakeup = awake();
        assert_eq!(wakeup.linger(), None, "nothing came");
        wakeup.claimed(100, Instant::now());
        assert_eq!(wakeup.linger(), Some(LINGER));
        wakeup.tried(Sleep::Taken);
        assert_eq!(wakeup.linger(), None, "it has the lock: inserters notify it");
        wakeup.found_rows();
        assert_eq!(wakeup.linger(), Some(LINGER));
    }

    #[test]
    fn notifications_for_nothing_are_heard_less_often() {
        let mut wakeup = awake();
        wakeup.tried(Sleep::Taken);
        let deaf = |wakeup: &Wakeup| wakeup.wait().expect("it sleeps").deaf;
        for _ in 0..FRUITLESS_MAX {
            assert_eq!(deaf(&wakeup), Duration::ZERO);
            wakeup.woken(Cause::Notified);
        }
        assert_eq!(deaf(&wakeup), DEAF);
        wakeup.woken(Cause::Poll);
        assert_eq!(deaf(&wakeup), Duration::ZERO);
    }
}
