//! What the daemon does, in a line for `systemctl status`.

use std::time::{Duration, Instant};

use crate::daemon::systemd;

/// Minimum interval between two lines.
const STATUS: Duration = Duration::from_secs(1);

/// What the line is made of.
pub(super) struct Facts {
    /// Calls in flight, when the daemon was told to stop.
    pub stopping: Option<usize>,
    /// Why the daemon does not work.
    pub why: Option<String>,
    /// Rows in hand.
    pub in_hand: usize,
    /// Age in seconds of the oldest row that is not done, if it is known and not zero.
    pub oldest_s: Option<f64>,
}

/// What systemd was told last.
pub(super) struct StatusLine {
    told: Instant,
    calls: u64,
    text: String,
}

impl StatusLine {
    /// Nothing was told yet; `calls` were recorded so far.
    pub(super) fn new(calls: u64, now: Instant) -> StatusLine {
        StatusLine { told: now, calls, text: String::new() }
    }

    /// Whether the next line is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now - self.told >= STATUS
    }

    /// Tells systemd, if there is anything new. `calls` were recorded so far.
    pub(super) fn tell(&mut self, facts: Facts, calls: u64, now: Instant) {
        let rate = (calls - self.calls) as f64 / (now - self.told).as_secs_f64();
        (self.told, self.calls) = (now, calls);
        let text = line(facts, rate);
        if text != self.text {
            systemd::status(&text);
            self.text = text;
        }
    }
}

fn line(facts: Facts, rate: f64) -> String {
    let Facts { stopping, why, in_hand, oldest_s } = facts;
    match (stopping, why, in_hand, oldest_s) {
        (Some(running), ..) => format!("stopping: {running} calls in flight"),
        (None, Some(why), ..) => why,
        (None, None, 0, None) => "idle, nothing waits".into(),
        (None, None, _, None) => format!("{rate:.0} calls/s, {in_hand} rows in hand"),
        (None, None, _, Some(age)) => format!("{rate:.0} calls/s, {in_hand} rows in hand, oldest {age:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_matters_most() {
        let line = |stopping, why: Option<&str>, in_hand, oldest_s| {
            super::line(Facts { stopping, why: why.map(str::to_owned), in_hand, oldest_s }, 12.4)
        };
        assert_eq!(line(Some(3), Some("stopping"), 5, None), "stopping: 3 calls in flight");
        assert_eq!(line(None, Some("lost Postgres"), 5, None), "lost Postgres");
        assert_eq!(line(None, None, 0, None), "idle, nothing waits");
        assert_eq!(line(None, None, 5, None), "12 calls/s, 5 rows in hand");
        assert_eq!(line(None, None, 5, Some(1.25)), "12 calls/s, 5 rows in hand, oldest 1.2 s");
    }
}
