//! Which call is next: the calls that wait, by webhook; and how much to claim so that none waits for long.
//!
//! Pure rules over plain state. The scheduler has no clock: each function that needs the time gets it. It has no thread
//! either: a job is whatever makes one call, and the caller runs it. [`limits`](crate::dispatch::limits) says how many
//! calls may run.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::dispatch::limits::{AHEAD_MAX, Class, Limits, Pace, SLOW, Slots};

/// A full webhook whose calls take no longer than this has a free slot again in a moment: claiming waits for it. The
/// rows of a slower one are parked.
const QUICK: Duration = Duration::from_millis(5);
/// While claiming waits for a quick webhook, the budget is worth another question after this time: the webhook may turn
/// out not to be quick.
const AGAIN_MIN: Duration = Duration::from_millis(5);
/// A webhook also turns out to be slow as time passes. On that account the budget is worth another question after this time at
/// the earliest.
const AGAIN: Duration = Duration::from_millis(100);
/// When no webhook can turn out to be slow, only calls that end change the budget. The daemon asks all the same, now and
/// then.
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// Parked rows that are claimed at once of a project of whose webhooks nothing is known: enough for a few webhooks, and few
/// to take back when they hang.
const UNKNOWN: usize = 8;
/// The scheduler forgets what it knows about a webhook after this time without a call.
const FORGET: Duration = Duration::from_secs(60);

/// A call that was started. The caller hands it back when the call has ended.
#[derive(Debug)]
pub(crate) struct Ticket {
    webhook_id: i64,
    number: u64,
    started: Instant,
}

/// What may be claimed now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ClaimBudget {
    /// Rows that can start soon.
    pub limit: usize,
    /// Minimum batch: with a lower limit a claim is not worth its round trip.
    pub batch_min: usize,
    /// Projects with a full webhook: their rows are parked, not claimed.
    pub park: Vec<i64>,
    /// After this time the budget may be another one although no call has ended.
    pub again: Duration,
}

struct Running {
    number: u64,
    started: Instant,
    class: Class,
}

struct Endpoint<J> {
    project_id: i64,
    waiting: VecDeque<J>,
    running: Vec<Running>,
    pace: Pace,
    /// Whether it stands in one of the queues.
    queued: bool,
    last_used: Instant,
}

impl<J> Endpoint<J> {
    fn in_hand(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// The age of the oldest call that runs.
    fn oldest(&self, now: Instant) -> Option<Duration> {
        self.running.iter().map(|call| now - call.started).max()
    }

    fn class(&self, now: Instant) -> Class {
        self.pace.class(self.oldest(now))
    }

    /// Rows to claim ahead for it.
    fn ahead(&self, limits: &Limits, now: Instant) -> usize {
        self.pace.ahead(self.oldest(now), limits)
    }
}

/// Waiting and running calls by webhook. `J` is a job: whatever makes one call.
pub(crate) struct Scheduler<J> {
    limits: Limits,
    slots: Slots,
    endpoints: HashMap<i64, Endpoint<J>>,
    // By class, webhooks with a waiting call and a free slot of their own, in turn. Each stands in one queue at most.
    // When its turn comes, the scheduler looks at its class again.
    queues: [VecDeque<i64>; 3],
    // Calls that were started within the last SLOW, in order; ended ones stay until then.
    young: VecDeque<(Instant, i64, u64)>,
    waiting: usize,
    /// Counts the calls. It also says which queue is asked first, so that the classes take turns.
    started: u64,
    /// Projects that have parked rows, as far as the daemon knows.
    parked: HashSet<i64>,
    /// The project that was last given capacity for parked rows.
    last_unparked: i64,
}

impl<J> Scheduler<J> {
    /// No calls.
    pub(crate) fn new(limits: Limits) -> Self {
        Scheduler {
            limits,
            slots: Slots::new(limits),
            endpoints: HashMap::new(),
            queues: Default::default(),
            young: VecDeque::new(),
            waiting: 0,
            started: 0,
            parked: HashSet::new(),
            last_unparked: i64::MAX,
        }
    }

