//! Each row has one record, whoever dies, freezes or loses its session, and only a row whose instance lost it is posted
//! again.
//!
//! The steps are those of `src/daemon/membership.rs` and `sql/queries`: an instance registers (`draw_lock.sql`, `register.sql`: its
//! liveness locks, then the listing; here one), adopts what it has in hand (`adopt.sql`) and ends its older epochs
//! (`retire.sql`); it looks at the others' locks and declares them dead (`declare_dead.sql`), claims with the list of the
//! dead that it read then (`claim.sql`), posts, and finishes with its guard (`finish.sql`). A session can be lost at any moment, and its
//! lock with it; a process can die. A frozen one is one that does nothing for a while. A call that is in flight when its
//! row is found to be lost goes on, and its result comes at some time, perhaps when the process has claimed the row anew.
//! A finish that was on its way when its session was lost may still run, and nobody gets its answer.
//!
//! Left out: times (a free lock is looked at twice, calls do not start late), so that the promise about records holds
//! without them; more than one row, for rows do not depend on each other.

use stateright::{Checker, Model, Property};

const PROCESSES: usize = 2;
/// Sessions that are lost, and processes that die, at most.
const LOSSES: u8 = 2;
const DEATHS: u8 = 1;
/// More than there can be with so many.
const POSTS: u8 = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Ours,
    /// The finish asks only whether the row is there.
    NoGuard,
    /// Rows of epochs that are not in the list of the living are claimed: an instance that registered after that list
    /// was read is not in it.
    Living,
    /// A result is recorded under the claim that the process has on the row when it comes, not the one that made it.
    ByRow,
    /// A lock counts, whoever holds it: a stranger has taken those of everybody.
    Strangers,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Epoch {
    /// Some session has the liveness lock.
    locked: bool,
    /// `dead_at` is set.
    dead: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InHand {
    epoch: usize,
    repeated: bool,
    posted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    alive: bool,
    /// Of its session; none when it is lost.
    epoch: Option<usize>,
    /// Registered, and has not adopted yet.
    adopts: bool,
    /// All that it ever had.
    epochs: Vec<usize>,
    in_hand: Option<InHand>,
    /// A lost one whose call has been made, and whose result has not come yet.
    lost: Option<InHand>,
    /// What a finish on a session that is gone was to record.
    unanswered: Option<InHand>,
    /// The epochs whose rows it may take over, or with the wrong variant the living, as it last read them.
    list: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    epochs: Vec<Epoch>,
    processes: [Process; PROCESSES],
    claimed_by: Option<usize>,
    done: bool,
    records: u8,
    /// What the record says.
    repeated: bool,
    posts: u8,
    /// A row was taken from an instance that lives, with its session.
    stolen: bool,
    losses: u8,
    deaths: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Register(usize),
    Adopt(usize),
    Read(usize),
    Bury(usize, usize),
    Claim(usize),
    Post(usize),
    Finish(usize),
    /// The result of a lost claim comes.
    FinishLost(usize),
    /// A finish runs whose session is gone.
    FinishUnanswered(usize),
    Lose(usize),
    /// The same, with a finish on its way.
    LoseFinishing(usize),
    Die(usize),
}

struct Takeover {
    variant: Variant,
}

impl Takeover {
    /// `finish.sql`.
    fn finish(&self, world: &mut World, row: &InHand) {
        let ours = world.claimed_by == Some(row.epoch) && !world.done;
        if ours || self.variant == Variant::NoGuard {
            world.done = true;
            world.records += 1;
            world.repeated = row.repeated;
        }
    }

    /// What `process` would claim with its list.
    fn claimable(&self, world: &World, process: &Process) -> bool {
        !world.done
            && match world.claimed_by {
                None => true,
                Some(epoch) if self.variant == Variant::Living => {
                    !process.list.contains(&epoch) && process.epoch != Some(epoch)
                }
                Some(epoch) => process.list.contains(&epoch),
            }
    }
}

impl Model for Takeover {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let process = Process {
            alive: true,
            epoch: None,
            adopts: false,
            epochs: Vec::new(),
            in_hand: None,
            lost: None,
            unanswered: None,
            list: Vec::new(),
        };
        vec![World {
            epochs: Vec::new(),
            processes: [process.clone(), process],
            claimed_by: None,
            done: false,
            records: 0,
            repeated: false,
            posts: 0,
            stolen: false,
            losses: 0,
            deaths: 0,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (n, process) in world.processes.iter().enumerate().filter(|(_, process)| process.alive) {
            if world.deaths < DEATHS {
                actions.push(Action::Die(n));
            }
            if process.in_hand.as_ref().is_some_and(|row| !row.posted) {
                // With the session lost, too: a thread may be about to.
                actions.push(Action::Post(n));
            }
            if process.unanswered.is_some() {
                actions.push(Action::FinishUnanswered(n));
            }
            if process.epoch.is_none() {
                actions.push(Action::Register(n));
                continue;
            }
            if world.losses < LOSSES {
                actions.push(Action::Lose(n));
                if process.in_hand.as_ref().is_some_and(|row| row.posted) && !process.adopts {
                    actions.push(Action::LoseFinishing(n));
                }
            }
            if process.adopts {
                actions.push(Action::Adopt(n));
                continue;
            }
            actions.push(Action::Read(n));
            for (epoch, state) in world.epochs.iter().enumerate() {
                if !state.dead && !state.locked {
                    actions.push(Action::Bury(n, epoch));
                }
            }
            if process.lost.is_some() {
                actions.push(Action::FinishLost(n));
            }
            match &process.in_hand {
                None if self.claimable(world, process) => actions.push(Action::Claim(n)),
                Some(row) if row.posted => actions.push(Action::Finish(n)),
                _ => {}
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Register(n) => {
                let epoch = world.epochs.len();
                next.epochs.push(Epoch { locked: true, dead: false });
                next.processes[n].epoch = Some(epoch);
                next.processes[n].adopts = true;
                next.processes[n].epochs.push(epoch);
            }
            Action::Adopt(n) => {
                let process = &mut next.processes[n];
                let new = process.epoch.expect("it has a session");
                let mine = |epoch: usize| process.epochs.contains(&epoch);
                if let Some(row) = &mut process.in_hand {
                    if !world.done && world.claimed_by.is_some_and(mine) {
                        next.claimed_by = Some(new);
                        row.epoch = new;
                    } else {
                        // Somebody else's by now: its call is not begun, or gives a result that is nobody's.
                        process.lost =
                            process.in_hand.take().filter(|row| row.posted).or(process.lost.take());
                    }
                }
                for epoch in process.epochs.iter().filter(|epoch| **epoch != new) {
                    next.epochs[*epoch].dead = true;
                }
                process.adopts = false;
            }
            Action::Read(n) => {
                let living = self.variant == Variant::Living;
                let wanted = |state: &Epoch| if living { state.locked && !state.dead } else { state.dead };
                next.processes[n].list = world
                    .epochs
                    .iter()
                    .enumerate()
                    .filter(|(_, state)| wanted(state))
                    .map(|(e, _)| e)
                    .collect();
            }
            Action::Bury(_, epoch) => next.epochs[epoch].dead = true,
            Action::Claim(n) => {
                let epoch = next.processes[n].epoch.expect("it has a session");
                next.stolen |=
                    world.claimed_by.is_some_and(|old| world.epochs[old].locked && !world.epochs[old].dead);
                let repeated = world.claimed_by.is_some();
                next.claimed_by = Some(epoch);
                next.processes[n].in_hand = Some(InHand { epoch, repeated, posted: false });
            }
            Action::Post(n) => {
                next.posts += 1;
                next.processes[n].in_hand.as_mut()?.posted = true;
            }
            Action::Finish(n) => {
                let row = next.processes[n].in_hand.take()?;
                self.finish(&mut next, &row);
            }
            Action::FinishLost(n) => {
                let row = next.processes[n].lost.take()?;
                if self.variant == Variant::ByRow
                    && let Some(held) = next.processes[n].in_hand.take()
                {
                    self.finish(&mut next, &InHand { epoch: held.epoch, ..row });
                }
            }
            Action::FinishUnanswered(n) => {
                let row = next.processes[n].unanswered.take()?;
                self.finish(&mut next, &row);
            }
            Action::Lose(n) | Action::LoseFinishing(n) => {
                if let Action::LoseFinishing(_) = action {
                    let process = &mut next.processes[n];
                    process.unanswered.clone_from(&process.in_hand);
                }
                next.losses += 1;
                let epoch = next.processes[n].epoch.take()?;
                next.epochs[epoch].locked = self.variant == Variant::Strangers;
                next.processes[n].adopts = false;
            }
            Action::Die(n) => {
                next.deaths += 1;
                next.processes[n].alive = false;
                if let Some(epoch) = next.processes[n].epoch.take() {
                    next.epochs[epoch].locked = self.variant == Variant::Strangers;
                }
                next.processes[n].in_hand = None;
                next.processes[n].lost = None;
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
        vec![
            Property::always("one record", |_, world: &World| world.records == u8::from(world.done)),
            Property::always("not for ever", |_, world: &World| world.posts < POSTS),
            Property::always("no record without a post", |_, world: &World| !world.done || world.posts > 0),
            Property::always("what was posted twice is marked", |_, world: &World| {
                !world.done || world.posts < 2 || world.repeated
            }),
            Property::always("nothing harmed, nothing repeated", |_, world: &World| {
                world.losses + world.deaths > 0 || world.posts < 2
            }),
            Property::always("nothing is taken from the living", |_, world: &World| !world.stolen),
            Property::always("nothing is left", |model: &Takeover, world: &World| {
                let mut actions = Vec::new();
                model.actions(world, &mut actions);
                let goes_on = actions.into_iter().any(|action| {
                    !matches!(action, Action::Die(_) | Action::Lose(_) | Action::LoseFinishing(_))
                        && model.next_state(world, action).is_some()
                });
                world.done || goes_on
            }),
            Property::sometimes("a row is posted twice", |_, world: &World| world.done && world.posts > 1),
            Property::sometimes("a late finish finds nothing to do", |_, world: &World| {
                world.done
                    && world.processes.iter().any(|process| {
                        process
                            .in_hand
                            .as_ref()
                            .is_some_and(|row| row.posted && world.claimed_by != Some(row.epoch))
                    })
            }),
            Property::sometimes("a row comes back to who lost it", |_, world: &World| {
                world.processes.iter().any(|process| process.lost.is_some() && process.in_hand.is_some())
            }),
        ]
    }
}

fn check(variant: Variant) -> impl Checker<Takeover> {
    Takeover { variant }.checker().spawn_bfs().join()
}

#[test]
fn each_row_has_one_record_whoever_dies() {
    let checker = check(Variant::Ours);
    assert!(checker.is_done());
    println!("takeover: {} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn a_finish_without_its_guard_records_twice() {
    check(Variant::NoGuard).assert_any_discovery("one record");
}

#[test]
fn a_result_that_counts_for_another_claim_is_not_marked() {
    check(Variant::ByRow).assert_any_discovery("what was posted twice is marked");
}

#[test]
fn not_in_the_list_of_the_living_is_not_dead() {
    check(Variant::Living).assert_any_discovery("nothing is taken from the living");
}

#[test]
fn where_a_strangers_lock_counts_rows_are_left() {
    check(Variant::Strangers).assert_any_discovery("nothing is left");
}
