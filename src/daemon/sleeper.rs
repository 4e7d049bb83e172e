//! Waits until it is time to claim again: the rules of [`wakeup`](super::wakeup) on two sessions.

use std::time::{Duration, Instant};

use crate::daemon::wakeup::{Cause, Next, Wait, Wakeup};
use crate::error::Result;
use crate::outbox::Store;

/// The wake-up of one instance on its sessions.
pub(super) struct Sleeper<'a> {
    claim: &'a Store,
    listen: &'a Store,
    wakeup: Wakeup,
    released: Option<Instant>,
}

impl<'a> Sleeper<'a> {
    /// Awake. The sleep lock is taken on the session that claims, so that lock and claim come one after the other;
    /// notifications come on the session that listens.
    pub(super) fn new(claim: &'a Store, listen: &'a Store, poll_interval: Duration) -> Sleeper<'a> {
        Sleeper { claim, listen, wakeup: Wakeup::new(poll_interval, Instant::now()), released: None }
    }

    /// To be called after each claim, with the number of its rows.
    pub(super) fn claimed(&mut self, rows: usize) {
        self.wakeup.claimed(rows, Instant::now());
    }

    /// To be called when a claim found rows: releases the sleep lock.
    ///
    /// # Errors
    ///
    /// When the session is lost.
    pub(super) async fn release(&mut self) -> Result<()> {
        if self.wakeup.found_rows() {
            self.claim.wake_up().await?;
            self.released = Some(Instant::now());
        }
        Ok(())
    }

    /// When this instance last released the sleep lock. A peer may sleep because this instance held it; no inserter notifies
    /// the peer from then on, so an instance that has more than it can do must.
    pub(super) fn released(&self) -> Option<Instant> {
        self.released
    }

    /// To be called when a claim found nothing more: returns when it is time to claim again. `other` is an event of
    /// the claiming loop that ends the waiting, too.
    ///
    /// # Errors
    ///
    /// When the session is lost.
    pub(super) async fn wait(&mut self, other: impl Future<Output = ()>) -> Result<Cause> {
        if let Some(pause) = self.wakeup.linger() {
            // What else may happen waits for so long, as it does for a claim.
            tokio::time::sleep(pause).await;
            return Ok(Cause::Lingered);
        }
        let wait = match self.wakeup.wait() {
            Some(wait) => wait,
            None => match self.wakeup.tried(self.claim.try_sleep().await?) {
                Next::Claim(cause) => return Ok(cause),
                Next::Wait(wait) => wait,
            },
        };
        let cause = self.until(wait, other).await;
        self.wakeup.woken(cause);
        Ok(cause)
    }

    async fn until(&self, wait: Wait, other: impl Future<Output = ()>) -> Cause {
        let notified = async {
            if !wait.deaf.is_zero() {
                tokio::time::sleep(wait.deaf).await;
            }
            self.listen.notified().await;
        };
        tokio::select! {
            () = notified => Cause::Notified,
            () = other => Cause::Other,
            () = tokio::time::sleep(wait.longest) => wait.over,
        }
    }
}
