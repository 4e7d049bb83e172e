//! Who is alive: what this process knows of the other instances, and which epochs are its own. Never asks Postgres but to
//! wake the others.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use crate::daemon::peers::Peers;
use crate::error::Result;
use crate::outbox::{Peer, Store};

/// This process among the instances: what it knows of the others, and the epochs that are its own.
///
/// Each connection and the monitor write what is known of the others; the claiming loop and the monitor read it. The daemon
/// and its reconnection write and read this process's epochs. The claiming loop and the monitor note when they wake the others.
/// All run on one thread.
pub(super) struct Membership {
    peers: RefCell<Peers>,
    /// Rung for the claiming loop when another instance is dead, one has left, or the recovery barrier rises or falls.
    changed: Notify,
    /// Epochs of this process that may have rows: of the sessions that serve, or served last, and of tries to make others.
    epochs: RefCell<Vec<i64>>,
    /// When this instance last woke the others.
    peers_woken: Cell<Instant>,
}

impl Membership {
    /// Alone, and woke the others `now`.
    pub(super) fn new(now: Instant) -> Membership {
        Membership {
            peers: RefCell::default(),
            changed: Notify::new(),
            epochs: RefCell::default(),
            peers_woken: Cell::new(now),
        }
    }

    /// As [`Peers::connected`].
    pub(super) fn connected(&self, server_started: SystemTime, now: Instant) {
        self.peers.borrow_mut().connected(server_started, now);
    }

    /// As [`Peers::overdue`].
    pub(super) fn overdue(&self, now: Instant) -> Vec<i64> {
        self.peers.borrow().overdue(now)
    }

    /// Takes in what a look at the liveness locks found, and rings when that changes what may be claimed.
    pub(super) fn learn(&self, found: &[Peer], now: Instant) {
        if self.peers.borrow_mut().learn(found, now) {
            self.changed.notify_one();
        }
    }

    /// Epochs whose rows may be taken over, in order.
    pub(super) fn dead(&self) -> Vec<i64> {
        self.peers.borrow().dead().to_vec()
    }

    /// As [`Peers::declared_dead`].
    pub(super) fn declared_dead(&self) -> u64 {
        self.peers.borrow().declared_dead()
    }

    /// How many others live.
    pub(super) fn alive(&self) -> usize {
        self.peers.borrow().alive()
    }

    /// As [`Peers::seniors`].
    pub(super) fn seniors(&self, epoch: i64) -> usize {
        self.peers.borrow().seniors(epoch, &self.epochs())
    }

    /// As [`Peers::any_suspect`].
    pub(super) fn any_suspect(&self) -> bool {
        self.peers.borrow().any_suspect()
    }

    /// As [`Peers::is_recovering`].
    pub(super) fn is_recovering(&self) -> bool {
        self.peers.borrow().is_recovering()
    }

    /// Resolves when what may be claimed has changed since the last time. Cancel-safe. For one loop.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether others may sleep because this instance slept, and have not been told that it does not any more.
    pub(super) fn owes_wake(&self, released: Option<Instant>) -> bool {
        released > Some(self.peers_woken.get())
    }

    /// Wakes the other instances, if that was not done within `pause`.
    ///
    /// # Errors
    ///
    /// When the session is lost.
    pub(super) async fn wake_peers(&self, session: &Store, pause: Duration) -> Result<()> {
        if self.peers_woken.get().elapsed() >= pause && self.alive() > 0 {
            self.peers_woken.set(Instant::now());
            session.notify_peers().await?;
        }
        Ok(())
    }

    /// Epochs of this process that may have rows.
    pub(super) fn epochs(&self) -> Vec<i64> {
        self.epochs.borrow().clone()
    }

    /// One more epoch may have rows.
    pub(super) fn add_epoch(&self, epoch: i64) {
        self.epochs.borrow_mut().push(epoch);
    }

    /// No other epoch of this process has rows any more.
    pub(super) fn only_epoch(&self, epoch: i64) {
        self.epochs.replace(vec![epoch]);
    }
}
