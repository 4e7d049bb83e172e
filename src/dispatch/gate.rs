//! Whether any call may start: not after the lease on the claims has ended, and not for a moment after a shortage of ours.
//!
//! A pure rule: the gate has no clock, each function gets the time. Which call starts is for the
//! [`scheduler`](crate::dispatch::scheduler) to say.

use std::time::{Duration, Instant};

/// No call starts for this time after one that could not be made for a shortage of ours, or after the system has refused a
/// thread. Meanwhile calls in flight end, and free what is short.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(200);

/// When calls may start.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// No call starts from then on. Before the daemon says so for the first time there is no limit.
    lease_until: Option<Instant>,
    paused_until: Option<Instant>,
    shortages: u64,
}

impl Gate {
    /// Whether calls may start.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        !self.lacks_lease(now) && self.paused_until(now).is_none()
    }

    /// Whether the lease has ended.
    pub(super) fn lacks_lease(&self, now: Instant) -> bool {
        self.lease_until.is_some_and(|until| now >= until)
    }

    /// Renews the lease, or ends it.
    pub(super) fn lease_until(&mut self, until: Instant) {
        self.lease_until = Some(until);
    }

    /// The end of the pause that is on.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| now < *until)
    }

    /// Begins a pause, or makes the one that is on longer. True when none was on.
    pub(super) fn pause(&mut self, now: Instant) -> bool {
        let is_new = self.paused_until(now).is_none();
        self.paused_until = Some(now + SHORTAGE_PAUSE);
        is_new
    }

    /// A call could not be made for a shortage of ours: a pause. True when none was on; then it counts.
    pub(super) fn note_shortage(&mut self, now: Instant) -> bool {
        let is_new = self.pause(now);
        self.shortages += u64::from(is_new);
        is_new
    }

    /// Pauses for calls that could not be made for a shortage of ours, since the start.
    pub(super) fn shortages(&self) -> u64 {
        self.shortages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_starts_after_the_lease() {
        let (now, mut gate) = (Instant::now(), Gate::default());
        assert!(gate.is_open(now), "before the first lease there is no limit");
        gate.lease_until(now + SHORTAGE_PAUSE);
        assert!(gate.is_open(now) && !gate.is_open(now + SHORTAGE_PAUSE));
        gate.lease_until(now);
        assert!(!gate.is_open(now));
    }

    #[test]
    fn a_shortage_is_a_pause_and_counts_once() {
        let (now, mut gate) = (Instant::now(), Gate::default());
        assert!(gate.note_shortage(now));
        let later = now + SHORTAGE_PAUSE / 2;
        assert!(!gate.note_shortage(later) && !gate.is_open(now + SHORTAGE_PAUSE));
        assert_eq!((gate.shortages(), gate.paused_until(later)), (1, Some(later + SHORTAGE_PAUSE)));
        assert!(gate.is_open(later + SHORTAGE_PAUSE));
        // A thread that cannot be had is no shortage of a call.
        assert!(gate.pause(later + SHORTAGE_PAUSE));
        assert_eq!(gate.shortages(), 1);
    }
}
