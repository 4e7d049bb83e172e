//! Up to which id nothing new can appear in the outbox, so that looking there once more is a waste.
//!
//! Ids are drawn before commit: a low one can appear after a higher one. But only from a transaction that was
//! running when the higher one was seen. Once all of those have ended and the rows below have been read again, that id is
//! the low-water mark of the next rescans. They need not walk the dead index entries beneath it. There may be a million of
//! these while a report keeps vacuum from removing them.
//!
//! The mark says nothing of rows that were there already and are free again: those of the dead, and what a peer gave
//! back. A transaction that has drawn an id may also have no transaction number yet: a statement draws it before it computes
//! the rest of its first row. That takes microseconds as a rule, and as long as a function in it that is slow. So it is
//! given some seconds to get one, and now and then the whole queue is looked at all the same. Pure rules, no clock, no
//! Postgres.

use crate::model::snapshot::Snapshot;
use std::time::{Duration, Instant};

/// How long after a moment those that had drawn an id by then are expected to have a transaction number.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// The highest id seen at a moment.
    id: i64,
    at: Instant,
    /// No transaction from it on had begun when those that had drawn a lower id had settled.
    xmax: Option<i64>,
}

/// The low-water mark, and what may become it.
#[derive(Clone, Debug, Default)]
pub(crate) struct LowWater {
    id: i64,
    // What may become it.
    candidate: Option<Candidate>,
    // The mark when the rescan that is going on has ended.
    next: Option<i64>,
}

impl LowWater {
    /// Nothing new can appear up to this id.
    pub(crate) fn id(&self) -> i64 {
        self.id
    }

    /// To be called before a rescan that starts at the mark or below. `seen` is the highest id that was seen before
    /// the snapshot was taken, `now`.
    pub(crate) fn rescan(&mut self, seen: i64, snapshot: Snapshot, now: Instant) {
        let Some(candidate) = &mut self.candidate else {
            self.candidate = Some(Candidate { id: seen, at: now, xmax: None });
            return;
        };
        if now - candidate.at < SETTLED {
            return;
        }
        if snapshot.xmin >= *candidate.xmax.get_or_insert(snapshot.xmax) {
            self.next = Some(candidate.id);
            self.candidate = Some(Candidate { id: seen, at: now, xmax: None });
        }
    }

    /// To be called when that rescan has come up to where it was to end.
    pub(crate) fn rescanned(&mut self) {
        if let Some(id) = self.next.take() {
            self.id = self.id.max(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rescans, some time after the one before.
    fn rescan(mark: &mut LowWater, now: &mut Instant, seen: i64, xmin: i64, xmax: i64) {
        *now += SETTLED;
        mark.rescan(seen, Snapshot { xmin, xmax }, *now);
    }

    #[test]
    fn it_rises_when_all_that_ran_have_ended_and_were_looked_for() {
        let (mut mark, mut now) = (LowWater::default(), Instant::now());
        rescan(&mut mark, &mut now, 100, 5, 8);
        mark.rescanned();
        // 9 had drawn an id below 100 then, and had no number yet.
        rescan(&mut mark, &mut now, 200, 9, 10);
        mark.rescanned();
        rescan(&mut mark, &mut now, 300, 9, 30);
        mark.rescanned();
        assert_eq!(mark.id(), 0, "9 runs");
        rescan(&mut mark, &mut now, 400, 10, 40);
        assert_eq!(mark.id(), 0, "what they have left is not found yet");
        mark.rescanned();
        assert_eq!(mark.id(), 100);
        // 39 was not running when 100 was seen; when 400 was, it may have been.
        rescan(&mut mark, &mut now, 500, 39, 50);
        mark.rescanned();
        assert_eq!(mark.id(), 100);
        rescan(&mut mark, &mut now, 600, 60, 60);
        mark.rescanned();
        assert_eq!(mark.id(), 400);
    }

    #[test]
    fn who_has_drawn_an_id_has_time_to_get_a_number() {
        let (mut mark, now) = (LowWater::default(), Instant::now());
        mark.rescan(100, Snapshot { xmin: 10, xmax: 10 }, now);
        mark.rescanned();
        mark.rescan(200, Snapshot { xmin: 20, xmax: 20 }, now + SETTLED / 2);
        mark.rescanned();
        assert_eq!(mark.id(), 0);
        // No transaction runs.
        mark.rescan(300, Snapshot { xmin: 30, xmax: 30 }, now + SETTLED);
        mark.rescanned();
        assert_eq!(mark.id(), 100);
    }
}