    /// Most calls running, as the operator set it.
    pub(crate) fn workers(&self) -> usize {
        self.limits.workers
    }

    /// Most calls running, in all.
    pub(crate) fn running_max(&self) -> usize {
        self.slots.running_max()
    }

    /// Calls running.
    pub(crate) fn running(&self) -> usize {
        self.slots.running()
    }

    /// Calls that have started so far.
    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    /// Calls waiting and running.
    pub(crate) fn in_hand(&self) -> usize {
        self.running() + self.waiting
    }

    /// How long the oldest call has been running.
    pub(crate) fn longest_running(&self, now: Instant) -> Duration {
        let started = self.endpoints.values().flat_map(|endpoint| &endpoint.running).map(|call| call.started);
        started.min().map_or(Duration::ZERO, |started| now.saturating_duration_since(started))
    }

    /// The webhooks with most calls running, at most so many, each with how many.
    pub(crate) fn busiest(&self, most: usize) -> Vec<(i64, usize)> {
        let busy = self.endpoints.iter().filter(|(_, endpoint)| !endpoint.running.is_empty());
        let mut busy: Vec<(i64, usize)> = busy.map(|(id, endpoint)| (*id, endpoint.running.len())).collect();
        busy.sort_unstable_by_key(|(id, running)| (std::cmp::Reverse(*running), *id));
        busy.truncate(most);
        busy
    }

    /// Adds a call that waits for a slot.
    pub(crate) fn push(&mut self, webhook_id: i64, project_id: i64, job: J, now: Instant) {
        let endpoint = self.endpoints.entry(webhook_id).or_insert_with(|| Endpoint {
            project_id,
            waiting: VecDeque::new(),
            running: Vec::new(),
            pace: Pace::default(),
            queued: false,
            last_used: now,
        });
        endpoint.waiting.push_back(job);
        self.waiting += 1;
        self.queue(webhook_id, now);
    }

    /// Puts a webhook into the queue of its class when it can start a call as far as its own slots go.
    fn queue(&mut self, webhook_id: i64, now: Instant) {
        let Some(endpoint) = self.endpoints.get_mut(&webhook_id) else { return };
        let class = endpoint.class(now);
        let slots = self.slots.of_webhook(class);
        if endpoint.queued || endpoint.waiting.is_empty() || endpoint.running.len() >= slots {
            return;
        }
        endpoint.queued = true;
        self.queues[class as usize].push_back(webhook_id);
    }

    /// Whether [`Scheduler::start`] would start a call.
    pub(crate) fn may_start(&self) -> bool {
        let may = |class: Class| self.slots.has_free(class) && !self.queues[class as usize].is_empty();
        Class::ALL.into_iter().any(may)
    }

    /// Takes the next call that may start: the classes take turns, and the webhooks of a class.
    pub(crate) fn start(&mut self, now: Instant) -> Option<(Ticket, J)> {
        self.grow_old(now);
        let first = usize::try_from(self.started % 3).expect("below 3");
        for class in Class::ALL.into_iter().cycle().skip(first).take(3) {
            while self.slots.has_free(class) {
                let Some(webhook_id) = self.queues[class as usize].pop_front() else { break };
                if let Some(started) = self.start_one(webhook_id, class, now) {
                    return Some(started);
                }
            }
        }
        None
    }

    /// Starts a call of the webhook, unless its class is another one by now; then it goes to that queue.
    fn start_one(&mut self, webhook_id: i64, class: Class, now: Instant) -> Option<(Ticket, J)> {
        // The webhook may have been forgotten since it was queued, or its waiting calls dropped.
        let endpoint = self.endpoints.get_mut(&webhook_id)?;
        endpoint.queued = false;
        if endpoint.class(now) != class {
            self.queue(webhook_id, now);
            return None;
        }
        let job = endpoint.waiting.pop_front()?;
        self.started += 1;
        let number = self.started;
        endpoint.running.push(Running { number, started: now, class });
        endpoint.last_used = now;
        self.waiting -= 1;
        self.slots.take(class);
        self.young.push_back((now, webhook_id, number));
        self.queue(webhook_id, now);
        Some((Ticket { webhook_id, number, started: now }, job))
    }

