//! Whether anything goes on: how often the monitor looks at the other instances follows from it.
//!
//! The claiming loop says when it was notified or found rows; the monitor asks.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// All is quiet when no notification has come and no row was found for this time.
const QUIET: Duration = Duration::from_secs(10);

/// When something last went on.
pub(super) struct Activity {
    last: Cell<Instant>,
    /// Rung when the quiet is over, for the monitor.
    stirred: Notify,
}

impl Activity {
    /// Something goes on `now`.
    pub(super) fn new(now: Instant) -> Activity {
        Activity { last: Cell::new(now), stirred: Notify::new() }
    }

    /// Something goes on `now`.
    pub(super) fn note(&self, now: Instant) {
        if now - self.last.replace(now) > QUIET {
            self.stirred.notify_one();
        }
    }

    /// There are rows in hand, and there were none.
    pub(super) fn rows_came(&self) {
        self.stirred.notify_one();
    }

    /// Whether nothing has gone on for long.
    pub(super) fn is_quiet(&self, now: Instant) -> bool {
        now - self.last.get() >= QUIET
    }

    /// Resolves when the quiet is over, or rows have come. Cancel-safe. For one loop.
    pub(super) async fn stirred(&self) {
        self.stirred.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_the_quiet_is_told_once() {
        let start = Instant::now();
        let activity = Activity::new(start);
        activity.note(start + QUIET);
        assert!(!activity.is_quiet(start + QUIET) && activity.is_quiet(start + 2 * QUIET));
        activity.note(start + 3 * QUIET);
        activity.stirred().await;
        activity.note(start + 3 * QUIET);
        let again = tokio::time::timeout(Duration::ZERO, activity.stirred()).await;
        assert!(again.is_err());
    }
}
