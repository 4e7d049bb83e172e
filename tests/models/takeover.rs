//! Each row has one record, whatever dies, freezes, crashes or loses its sessions, and only a row whose instance lost it
//! is posted again.
//!
//! The model has one row, two instances, and a server that may crash. The model asks the product's [`Peers`] for what Rust
//! decides. That is: of which epochs an instance is sure that they are dead, whose rows it may take over, and whether the
//! recovery barrier holds up its claims. Only [`Knowledge`] calls it. The model restates what SQL decides, each time with
//! the name of the file under `sql/queries`:
//!
//! - An instance opens three sessions, each with a liveness lock of its own, and is listed (`draw_lock.sql`,
//!   `register.sql`). It adopts the row that it has in hand (`adopt.sql`), and ends its older epochs and their
//!   sessions (`retire.sql`, `end_sessions.sql`). It looks at the others (`declare_dead.sql`), and then claims (`claim.sql`), posts
//!   and finishes (`finish.sql`). A row that has not begun may be given back (`give_back.sql`).
//! - Sessions are lost one at a time or all at once, each with the statement that runs on it: that statement may take
//!   effect, and its answer is lost. The instance notices at some time, and does until then what the sessions that are
//!   left allow.
//! - A crash of the server ends all sessions and empties `instances_since_crash`. What was claimed or given back since
//!   the last flush may be lost; each of the other writes is flushed, and flushes all that was written before it.
//! - A call that is in flight when its row turns out to be lost goes on. Its result comes at some time, perhaps when the
//!   instance has claimed the row again.
//! - The row may go, and another event gets its id: `TRUNCATE … RESTART IDENTITY`, or a failover to a standby that lacks the
//!   row. What was in hand is still of the event before. The promise is then about the event that the row has now.
//! - Before each look no time passes, or [`DEAD_AFTER`], or more than [`DEAD_AFTER_LOSS`]. A frozen instance is one that does
//!   nothing for a while. An instance is *late* when a peer declares its epoch dead while it lives.
//!
//! The model leaves these things out:
//!
//! - More than one row: rows do not depend on each other.
//! - The time until which calls may start: the promise about records holds without it.
//! - Parked rows: they are claimed by the same rule.
//! - The clearing of dead epochs: it happens when no row has them.
//! - Sessions that an instance lets go because the server has no room for the new ones beside them.
//! - Instances that are far from the server, which are given more time.

use std::time::{Duration, Instant, SystemTime};

use promptpal_relay::inside::daemon::{DEAD_AFTER, DEAD_AFTER_LOSS, Peers};
use promptpal_relay::inside::outbox::{Liveness, Peer};
use stateright::{Checker, HasDiscoveries, Model, Property};

const INSTANCES: usize = 2;
/// More posts than there can be within the bounds of any test here.
const POSTS: u8 = 6;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Ours,
    /// Wrong: the finish asks only whether the row is there.
    FinishUnguarded,
    /// Wrong: rows of epochs that are not in the list of the living are claimed. An instance that registered after that
    /// list was read is not in it.
    NotLivingIsDead,
    /// Wrong: a result is recorded under the claim that the instance has on the row when the result comes, not under the
    /// claim that made the call.
    ResultByRow,
    /// Wrong: a lock counts when a stranger holds it, and a stranger holds all of them.
    StrangersCount,
    /// Wrong: an instance claims although claims may have been lost in a crash.
    NoBarrier,
    /// Wrong: an instance is declared dead when one of its locks is free.
    OneLockFreeIsDead,
    /// Wrong: an instance adopts what it had in hand, whichever instance has it now.
    AdoptUnguarded,
    /// Wrong: an instance does not adopt a row that no instance has claimed.
    AdoptNoUnclaimed,
    /// Wrong: an instance does not adopt a row that its previous owner has claimed.
    AdoptNoPrevious,
    /// Wrong: a row is the same row by its id alone when it is adopted.
    AdoptById,
    /// Wrong: a row is the same row by its id alone when it is finished.
    FinishById,
    /// Wrong: what is in hand under an id is taken out when a finish of that id ends.
    OverById,
}