    /// Counts calls that have been running for longer than [`SLOW`] as slow from then on.
    pub(crate) fn grow_old(&mut self, now: Instant) {
        while let Some((started, webhook_id, number)) = self.young.front().copied() {
            if now - started <= SLOW {
                return;
            }
            self.young.pop_front();
            let Some(endpoint) = self.endpoints.get_mut(&webhook_id) else { continue };
            if let Some(call) = endpoint.running.iter_mut().find(|call| call.number == number) {
                self.slots.free(call.class);
                call.class = Class::Slow;
                self.slots.take(Class::Slow);
                // A webhook that is known to be slow has more slots than an unproven one.
                self.queue(webhook_id, now);
            }
        }
    }

    /// Frees the slot of a call that has ended. True when the daemon should look for parked rows: the call's project has
    /// some, or another project that has some may have waited for a slot in the call's share.
    pub(crate) fn finish(&mut self, ticket: Ticket, now: Instant) -> bool {
        let took = now - ticket.started;
        let freed = self.free(&ticket, now, |endpoint| endpoint.pace.learn(took));
        freed.is_some_and(|(project_id, class)| {
            self.parked.contains(&project_id) || (class != Class::Fast && !self.parked.is_empty())
        })
    }

    /// Frees the slot of a call that was not made, and puts the call first again.
    pub(crate) fn requeue(&mut self, ticket: Ticket, job: J, now: Instant) {
        self.waiting += 1;
        self.free(&ticket, now, |endpoint| endpoint.waiting.push_front(job));
    }

    fn free(
        &mut self,
        ticket: &Ticket,
        now: Instant,
        change: impl FnOnce(&mut Endpoint<J>),
    ) -> Option<(i64, Class)> {
        let endpoint = self.endpoints.get_mut(&ticket.webhook_id)?;
        let at = endpoint.running.iter().position(|call| call.number == ticket.number)?;
        let class = endpoint.running.swap_remove(at).class;
        self.slots.free(class);
        endpoint.last_used = now;
        change(endpoint);
        let project_id = endpoint.project_id;
        self.queue(ticket.webhook_id, now);
        Some((project_id, class))
    }

    /// How much may be claimed now, and whose rows are to be parked.
    pub(crate) fn claim_budget(&mut self, now: Instant) -> ClaimBudget {
        self.grow_old(now);
        self.endpoints.retain(|_, e| e.in_hand() > 0 || now - e.last_used < FORGET);
        let unproven_wait = self.unproven_wait(now);
        let (mut ahead_all, mut waiting_soon) = (0, 0);
        let mut wait = false;
        let mut park = Vec::new();
        for endpoint in self.endpoints.values().filter(|e| e.in_hand() > 0) {
            ahead_all += endpoint.ahead(&self.limits, now);
            if endpoint.class(now) == Class::Fast {
                waiting_soon += endpoint.waiting.len();
            }
            if self.is_full(endpoint, now) {
                // No call of its own runs: it waits for the calls of other webhooks, and those take long.
                let held_up = endpoint.running.is_empty() && unproven_wait;
                if endpoint.pace.estimate(endpoint.oldest(now)) <= QUICK && !held_up {
                    wait = true;
                } else {
                    park.push(endpoint.project_id);
                }
            }
        }
        let ahead_all = ahead_all.min(AHEAD_MAX);
        let limit = (self.limits.workers + ahead_all).saturating_sub(self.running() + waiting_soon);
        // Many small claims cost more than few large ones, but only where much is going on.
        let batch_min = (self.limits.workers / 4).min(ahead_all).max(1);
        park.sort_unstable();
        park.dedup();
        let again = match self.young.front() {
            _ if wait => AGAIN_MIN,
            Some((started, ..)) => (*started + SLOW).saturating_duration_since(now).max(AGAIN),
            None => AGAIN_MAX,
        };
        ClaimBudget { limit: if wait { 0 } else { limit }, batch_min, park, again }
    }

