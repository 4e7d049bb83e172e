//! Who is alive: an instance's epoch, its liveness lock, and the burial of others.
//!
//! An epoch is drawn, its advisory lock taken, and only then is the instance listed; so nobody who has just registered
//! is taken for dead. Every session of the instance holds the lock, shared; who wants to bury it needs it exclusively,
//! so it lives for as long as any of them. One that has lost a session registers anew and takes its rows in hand over
//! before it lets the others go. And a free lock is looked at twice. Never waits for a lock inside Postgres: a waiting
//! session would hold back vacuum.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Error, Result, one_line};
use crate::store::{Peer, Store, Vital};

/// The channel that sleeping relays listen to; `relay.wake()` notifies it.
const LISTEN: &str = "LISTEN promptpal_relay";

/// A lock must be free for this time before its instance is dead. One that has merely lost its sessions, all at once,
/// is back in a few milliseconds.
pub const SURE: Duration = Duration::from_millis(100);
/// Round trips that one which is far away gets for coming back, where they take longer than that. It needs 22, a password
/// takes three more, TLS two; and they may take longer than the shortest that it has seen.
const COMES_BACK: u32 = 50;
/// The same when the server has crashed, or we have lost our own sessions a moment ago: whatever took them (a restart
/// of the server, a failover) has taken those of the others, and they need as long to come back as the longest pause
/// between two tries, and the time to connect.
pub const SURE_AFTER_LOSS: Duration = Duration::from_secs(4);

/// This process, registered; the session here is the one that listens.
pub struct Instance {
    epoch: i32,
    server_started: SystemTime,
    store: Store,
}

impl Instance {
    /// Listens on this session, takes an epoch and lists it. Does not bury anybody: whoever had rows in hand under an
    /// older epoch of its own takes those over first.
    pub async fn register(store: Store) -> Result<Instance> {
        // A statement of its own, so committed when it returns: what is inserted from here on is heard of.
        store.batch_execute(LISTEN).await.map_err(Error::postgres("listening"))?;
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        let (epoch, server_started) = store.register(&host, pid, env!("CARGO_PKG_VERSION")).await?.ok_or_else(|| {
            Error::Failed(
                "the advisory lock of a new epoch is taken: does another program use locks of class 1886415986?".into(),
            )
        })?;
        Ok(Instance { epoch, server_started, store })
    }

    /// Lets another session hold the liveness lock, too. Returns the process id of its backend.
    pub async fn share(&self, session: &Store) -> Result<i32> {
        let backend = session.lock_epoch(self.epoch).await?;
        backend.ok_or_else(|| Error::Failed(format!("epoch {} was taken for dead", self.epoch)))
    }

    /// The epoch that stamps our claims.
    pub fn epoch(&self) -> i64 {
        i64::from(self.epoch)
    }

    /// When the server started that it is registered with.
    pub fn server_started(&self) -> SystemTime {
        self.server_started
    }

    /// The session that listens and keeps the liveness lock.
    pub fn session(&self) -> &Store {
        &self.store
    }

    /// That session, which goes on without being this instance's.
    pub fn into_session(self) -> Store {
        self.store
    }

    /// Looks at the liveness locks, and marks the dead of whom `peers` is sure `now`. One round trip. True when that
    /// changed what may be claimed.
    pub async fn look_around(&self, peers: &RefCell<Peers>, now: Instant) -> Result<bool> {
        let sure = peers.borrow().sure_of(now);
        let found = self.store.bury(self.epoch, &sure).await?;
        Ok(peers.borrow_mut().learn(&found, now))
    }

    /// Ends the sessions that are left of older epochs of ours. The server may not hear us on them, and would keep them, and
    /// the locks that they hold, for ever. With `cut_off` only those that are within a statement or a transaction and wait to
    /// hear more. Where we may not end them it is said in the log, and is no error.
    pub async fn end_older(&self, epochs: &[i64], cut_off: bool) -> Result<()> {
        match self.store.end_sessions(epochs, cut_off).await {
            Ok(ended) => tracing::debug!(ended, "sessions that were left are ended"),
            Err(error) if self.store.is_closed() => return Err(error),
            Err(error) => tracing::warn!(
                error = %one_line(&error),
                "lost sessions may be left on the server: terminate those of promptpal-relay that are older than this"
            ),
        }
        Ok(())
    }

    /// The end of this instance: it has nothing in hand any more. Wakes the others: one that slept because we had the
    /// sleep lock has to take it.
    pub async fn retire(self) -> Result<()> {
        self.store.retire(&[self.epoch()], true).await?;
        self.store.notify_peers().await
    }
}

/// What one instance knows of the others. Kept up by [`Instance::look_around`].
#[derive(Default)]
pub struct Peers {
    server_started: Option<SystemTime>,
    /// When we last had to connect anew.
    reconnected: Option<Instant>,
    suspects: HashMap<i32, Suspect>,
    dead: Vec<i64>,
    alive: usize,
}

/// An instance whose lock is free.
#[derive(Clone, Copy)]
struct Suspect {
    /// When that was first seen.
    since: Instant,
    /// How long it may take to come back.
    comes_back: Duration,
    /// The server has crashed since it registered.
    crashed: bool,
}

impl Peers {
    /// To be called with each connection. The first one apart we have lost our sessions a moment ago, and so may have
    /// the others. With a server that was started since, all have, and what was suspected before says nothing any
    /// more; with the same server, a suspect is as suspect as it was: else nobody would ever be sure while sessions
    /// are lost every few seconds.
    pub fn connected(&mut self, server_started: SystemTime, now: Instant) {
        if let Some(before) = self.server_started.replace(server_started) {
            self.reconnected = Some(now);
            if before != server_started {
                self.suspects.clear();
            }
        }
    }