/// What may go wrong, and how often at most.
#[derive(Clone, Copy)]
struct Bounds {
    /// Losses of one session, or of all of an instance.
    losses: u8,
    deaths: u8,
    crashes: u8,
    /// Rows that are given back.
    returns: u8,
    /// How often another event gets the row's id.
    replaced: u8,
}

/// What `declare_dead.sql` says of a listed epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Seen {
    Alive,
    Free,
    Crashed,
    Dead,
}

/// How much time passes before a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    None,
    Short,
    Long,
}

impl Pause {
    fn duration(self) -> Duration {
        match self {
            Pause::None => Duration::ZERO,
            Pause::Short => DEAD_AFTER,
            // Longer than any instance is given.
            Pause::Long => DEAD_AFTER_LOSS + DEAD_AFTER,
        }
    }
}

/// What an instance knows of the others, as the calls from which the adapter makes the product's [`Peers`] anew for each
/// question. Short pauses do not add up here: a run in which they would is the run with the long pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Knowledge {
    /// The start of the server at the last connection before the last look.
    server: Option<u8>,
    /// That connection was not the first one, and no long pause has passed since.
    lately: bool,
    /// What the last look found, with the epochs.
    found: Vec<(usize, Seen)>,
    /// The start of the server at a connection since the last look.
    connected: Option<u8>,
}

impl Knowledge {
    /// The product's own state after these calls, at the time of the last of them.
    fn peers(&self, now: Instant) -> Peers {
        let start = |server: u8| SystemTime::UNIX_EPOCH + Duration::from_secs(server.into());
        let mut peers = Peers::default();
        for server in self.server.into_iter().chain(self.server.filter(|_| self.lately)) {
            peers.connected(start(server), now);
        }
        let peer = |(epoch, seen): &(usize, Seen)| Peer {
            epoch: i64::try_from(*epoch).expect("few"),
            round_trip: Duration::ZERO,
            liveness: match seen {
                Seen::Alive => Liveness::Alive,
                Seen::Free => Liveness::Free,
                Seen::Crashed => Liveness::Crashed,
                Seen::Dead => Liveness::Dead,
            },
            near: false,
        };
        peers.learn(&self.found.iter().map(peer).collect::<Vec<_>>(), now);
        if let Some(server) = self.connected {
            peers.connected(start(server), now);
        }
        peers
    }

    /// Epochs of which the instance is sure that they are dead, after a pause.
    fn overdue(&self, pause: Pause) -> Vec<usize> {
        let now = Instant::now();
        epochs(&self.peers(now).overdue(now + pause.duration()))
    }

    /// Epochs whose rows may be taken over.
    fn dead(&self) -> Vec<usize> {
        epochs(self.peers(Instant::now()).dead())
    }

    /// Whether the recovery barrier holds claims up.
    fn claims_wait(&self) -> bool {
        self.peers(Instant::now()).is_recovering()
    }

    fn connect(&mut self, server: u8) {
        self.connected = Some(server);
    }

    fn look(&mut self, pause: Pause, found: Vec<(usize, Seen)>) {
        self.found = found;
        if let Some(server) = self.connected.take() {
            self.lately = self.server.replace(server).is_some();
        }
        self.lately &= pause != Pause::Long;
    }
}

fn epochs(epochs: &[i64]) -> Vec<usize> {
    epochs.iter().map(|epoch| usize::try_from(*epoch).expect("an index")).collect()
}

/// The sessions of an instance, each with its lock.
const LISTENS: usize = 0;
const CLAIMS: usize = 1;
const FINISHES: usize = 2;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Epoch {
    /// The sessions that live, each with its liveness lock.
    sessions: [bool; 3],
    /// `dead_at` is set.
    dead: bool,
    /// It is in `instances_since_crash`.
    since_crash: bool,
}

