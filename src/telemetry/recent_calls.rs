//! Which webhooks fail lately, from what this daemon has recorded itself: Postgres is not asked.
//!
//! A pure rule over plain state; the caller tells the time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A slice of the time that is remembered. The current one is not over yet.
const SLICE: Duration = Duration::from_secs(60);
/// Slices that are remembered, the current one included: what is told is of the last four to five minutes.
const SLICES: usize = 5;
/// Webhooks that are counted in a slice. When there are more, those without a failure make room once. What finds no room
/// then is not told of this slice.
const WEBHOOKS_MAX: usize = 10_000;

/// Calls to a webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Calls that the endpoint has answered for, well or badly.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
}

/// The calls of the last minutes by webhook.
#[derive(Default)]
pub(crate) struct RecentCalls {
    // The number of a slice tells whether it is still one of the last.
    slices: [Slice; SLICES],
    start: Option<Instant>,
}

#[derive(Default)]
struct Slice {
    number: u64,
    by_webhook: HashMap<i64, Tally>,
    made_room: bool,
}

impl RecentCalls {
    /// Counts a call.
    pub(crate) fn note(&mut self, webhook_id: i64, failed: bool, now: Instant) {
        let number = self.number(now);
        let slice = &mut self.slices[(number % SLICES as u64) as usize];
        if slice.number != number {
            *slice = Slice { number, ..Slice::default() };
        }
        if slice.by_webhook.len() >= WEBHOOKS_MAX && !slice.by_webhook.contains_key(&webhook_id) {
            // Only once: else each call of a crowd that fails would walk through all of it.
            if failed && !slice.made_room {
                slice.made_room = true;
                slice.by_webhook.retain(|_, tally| tally.failures > 0);
            }
            if slice.by_webhook.len() >= WEBHOOKS_MAX {
                return;
            }
        }
        let tally = slice.by_webhook.entry(webhook_id).or_default();
        tally.calls += 1;
        tally.failures += u64::from(failed);
    }

    /// The webhooks with most failures, at most so many, the worst first; of two with the same number the one that fails more
    /// often.
    pub(crate) fn worst(&mut self, count: usize, now: Instant) -> Vec<(i64, Tally)> {
        let number = self.number(now);
        let mut sums: HashMap<i64, Tally> = HashMap::new();
        let is_recent = |slice: &&Slice| slice.number + SLICES as u64 > number;
        for (webhook_id, tally) in self.slices.iter().filter(is_recent).flat_map(|slice| &slice.by_webhook) {
            let sum = sums.entry(*webhook_id).or_default();
            sum.calls += tally.calls;
            sum.failures += tally.failures;
        }
        let mut failing: Vec<(i64, Tally)> =
            sums.into_iter().filter(|(_, tally)| tally.failures > 0).collect();
        failing.sort_unstable_by_key(|(webhook_id, tally)| {
            (u64::MAX - tally.failures, tally.calls, *webhook_id)
        });
        failing.truncate(count);
        failing
    }

    /// The number of the slice that a time is in, from the first call on.
    fn number(&mut self, now: Instant) -> u64 {
        let start = *self.start.get_or_insert(now);
        now.saturating_duration_since(start).as_secs() / SLICE.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(calls: u64, failures: u64) -> Tally {
        Tally { calls, failures }
    }

    #[test]
    fn the_worst_come_first_and_those_that_work_not_at_all() {
        let (now, mut calls) = (Instant::now(), RecentCalls::default());
        for (webhook, good, bad) in [(1, 5, 0), (2, 1, 3), (3, 0, 3), (4, 0, 1), (5, 100, 9)] {
            for n in 0..good + bad {
                calls.note(webhook, n < bad, now);
            }
        }
        let all = [(5, tally(109, 9)), (3, tally(3, 3)), (2, tally(4, 3)), (4, tally(1, 1))];
        assert_eq!(calls.worst(20, now), all);
        assert_eq!(calls.worst(2, now), all[..2]);
    }

    #[test]
    fn what_is_some_minutes_old_is_forgotten() {
        let (now, mut calls) = (Instant::now(), RecentCalls::default());
        calls.note(1, true, now);
        calls.note(1, false, now + SLICE);
        calls.note(1, true, now + SLICE * 4);
        assert_eq!(calls.worst(20, now + SLICE * 4), [(1, tally(3, 2))]);
        assert_eq!(calls.worst(20, now + SLICE * 5), [(1, tally(2, 1))], "the first slice is over");
        assert_eq!(calls.worst(20, now + SLICE * 8), [(1, tally(1, 1))]);
        assert_eq!(calls.worst(20, now + SLICE * 9), []);
        // A slice is used again.
        calls.note(2, true, now + SLICE * 10);
        calls.note(2, true, now + SLICE * 100);
        assert_eq!(calls.worst(20, now + SLICE * 100), [(2, tally(1, 1))]);
    }

    #[test]
    fn a_crowd_of_webhooks_takes_bounded_room_and_those_that_fail_are_kept() {
        let (now, mut calls) = (Instant::now(), RecentCalls::default());
        let many = WEBHOOKS_MAX as i64;
        for webhook in 0..2 * many {
            calls.note(webhook, webhook == 7, now);
        }
        assert_eq!(calls.slices[0].by_webhook.len(), WEBHOOKS_MAX);
        calls.note(-1, true, now);
        calls.note(-1, true, now);
        assert_eq!(calls.worst(20, now), [(-1, tally(2, 2)), (7, tally(1, 1))]);
        for webhook in 0..2 * many {
            calls.note(webhook, true, now);
        }
        assert_eq!(calls.slices[0].by_webhook.len(), WEBHOOKS_MAX);
        assert_eq!(calls.worst(1, now), [(-1, tally(2, 2))], "in a crowd that fails as well");
    }
}
