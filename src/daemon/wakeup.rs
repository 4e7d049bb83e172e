//! When to look for rows: the sleep lock, NOTIFY, and the poll timer. Says only "look"; what is found is not its
//! business. Without NOTIFY it costs latency and nothing else: polling is the truth.
//!
//! The protocol: an inserter holds the lock shared from its insert to its commit
//! if it can get it, and notifies if it cannot. A relay that found nothing tries it exclusively. If it gets it, it
//! looks one last time and sleeps: whoever inserted before has committed before that look, whoever inserts after it
//! notifies. If not, somebody has inserted and not committed: it looks again in a moment. Awake, it frees the lock.
//!
//! Anybody who can connect may hold the lock for as long as they like, and may notify as often. The first costs two
//! statements each quarter of a second, the second one each 20 ms.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::outbox::{Sleep, Store};

/// First pause while an inserter has not committed; doubles each time.
const DOZE_MIN: Duration = Duration::from_millis(1);
/// Longest pause while an inserter has not committed: a session may stay idle in its transaction for hours.
const DOZE_MAX: Duration = Duration::from_millis(250);
/// So many notifications in a row may be for nothing before they are heard less often. Those of rows that a peer takes are
/// for nothing, too.
const FRUITLESS_MAX: u32 = 16;
/// Then one is heard each time after this pause.
const DEAF: Duration = Duration::from_millis(20);

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
    /// A peer held it when we last looked; we have looked for rows since. When a peer holds it still, or again, we need no
    /// last look: whoever was awake in between looked by itself, and told us if it had more than it could do.
    PeerSlept,
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

impl Cause {
    /// Its name in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Cause::LastLook => "last_look",
            Cause::Dozing => "dozing",
            Cause::Notified => "notified",
            Cause::Poll => "poll",
            Cause::Other => "own",
        }
    }
}

/// The wake-up of one instance on its sessions.
pub struct Wake<'a> {
    claim: &'a Store,
    listen: &'a Store,
    poll_interval: Duration,
    state: State,
    freed: Option<Instant>,
    /// Notifications since rows were found.
    fruitless: u32,
}

impl<'a> Wake<'a> {
    /// Awake. The sleep lock is taken on the session that claims, so that lock and look come one after the other;
    /// notifications come on the one that listens.
    pub fn new(claim: &'a Store, listen: &'a Store, poll_interval: Duration) -> Wake<'a> {
        Wake { claim, listen, poll_interval, state: State::Awake, freed: None, fruitless: 0 }
    }

    /// To be called when a look found rows: frees the sleep lock.
    pub async fn rouse(&mut self) -> Result<()> {
        self.fruitless = 0;
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
            State::Awake | State::Dozing(_) | State::PeerSlept => {
                match self.claim.try_sleep().await? {
                    Sleep::Taken => self.state = State::Asleep,
                    Sleep::Peer if self.state == State::PeerSlept => {
                        return self.pause_beside_peer(other).await;
                    }
                    Sleep::Peer => self.state = State::PeerSleeps,
                    Sleep::Inserting | Sleep::Other => {
                        let pause = match self.state {
                            State::Dozing(pause) => pause,
                            _ => DOZE_MIN,
                        };
                        self.state = State::Dozing((pause * 2).min(DOZE_MAX));
                        return self.pause(pause, Cause::Dozing, other).await;
                    }
                }
                Ok(Cause::LastLook)
            }
            State::Asleep => self.pause(self.poll_interval, Cause::Poll, other).await,
            State::PeerSleeps => self.pause_beside_peer(other).await,
        }
    }

    async fn pause_beside_peer(&mut self, other: impl Future<Output = ()>) -> Result<Cause> {
        let cause = self.pause(self.poll_interval, Cause::Poll, other).await?;
        // The peer may have woken up, or be gone.
        self.state = State::PeerSlept;
        Ok(cause)
    }

    async fn pause(
        &mut self,
        pause: Duration,
        over: Cause,
        other: impl Future<Output = ()>,
    ) -> Result<Cause> {
        let deaf = self.fruitless >= FRUITLESS_MAX;
        let notified = async {
            if deaf {
                tokio::time::sleep(DEAF).await;
            }
            self.listen.notified().await;
        };
        let cause = tokio::select! {
            () = notified => Cause::Notified,
            () = other => Cause::Other,
            () = tokio::time::sleep(pause) => over,
        };
        match cause {
            Cause::Notified => self.fruitless = self.fruitless.saturating_add(1),
            Cause::Poll => self.fruitless = 0,
            _ => {}
        }
        Ok(cause)
    }
}