    /// Whether unproven webhooks have no slot, and get none in a moment.
    fn unproven_wait(&self, now: Instant) -> bool {
        let is_long = |call: &&Running| call.class == Class::Unproven && now - call.started > QUICK;
        let running = self.endpoints.values().flat_map(|endpoint| &endpoint.running);
        self.slots.unproven_wait(running.filter(is_long).count())
    }

    fn is_full(&self, endpoint: &Endpoint<J>, now: Instant) -> bool {
        let class = endpoint.class(now);
        endpoint.in_hand() >= self.limits.per_webhook + endpoint.ahead(&self.limits, now)
            || (class != Class::Fast && !self.slots.has_free(class) && !endpoint.waiting.is_empty())
    }

    /// Notes projects that have parked rows, so that [`Scheduler::finish`] tells when to look for them.
    pub(crate) fn note_parked(&mut self, projects: &[i64]) {
        self.parked.extend(projects);
    }

    /// Forgets a project that has no parked rows any more.
    pub(crate) fn forget_parked(&mut self, project: i64) {
        self.parked.remove(&project);
    }

    /// Parked projects that have capacity, each with how many rows, at most so many in all. A fast webhook has capacity for
    /// what it can have in hand; the others have what their shares have slots for. The projects take turns.
    pub(crate) fn parked_room(&mut self, most: usize, now: Instant) -> Vec<(i64, i64)> {
        let mut rooms: HashMap<i64, (Class, usize)> =
            self.parked.iter().map(|project| (*project, (Class::Fast, usize::MAX))).collect();
        let mut waiting = [0; 3];
        for endpoint in self.endpoints.values() {
            let class = endpoint.class(now);
            waiting[class as usize] += endpoint.waiting.len();
            let Some((worst, room)) = rooms.get_mut(&endpoint.project_id) else { continue };
            let slots = match class {
                _ if self.is_full(endpoint, now) => 0,
                class => self.limits.of_webhook(class) + endpoint.ahead(&self.limits, now),
            };
            *room = (*room).min(slots.saturating_sub(endpoint.in_hand()));
            *worst = (*worst).max(class);
        }
        let mut left = Class::ALL.map(|class| self.slots.left(class, waiting[class as usize]));
        let mut in_turn: Vec<i64> = rooms.keys().copied().collect();
        in_turn.sort_unstable();
        let next = in_turn.partition_point(|project| *project <= self.last_unparked);
        in_turn.rotate_left(next);
        let (mut most, mut given) = (most, Vec::new());
        for project in in_turn {
            let (class, room, calls) = match rooms[&project] {
                // None of its webhooks was called lately: one call finds out. The project may also have no webhook any
                // more, and then its rows shall be gone soon.
                (_, usize::MAX) => (Class::Unproven, UNKNOWN.min(self.limits.per_webhook), 1),
                (class, room) => (class, room.min(left[class as usize]), room),
            };
            let share = &mut left[class as usize];
            let rows = room.min(most);
            if rows == 0 || *share == 0 {
                continue;
            }
            *share = share.saturating_sub(calls.min(rows));
            most -= rows;
            self.last_unparked = project;
            given.push((project, i64::try_from(rows).unwrap_or(i64::MAX)));
        }
        given
    }

    /// Changes each call that waits for a slot.
    pub(crate) fn for_each_waiting(&mut self, change: impl FnMut(&mut J)) {
        self.endpoints.values_mut().flat_map(|endpoint| &mut endpoint.waiting).for_each(change);
    }

