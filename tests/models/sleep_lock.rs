//! No relay sleeps while a committed row waits, without the help of the poll timer.
//!
//! A daemon is the product's own state machine, `State` of `src/daemon/wakeup.rs`. The model drives it as the claiming loop
//! does (`claimer.rs`, `sleeper.rs`): claim, ask it whether to try the lock, tell it what came of that, wait. The model
//! restates what Postgres does. An inserter is `relay.outbox` with its trigger: it tries the lock shared, keeps it until its
//! transaction ends, and notifies at commit when it could not have it. Trying the lock is `try_sleep.sql`. A stranger may
//! take the lock, shared or exclusively, and let it go, at any moment. A daemon that has all that it can do releases the
//! lock and does not claim until it has capacity; it wakes those that slept because it did. A notification reaches every
//! session that listens, some time after the commit.
//!
//! Left out: the poll timer, ids (a claim after a notification and the last claim begin at the oldest row), deaths.

use promptpal_relay::inside::daemon::{State, Tried};
use promptpal_relay::inside::outbox::Sleep;
use stateright::{Checker, Model, Property};

const INSERTERS: usize = 2;
const RELAYS: usize = 2;

/// How a relay says that it sleeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// The advisory lock.
    Lock,
    /// A row that inserters read, as many have tried. Wrong: an inserter that read it before commits after the last
    /// look.
    Flag,
    /// The lock, and a relay that has all that it can do tells no peer. Wrong: a peer sleeps because it did.
    Silence,
    /// The lock, and a session that has it exclusively counts as a peer. Wrong: a stranger does not look when it lets it go.
    Anybody,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Inserter {
    Idle,
    /// Has inserted and not committed. Holds the lock shared, or will notify.
    Open {
        notifies: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Next {
    Look,
    Rest,
    /// Waits for a notification; one that backs off for its timer, too.
    Wait,
    /// Has all that it can do, and tells the others.
    Tell,
    /// Has told them.
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Relay {
    state: State,
    next: Next,
    /// On its way.
    sent: bool,
    /// Has come, and is not acted upon yet.
    notified: bool,
    /// It has freed the lock, and not told the others since.
    freed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Hold {
    Shared,
    Exclusive,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    inserters: [(Inserter, u8); INSERTERS],
    relays: [Relay; RELAYS],
    /// What a stranger has of the lock, and how often it may still take it.
    stranger: (Option<Hold>, u8),
    /// Committed rows that no relay has claimed.
    rows: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Insert(usize),
    Commit(usize),
    RollBack(usize),
    Deliver(usize),
    Look(usize),
    Rest(usize),
    Wake(usize),
    /// The timer of a daemon that backs off.
    Timer(usize),
    /// An event of the relay's own (a call has ended): it looks.
    Other(usize),
    /// Instead of a look: there is no place.
    Fill(usize),
    Tell(usize),
    Take(Hold),
    LetGo,
}

struct SleepLock {
    sign: Sign,
    /// Transactions of each inserter, one row each.
    transactions: u8,
    /// How often a stranger takes the lock.
    taken: u8,
}

impl World {
    /// The relay that has the lock exclusively, or has set the flag.
    fn sleeper(&self) -> Option<usize> {
        self.relays.iter().position(|relay| relay.state == State::Asleep)
    }

    fn shared(&self) -> bool {
        self.inserters.iter().any(|(inserter, _)| *inserter == Inserter::Open { notifies: false })
    }
}

impl Model for SleepLock {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let relay =
            Relay { state: State::Awake, next: Next::Look, sent: false, notified: false, freed: false };
        vec![World {
            inserters: [(Inserter::Idle, self.transactions), (Inserter::Idle, self.transactions)],
            relays: [relay.clone(), relay],
            stranger: (None, self.taken),
            rows: 0,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (n, (inserter, left)) in world.inserters.iter().enumerate() {
            match inserter {
                Inserter::Idle if *left > 0 => actions.push(Action::Insert(n)),
                Inserter::Idle => {}
                Inserter::Open { .. } => actions.extend([Action::Commit(n), Action::RollBack(n)]),
            }
        }
        match world.stranger {
            (Some(_), _) => actions.push(Action::LetGo),
            (None, 0) => {}
            (None, _) if world.sleeper().is_some() => {}
            (None, _) if world.shared() => actions.push(Action::Take(Hold::Shared)),
            (None, _) => actions.extend([Action::Take(Hold::Shared), Action::Take(Hold::Exclusive)]),
        }
        for (n, relay) in world.relays.iter().enumerate() {
            if relay.sent {
                actions.push(Action::Deliver(n));
            }
            match relay.next {
                Next::Look => actions.extend([Action::Look(n), Action::Fill(n)]),
                Next::Rest => actions.push(Action::Rest(n)),
                Next::Wait => {
                    actions.push(Action::Other(n));
                    if relay.notified {
                        actions.push(Action::Wake(n));
                    }
                    if relay.state == State::BackingOff {
                        actions.push(Action::Timer(n));
                    }
                }
                Next::Tell => actions.push(Action::Tell(n)),
                Next::Full => actions.push(Action::Other(n)),
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Insert(n) => {
                let notifies = world.sleeper().is_some() || world.stranger.0 == Some(Hold::Exclusive);
                next.inserters[n] = (Inserter::Open { notifies }, world.inserters[n].1 - 1);
            }
            Action::Commit(n) => {
                if world.inserters[n].0 == (Inserter::Open { notifies: true }) {
                    next.relays.iter_mut().for_each(|relay| relay.sent = true);
                }
                next.inserters[n].0 = Inserter::Idle;
                next.rows += 1;
            }
            Action::RollBack(n) => next.inserters[n].0 = Inserter::Idle,
            Action::Deliver(n) => {
                next.relays[n].sent = false;
                next.relays[n].notified = true;
            }
            Action::Look(n) => {
                if world.rows > 0 {
                    next.rows = 0;
                    next.relays[n].release();
                }
                next.relays[n].next = Next::Rest;
            }
            Action::Rest(n) => self.rest(world, &mut next, n),
            Action::Wake(n) => {
                next.relays[n].notified = false;
                next.relays[n].look();
            }
            Action::Timer(n) | Action::Other(n) => next.relays[n].look(),
            Action::Fill(n) => {
                next.relays[n].release();
                let tells = next.relays[n].freed && self.sign != Sign::Silence;
                next.relays[n].next = if tells { Next::Tell } else { Next::Full };
            }
            Action::Take(hold) => next.stranger = (Some(hold), world.stranger.1 - 1),
            Action::LetGo => next.stranger.0 = None,
            Action::Tell(n) => {
                next.relays.iter_mut().for_each(|relay| relay.sent = true);
                next.relays[n].freed = false;
                next.relays[n].next = Next::Full;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ASLEEP, |_, world: &World| {
                let sleeps = |relay: &Relay| {
                    matches!(relay.state, State::Asleep | State::PeerSleeps)
                        && relay.next == Next::Wait
                        && !relay.sent
                        && !relay.notified
                };
                let full = |relay: &Relay| relay.next == Next::Full;
                world.rows == 0
                    || !world.relays.iter().any(sleeps)
                    || !world.relays.iter().all(|relay| sleeps(relay) || full(relay))
            }),
            Property::sometimes("both sleep", |_, world: &World| {
                world.relays.iter().all(|relay| {
                    matches!(relay.state, State::Asleep | State::PeerSleeps) && relay.next == Next::Wait
                })
            }),
        ]
    }
}

impl SleepLock {
    /// What Postgres says to a daemon that tries the lock.
    fn try_lock(&self, world: &World, n: usize) -> Sleep {
        let stranger = world.stranger.0;
        let peer_sleeps = world.sleeper().is_some_and(|sleeper| sleeper != n);
        match self.sign {
            Sign::Flag if peer_sleeps => Sleep::Peer,
            Sign::Flag => Sleep::Taken,
            Sign::Anybody if stranger == Some(Hold::Exclusive) => Sleep::Peer,
            _ if peer_sleeps => Sleep::Peer,
            _ if stranger == Some(Hold::Exclusive) => Sleep::Other,
            _ if stranger == Some(Hold::Shared) || world.shared() => Sleep::Inserting,
            _ => Sleep::Taken,
        }
    }

    /// A claim found nothing more: what the claiming loop does.
    fn rest(&self, world: &World, next: &mut World, n: usize) {
        let relay = &mut next.relays[n];
        relay.next = match relay.state.tries_lock() {
            false => Next::Wait,
            true => match relay.state.tried(self.try_lock(world, n)) {
                Tried::ClaimOnce => Next::Look,
                Tried::Sleep | Tried::BackOff => Next::Wait,
            },
        };
    }
}

impl Relay {
    /// A claim found rows, or there is no capacity.
    fn release(&mut self) {
        self.freed |= self.state.found_rows();
    }

    /// The waiting is over.
    fn look(&mut self) {
        self.state.woken();
        self.next = Next::Look;
    }
}

fn check(sign: Sign, transactions: u8, taken: u8) -> impl Checker<SleepLock> {
    SleepLock { sign, transactions, taken }.checker().spawn_bfs().join()
}

const ASLEEP: &str = "nobody sleeps while a row waits";

#[test]
fn with_the_lock_nobody_sleeps_while_a_row_waits() {
    let checker = check(Sign::Lock, 2, 0);
    assert!(checker.is_done());
    println!("sleep lock: {} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn with_a_stranger_who_takes_the_lock_nobody_sleeps_while_a_row_waits() {
    let checker = check(Sign::Lock, 1, 2);
    assert!(checker.is_done());
    println!("sleep lock with a stranger: {} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn with_a_flag_somebody_does() {
    check(Sign::Flag, 2, 0).assert_any_discovery(ASLEEP);
}

#[test]
fn with_a_stranger_who_counts_as_a_peer_somebody_does() {
    check(Sign::Anybody, 1, 1).assert_any_discovery(ASLEEP);
}

#[test]
fn with_a_full_one_that_tells_nobody_somebody_does() {
    check(Sign::Silence, 2, 0).assert_any_discovery(ASLEEP);
}