/// `claimed_by` of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Nobody,
    /// 0: no instance, and a dead one had it.
    Forgotten,
    Epoch(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InHand {
    /// The event that the row had at the claim.
    event: u8,
    epoch: usize,
    /// What `claimed_by` was before the claim.
    previous: Owner,
    posted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// No registration yet, or dead.
    Out,
    /// Listed, and has not adopted yet.
    Registered,
    /// Has adopted, and not looked at the others yet.
    Adopted,
    Serves,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Instance {
    alive: bool,
    stage: Stage,
    /// Its own that may have the row; the last one is that of its sessions.
    epochs: Vec<usize>,
    in_hand: Option<InHand>,
    /// A lost row whose call has been made, and whose result has not come yet.
    lost: Option<InHand>,
    /// What a finish is to record that runs at some time: on a session that is gone, or that waits for a lock.
    unanswered: Option<InHand>,
    knows: Knowledge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// How often it was started.
    server: u8,
    epochs: Vec<Epoch>,
    instances: [Instance; INSTANCES],
    /// Which event the row has now. The counts below are of this event.
    event: u8,
    /// An event has the record of another one.
    mistaken: bool,
    claimed_by: Owner,
    /// What `claimed_by` is after a crash that loses all that is not flushed.
    flushed: Owner,
    done: bool,
    records: u8,
    /// What the record says.
    repeated: bool,
    posts: u8,
    /// A row was taken from an instance that lives and has a session, or that was declared dead.
    stolen: bool,
    /// An instance that came back before anybody was late found its row in other hands.
    robbed: bool,
    /// An instance was declared dead while it lived.
    late: bool,
    losses: u8,
    deaths: u8,
    crashes: u8,
    returns: u8,
}

impl World {
    fn epoch(&self, n: usize) -> Option<usize> {
        self.instances[n].epochs.last().copied()
    }

    fn lives(&self, n: usize, session: usize) -> bool {
        self.epoch(n).is_some_and(|epoch| self.epochs[epoch].sessions[session])
    }

    fn all_live(&self, n: usize) -> bool {
        (0..3).all(|session| self.lives(n, session))
    }

    /// A write that is flushed, with all that was written before.
    fn flush(&mut self) {
        self.flushed = self.claimed_by;
    }

    /// A crash may have lost that a row was given back, and who claimed it then. The row is again that of the instance
    /// which gave it back, and no other one may adopt it. It is posted again, and marked.
    fn may_have_lost_a_return(&self) -> bool {
        self.crashes > 0 && self.returns > 0
    }
}

/// The sessions that an instance loses, and the statement that is on its way then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    One(usize),
    /// The session that claims, and the answer to a claim.
    Claiming,
    All,
    /// All, and the answer to a finish, which runs at some time.
    Finishing,
    /// All, and the answer to an adoption.
    Adopting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Register(usize),
    Adopt(usize),
    Look(usize, Pause),
    Claim(usize),
    /// The row goes, and another event gets its id.
    Replace,
    /// A finish begins, and does not run yet.
    BeginFinish(usize),
    GiveBack(usize),
    Post(usize),
    Finish(usize),
    /// The result of a lost claim comes.
    FinishLost(usize),
    /// A finish runs whose session is gone.
    FinishUnanswered(usize),
    Lose(usize, Loss),
    /// With whether a finish is on its way.
    Die(usize, bool),
    /// The server ends all sessions and starts again.
    Crash {
        /// What is not flushed is lost.
        loses: bool,
        /// The postmaster starts anew, not only its backends.
        restarts: bool,
    },
}

struct Takeover {
    variant: Variant,
    bounds: Bounds,
}

impl Takeover {
    /// `finish.sql`.
    fn finish(&self, world: &mut World, row: &InHand) {
        let is_same = row.event == world.event || self.variant == Variant::FinishById;
        let ours = is_same && world.claimed_by == Owner::Epoch(row.epoch) && !world.done;
        if ours || self.variant == Variant::FinishUnguarded {
            world.done = true;
            world.records += 1;
            world.mistaken |= row.event != world.event;
            world.repeated = row.previous != Owner::Nobody;
            world.flush();
        }
    }

    /// The condition of `claim.sql`, with the dead that the instance knows.
    fn is_claimable(&self, world: &World, n: usize) -> bool {
        let knows = &world.instances[n].knows;
        !world.done
            && match world.claimed_by {
                Owner::Nobody | Owner::Forgotten => true,
                Owner::Epoch(epoch) if self.variant == Variant::NotLivingIsDead => {
                    !knows.found.contains(&(epoch, Seen::Alive)) && world.epoch(n) != Some(epoch)
                }
                Owner::Epoch(epoch) => knows.dead().contains(&epoch),
            }
    }

    /// `claim.sql`.
    fn claim(&self, world: &mut World, n: usize) -> Option<InHand> {
        if let Owner::Epoch(old) = world.claimed_by {
            world.stolen |= !world.epochs[old].dead && world.epochs[old].sessions.contains(&true);
        }
        let epoch = world.epoch(n)?;
        let previous = std::mem::replace(&mut world.claimed_by, Owner::Epoch(epoch));
        Some(InHand { event: world.event, epoch, previous, posted: false })
    }

    /// `adopt.sql`. Whether the row is the instance's now.
    fn adopt(&self, world: &mut World, n: usize) -> bool {
        let Some(row) = &world.instances[n].in_hand else { return false };
        let [older @ .., new] = &world.instances[n].epochs[..] else { return false };
        let ours = match world.claimed_by {
            _ if row.event != world.event && self.variant != Variant::AdoptById => false,
            _ if self.variant == Variant::AdoptUnguarded => true,
            Owner::Epoch(epoch) if older.contains(&epoch) => true,
            Owner::Nobody => self.variant != Variant::AdoptNoUnclaimed,
            owner => owner == row.previous && self.variant != Variant::AdoptNoPrevious,
        };
        if ours && !world.done {
            world.claimed_by = Owner::Epoch(*new);
            world.flush();
        }
        ours && !world.done
    }

    /// `declare_dead.sql`.
    fn look(&self, world: &mut World, n: usize, pause: Pause) {
        let own = world.epoch(n);
        let sure = world.instances[n].knows.overdue(pause);
        let mut found = Vec::new();
        for epoch in (0..world.epochs.len()).filter(|epoch| Some(*epoch) != own) {
            let Epoch { sessions, dead, since_crash } = world.epochs[epoch].clone();
            let is_free = match self.variant {
                Variant::StrangersCount => false,
                Variant::OneLockFreeIsDead => sessions.contains(&false),
                _ => !sessions.contains(&true),
            };
            let seen = match (dead, is_free) {
                (true, _) => Seen::Dead,
                (false, false) => Seen::Alive,
                (false, true) if sure.contains(&epoch) => {
                    world.epochs[epoch].dead = true;
                    world.stolen |= sessions.contains(&true);
                    world.late |= world.instances.iter().any(|other| other.epochs.contains(&epoch));
                    world.flush();
                    Seen::Dead
                }
                (false, true) if since_crash => Seen::Free,
                (false, true) => Seen::Crashed,
            };
            found.push((epoch, seen));
        }
        world.instances[n].knows.look(pause, found);
    }

    fn losses(&self, world: &World, n: usize, actions: &mut Vec<Action>) {
        let instance = &world.instances[n];
        let lives = |session: &usize| world.lives(n, *session);
        if world.losses == self.bounds.losses || ![LISTENS, CLAIMS, FINISHES].iter().any(lives) {
            return;
        }
        actions.push(Action::Lose(n, Loss::All));
        match instance.stage {
            Stage::Registered if world.lives(n, LISTENS) => actions.push(Action::Lose(n, Loss::Adopting)),
            Stage::Serves => {
                let one = [LISTENS, CLAIMS, FINISHES].into_iter().filter(lives);
                actions.extend(one.map(|session| Action::Lose(n, Loss::One(session))));
                if self.may_claim(world, n) {
                    actions.push(Action::Lose(n, Loss::Claiming));
                }
                if instance.in_hand.as_ref().is_some_and(|row| row.posted) && world.lives(n, FINISHES) {
                    actions.push(Action::Lose(n, Loss::Finishing));
                }
            }
            Stage::Out | Stage::Registered | Stage::Adopted => {}
        }
    }

    fn may_claim(&self, world: &World, n: usize) -> bool {
        let instance = &world.instances[n];
        instance.stage == Stage::Serves
            && world.lives(n, CLAIMS)
            && instance.in_hand.as_ref().is_none_or(|row| row.event != world.event)
            && (self.variant == Variant::NoBarrier || !instance.knows.claims_wait())
            && self.is_claimable(world, n)
    }
}

impl Model for Takeover {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let instance = Instance {
            alive: true,
            stage: Stage::Out,
            epochs: Vec::new(),
            in_hand: None,
            lost: None,
            unanswered: None,
            knows: Knowledge::default(),
        };
        vec![World {
            server: 0,
            epochs: Vec::new(),
            instances: [instance.clone(), instance],
            event: 0,
            mistaken: false,
            claimed_by: Owner::Nobody,
            flushed: Owner::Nobody,
            done: false,
            records: 0,
            repeated: false,
            posts: 0,
            stolen: false,
            robbed: false,
            late: false,
            losses: 0,
            deaths: 0,
            crashes: 0,
            returns: 0,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.crashes < self.bounds.crashes {
            for restarts in [false, true] {
                actions.push(Action::Crash { loses: false, restarts });
                if world.flushed != world.claimed_by {
                    actions.push(Action::Crash { loses: true, restarts });
                }
            }
        }
        if world.event < self.bounds.replaced {
            actions.push(Action::Replace);
        }
        for (n, instance) in world.instances.iter().enumerate() {
            if instance.unanswered.is_some() {
                actions.push(Action::FinishUnanswered(n));
            }
            if !instance.alive {
                continue;
            }
            let has_posted = instance.in_hand.as_ref().is_some_and(|row| row.posted);
            if world.deaths < self.bounds.deaths {
                actions.push(Action::Die(n, false));
                if has_posted && instance.stage == Stage::Serves && world.lives(n, FINISHES) {
                    actions.push(Action::Die(n, true));
                }
            }
            if instance.in_hand.is_some() && !has_posted {
                // With the sessions lost, too: a thread may be about to.
                actions.push(Action::Post(n));
            }
            if instance.lost.is_some() {
                actions.push(Action::FinishLost(n));
            }
            if !world.all_live(n) {
                actions.push(Action::Register(n));
            }
            self.losses(world, n, actions);
            match instance.stage {
                Stage::Out => {}
                Stage::Registered if world.lives(n, LISTENS) => actions.push(Action::Adopt(n)),
                Stage::Adopted | Stage::Serves if world.lives(n, LISTENS) => {
                    actions.extend([Pause::None, Pause::Short, Pause::Long].map(|p| Action::Look(n, p)));
                }
                Stage::Registered | Stage::Adopted | Stage::Serves => {}
            }
            if instance.stage != Stage::Serves {
                continue;
            }
            if self.may_claim(world, n) {
                actions.push(Action::Claim(n));
            }
            if has_posted && world.lives(n, FINISHES) && instance.unanswered.is_none() {
                actions.push(Action::Finish(n));
                if self.bounds.replaced > 0 {
                    actions.push(Action::BeginFinish(n));
                }
            }
            if instance.in_hand.is_some()
                && !has_posted
                && world.lives(n, CLAIMS)
                && world.returns < self.bounds.returns
            {
                actions.push(Action::GiveBack(n));
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Register(n) => {
                let instance = &mut next.instances[n];
                if let (Stage::Registered | Stage::Adopted, Some(epoch)) =
                    (instance.stage, instance.epochs.last())
                {
                    // What is left of a registration that failed is let go.
                    next.epochs[*epoch].sessions = [false; 3];
                }
                instance.epochs.push(next.epochs.len());
                instance.stage = Stage::Registered;
                next.epochs.push(Epoch { sessions: [true; 3], dead: false, since_crash: true });
                next.flush();
            }
            Action::Adopt(n) => {
                let adopted = self.adopt(&mut next, n);
                let World { instances, epochs, robbed, .. } = &mut next;
                let instance = &mut instances[n];
                let new = instance.epochs.pop().expect("it is registered");
                match &mut instance.in_hand {
                    Some(row) if adopted => row.epoch = new,
                    row => {
                        // Another instance's by now, or done: its call is not begun, or gives a result that belongs to no instance.
                        *robbed |= row.as_ref().is_some_and(|row| row.event == world.event)
                            && !world.done
                            && !world.late;
                        instance.lost = row.take().filter(|row| row.posted).or(instance.lost.take());
                    }
                }
                // retire.sql, end_sessions.sql
                for epoch in std::mem::replace(&mut instance.epochs, vec![new]) {
                    epochs[epoch].dead = true;
                    epochs[epoch].sessions = [false; 3];
                }
                instance.stage = Stage::Adopted;
                instance.knows.connect(world.server);
                next.flush();
            }
            Action::Look(n, pause) => {
                self.look(&mut next, n, pause);
                next.instances[n].stage = Stage::Serves;
            }
            Action::Claim(n) => {
                let claimed = self.claim(&mut next, n);
                let instance = &mut next.instances[n];
                // The claim of the event before is lost; its call may be under way.
                let before = std::mem::replace(&mut instance.in_hand, claimed);
                instance.lost = before.filter(|row| row.posted).or(instance.lost.take());
            }
            Action::Replace => {
                next.event += 1;
                (next.claimed_by, next.flushed) = (Owner::Nobody, Owner::Nobody);
                (next.done, next.records, next.repeated, next.posts) = (false, 0, false, 0);
            }
            Action::BeginFinish(n) => next.instances[n].unanswered = next.instances[n].in_hand.clone(),
            Action::GiveBack(n) => {
                // give_back.sql
                let row = next.instances[n].in_hand.take()?;
                // A row that is gone was not begun either: the later claim of the id stays (`InHand::give_back`).
                if row.event == world.event && world.claimed_by == Owner::Epoch(row.epoch) && !world.done {
                    let repeated = row.previous != Owner::Nobody;
                    next.claimed_by = if repeated { Owner::Forgotten } else { Owner::Nobody };
                }
                next.returns += 1;
            }
            Action::Post(n) => {
                let row = next.instances[n].in_hand.as_mut()?;
                row.posted = true;
                next.posts += u8::from(row.event == world.event);
            }
            Action::Finish(n) => {
                let row = next.instances[n].in_hand.take()?;
                self.finish(&mut next, &row);
            }
            Action::FinishLost(n) => {
                let row = next.instances[n].lost.take()?;
                if self.variant == Variant::ResultByRow
                    && let Some(held) = next.instances[n].in_hand.take()
                {
                    self.finish(&mut next, &InHand { epoch: held.epoch, ..row });
                }
            }
            Action::FinishUnanswered(n) => {
                let row = next.instances[n].unanswered.take()?;
                self.finish(&mut next, &row);
                // Where the session lives, the instance gets the answer (`InHand::over`).
                let held = &mut next.instances[n].in_hand;
                let is_it = |held: &InHand| {
                    held.epoch == row.epoch && (held.event == row.event || self.variant == Variant::OverById)
                };
                if world.epoch(n) == Some(row.epoch)
                    && world.lives(n, FINISHES)
                    && held.as_ref().is_some_and(is_it)
                {
                    *held = None;
                }
            }
            Action::Lose(n, loss) => {
                next.losses += 1;
                match loss {
                    Loss::Claiming => _ = self.claim(&mut next, n)?,
                    Loss::Finishing => next.instances[n].unanswered = next.instances[n].in_hand.clone(),
                    Loss::Adopting => _ = self.adopt(&mut next, n),
                    Loss::One(_) | Loss::All => {}
                }
                let sessions = &mut next.epochs[world.epoch(n)?].sessions;
                match loss {
                    Loss::One(session) => sessions[session] = false,
                    Loss::Claiming => sessions[CLAIMS] = false,
                    Loss::All | Loss::Finishing | Loss::Adopting => *sessions = [false; 3],
                }
            }
            Action::Die(n, finishing) => {
                next.deaths += 1;
                let instance = &mut next.instances[n];
                for epoch in instance.epochs.drain(..) {
                    next.epochs[epoch].sessions = [false; 3];
                }
                let unanswered = if finishing { instance.in_hand.take() } else { instance.unanswered.take() };
                *instance = Instance {
                    alive: false,
                    stage: Stage::Out,
                    epochs: Vec::new(),
                    in_hand: None,
                    lost: None,
                    unanswered,
                    knows: Knowledge::default(),
                };
            }
            Action::Crash { loses, restarts } => {
                next.crashes += 1;
                next.server += u8::from(restarts);
                if loses {
                    next.claimed_by = world.flushed;
                }
                next.flush();
                for epoch in &mut next.epochs {
                    (epoch.sessions, epoch.since_crash) = ([false; 3], false);
                }
                next.instances.iter_mut().for_each(|instance| instance.unanswered = None);
            }
        }
        // What does not change anything is no step.
        (next != *world).then_some(next)
    }

    /// Two that steal from each other would post for ever.
    fn within_boundary(&self, world: &World) -> bool {
        world.posts <= POSTS
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ONE_RECORD, |_, world: &World| world.records == u8::from(world.done)),
            Property::always("not for ever", |_, world: &World| world.posts < POSTS),
            Property::always("no record without a post", |_, world: &World| !world.done || world.posts > 0),
            // The barrier waits for some seconds. A claim that was lost in a crash is forgotten when its instance has not
            // come back by then.
            Property::always(MARKED, |_, world: &World| {
                let forgotten = world.crashes > 0 && (world.late || world.deaths > 0);
                !world.done || world.posts < 2 || world.repeated || forgotten
            }),
            Property::always(NOT_REPEATED, |_, world: &World| {
                world.late || world.deaths > 0 || world.may_have_lost_a_return() || world.posts < 2
            }),
            Property::always(NOT_ROBBED, |_, world: &World| !world.robbed || world.may_have_lost_a_return()),
            Property::always(NOT_MISTAKEN, |_, world: &World| !world.mistaken),
            Property::always(NOT_STOLEN, |_, world: &World| !world.stolen),
            Property::always(NOTHING_LEFT, |model: &Takeover, world: &World| {
                let mut actions = Vec::new();
                model.actions(world, &mut actions);
                let goes_on = actions.into_iter().any(|action| {
                    !matches!(action, Action::Die(..) | Action::Lose(..) | Action::Crash { .. })
                        && model.next_state(world, action).is_some()
                });
                world.done || goes_on
            }),
        ];
        if self.bounds.deaths > 0 {
            properties
                .push(Property::sometimes("a row is posted twice", |_, w: &World| w.done && w.posts > 1));
        }
        if self.bounds.losses > 0 {
            properties.extend([
                Property::sometimes("a late finish finds nothing to do", |_, world: &World| {
                    let fenced = |row: &InHand| row.posted && world.claimed_by != Owner::Epoch(row.epoch);
                    world.done && world.instances.iter().any(|one| one.in_hand.as_ref().is_some_and(fenced))
                }),
                Property::sometimes("a row comes back to who lost it", |_, world: &World| {
                    world.instances.iter().any(|one| one.lost.is_some() && one.in_hand.is_some())
                }),
            ]);
        }
        if self.bounds.crashes > 0 {
            properties.push(Property::sometimes(
                "the barrier holds a claim up",
                |model: &Takeover, world: &World| {
                    let waits = |n: usize| {
                        let instance = &world.instances[n];
                        instance.stage == Stage::Serves
                            && instance.knows.claims_wait()
                            && model.is_claimable(world, n)
                    };
                    (0..INSTANCES).any(waits)
                },
            ));
        }
        properties
    }
}

const ONE_RECORD: &str = "one record";
const MARKED: &str = "what was posted twice is marked";
const NOT_REPEATED: &str = "when nothing dies and nobody is late, nothing is posted twice";
const NOT_ROBBED: &str = "an instance that is back in time keeps its row";
const NOT_MISTAKEN: &str = "no event has the record of another";
const NOT_STOLEN: &str = "nothing is taken from the living";
const NOTHING_LEFT: &str = "nothing is left";

/// Sessions are lost and an instance dies; the server stays up.
const LOSSES: Bounds = Bounds { losses: 2, deaths: 1, crashes: 0, returns: 0, replaced: 0 };
/// The server crashes, and an instance dies before or after that.
const CRASH: Bounds = Bounds { losses: 0, deaths: 1, crashes: 1, returns: 1, replaced: 0 };
/// The server crashes, and sessions are lost before or after that.
const CRASH_AND_LOSS: Bounds = Bounds { losses: 1, deaths: 0, crashes: 1, returns: 0, replaced: 0 };

/// Another event gets the row's id, and sessions are lost before or after that.
const REPLACED: Bounds = Bounds { losses: 1, deaths: 0, crashes: 0, returns: 1, replaced: 1 };

fn holds(bounds: Bounds) {
    let checker = Takeover { variant: Variant::Ours, bounds }.checker().spawn_bfs().join();
    assert!(checker.is_done());
    println!("takeover: {} states", checker.unique_state_count());
    checker.assert_properties();
}

/// A search that ends with the first state that breaks the property.
fn fails(variant: Variant, bounds: Bounds, property: &'static str) {
    let broken = HasDiscoveries::AnyOf([property].into());
    let checker = Takeover { variant, bounds }.checker().finish_when(broken).spawn_bfs().join();
    checker.assert_any_discovery(property);
}

#[test]
fn each_row_has_one_record_whichever_instance_dies_or_loses_its_sessions() {
    holds(LOSSES);
}

#[test]
fn each_row_has_one_record_when_the_server_crashes_and_an_instance_dies() {
    holds(CRASH);
}

#[test]
fn each_row_has_one_record_when_the_server_crashes_and_sessions_are_lost() {
    holds(CRASH_AND_LOSS);
}

#[test]
fn each_event_has_its_own_record_when_another_one_gets_the_id_of_its_row() {
    holds(REPLACED);
}

#[test]
fn an_adoption_by_the_id_alone_leaves_the_row_that_has_the_id_now() {
    fails(Variant::AdoptById, REPLACED, NOTHING_LEFT);
}

#[test]
fn a_finish_by_the_id_alone_gives_an_event_the_record_of_another() {
    fails(Variant::FinishById, REPLACED, NOT_MISTAKEN);
}

#[test]
fn an_end_by_the_id_alone_leaves_the_row_that_has_the_id_now() {
    fails(Variant::OverById, REPLACED, NOTHING_LEFT);
}

#[test]
fn a_finish_without_its_guard_records_twice() {
    fails(Variant::FinishUnguarded, LOSSES, ONE_RECORD);
}

#[test]
fn a_result_that_counts_for_another_claim_is_not_marked() {
    fails(Variant::ResultByRow, LOSSES, MARKED);
}

#[test]
fn not_in_the_list_of_the_living_is_not_dead() {
    fails(Variant::NotLivingIsDead, LOSSES, NOT_STOLEN);
}

#[test]
fn where_a_strangers_lock_counts_rows_are_left() {
    fails(Variant::StrangersCount, LOSSES, NOTHING_LEFT);
}

#[test]
fn an_instance_that_has_lost_one_session_is_not_dead() {
    fails(Variant::OneLockFreeIsDead, LOSSES, NOT_STOLEN);
}

#[test]
fn without_the_barrier_a_crash_posts_a_row_twice_and_takes_it_from_its_owner() {
    fails(Variant::NoBarrier, CRASH, NOT_REPEATED);
    fails(Variant::NoBarrier, CRASH, NOT_ROBBED);
    // No instance dies, and none is late: the mark would be the only excuse.
    fails(Variant::NoBarrier, Bounds { deaths: 0, ..CRASH }, MARKED);
}

#[test]
fn an_adoption_without_its_guard_hides_that_a_row_was_posted_twice() {
    fails(Variant::AdoptUnguarded, LOSSES, MARKED);
}

#[test]
fn an_adoption_that_leaves_unclaimed_rows_loses_those_whose_claim_a_crash_took() {
    fails(Variant::AdoptNoUnclaimed, CRASH, NOT_ROBBED);
    fails(Variant::AdoptNoUnclaimed, CRASH, NOT_REPEATED);
}

#[test]
fn an_adoption_that_leaves_rows_of_a_previous_owner_loses_those_whose_takeover_a_crash_took() {
    fails(Variant::AdoptNoPrevious, CRASH, NOT_ROBBED);
}
