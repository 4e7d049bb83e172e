//! Up to which id nothing new can appear in the outbox, so that looking there once more is a waste.
//!
//! Ids are drawn before commit: a low one can appear after a higher one. But only from a transaction that was
//! running when the higher one was seen. Once all of those have ended and the rows below have been looked at again,
//! that id is the floor of the next rescans: they need not walk the dead index entries beneath it, of which there may
//! be a million while somebody's report keeps vacuum from removing them.
//!
//! The floor says nothing of rows that were there already and are free again: those of the dead, and what a peer gave
//! back. And a transaction that has drawn an id may have no transaction number yet: a statement draws it before it
//! computes the rest of its first row, which takes microseconds as a rule, and as long as a function in it that is slow.
//! So it is given some seconds to get one, and now and then the whole queue is looked at all the same. Pure rules, no
//! clock, no Postgres.

use crate::model::snapshot::Snapshot;
use std::time::{Duration, Instant};

/// How long after a moment those that had drawn an id by then are expected to have a transaction number.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The highest id seen at a moment.
    id: i64,
    at: Instant,
    /// No transaction from it on had begun when those that had drawn a lower id had settled.
    xmax: Option<i64>,
}

/// The floor, and what may become it.
#[derive(Debug, Default)]
pub struct Floor {
    id: i64,
    // What may become it.
    mark: Option<Mark>,
    // The floor when the rescan that is going on has ended.
    next: Option<i64>,
}

impl Floor {
    /// Nothing new can appear up to this id.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// To be called before a rescan that starts at the floor or below. `seen` is the highest id that was seen before
    /// the snapshot was taken, `now`.
    pub fn rescan(&mut self, seen: i64, snapshot: Snapshot, now: Instant) {
        let Some(mark) = &mut self.mark else {
            self.mark = Some(Mark { id: seen, at: now, xmax: None });
            return;
        };
        if now - mark.at < SETTLED {
            return;
        }
        if snapshot.xmin >= *mark.xmax.get_or_insert(snapshot.xmax) {
            self.next = Some(mark.id);
            self.mark = Some(Mark { id: seen, at: now, xmax: None });
        }
    }

    /// To be called when that rescan has come up to where it was to end.
    pub fn rescanned(&mut self) {
        if let Some(id) = self.next.take() {
            self.id = self.id.max(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rescans, some time after the one before.
    fn rescan(floor: &mut Floor, now: &mut Instant, seen: i64, xmin: i64, xmax: i64) {
        *now += SETTLED;
        floor.rescan(seen, Snapshot { xmin, xmax }, *now);
    }

    #[test]
    fn it_rises_when_all_that_ran_have_ended_and_were_looked_for() {
        let (mut floor, mut now) = (Floor::default(), Instant::now());
        rescan(&mut floor, &mut now, 100, 5, 8);
        floor.rescanned();
        // 9 had drawn an id below 100 then, and had no number yet.
        rescan(&mut floor, &mut now, 200, 9, 10);
        floor.rescanned();
        rescan(&mut floor, &mut now, 300, 9, 30);
        floor.rescanned();
        assert_eq!(floor.id(), 0, "9 runs");
        rescan(&mut floor, &mut now, 400, 10, 40);
        assert_eq!(floor.id(), 0, "what they have left is not found yet");
        floor.rescanned();
        assert_eq!(floor.id(), 100);
        // 39 was not running when 100 was seen; when 400 was, it may have been.
        rescan(&mut floor, &mut now, 500, 39, 50);
        floor.rescanned();
        assert_eq!(floor.id(), 100);
        rescan(&mut floor, &mut now, 600, 60, 60);
        floor.rescanned();
        assert_eq!(floor.id(), 400);
    }

    #[test]
    fn who_has_drawn_an_id_has_time_to_get_a_number() {
        let (mut floor, now) = (Floor::default(), Instant::now());
        floor.rescan(100, Snapshot { xmin: 10, xmax: 10 }, now);
        floor.rescanned();
        floor.rescan(200, Snapshot { xmin: 20, xmax: 20 }, now + SETTLED / 2);
        floor.rescanned();
        assert_eq!(floor.id(), 0);
        // Nobody runs.
        floor.rescan(300, Snapshot { xmin: 30, xmax: 30 }, now + SETTLED);
        floor.rescanned();
        assert_eq!(floor.id(), 100);
    }
}
