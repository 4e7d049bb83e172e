//! When to look for rows: the sleep lock, NOTIFY, and the poll timer. Says only "look"; what is found is not its
//! business. Without NOTIFY it costs latency and nothing else: polling is the truth.
//!
//! The protocol: an inserter holds the lock shared from its insert to its commit
//! if it can get it, and notifies if it cannot. A relay that found nothing tries it exclusively. If it gets it, it
//! looks one last time and sleeps: whoever inserted before has committed before that look, whoever inserts after it
//! notifies. If not, somebody has inserted and not committed: it looks again in a moment. Awake, it frees the lock.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::store::Store;

/// First pause while an inserter has not committed; doubles each time.
const DOZE_MIN: Duration = Duration::from_millis(1);
/// Longest pause while an inserter has not committed.
const DOZE_MAX: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// We look by ourselves; nobody notifies us.
    Awake,
    /// The sleep lock could not be had; the next pause.
    Dozing(Duration),
    /// We hold the sleep lock: inserters notify us.
    Asleep,
    /// A peer holds the sleep lock: inserters notify all of us.
    PeerSleeps,
}

/// Why to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The last look before sleeping.
    LastLook,
    /// An inserter had not committed at the last look.
    Dozing,
    /// Somebody notified us.
    Notified,
    /// The poll interval is over.
    Poll,
    /// The caller's own event came.
    Other,
}

/// The wake-up of one instance on its sessions.
pub struct Wake<'a> {
    claim: &'a Store,
    listen: &'a Store,
    poll_interval: Duration,
    state: State,
    freed: Option<Instant>,
}

impl<'a> Wake<'a> {
    /// Awake. The sleep lock is taken on the session that claims, so that lock and look come one after the other;
    /// notifications come on the one that listens.
    pub fn new(claim: &'a Store, listen: &'a Store, poll_interval: Duration) -> Wake<'a> {
        Wake { claim, listen, poll_interval, state: State::Awake, freed: None }
    }

    /// To be called when a look found rows: frees the sleep lock.
    pub async fn rouse(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.state, State::Awake) == State::Asleep {
            self.claim.wake_up().await?;
            self.freed = Some(Instant::now());
        }
        Ok(())
    }

    /// When we last freed the sleep lock. A peer may sleep because we had it; nobody notifies it from then on, so whoever
    /// has more than it can do must.
    pub fn freed(&self) -> Option<Instant> {
        self.freed
    }

    /// To be called when a look found nothing more: returns when it is time to look again. `other` is an event of
    /// the caller's that ends the waiting, too.
    pub async fn rest(&mut self, other: impl Future<Output = ()>) -> Result<Cause> {
        match self.state {
            State::Awake | State::Dozing(_) => {
                if self.claim.try_sleep().await? {
                    self.state = State::Asleep;
                    return Ok(Cause::LastLook);
                }
                let pause = match self.state {
                    State::Dozing(pause) => pause,
                    _ => DOZE_MIN,
                };
                if pause >= DOZE_MAX && self.claim.peer_sleeps().await? {
                    self.state = State::PeerSleeps;
                    return Ok(Cause::LastLook);
                }
                self.state = State::Dozing((pause * 2).min(DOZE_MAX));
                self.pause(pause, Cause::Dozing, other).await
            }
            State::Asleep | State::PeerSleeps => {
                let cause = self.pause(self.poll_interval, Cause::Poll, other).await?;
                if self.state == State::PeerSleeps {
                    // It may have woken up, or be gone: see again, once.
                    self.state = State::Dozing(DOZE_MAX);
                }
                Ok(cause)
            }
        }
    }

    async fn pause(&self, pause: Duration, over: Cause, other: impl Future<Output = ()>) -> Result<Cause> {
        tokio::select! {
            () = self.listen.notified() => Ok(Cause::Notified),
            () = other => Ok(Cause::Other),
            () = tokio::time::sleep(pause) => Ok(over),
        }
    }
}