    /// Drops the waiting calls that are not to be kept.
    pub(crate) fn retain_waiting(&mut self, mut keep: impl FnMut(&J) -> bool) {
        for endpoint in self.endpoints.values_mut() {
            let before = endpoint.waiting.len();
            endpoint.waiting.retain(&mut keep);
            self.waiting -= before - endpoint.waiting.len();
        }
    }

    /// Takes all waiting calls out, for stopping; calls that are pushed later start without regard to the limits.
    pub(crate) fn take_waiting(&mut self) -> Vec<J> {
        self.slots.lift();
        self.waiting = 0;
        self.queues.iter_mut().for_each(VecDeque::clear);
        self.endpoints
            .values_mut()
            .flat_map(|endpoint| {
                endpoint.queued = false;
                endpoint.waiting.drain(..)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { workers: 8, per_webhook: 3 };

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Webhook `n` belongs to project `n * 10`.
    fn push(scheduler: &mut Scheduler<u32>, webhook_id: i64, calls: u32, now: Instant) {
        for job in 0..calls {
            scheduler.push(webhook_id, webhook_id * 10, job, now);
        }
    }

    fn start_all(scheduler: &mut Scheduler<u32>, now: Instant) -> Vec<Ticket> {
        std::iter::from_fn(|| scheduler.start(now).map(|(ticket, _)| ticket)).collect()
    }

    /// A webhook that is known to answer within `took`.
    fn prove(scheduler: &mut Scheduler<u32>, webhook_id: i64, took: Duration, now: Instant) -> Instant {
        push(scheduler, webhook_id, 1, now);
        let (ticket, _) = scheduler.start(now).expect("a slot");
        scheduler.finish(ticket, now + took);
        now + took
    }

    #[test]
    fn a_webhook_has_no_more_than_its_slots() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        let now = prove(&mut scheduler, 1, ms(1), now);
        push(&mut scheduler, 1, 10, now);
        let mut tickets = start_all(&mut scheduler, now);
        assert_eq!(tickets.len(), 3);
        scheduler.finish(tickets.remove(0), now);
        assert_eq!(start_all(&mut scheduler, now).len(), 1);
    }

    #[test]
    fn of_an_unknown_webhook_one_call_finds_out() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        push(&mut scheduler, 1, 10, now);
        let mut tickets = start_all(&mut scheduler, now);
        assert_eq!(tickets.len(), 1);
        scheduler.finish(tickets.remove(0), now + ms(1));
        assert_eq!(start_all(&mut scheduler, now + ms(1)).len(), 3, "now it has all of its slots");
    }

    #[test]
    fn the_slow_have_half_of_the_threads_and_unproven_ones_still_get_one() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        for webhook_id in 1..=2 {
            push(&mut scheduler, webhook_id, 10, now);
        }
        assert_eq!(start_all(&mut scheduler, now).len(), 2, "a quarter of 8 for the unproven");
        // They hang; after a while they are slow, and others get to try.
        let mut later = now;
        for _ in 0..5 {
            later += SLOW + ms(1);
            start_all(&mut scheduler, later);
        }
        assert_eq!(scheduler.slots.by_class(), [0, 0, 4], "half of 8 for the slow");
        for webhook_id in 5..=7 {
            push(&mut scheduler, webhook_id, 10, later);
        }
        assert_eq!(start_all(&mut scheduler, later).len(), 2, "two unproven ones");
        // They hang, too, and are slow beyond the half. Then seven eighths are taken: no call of an unproven webhook starts,
        // but calls of fast ones do.
        later += SLOW + ms(1);
        assert_eq!(start_all(&mut scheduler, later).len(), 1);
        assert_eq!(scheduler.slots.by_class(), [0, 1, 6]);
        later += SLOW + ms(1);
        push(&mut scheduler, 8, 10, later);
        assert_eq!(start_all(&mut scheduler, later).len(), 0);
        let mut scheduler = Scheduler::new(LIMITS);
        let later = prove(&mut scheduler, 9, ms(1), now);
        for webhook_id in 1..=4 {
            push(&mut scheduler, webhook_id, 10, later);
        }
        start_all(&mut scheduler, later);
        push(&mut scheduler, 9, 3, later);
        assert_eq!(start_all(&mut scheduler, later).iter().filter(|t| t.webhook_id == 9).count(), 3);
    }

