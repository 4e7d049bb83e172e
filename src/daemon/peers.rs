//! Who of the other instances is dead, and when: the rules of liveness.
//!
//! Given what a look at the liveness locks found and the time. Takes no lock, asks no clock, and logs nothing but a death.
//! A free lock counts only when it was free for [`DEAD_AFTER`]: an instance that merely lost its sessions comes back.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use crate::outbox::{Liveness, Peer};

/// A lock must be free for this time before its instance is declared dead. An instance that lost all its sessions at once
/// is back in a few milliseconds.
pub const DEAD_AFTER: Duration = Duration::from_millis(100);
/// Round trips that a distant instance gets for coming back, where they take longer than [`DEAD_AFTER`]. It needs 22, a
/// password takes three more, TLS two. They may take longer than the shortest that it has seen.
const COMES_BACK: u32 = 50;
/// The time after a crash of the server, or after this instance lost its own sessions. What took them (a restart of the
/// server, a failover) took those of the others, too. They need the longest pause between two tries and the time to connect.
pub const DEAD_AFTER_LOSS: Duration = Duration::from_secs(4);

/// What an instance knows of the others.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    server_started: Option<SystemTime>,
    /// When we last had to connect anew.
    reconnected: Option<Instant>,
    suspects: HashMap<i64, Suspect>,
    dead: Vec<i64>,
    alive: usize,
    /// Epochs of those of them that are on our host.
    near: Vec<i64>,
    /// How many this instance has declared dead so far.
    declared_dead: u64,
}

/// An instance whose lock is free.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// When that was first seen.
    since: Instant,
    /// How long it may take to come back.
    comes_back: Duration,
    /// The server has crashed since it registered.
    crashed: bool,
}

impl Peers {
    /// To be called with each connection. At every one but the first, this instance lost its sessions a moment ago, and the
    /// others may have lost theirs. When the server was started since, all have, and earlier suspicions say nothing any more.
    /// With the same server they stand: otherwise no instance would ever be declared dead while sessions are lost every few
    /// seconds.
    pub fn connected(&mut self, server_started: SystemTime, now: Instant) {
        if let Some(before) = self.server_started.replace(server_started) {
            self.reconnected = Some(now);
            if before != server_started {
                self.suspects.clear();
            }
        }
    }

    /// Epochs whose locks have been free for long enough to declare their instances dead.
    pub fn overdue(&self, now: Instant) -> Vec<i64> {
        let lately = self.reconnected.is_some_and(|reconnected| now - reconnected <= DEAD_AFTER_LOSS);
        let sure = |suspect: &Suspect| match suspect.crashed || lately {
            true => DEAD_AFTER_LOSS,
            false => suspect.comes_back.clamp(DEAD_AFTER, DEAD_AFTER_LOSS),
        };
        let long = |suspect: &Suspect| now - suspect.since >= sure(suspect);
        self.suspects.iter().filter(|(_, suspect)| long(suspect)).map(|(epoch, _)| *epoch).collect()
    }

