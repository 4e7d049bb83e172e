//! The finishing loop's inbox: rows whose calls have ended, and those whose records Postgres refuses.
//!
//! Only the finishing loop uses it. It outlives a lost session. Records nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::model::row::Finished;

/// Most rows in one finish.
const FINISH_MAX: usize = 1000;
/// How long a record that Postgres refuses in any form is set aside.
pub(super) const SET_ASIDE: Duration = Duration::from_secs(10);

/// Rows to be recorded.
pub(super) struct Inbox {
    results: UnboundedReceiver<Finished>,
    /// Taken from `results` and not committed yet.
    pub uncommitted: Vec<Finished>,
    /// Postgres refuses each record of these.
    pub aside: Aside,
}

impl Inbox {
    /// Empty. Rows come through `results`, which the pool bounds.
    pub(super) fn new(results: UnboundedReceiver<Finished>) -> Inbox {
        Inbox { results, uncommitted: Vec::new(), aside: Aside::default() }
    }

    /// Waits for more rows to record, and adds them to `uncommitted`. Cancel-safe.
    pub(super) async fn more(&mut self) {
        tokio::select! {
            _ = self.results.recv_many(&mut self.uncommitted, FINISH_MAX) => {}
            () = self.aside.due() => self.uncommitted.extend(self.aside.take()),
        }
    }
}

/// Rows whose records Postgres refuses in any form. One of them is tried again now and then; when it is taken, so are the
/// others.
#[derive(Default)]
pub(super) struct Aside {
    rows: VecDeque<Finished>,
    try_at: Option<Instant>,
    /// The last one that was tried was taken.
    open: bool,
}

impl Aside {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Memory that they hold.
    pub(super) fn bytes(&self) -> usize {
        self.rows.iter().map(|row| row.held.bytes()).sum()
    }

    /// Resolves when it is time to try.
    async fn due(&self) {
        match self.try_at {
            Some(at) if !self.rows.is_empty() => tokio::time::sleep_until(at.into()).await,
            _ => std::future::pending().await,
        }
    }

    fn take(&mut self) -> impl Iterator<Item = Finished> {
        let count = if self.open { FINISH_MAX } else { 1 };
        self.rows.drain(..count.min(self.rows.len()))
    }

    /// Learns what came of a commit `now`: so many rows that were aside are done, so many are refused again, and these are
    /// refused.
    pub(super) fn learn(&mut self, done: usize, again: usize, refused: Vec<Finished>, now: Instant) {
        if again > 0 {
            (self.open, self.try_at) = (false, Some(now + SET_ASIDE));
        } else if done > 0 {
            (self.open, self.try_at) = (true, Some(now));
        } else if !refused.is_empty() && self.rows.is_empty() {
            (self.open, self.try_at) = (false, Some(now + SET_ASIDE));
        }
        self.rows.extend(refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::memory::Memory;

    fn refused(id: i64) -> Finished {
        let held = Memory::new(1000).hold(10);
        let (event_id, trace_id) = (uuid::Uuid::nil(), String::new());
        Finished {
            id,
            epoch: 1,
            event_id,
            project_id: 1,
            trace_id,
            repeated: false,
            calls: Vec::new(),
            held,
            aside: true,
        }
    }

    #[test]
    fn one_is_tried_until_it_is_taken_and_then_all_are() {
        let (start, mut aside) = (Instant::now(), Aside::default());
        aside.learn(0, 0, (1..=3).map(refused).collect(), start);
        assert_eq!((aside.len(), aside.bytes(), aside.try_at), (3, 30, Some(start + SET_ASIDE)));
        // A later one does not put it off.
        aside.learn(0, 0, vec![refused(4)], start + SET_ASIDE / 2);
        assert_eq!(aside.try_at, Some(start + SET_ASIDE));
        let first: Vec<Finished> = aside.take().collect();
        assert_eq!(first.iter().map(|row| row.id).collect::<Vec<_>>(), [1]);
        aside.learn(0, 1, first, start + SET_ASIDE);
        assert_eq!((aside.len(), aside.try_at), (4, Some(start + 2 * SET_ASIDE)));
        let second = aside.take().count();
        aside.learn(second, 0, Vec::new(), start + 2 * SET_ASIDE);
        assert_eq!(aside.try_at, Some(start + 2 * SET_ASIDE), "at once");
        assert_eq!(aside.take().count(), 3);
    }
}
