//! Whether anything moves. A *stall* is a fault: calls wait, none runs, none ends, and none is recorded. While endpoints hang,
//! all is merely *still*.
//!
//! Pure rules, no clock of their own. In a healthy daemon a call that waits while none runs starts within milliseconds; after
//! a shortage of ours, within a second. Rows that have ended and wait for Postgres are its business, not ours.

use std::time::{Duration, Instant};

use crate::model::load::Load;

/// After this time it is said that nothing moves.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// A call that has been running for this time is made. One that is not made for a shortage of ours ends sooner.
const RUNS: Duration = Duration::from_millis(100);
/// After this time a restart is the better thing.
const LONG: Duration = Duration::from_secs(60);
/// All is still when no call has started or ended and no row was recorded for this time. Calls that run for longer are slow
/// (`SLOW` in `dispatch/limits.rs`): no webhook's class changes any more by time alone.
const STILL: Duration = Duration::from_secs(2);

/// Since when nothing moves.
#[derive(Debug, Default)]
pub(super) struct Stall {
    progress: u64,
    started: u64,
    /// When a call had started or ended, or a row was recorded, since the look before; or the first look.
    moved: Option<Instant>,
    since: Option<Instant>,
    stalled: bool,
}

impl Stall {
    /// Learns what the threads do. The monitor calls it with each of its looks, a second apart at most while Postgres answers.
    /// `has_lack` says that the way out is lacking: that is told by itself, and a restart helps nothing.
    pub(super) fn look(&mut self, load: &Load, has_lack: bool, now: Instant) {
        let waits = !has_lack && load.waiting > 0 && load.longest_running < RUNS && load.ended == 0;
        if !waits || load.progress != self.progress {
            self.since = None;
        } else {
            self.since.get_or_insert(now);
        }
        if (load.progress, load.started) != (self.progress, self.started) || self.moved.is_none() {
            self.moved = Some(now);
        }
        (self.progress, self.started) = (load.progress, load.started);
        self.stalled = self.since.is_some_and(|since| now - since >= LIMIT);
    }

    /// Whether no call has started or ended and no row was recorded for [`STILL`].
    pub(super) fn is_still(&self, now: Instant) -> bool {
        self.moved.is_some_and(|moved| now - moved >= STILL)
    }

    /// Whether nothing has moved for [`LIMIT`].
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Whether nothing has moved for so long that a restart is the better thing.
    pub(super) fn is_long(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now - since >= LONG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(waiting: usize, running: usize, ended: usize, progress: u64) -> Load {
        Load {
            waiting,
            running,
            longest_running: RUNS * u32::try_from(running).expect("few"),
            ended,
            started: 0,
            progress,
            threads: 0,
            memory_bytes: 0,
            shortages: 0,
            busiest: Vec::new(),
        }
    }

    #[test]
    fn calls_that_wait_while_none_runs_are_a_stall_after_a_time() {
        let (start, mut stall) = (Instant::now(), Stall::default());
        stall.look(&load(65, 0, 0, 7), false, start);
        stall.look(&load(65, 0, 0, 7), false, start + LIMIT - Duration::from_millis(1));
        assert!(!stall.is_stalled());
        stall.look(&load(65, 0, 0, 7), false, start + LIMIT + LIMIT);
        assert!(stall.is_stalled() && !stall.is_long(start + LONG));
        assert!(stall.is_long(start + LONG + LIMIT));
        stall.look(&load(64, 1, 0, 8), false, start + LONG + LIMIT);
        assert!(!stall.is_stalled() && !stall.is_long(start + LONG + LIMIT));
    }

    #[test]
    fn while_calls_hang_all_is_still_until_one_starts_or_ends() {
        let (start, mut stall) = (Instant::now(), Stall::default());
        assert!(!stall.is_still(start), "there was no look");
        stall.look(&load(65, 4, 0, 7), false, start);
        stall.look(&load(65, 4, 0, 7), false, start + STILL / 2);
        assert!(!stall.is_still(start + STILL / 2) && stall.is_still(start + STILL));
        stall.look(&load(64, 4, 0, 8), false, start + STILL);
        assert!(!stall.is_still(start + STILL) && stall.is_still(start + 2 * STILL));
        stall.look(&Load { started: 1, ..load(64, 4, 0, 8) }, false, start + 2 * STILL);
        assert!(!stall.is_still(start + 2 * STILL));
    }

    #[test]
    fn what_moves_or_waits_for_postgres_is_none() {
        let start = Instant::now();
        for (n, busy) in [(0, 0, 0), (5, 1, 0), (5, 0, 1)].into_iter().enumerate() {
            let mut stall = Stall::default();
            for seconds in 0..100 {
                stall.look(&load(busy.0, busy.1, busy.2, 0), false, start + Duration::from_secs(seconds));
            }
            assert!(!stall.is_stalled(), "case {n}");
        }
        let mut stall = Stall::default();
        for seconds in 0..100 {
            stall.look(&load(5, 0, 0, seconds / 5), false, start + Duration::from_secs(seconds));
        }
        assert!(!stall.is_stalled(), "slowly, but it moves");
        let mut stall = Stall::default();
        for seconds in 0..100 {
            stall.look(&load(5, 0, 0, 0), true, start + Duration::from_secs(seconds));
        }
        assert!(
            !stall.is_stalled() && !stall.is_long(start + LONG),
            "the way out is lacking, and not the daemon"
        );
    }
}
