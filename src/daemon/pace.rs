//! How briskly rows come: whether the claiming loop stays awake for a moment instead of falling asleep.
//!
//! Pure: given what the claims found, and the time. To fall asleep and to be notified costs two statements for the sleep lock,
//! a last claim and a notification. Where rows come every millisecond, that is most of what a row costs. There the loop pauses
//! [`LINGER`] between two claims: a row waits for that long at most, and claims, finishes and inserts share their costs.

use std::time::{Duration, Instant};

/// Pause between two claims of a loop that lingers. Two of them, with a claim and a POST, are half of the 6 ms within which a
/// row's POST arrives.
pub(super) const LINGER: Duration = Duration::from_millis(2);
/// Rows in a second from which on the loop lingers: with fewer, a pause finds less than one row.
const BRISK: f64 = 500.0;
/// The time over which rows are counted; older ones weigh less and less.
const SPAN: Duration = Duration::from_millis(50);
/// After so many claims in a row without rows the loop lingers no more.
const EMPTY_MAX: u32 = 2;

/// What came lately.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Rows in a second, as of the last claim.
    per_second: f64,
    last: Instant,
    /// Claims in a row without rows.
    empty: u32,
}

impl Pace {
    /// Nothing came yet.
    pub(super) fn new(now: Instant) -> Pace {
        Pace { per_second: 0.0, last: now, empty: 0 }
    }

    /// A claim ended `now`, and found so many rows.
    pub(super) fn claimed(&mut self, rows: usize, now: Instant) {
        let since = now.saturating_duration_since(self.last).as_secs_f64();
        self.per_second *= (-since / SPAN.as_secs_f64()).exp();
        self.per_second += rows as f64 / SPAN.as_secs_f64();
        self.last = now;
        self.empty = if rows == 0 { self.empty.saturating_add(1) } else { 0 };
    }

    /// Whether rows come so briskly that the loop should stay awake.
    pub(super) fn is_brisk(&self) -> bool {
        self.per_second >= BRISK && self.empty < EMPTY_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claims that find `rows` each, every so many microseconds; how many of the last hundred found the pace brisk.
    fn brisk(rows: usize, every_us: u64) -> usize {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut brisk = Vec::new();
        for _ in 0..500 {
            now += Duration::from_micros(every_us);
            pace.claimed(rows, now);
            brisk.push(pace.is_brisk());
        }
        brisk[400..].iter().filter(|brisk| **brisk).count()
    }

    #[test]
    fn a_steady_stream_is_brisk_and_single_rows_are_not() {
        assert_eq!(brisk(1, 1_000), 100);
        assert_eq!(brisk(2, 2_000), 100, "the same rows, two a claim");
        assert_eq!(brisk(1, 50_000), 0);
        assert_eq!(brisk(1, 5_000), 0);
    }

    #[test]
    fn a_burst_is_over_after_two_claims_without_rows() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.claimed(500, start);
        assert!(pace.is_brisk());
        pace.claimed(0, start + LINGER);
        assert!(pace.is_brisk(), "one claim may be too early");
        pace.claimed(0, start + 2 * LINGER);
        assert!(!pace.is_brisk());
    }

    #[test]
    fn what_came_long_ago_counts_no_more() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.claimed(500, start);
        pace.claimed(1, start + Duration::from_secs(1));
        assert!(!pace.is_brisk());
    }
}
