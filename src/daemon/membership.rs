//! Who is alive: an instance's epoch, its liveness lock, and the burial of others.
//!
//! Each session of an instance draws a random key and takes its advisory lock; only then is the instance listed, with
//! these keys, so nobody who has just registered is taken for dead. It lives for as long as any of its sessions does. One
//! that has lost a session registers anew and takes its rows in hand over before it lets the others go. A free lock is
//! looked at twice. Locks count that sessions of a daemon's login hold; somebody else's neither keep an instance alive nor
//! take its lock away. Never waits for a lock inside Postgres: a waiting session would hold back vacuum.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Error, Result, one_line};
use crate::outbox::{Liveness, Peer, Store};

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

/// How often an epoch is drawn anew when it is refused. Random ones are not refused twice in a row by chance.
const EPOCHS_MAX: u32 = 8;

/// This process, registered; the session here is the one that listens.
pub struct Instance {
    epoch: i64,
    /// Keys of the locks of its sessions.
    keys: [i64; 3],
    /// Process ids of their backends: of the one that listens, claims, finishes.
    backends: [i32; 3],
    server_started: SystemTime,
    store: Store,
}

impl Instance {
    /// Listens on this session, has it and the two others take their locks, and lists the instance. Does not bury anybody:
    /// whoever had rows in hand under an older epoch of its own takes those over first.
    pub async fn register(store: Store, claim: &Store, finish: &Store) -> Result<Instance> {
        // A statement of its own, so committed when it returns: what is inserted from here on is heard of.
        store.batch_execute(LISTEN).await.map_err(Error::postgres("listening"))?;
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        let (mut own, claim, finish) =
            tokio::try_join!(store.hold_lock(), claim.hold_lock(), finish.hold_lock())?;
        for _ in 0..EPOCHS_MAX {
            let keys = [own.key, claim.key, finish.key];
            let registered = store.register(&keys, &host, pid, env!("CARGO_PKG_VERSION")).await?;
            if let Some(server_started) = registered {
                let backends = [own.backend, claim.backend, finish.backend];
                return Ok(Instance { epoch: own.key, keys, backends, server_started, store });
            }
            own = store.draw_lock().await?;
        }
        Err(Error::Failed(format!(
            "registering the instance: {EPOCHS_MAX} random epochs were refused; look for a trigger or a rule on relay.instances"
        )))
    }

    /// The epoch that stamps our claims.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Process ids of the backends of the sessions that claim and finish.
    pub fn working_backends(&self) -> [i32; 2] {
        [self.backends[1], self.backends[2]]
    }

    /// When the server started that it is registered with.
    pub fn server_started(&self) -> SystemTime {
        self.server_started
    }

    /// The session that listens.
    pub fn session(&self) -> &Store {
        &self.store
    }

    /// That session, which goes on without being this instance's.
    pub fn into_session(self) -> Store {
        self.store
    }

    /// Looks at the liveness locks, and marks the dead of whom `peers` is sure `now`. One round trip. True when that
    /// changed what may be claimed.
    ///
    /// # Errors
    ///
    /// [`Error::Pooled`] when a pooler has given our session away: no session is ours then.
    pub async fn look_around(&self, peers: &RefCell<Peers>, now: Instant) -> Result<bool> {
        let sure = peers.borrow().sure_of(now);
        let found = self.store.declare_dead(self.epoch, &sure, self.backends[0]).await?;
        Ok(peers.borrow_mut().learn(&found, now))
    }

    /// Ends the sessions that are left of older epochs of ours. The server may not hear us on them, and would keep them, and
    /// the locks that they hold, for ever. With `cut_off` only those that are within a statement or a transaction and wait to
    /// hear more. Where we may not end them it is said in the log, and is no error.
    pub async fn end_older(&self, epochs: &[i64], cut_off: bool) -> Result<()> {
        match self.store.end_sessions(epochs, &self.keys, cut_off).await {
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
    suspects: HashMap<i64, Suspect>,
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
    pub fn sure_of(&self, now: Instant) -> Vec<i64> {
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
        for Peer { epoch, round_trip, liveness } in found {
            match liveness {
                Liveness::Alive => self.alive += 1,
                Liveness::Free | Liveness::Crashed => {
                    let since = old.get(epoch).map_or(now, |suspect| suspect.since);
                    let (comes_back, crashed) =
                        (round_trip.saturating_mul(COMES_BACK), *liveness == Liveness::Crashed);
                    self.suspects.insert(*epoch, Suspect { since, comes_back, crashed });
                }
                Liveness::DeclaredDead => {
                    tracing::warn!(epoch, "found a dead instance: its rows are taken over");
                    self.dead.push(*epoch);
                }
                Liveness::Dead => self.dead.push(*epoch),
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

    fn near(epoch: i64, liveness: Liveness) -> Peer {
        Peer { epoch, round_trip: Duration::ZERO, liveness }
    }

    #[test]
    fn one_that_is_far_gets_longer() {
        let start = Instant::now();
        let mut peers = Peers::default();
        let far = |epoch, round_trip| Peer { epoch, round_trip, liveness: Liveness::Free };
        let found = [far(1, 2 * SURE / COMES_BACK), far(2, SURE_AFTER_LOSS), near(3, Liveness::Free)];
        peers.learn(&found, start);
        assert_eq!(peers.sure_of(start + SURE), [3]);
        assert_eq!(peers.sure_of(start + 2 * SURE).len(), 2);
        assert_eq!(peers.sure_of(start + SURE_AFTER_LOSS).len(), 3, "however far it says that it is");
    }

    #[test]
    fn a_free_lock_is_looked_at_twice_before_a_burial() {
        let start = Instant::now();
        let mut peers = Peers::default();
        peers.learn(&[near(1, Liveness::Free), near(2, Liveness::Alive)], start);
        assert!(peers.any_suspect() && peers.alive() == 1);
        assert_eq!(peers.sure_of(start), [0; 0]);
        assert_eq!(peers.sure_of(start + SURE), [1]);
        // It came back in between.
        peers.learn(&[near(1, Liveness::Alive), near(2, Liveness::Alive)], start + SURE / 2);
        assert_eq!(peers.sure_of(start + SURE), [0; 0]);
        assert!(
            peers.learn(&[near(1, Liveness::Alive)], start + SURE),
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
        peers.learn(&[near(1, Liveness::Free)], start);
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
        peers.learn(&[near(1, Liveness::Crashed), near(2, Liveness::Free)], start);
        assert!(peers.is_gathering());
        assert_eq!(peers.sure_of(start + SURE), [2]);
        assert_eq!(peers.sure_of(start + SURE_AFTER_LOSS).len(), 2);
        assert!(peers.learn(&[near(1, Liveness::DeclaredDead)], start + SURE_AFTER_LOSS));
        assert_eq!(peers.dead(), [1]);
        assert!(!peers.is_gathering());
    }
}