    /// Whose lock has been free long enough: the epochs to bury.
    pub fn sure_of(&self, now: Instant) -> Vec<i32> {
        let lately = self.reconnected.is_some_and(|reconnected| now - reconnected <= SURE_AFTER_LOSS);
        let sure = |suspect: &Suspect| match suspect.crashed || lately {
            true => SURE_AFTER_LOSS,
            false => suspect.comes_back.clamp(SURE, SURE_AFTER_LOSS),
        };
        let long = |suspect: &Suspect| now - suspect.since >= sure(suspect);
        self.suspects.iter().filter(|(_, suspect)| long(suspect)).map(|(epoch, _)| *epoch).collect()
    }

    /// Learns what a look at the locks found. True when somebody new is dead, somebody has left, or the last suspect is
    /// gone.
    pub fn learn(&mut self, found: &[Peer], now: Instant) -> bool {
        let before = (std::mem::take(&mut self.dead), self.is_gathering());
        let old = std::mem::take(&mut self.suspects);
        let alive = std::mem::take(&mut self.alive);
        for Peer { epoch, round_trip, vital } in found {
            match vital {
                Vital::Alive => self.alive += 1,
                Vital::Free | Vital::Crashed => {
                    let since = old.get(epoch).map_or(now, |suspect| suspect.since);
                    let (comes_back, crashed) =
                        (round_trip.saturating_mul(COMES_BACK), *vital == Vital::Crashed);
                    self.suspects.insert(*epoch, Suspect { since, comes_back, crashed });
                }
                Vital::Buried => {
                    tracing::warn!(epoch, "found a dead instance: its rows are taken over");
                    self.dead.push(i64::from(*epoch));
                }
                Vital::Dead => self.dead.push(i64::from(*epoch)),
            }
        }
        self.dead.sort_unstable();
        self.alive < alive || before != (self.dead.clone(), self.is_gathering())
    }

    /// Epochs whose rows may be taken over, in order.
    pub fn dead(&self) -> &[i64] {
        &self.dead
    }

    /// How many others live.
    pub fn alive(&self) -> usize {
        self.alive
    }

    /// Whether somebody's lock is free of whom we are not sure yet.
    pub fn any_suspect(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Whether somebody may come back whose claims were lost in a crash of the server. Its rows look as if nobody had
    /// them in hand; until it has taken them over again, or is buried, nobody claims.
    pub fn is_gathering(&self) -> bool {
        self.suspects.values().any(|suspect| suspect.crashed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(epoch: i32, vital: Vital) -> Peer {
        Peer { epoch, round_trip: Duration::ZERO, vital }
    }

    #[test]
    fn one_that_is_far_gets_longer() {
        let start = Instant::now();
        let mut peers = Peers::default();
        let far = |epoch, round_trip| Peer { epoch, round_trip, vital: Vital::Free };
        peers.learn(&[far(1, 2 * SURE / COMES_BACK), far(2, SURE_AFTER_LOSS), near(3, Vital::Free)], start);
        assert_eq!(peers.sure_of(start + SURE), [3]);
        assert_eq!(peers.sure_of(start + 2 * SURE).len(), 2);
        assert_eq!(peers.sure_of(start + SURE_AFTER_LOSS).len(), 3, "however far it says that it is");
    }

    #[test]
    fn a_free_lock_is_looked_at_twice_before_a_burial() {
        let start = Instant::now();
        let mut peers = Peers::default();
        peers.learn(&[near(1, Vital::Free), near(2, Vital::Alive)], start);
        assert!(peers.any_suspect() && peers.alive() == 1);
        assert_eq!(peers.sure_of(start), [0; 0]);
        assert_eq!(peers.sure_of(start + SURE), [1]);
        // It came back in between.
        peers.learn(&[near(1, Vital::Alive), near(2, Vital::Alive)], start + SURE / 2);
        assert_eq!(peers.sure_of(start + SURE), [0; 0]);
        assert!(
            peers.learn(&[near(1, Vital::Alive)], start + SURE),
            "what the other gave back is to be looked for"
        );
    }

    #[test]
    fn after_a_loss_of_our_own_the_others_get_longer() {
        let start = Instant::now();
        let mut peers = Peers::default();
        let server = SystemTime::now();
        peers.connected(server, start);
        peers.connected(server, start);
        peers.learn(&[near(1, Vital::Free)], start);
        assert!(!peers.is_gathering());
        assert_eq!(peers.sure_of(start + SURE), [0; 0]);
        assert_eq!(peers.sure_of(start + SURE_AFTER_LOSS), [1]);
        // Another loss does not clear it of suspicion; another server does.
        peers.connected(server, start + SURE);
        assert_eq!(peers.sure_of(start + SURE_AFTER_LOSS), [1]);
        peers.connected(server + SURE, start + SURE);
        assert_eq!(peers.sure_of(start + SURE_AFTER_LOSS), [0; 0]);
    }

    #[test]
    fn after_a_crash_of_the_server_nobody_claims_before_all_are_back() {
        let start = Instant::now();
        let mut peers = Peers::default();
        peers.learn(&[near(1, Vital::Crashed), near(2, Vital::Free)], start);
        assert!(peers.is_gathering());
        assert_eq!(peers.sure_of(start + SURE), [2]);
        assert_eq!(peers.sure_of(start + SURE_AFTER_LOSS).len(), 2);
        assert!(peers.learn(&[near(1, Vital::Buried)], start + SURE_AFTER_LOSS));
        assert_eq!(peers.dead(), [1]);
        assert!(!peers.is_gathering());
    }
}
