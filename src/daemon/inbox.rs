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

/// Time from the beginning of one commit to that of the next, where fewer than [`COMPANY_ENOUGH`] rows wait. A commit costs as
/// much as fifty records in it. A kill repeats the calls that wait meanwhile; after a longer time without a commit, a record does
/// not wait.
const COMPANY: Duration = Duration::from_millis(5);
/// This many rows do not wait for more.
const COMPANY_ENOUGH: usize = 32;

/// Until when `rows` that are to be recorded wait for company, when the last commit began then; None when they do not wait.
fn company(rows: usize, committed_at: Option<Instant>, now: Instant) -> Option<Instant> {
    committed_at.map(|at| at + COMPANY).filter(|until| rows < COMPANY_ENOUGH && *until > now)
}

/// Rows to be recorded.
pub(super) struct Inbox {
    results: UnboundedReceiver<Finished>,
    /// When the last commit began.
    committed_at: Option<Instant>,
    /// Taken from `results` and not committed yet.
    pub uncommitted: Vec<Finished>,
    /// Postgres refuses each record of these.
    pub aside: Aside,
}

impl Inbox {
    /// Empty. Rows come through `results`, which the pool bounds.
    pub(super) fn new(results: UnboundedReceiver<Finished>) -> Inbox {
        Inbox { results, committed_at: None, uncommitted: Vec::new(), aside: Aside::default() }
    }

    /// Waits for more rows to record, and adds them to `uncommitted`. A record that comes soon after the last commit waits for
    /// company. Cancel-safe.
    pub(super) async fn more(&mut self) {
        tokio::select! {
            _ = self.results.recv_many(&mut self.uncommitted, FINISH_MAX) => {}
            () = self.aside.due() => self.uncommitted.extend(self.aside.take()),
        }
        if let Some(until) = company(self.uncommitted.len(), self.committed_at, Instant::now()) {
            // Each record that ends meanwhile would wake this task for nothing, if it waited for them.
            tokio::time::sleep_until(until.into()).await;
            while self.uncommitted.len() < FINISH_MAX
                && let Ok(row) = self.results.try_recv()
            {
                self.uncommitted.push(row);
            }
        }
        self.committed_at = Some(Instant::now());
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
    fn a_record_waits_for_company_only_soon_after_a_commit_and_only_beside_few() {
        let start = Instant::now();
        assert_eq!(company(1, None, start), None, "the first");
        let now = start + COMPANY / 5;
        assert_eq!(company(1, Some(start), now), Some(start + COMPANY));
        assert_eq!(company(COMPANY_ENOUGH, Some(start), now), None);
        assert_eq!(company(1, Some(start), start + COMPANY * 2), None, "none came for long");
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
