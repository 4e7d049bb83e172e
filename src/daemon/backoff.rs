//! Pauses between tries of what Postgres refuses, and what is said meanwhile.

use std::time::{Duration, Instant};

use crate::daemon::outage::{self, Level, Outage};
use crate::error::{Error, one_line};

/// First and longest pause before something is tried again with Postgres; doubles each time, with jitter. After a loss of its
/// own, a peer waits for longer than the longest pause before it declares an instance dead
/// ([`DEAD_AFTER_LOSS`](crate::daemon::peers::DEAD_AFTER_LOSS)).
pub(super) const RETRY_MIN: Duration = Duration::from_millis(50);
/// As [`RETRY_MIN`].
pub(super) const RETRY_MAX: Duration = Duration::from_secs(3);

/// The tries of one loop. A new one begins after each success.
pub(super) struct Backoff<'a> {
    user: &'a str,
    pause: Duration,
    outage: Outage,
}

impl<'a> Backoff<'a> {
    /// Nothing has failed yet. `user` is the daemon's role, for advice.
    pub(super) fn new(user: &'a str) -> Backoff<'a> {
        Backoff { user, pause: RETRY_MIN, outage: Outage::default() }
    }

    /// Tells in the journal that a try has failed and when the next one is due. Returns it as it is for `/healthz`.
    pub(super) fn failed(&mut self, what: &str, error: &Error) -> String {
        let retry_ms = self.pause.as_millis() as u64;
        let why = one_line(error);
        let advice = outage::advice(error, self.user);
        let advice = advice.map(|advice| format!("; {advice}")).unwrap_or_default();
        match self.outage.failed(error, Instant::now()) {
            Level::Error => tracing::error!(error = %why, retry_ms, "{what}{advice}"),
            Level::Warn => tracing::warn!(error = %why, retry_ms, "{what}{advice}"),
            Level::Debug => tracing::debug!(error = %why, retry_ms, "{what}"),
        }
        with_advice(what, error, self.user)
    }

    /// The pause that is due.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// Waits for the pause that is due; the next one is longer.
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.grow();
    }

    /// Twice as long, a little random, and then bounded: never longer than [`RETRY_MAX`]. Several instances that lost the same
    /// Postgres do not come back in step.
    fn grow(&mut self) {
        self.pause = (self.pause * 2 * fastrand::u32(750..1250) / 1000).min(RETRY_MAX);
    }

    /// A try has succeeded. True: one had failed before.
    pub(super) fn succeeded(&mut self) -> bool {
        let had_failed = self.pause > RETRY_MIN;
        if had_failed {
            *self = Backoff::new(self.user);
        }
        had_failed
    }
}

/// What is wrong, why, and what the operator can do about it.
pub(super) fn with_advice(what: &str, error: &Error, user: &str) -> String {
    let why = one_line(error);
    match outage::advice(error, user) {
        Some(advice) => format!("{what}: {why}; {advice}"),
        None => format!("{what}: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new("relay");
        assert!(!backoff.succeeded());
        for _ in 0..12 {
            let before = backoff.pause();
            backoff.grow();
            assert!(backoff.pause() > before || backoff.pause() == RETRY_MAX);
            assert!(backoff.pause() <= RETRY_MAX);
        }
        assert_eq!(backoff.pause(), RETRY_MAX);
        assert!(backoff.succeeded());
        assert_eq!(backoff.pause(), RETRY_MIN);
    }
}