    /// Learns what a look at the locks found. True when there is a new dead instance, one has left, or the recovery barrier
    /// rises or falls.
    pub fn learn(&mut self, found: &[Peer], now: Instant) -> bool {
        let before = (std::mem::take(&mut self.dead), self.is_recovering());
        let old = std::mem::take(&mut self.suspects);
        let alive = std::mem::take(&mut self.alive);
        self.near = found.iter().filter(|peer| peer.near).map(|peer| peer.epoch).collect();
        for Peer { epoch, round_trip, liveness, .. } in found {
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
                    self.declared_dead += 1;
                }
                Liveness::Dead => self.dead.push(*epoch),
            }
        }
        self.dead.sort_unstable();
        self.alive < alive || before != (self.dead.clone(), self.is_recovering())
    }

    /// Epochs whose rows may be taken over, in order.
    pub fn dead(&self) -> &[i64] {
        &self.dead
    }

    /// How many instances this one has declared dead so far.
    pub fn declared_dead(&self) -> u64 {
        self.declared_dead
    }

    /// How many others live.
    pub fn alive(&self) -> usize {
        self.alive
    }

    /// How many living ones on our host are senior to the instance of this epoch. All instances of a host agree on the order. `ours` are
    /// epochs of this instance itself: a session of an old one may live on in the server.
    pub fn seniors(&self, epoch: i64, ours: &[i64]) -> usize {
        self.near.iter().filter(|senior| **senior < epoch && !ours.contains(senior)).count()
    }

    /// Whether an instance's lock is free, and not for long enough to declare it dead.
    pub fn any_suspect(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// The recovery barrier: whether an instance may come back whose claims were lost in a crash of the server. Its rows look
    /// as if they were free. No instance claims until it has adopted them, or is declared dead.
    pub fn is_recovering(&self) -> bool {
        self.suspects.values().any(|suspect| suspect.crashed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(epoch: i64, liveness: Liveness) -> Peer {
        Peer { epoch, round_trip: Duration::ZERO, liveness, near: liveness == Liveness::Alive }
    }

    #[test]
    fn one_that_is_far_gets_longer() {
        let start = Instant::now();
        let mut peers = Peers::default();
        let far = |epoch, round_trip| Peer { epoch, round_trip, liveness: Liveness::Free, near: false };
        peers.learn(
            &[far(1, 2 * DEAD_AFTER / COMES_BACK), far(2, DEAD_AFTER_LOSS), near(3, Liveness::Free)],
            start,
        );
        assert_eq!(peers.overdue(start + DEAD_AFTER), [3]);
        assert_eq!(peers.overdue(start + 2 * DEAD_AFTER).len(), 2);
        assert_eq!(peers.overdue(start + DEAD_AFTER_LOSS).len(), 3, "however far it says that it is");
    }

    #[test]
    fn a_free_lock_is_looked_at_twice_before_a_death_is_declared() {
        let start = Instant::now();
        let mut peers = Peers::default();
        peers.learn(&[near(1, Liveness::Free), near(2, Liveness::Alive)], start);
        assert!(peers.any_suspect() && peers.alive() == 1);
        assert_eq!(peers.overdue(start), [0; 0]);
        assert_eq!(peers.overdue(start + DEAD_AFTER), [1]);
        // It came back in between.
        peers.learn(&[near(1, Liveness::Alive), near(2, Liveness::Alive)], start + DEAD_AFTER / 2);
        assert_eq!(peers.overdue(start + DEAD_AFTER), [0; 0]);
        assert!(
            peers.learn(&[near(1, Liveness::Alive)], start + DEAD_AFTER),
            "what the other gave back is to be looked for"
        );
    }

    #[test]
    fn the_instances_of_a_host_have_an_order_and_the_dead_are_not_in_it() {
        let start = Instant::now();
        let mut peers = Peers::default();
        let far = Peer { near: false, ..near(4, Liveness::Alive) };
        peers.learn(&[near(7, Liveness::Alive), near(3, Liveness::Alive), far], start);
        assert_eq!([2, 5, 9].map(|epoch| peers.seniors(epoch, &[])), [0, 1, 2]);
        assert_eq!(peers.seniors(9, &[3, 9]), 1, "3 was our own epoch");
        peers.learn(&[near(7, Liveness::Alive), near(3, Liveness::Free), far], start);
        assert_eq!([2, 5, 9].map(|epoch| peers.seniors(epoch, &[])), [0, 0, 1]);
    }

    #[test]
    fn after_a_loss_of_our_own_the_others_get_longer() {
        let start = Instant::now();
        let mut peers = Peers::default();
        let server = SystemTime::now();
        peers.connected(server, start);
        peers.connected(server, start);
        peers.learn(&[near(1, Liveness::Free)], start);
        assert!(!peers.is_recovering());
        assert_eq!(peers.overdue(start + DEAD_AFTER), [0; 0]);
        assert_eq!(peers.overdue(start + DEAD_AFTER_LOSS), [1]);
        // Another loss does not clear it of suspicion; another server does.
        peers.connected(server, start + DEAD_AFTER);
        assert_eq!(peers.overdue(start + DEAD_AFTER_LOSS), [1]);
        peers.connected(server + DEAD_AFTER, start + DEAD_AFTER);
        assert_eq!(peers.overdue(start + DEAD_AFTER_LOSS), [0; 0]);
    }

    #[test]
    fn after_a_crash_of_the_server_nobody_claims_before_all_are_back() {
        let start = Instant::now();
        let mut peers = Peers::default();
        peers.learn(&[near(1, Liveness::Crashed), near(2, Liveness::Free)], start);
        assert!(peers.is_recovering());
        assert_eq!(peers.overdue(start + DEAD_AFTER), [2]);
        assert_eq!(peers.overdue(start + DEAD_AFTER_LOSS).len(), 2);
        assert!(peers.learn(&[near(1, Liveness::DeclaredDead)], start + DEAD_AFTER_LOSS));
        assert_eq!(peers.dead(), [1]);
        assert!(!peers.is_recovering());
    }
}
