//! Up to which id nothing new can appear in the outbox, so that looking there once more is a waste.
//!
//! Ids are drawn before commit: a low one can appear after a higher one. But only from a transaction that was
//! running when the higher one was seen. Once all of those have ended and the rows below have been looked at again,
//! that id is the floor of the next rescans: they need not walk the dead index entries beneath it, of which there may
//! be a million while somebody's report keeps vacuum from removing them.
//!
//! The floor says nothing of rows that were there already and are free again: those of the dead, and what a peer gave
//! back. And it may miss a transaction that has drawn an id and no transaction number yet, a few microseconds apart.
//! So now and then the whole queue is looked at all the same. Pure rules, no clock, no Postgres.

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
    mark: Option<(i64, i64)>,
    // The floor when the rescan that is going on has ended.
    next: Option<i64>,
}

impl Floor {
    /// Nothing new can appear up to this id.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// To be called before a rescan that starts at the floor or below. `seen` is the highest id that was seen before
    /// the snapshot was taken.
    pub fn rescan(&mut self, seen: i64, snapshot: Snapshot) {
        match self.mark {
            Some((_, xmax)) if snapshot.xmin < xmax => return,
            Some((id, _)) => self.next = Some(id),
            None => {}
        }
        self.mark = Some((seen, snapshot.xmax));
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
        // 7 is running and has drawn an id below 100.
        floor.rescan(100, Snapshot { xmin: 7, xmax: 10 });
        floor.rescanned();
        assert_eq!(floor.id(), 0, "not looked at since");
        floor.rescan(200, Snapshot { xmin: 7, xmax: 20 });
        floor.rescanned();
        floor.rescan(300, Snapshot { xmin: 9, xmax: 30 });
        floor.rescanned();
        assert_eq!(floor.id(), 0, "7 or 9 runs");
        floor.rescan(400, Snapshot { xmin: 10, xmax: 40 });
        assert_eq!(floor.id(), 0, "what they have left is not found yet");
        floor.rescanned();
        assert_eq!(floor.id(), 100);
        // 10 was not running at the first mark; at the second one it was.
        floor.rescan(500, Snapshot { xmin: 39, xmax: 50 });
        floor.rescanned();
        assert_eq!(floor.id(), 100);
        floor.rescan(600, Snapshot { xmin: 60, xmax: 60 });
        floor.rescanned();
        assert_eq!(floor.id(), 400);
    }
}
