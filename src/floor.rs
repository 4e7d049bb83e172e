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
//! So a floor is some seconds old, and now and then the whole queue is looked at all the same. Pure rules, no clock, no
//! Postgres.

use std::time::{Duration, Instant};

/// How old a moment must be before nothing new is expected below what was seen then.
const SETTLED: Duration = Duration::from_secs(2);

/// Which transactions were running at a moment, as `snapshot.sql` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below it had ended.
    pub xmin: i64,
    /// No transaction from it on had begun.
    pub xmax: i64,
}

/// The floor, and what may become it.
#[derive(Debug, Default)]
pub struct Floor {
    id: i64,
    // The highest id seen at a moment, and no transaction from the number on had begun then.
    mark: Option<(i64, i64, Instant)>,
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
        match self.mark {
            Some((_, xmax, at)) if snapshot.xmin < xmax || now - at < SETTLED => return,
            Some((id, ..)) => self.next = Some(id),
            None => {}
        }
        self.mark = Some((seen, snapshot.xmax, now));
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

    #[test]
    fn it_rises_when_all_that_ran_have_ended_and_were_looked_for() {
        let mut floor = Floor::default();
        let mut now = Instant::now();
        let mut rescan = |floor: &mut Floor, seen, xmin, xmax| {
            now += SETTLED;
            floor.rescan(seen, Snapshot { xmin, xmax }, now);
        };
        // 7 is running and has drawn an id below 100.
        rescan(&mut floor, 100, 7, 10);
        floor.rescanned();
        assert_eq!(floor.id(), 0, "not looked at since");
        rescan(&mut floor, 200, 7, 20);
        floor.rescanned();
        rescan(&mut floor, 300, 9, 30);
        floor.rescanned();
        assert_eq!(floor.id(), 0, "7 or 9 runs");
        rescan(&mut floor, 400, 10, 40);
        assert_eq!(floor.id(), 0, "what they have left is not found yet");
        floor.rescanned();
        assert_eq!(floor.id(), 100);
        // 10 was not running at the first mark; at the second one it was.
        rescan(&mut floor, 500, 39, 50);
        floor.rescanned();
        assert_eq!(floor.id(), 100);
        rescan(&mut floor, 600, 60, 60);
        floor.rescanned();
        assert_eq!(floor.id(), 400);
    }

    #[test]
    fn it_rises_to_what_was_seen_some_time_ago_only() {
        let mut floor = Floor::default();
        let now = Instant::now();
        floor.rescan(100, Snapshot { xmin: 10, xmax: 10 }, now);
        floor.rescanned();
        floor.rescan(200, Snapshot { xmin: 20, xmax: 20 }, now + SETTLED / 2);
        floor.rescanned();
        assert_eq!(floor.id(), 0, "somebody may have drawn an id and have no number yet");
        floor.rescan(300, Snapshot { xmin: 30, xmax: 30 }, now + SETTLED);
        floor.rescanned();
        assert_eq!(floor.id(), 100);
    }
}
