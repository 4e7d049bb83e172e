//! What systemd's watchdog and `/livez` are told: whether the daemon makes progress.

use std::time::{Duration, Instant};

use crate::daemon::stall::Stall;
use crate::daemon::systemd;
use crate::dispatch::pool::Pool;
use crate::telemetry::health::Health;

/// A call that runs for so much longer than it may is stuck.
const STUCK: Duration = Duration::from_secs(30);
/// Time between two signs of life, where systemd does not name one.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long `/livez` waits for the next sign of life, where systemd does not name a longer time: the unit's `WatchdogSec=`.
const SILENCE: Duration = Duration::from_secs(30);

/// Tells whether the daemon makes progress.
pub(super) struct Watchdog<'a> {
    pub pool: &'a Pool,
    pub health: &'a Health,
    /// How long a call may take.
    pub timeout: Duration,
}

impl Watchdog<'_> {
    /// Ticks when systemd is to be told.
    pub(super) fn interval(&self) -> tokio::time::Interval {
        tokio::time::interval(systemd::watchdog_interval().unwrap_or(INTERVAL))
    }

    /// The daemon makes progress: this thread runs, no call has outlived its time limit by much, and what waits is not kept
    /// by the daemon itself. A Postgres that is away, or that keeps the daemon waiting, is no reason for a restart.
    pub(super) fn tell(&self, stall: &Stall) {
        let now = Instant::now();
        let longest = self.pool.longest_running();
        if longest >= self.timeout + STUCK {
            self.health.hangs("a call does not end");
            tracing::error!(
                running_s = longest.as_secs(),
                "a call does not end; the watchdog is not told that all is well"
            );
        } else if stall.is_long(now) {
            self.health.hangs("calls wait and nothing moves");
            tracing::error!("calls wait and nothing moves; the watchdog is not told that all is well");
        } else {
            let limit = systemd::watchdog_interval().map_or(SILENCE, |half| SILENCE.max(half * 2));
            self.health.lives(limit, now);
            systemd::watchdog();
        }
    }

    /// Does the work, and tells systemd meanwhile: hosts that do not answer take their time, and are no hang.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut interval = self.interval();
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = interval.tick() => self.tell(&Stall::default()),
            }
        }
    }
}