    #[test]
    fn a_fast_webhook_that_hangs_becomes_slow() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        let now = prove(&mut scheduler, 1, ms(1), now);
        push(&mut scheduler, 1, 10, now);
        let running = start_all(&mut scheduler, now);
        assert_eq!(scheduler.slots.by_class(), [3, 0, 0]);
        let later = now + SLOW + ms(1);
        scheduler.grow_old(later);
        assert_eq!(scheduler.slots.by_class(), [0, 0, 3]);
        for ticket in running {
            scheduler.finish(ticket, later);
        }
        assert_eq!(scheduler.slots.by_class(), [0, 0, 0]);
    }

    #[test]
    fn webhooks_take_turns() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(Limits { workers: 4, per_webhook: 4 });
        let now = prove(&mut scheduler, 1, ms(1), now);
        let now = prove(&mut scheduler, 2, ms(1), now);
        push(&mut scheduler, 1, 10, now);
        push(&mut scheduler, 2, 10, now);
        let started = start_all(&mut scheduler, now);
        assert_eq!(started.iter().map(|t| t.webhook_id).collect::<Vec<_>>(), [1, 2, 1, 2]);
    }

    #[test]
    fn a_full_slow_webhook_has_its_rows_parked_and_unparked_as_slots_become_free() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        push(&mut scheduler, 1, 3, now);
        let mut tickets = start_all(&mut scheduler, now);
        let budget = scheduler.claim_budget(now);
        assert_eq!((budget.limit, budget.again), (0, AGAIN_MIN), "it may be quick: wait a moment");
        let later = now + ms(50);
        let budget = scheduler.claim_budget(later);
        assert_eq!((budget.park, budget.again), (vec![10], SLOW - ms(50)), "then it is slow");
        assert_eq!(budget.limit, 7);
        scheduler.note_parked(&[10]);
        assert_eq!(scheduler.parked_room(100, later), []);
        assert!(scheduler.finish(tickets.remove(0), now + ms(2000)), "somebody must look");
        assert_eq!(scheduler.parked_room(100, now + ms(2000)), [(10, 1)]);
    }

    #[test]
    fn when_all_that_runs_is_slow_only_calls_that_end_change_the_budget() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        push(&mut scheduler, 1, 3, now);
        start_all(&mut scheduler, now);
        assert_eq!(scheduler.claim_budget(now + SLOW + ms(1)).again, AGAIN_MAX);
    }

    #[test]
    fn parked_projects_take_turns_and_get_what_the_shares_have_slots_for() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        scheduler.note_parked(&[10, 20, 30, 40, 50]);
        assert_eq!(scheduler.parked_room(100, now), [(10, 3), (20, 3)], "a quarter of 8 for the unproven");
        assert_eq!(scheduler.parked_room(100, now), [(30, 3), (40, 3)]);
        assert_eq!(scheduler.parked_room(4, now), [(50, 3), (10, 1)], "no more than asked for");
        // Known to be slow, they have half of 8 together; in hand or running makes no difference.
        let mut later = now;
        for webhook_id in 1..=3 {
            later = prove(&mut scheduler, webhook_id, SLOW + ms(1), later);
        }
        scheduler.forget_parked(40);
        scheduler.forget_parked(50);
        assert_eq!(scheduler.parked_room(100, later), [(20, 3), (30, 1)]);
        push(&mut scheduler, 1, 2, later);
        push(&mut scheduler, 2, 1, later);
        start_all(&mut scheduler, later);
        assert_eq!(scheduler.parked_room(100, later), [(10, 1)]);
        // A fast one needs no share.
        let later = prove(&mut scheduler, 4, ms(1), later);
        [10, 20, 30].into_iter().for_each(|project| scheduler.forget_parked(project));
        scheduler.note_parked(&[40]);
        assert_eq!(scheduler.parked_room(100, later), [(40, 3 + 60)]);
    }

    #[test]
    fn a_slot_in_a_share_is_for_any_webhook_of_the_class() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        push(&mut scheduler, 1, 1, now);
        let (hanging, _) = scheduler.start(now).expect("a slot");
        scheduler.note_parked(&[20]);
        let later = now + SLOW + ms(1);
        scheduler.grow_old(later);
        assert!(scheduler.finish(hanging, later), "it was slow: another one may have waited for its slot");
        let later = prove(&mut scheduler, 3, ms(1), later);
        push(&mut scheduler, 3, 1, later);
        let (quick, _) = scheduler.start(later).expect("a slot");
        assert!(!scheduler.finish(quick, later + ms(1)));
    }

    #[test]
    fn unproven_webhooks_that_the_slow_leave_no_slot_do_not_hold_up_the_others() {
        let mut later = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        for webhook_id in 1..=5 {
            push(&mut scheduler, webhook_id, 2, later);
            start_all(&mut scheduler, later);
            later += SLOW + ms(1);
        }
        later -= SLOW;
        push(&mut scheduler, 6, 1, later);
        start_all(&mut scheduler, later);
        assert_eq!(
            scheduler.slots.by_class(),
            [0, 1, 6],
            "half of 8 for the slow, and what was tried besides"
        );
        assert_eq!(scheduler.claim_budget(later).limit, 0, "the one that is tried may be quick");
        later += ms(6);
        let budget = scheduler.claim_budget(later);
        assert_eq!((budget.limit, budget.park), (1, vec![30, 40, 50, 60]), "it hangs, too");
        later += SLOW;
        let budget = scheduler.claim_budget(later);
        assert_eq!(
            (budget.limit, budget.park),
            (1, vec![30, 40, 50, 60]),
            "it may take hours until they have a slot"
        );
        // The budget does not wait either while the ones that are tried first turn out to hang.
        let (now, mut scheduler) = (Instant::now(), Scheduler::new(LIMITS));
        for webhook_id in 1..=3 {
            push(&mut scheduler, webhook_id, 3, now);
        }
        assert_eq!(start_all(&mut scheduler, now).len(), 2);
        assert_eq!(scheduler.claim_budget(now).limit, 0, "they may be quick");
        assert_eq!(scheduler.claim_budget(now + ms(6)).limit, 6);
    }

    #[test]
    fn a_fast_webhook_is_claimed_ahead() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        let now = prove(&mut scheduler, 1, ms(1), now);
        push(&mut scheduler, 1, 3, now);
        start_all(&mut scheduler, now);
        // 3 slots, 1 ms a call, 20 ms ahead: 60 rows.
        let budget = scheduler.claim_budget(now);
        assert_eq!((budget.limit, budget.batch_min, budget.park), (8 + 60 - 3, 2, vec![]));
    }

    #[test]
    fn a_call_that_was_requeued_comes_first_again() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        push(&mut scheduler, 1, 3, now);
        let (ticket, job) = scheduler.start(now).expect("a slot");
        assert_eq!(job, 0);
        scheduler.requeue(ticket, job, now);
        assert_eq!(scheduler.in_hand(), 3);
        assert_eq!(scheduler.start(now).map(|(_, job)| job), Some(0));
    }

    #[test]
    fn stopping_gives_out_what_waits_and_lifts_the_limits() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        push(&mut scheduler, 1, 10, now);
        let running = start_all(&mut scheduler, now);
        assert_eq!((running.len(), scheduler.take_waiting().len()), (1, 9));
        assert_eq!(scheduler.in_hand(), 1);
        push(&mut scheduler, 1, 5, now);
        assert_eq!(start_all(&mut scheduler, now).len(), 5);
    }
}
