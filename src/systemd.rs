//! What systemd is told: ready, status, watchdog, stopping. Without systemd (no `NOTIFY_SOCKET`) nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot tell systemd");
    }
}

/// The schema is right and we listen.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// What we are doing, for `systemctl status`.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// We were told to stop and finish what is in hand.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// We make progress.
pub fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`watchdog`] is to be called, when the unit wants it: half of its limit, as systemd advises.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}
