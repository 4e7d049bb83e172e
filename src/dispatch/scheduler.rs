//! Who may be called next: places per webhook, the share of the slow, and how much to claim.
//!
//! Pure rules over plain state, no threads, no clock of its own: every function that needs the time is given it.
//! Threads are the scarce thing. A webhook has at most `per_webhook` calls running. It is
//! *fast* when its calls have lately ended within [`SLOW`], *slow* when not, and *unproven* when it was not called
//! lately: then one call finds out. A call that has been running for [`SLOW`] counts as slow whatever its
//! webhook was. The slow have together at most half of the threads, the unproven a quarter, and where some of these turn
//! out to be slow, both at most seven eighths; so a hundred dead endpoints leave room for the rest, and for newcomers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// A webhook whose calls take longer is slow.
pub const SLOW: Duration = Duration::from_secs(1);
/// Rows are claimed ahead of free threads for as much work as a fast webhook does in this time: longer than a claim
/// takes, short enough that little is in hand when we are killed.
const AHEAD: Duration = Duration::from_millis(20);
/// Most rows claimed ahead.
const AHEAD_MAX: usize = 1000;
/// A full webhook whose calls take no longer than this has room again in a moment: claiming waits for it. A slower
/// one has its rows parked.
const QUICK: Duration = Duration::from_millis(5);
/// When claiming waits for a quick webhook, it is worth asking again after this time: it may turn out not to be quick.
const AGAIN_MIN: Duration = Duration::from_millis(5);
/// Webhooks turn out to be slow with time, too; this often is often enough.
const AGAIN: Duration = Duration::from_millis(100);
/// And when none can, only what ends changes the budget. It is asked for all the same, now and then.
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// Parked rows that are claimed at once of a project of whose webhooks nothing is known.
const UNKNOWN: usize = 8;
/// Most calls running while we are stopping, whatever the limit is otherwise.
const STOPPING_MAX: usize = 1024;
/// What is known about a webhook is forgotten after this time without a call.
const FORGET: Duration = Duration::from_secs(60);

/// The limits, as the operator set them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most calls running, in all.
    pub workers: usize,
    /// Most calls running to one webhook.
    pub per_webhook: usize,
}

impl Limits {
    /// Most calls running to slow webhooks.
    fn slow(&self) -> usize {
        (self.workers / 2).max(1)
    }

    /// Most calls running to unproven webhooks.
    fn unproven(&self) -> usize {
        (self.workers / 4).max(1)
    }

    /// Most calls running to both: of the unproven some turn out to be slow, and the others shall still have a place.
    fn not_fast(&self) -> usize {
        self.workers - self.workers / 8
    }
}

/// What is known of a webhook, or of a running call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Fast,
    Unproven,
    Slow,
}

const CLASSES: [Class; 3] = [Class::Fast, Class::Unproven, Class::Slow];

/// A call that was started; handed back when it ended.
#[derive(Debug)]
pub struct Ticket {
    webhook_id: i64,
    number: u64,
    started: Instant,
}

/// What may be claimed now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClaimBudget {
    /// Rows that can start soon.
    pub limit: usize,
    /// Below this limit a claim is not worth its round trip.
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
    /// Moving average of the calls' duration; none before the first has ended.
    duration: Option<Duration>,
    /// Whether it stands in one of the queues.
    queued: bool,
    last_used: Instant,
}

impl<J> Endpoint<J> {
    fn in_hand(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// How long a call takes, as far as is known: the average, or the age of the oldest call that still runs.
    fn estimate(&self, now: Instant) -> Duration {
        let age = self.running.iter().map(|call| now - call.started).max();
        self.duration.unwrap_or_default().max(age.unwrap_or_default())
    }

    fn class(&self, now: Instant) -> Class {
        if self.estimate(now) > SLOW {
            Class::Slow
        } else if self.duration.is_some() {
            Class::Fast
        } else {
            Class::Unproven
        }
    }

    fn is_fast(&self, now: Instant) -> bool {
        self.class(now) == Class::Fast
    }

    /// Rows to claim ahead for it.
    fn ahead(&self, limits: &Limits, now: Instant) -> usize {
        let estimate = self.estimate(now).as_micros().max(1);
        if self.is_fast(now) {
            let ahead = limits.per_webhook as u128 * AHEAD.as_micros() / estimate;
            usize::try_from(ahead).unwrap_or(AHEAD_MAX).min(AHEAD_MAX)
        } else {
            0
        }
    }
}

/// Waiting and running calls by webhook. `J` is a job: whatever makes one call.
pub struct Scheduler<J> {
    limits: Limits,
    endpoints: HashMap<i64, Endpoint<J>>,
    // By class, webhooks with a waiting call and a free place of their own, in turn. Each stands in one queue at
    // most; the class is looked at again when it is taken.
    queues: [VecDeque<i64>; 3],
    // Calls that were started within the last SLOW, in order; ended ones stay until then.
    young: VecDeque<(Instant, i64, u64)>,
    // Running calls, by class.
    running: [usize; 3],
    waiting: usize,
    /// Counts the calls; also says which queue is asked first, so that they take turns.
    started: u64,
    /// The limits no longer count: we are stopping, and what is left of the rows that have begun shall start, so that
    /// the last call begins now.
    unlimited: bool,
    /// Projects that have parked rows.
    parked: HashSet<i64>,
    /// The project that was last given room for parked rows.
    last_unparked: i64,
}

impl<J> Scheduler<J> {
    /// No calls.
    pub fn new(limits: Limits) -> Self {
        Scheduler {
            limits,
            endpoints: HashMap::new(),
            queues: Default::default(),
            young: VecDeque::new(),
            running: [0; 3],
            waiting: 0,
            started: 0,
            unlimited: false,
            parked: HashSet::new(),
            last_unparked: i64::MAX,
        }
    }

    /// Most calls running, as the operator set it.
    pub fn workers(&self) -> usize {
        self.limits.workers
    }

    /// Calls running.
    pub fn running(&self) -> usize {
        self.running.iter().sum()
    }

    /// Calls waiting and running.
    pub fn in_hand(&self) -> usize {
        self.running() + self.waiting
    }

    /// How long the call has been running that runs for longest.
    pub fn longest_running(&self, now: Instant) -> Duration {
        let started = self.endpoints.values().flat_map(|endpoint| &endpoint.running).map(|call| call.started);
        started.min().map_or(Duration::ZERO, |started| now.saturating_duration_since(started))
    }

    /// The webhooks with most calls running, at most so many, each with how many.
    pub fn busiest(&self, most: usize) -> Vec<(i64, usize)> {
        let busy = self.endpoints.iter().filter(|(_, endpoint)| !endpoint.running.is_empty());
        let mut busy: Vec<(i64, usize)> = busy.map(|(id, endpoint)| (*id, endpoint.running.len())).collect();
        busy.sort_unstable_by_key(|(id, running)| (std::cmp::Reverse(*running), *id));
        busy.truncate(most);
        busy
    }

    /// Adds a call that waits for a place.
    pub fn push(&mut self, webhook_id: i64, project_id: i64, job: J, now: Instant) {
        let endpoint = self.endpoints.entry(webhook_id).or_insert_with(|| Endpoint {
            project_id,
            waiting: VecDeque::new(),
            running: Vec::new(),
            duration: None,
            queued: false,
            last_used: now,
        });
        endpoint.waiting.push_back(job);
        self.waiting += 1;
        self.queue(webhook_id, now);
    }

    /// Puts a webhook into the queue of its class when it can start a call as far as it is concerned.
    fn queue(&mut self, webhook_id: i64, now: Instant) {
        let Some(endpoint) = self.endpoints.get_mut(&webhook_id) else { return };
        let class = endpoint.class(now);
        let slots = match class {
            _ if self.unlimited => usize::MAX,
            Class::Unproven => 1,
            Class::Fast | Class::Slow => self.limits.per_webhook,
        };
        if endpoint.queued || endpoint.waiting.is_empty() || endpoint.running.len() >= slots {
            return;
        }
        endpoint.queued = true;
        self.queues[class as usize].push_back(webhook_id);
    }

    /// Whether a call of this class may start.
    fn has_slot(&self, class: Class) -> bool {
        let [_, unproven, slow] = self.running;
        let share = match class {
            Class::Fast => true,
            Class::Unproven => unproven < self.limits.unproven() && unproven + slow < self.limits.not_fast(),
            Class::Slow => slow < self.limits.slow(),
        };
        self.running() < self.running_max() && (share || self.unlimited)
    }

    /// Most calls running, in all.
    pub fn running_max(&self) -> usize {
        if self.unlimited { self.limits.workers.max(STOPPING_MAX) } else { self.limits.workers }
    }

    /// Whether newcomers have no place, and none in a moment: the slow have them all, or none of those who are being
    /// tried is quick.
    fn unproven_wait(&self, now: Instant) -> bool {
        let is_long = |call: &&Running| call.class == Class::Unproven && now - call.started > QUICK;
        let long = self.endpoints.values().flat_map(|endpoint| &endpoint.running).filter(is_long).count();
        let slow = self.running[Class::Slow as usize];
        long >= self.limits.unproven() || long + slow >= self.limits.not_fast()
    }

    /// Whether [`Scheduler::start`] would start a call.
    pub fn may_start(&self) -> bool {
        CLASSES.into_iter().any(|class| self.has_slot(class) && !self.queues[class as usize].is_empty())
    }

    /// Takes the next call that may start: the classes take turns, and the webhooks of a class.
    pub fn start(&mut self, now: Instant) -> Option<(Ticket, J)> {
        self.grow_old(now);
        let first = usize::try_from(self.started % 3).expect("below 3");
        for class in CLASSES.into_iter().cycle().skip(first).take(3) {
            while self.has_slot(class) {
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
        // Its waiting calls may be gone since it was queued, and it with them.
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
        self.running[class as usize] += 1;
        self.young.push_back((now, webhook_id, number));
        self.queue(webhook_id, now);
        Some((Ticket { webhook_id, number, started: now }, job))
    }

    /// Calls that have been running for longer than [`SLOW`] are slow from then on.
    pub fn grow_old(&mut self, now: Instant) {
        while let Some((started, webhook_id, number)) = self.young.front().copied() {
            if now - started <= SLOW {
                return;
            }
            self.young.pop_front();
            let Some(endpoint) = self.endpoints.get_mut(&webhook_id) else { continue };
            if let Some(call) = endpoint.running.iter_mut().find(|call| call.number == number) {
                self.running[call.class as usize] -= 1;
                call.class = Class::Slow;
                self.running[Class::Slow as usize] += 1;
                // Proven to be slow, it has its full places.
                self.queue(webhook_id, now);
            }
        }
    }

    /// Frees the place of a call that has ended. True when somebody should look again: its project has parked rows, or
    /// another one that may have waited for a place in its share.
    pub fn finish(&mut self, ticket: Ticket, now: Instant) -> bool {
        let took = now - ticket.started;
        let freed = self.free(&ticket, now, |endpoint| {
            // Three quarters old, one quarter new: a few calls change the class, one does not.
            endpoint.duration = Some(endpoint.duration.map_or(took, |old| (old * 3 + took) / 4));
        });
        freed.is_some_and(|(project_id, class)| {
            self.parked.contains(&project_id) || (class != Class::Fast && !self.parked.is_empty())
        })
    }

    /// Frees the place of a call that could not be made for a shortage of ours, and puts it first again.
    pub fn requeue(&mut self, ticket: Ticket, job: J, now: Instant) {
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
        self.running[class as usize] -= 1;
        endpoint.last_used = now;
        change(endpoint);
        let project_id = endpoint.project_id;
        self.queue(ticket.webhook_id, now);
        Some((project_id, class))
    }

    /// How much may be claimed now, and whose rows are to be parked.
    pub fn claim_budget(&mut self, now: Instant) -> ClaimBudget {
        self.grow_old(now);
        self.endpoints.retain(|_, e| e.in_hand() > 0 || now - e.last_used < FORGET);
        let unproven_wait = self.unproven_wait(now);
        let (mut ahead_all, mut waiting_soon) = (0, 0);
        let mut wait = false;
        let mut park = Vec::new();
        for endpoint in self.endpoints.values().filter(|e| e.in_hand() > 0) {
            let ahead = endpoint.ahead(&self.limits, now);
            ahead_all += ahead;
            if endpoint.is_fast(now) {
                waiting_soon += endpoint.waiting.len();
            }
            if self.is_full(endpoint, now) {
                // Nothing of its own is running: what it waits for are the calls of others, and those take long.
                let held_up = endpoint.running.is_empty() && unproven_wait;
                if endpoint.estimate(now) <= QUICK && !held_up {
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

    fn is_full(&self, endpoint: &Endpoint<J>, now: Instant) -> bool {
        let class = endpoint.class(now);
        endpoint.in_hand() >= self.limits.per_webhook + endpoint.ahead(&self.limits, now)
            || (class != Class::Fast && !self.has_slot(class) && !endpoint.waiting.is_empty())
    }

    /// Says which projects have parked rows, so that [`Scheduler::finish`] tells when to look for them.
    pub fn set_parked(&mut self, projects: HashSet<i64>) {
        self.parked = projects;
    }

    /// Parked projects that have room, each with how many rows, at most so many in all: what a fast webhook can have in
    /// hand, and of the others what the shares of the slow and of the unproven have places for. The projects take turns.
    pub fn parked_room(&mut self, most: usize, now: Instant) -> Vec<(i64, i64)> {
        let mut rooms: HashMap<i64, (Class, usize)> =
            self.parked.iter().map(|project| (*project, (Class::Fast, usize::MAX))).collect();
        let mut waiting = [0; 3];
        for endpoint in self.endpoints.values() {
            let class = endpoint.class(now);
            waiting[class as usize] += endpoint.waiting.len();
            let Some((worst, room)) = rooms.get_mut(&endpoint.project_id) else { continue };
            let slots = match class {
                _ if self.is_full(endpoint, now) => 0,
                Class::Fast => self.limits.per_webhook + endpoint.ahead(&self.limits, now),
                Class::Unproven => 1,
                Class::Slow => self.limits.per_webhook,
            };
            *room = (*room).min(slots.saturating_sub(endpoint.in_hand()));
            *worst = (*worst).max(class);
        }
        let left = |class: Class, share: usize| {
            let taken = self.running[class as usize] + waiting[class as usize];
            if self.has_slot(class) { share.saturating_sub(taken) } else { 0 }
        };
        let mut left = [
            usize::MAX,
            left(Class::Unproven, self.limits.unproven()),
            left(Class::Slow, self.limits.slow()),
        ];
        let mut in_turn: Vec<i64> = rooms.keys().copied().collect();
        in_turn.sort_unstable();
        let next = in_turn.partition_point(|project| *project <= self.last_unparked);
        in_turn.rotate_left(next);
        let (mut most, mut given) = (most, Vec::new());
        for project in in_turn {
            let (class, room, calls) = match rooms[&project] {
                // No webhook of it was called lately: one call finds out. It may also have none any more, and then
                // its rows shall be gone soon.
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

    /// Each call that waits for a place.
    pub fn for_each_waiting(&mut self, change: impl FnMut(&mut J)) {
        self.endpoints.values_mut().flat_map(|endpoint| &mut endpoint.waiting).for_each(change);
    }

    /// Waiting calls that are not to be kept are dropped.
    pub fn retain_waiting(&mut self, mut keep: impl FnMut(&J) -> bool) {
        for endpoint in self.endpoints.values_mut() {
            let before = endpoint.waiting.len();
            endpoint.waiting.retain(&mut keep);
            self.waiting -= before - endpoint.waiting.len();
        }
    }

    /// Takes all waiting calls out, for stopping; what is pushed again starts without regard to the limits.
    pub fn take_waiting(&mut self) -> Vec<J> {
        self.unlimited = true;
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
        let (ticket, _) = scheduler.start(now).expect("a place");
        scheduler.finish(ticket, now + took);
        now + took
    }

    #[test]
    fn a_webhook_has_no_more_than_its_places() {
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
        assert_eq!(start_all(&mut scheduler, now + ms(1)).len(), 3, "now it has all of its places");
    }

    #[test]
    fn the_slow_have_half_of_the_threads_and_newcomers_still_get_one() {
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
        assert_eq!(scheduler.running, [0, 0, 4], "half of 8 for the slow");
        for webhook_id in 5..=7 {
            push(&mut scheduler, webhook_id, 10, later);
        }
        assert_eq!(start_all(&mut scheduler, later).len(), 2, "two newcomers");
        // They hang, too, and are slow beyond the half: seven eighths are taken then, and nobody unknown starts, but
        // the fast do.
        later += SLOW + ms(1);
        assert_eq!(start_all(&mut scheduler, later).len(), 1);
        assert_eq!(scheduler.running, [0, 1, 6]);
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
        assert_eq!(scheduler.running, [3, 0, 0]);
        let later = now + SLOW + ms(1);
        scheduler.grow_old(later);
        assert_eq!(scheduler.running, [0, 0, 3]);
        for ticket in running {
            scheduler.finish(ticket, later);
        }
        assert_eq!(scheduler.running, [0, 0, 0]);
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
    fn a_full_slow_webhook_has_its_rows_parked_and_unparked_as_places_become_free() {
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
        scheduler.set_parked(HashSet::from([10]));
        assert_eq!(scheduler.parked_room(100, later), []);
        assert!(scheduler.finish(tickets.remove(0), now + ms(2000)), "somebody must look");
        assert_eq!(scheduler.parked_room(100, now + ms(2000)), [(10, 1)]);
    }

    #[test]
    fn when_all_that_runs_is_slow_only_what_ends_changes_the_offer() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        push(&mut scheduler, 1, 3, now);
        start_all(&mut scheduler, now);
        assert_eq!(scheduler.claim_budget(now + SLOW + ms(1)).again, AGAIN_MAX);
    }

    #[test]
    fn parked_projects_take_turns_and_get_what_the_shares_have_places_for() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        scheduler.set_parked((1..=5).map(|n| n * 10).collect());
        assert_eq!(scheduler.parked_room(100, now), [(10, 3), (20, 3)], "a quarter of 8 for the unproven");
        assert_eq!(scheduler.parked_room(100, now), [(30, 3), (40, 3)]);
        assert_eq!(scheduler.parked_room(4, now), [(50, 3), (10, 1)], "no more than asked for");
        // Known to be slow, they have half of 8 together; in hand or running makes no difference.
        let mut later = now;
        for webhook_id in 1..=3 {
            later = prove(&mut scheduler, webhook_id, SLOW + ms(1), later);
        }
        scheduler.set_parked(HashSet::from([10, 20, 30]));
        assert_eq!(scheduler.parked_room(100, later), [(20, 3), (30, 1)]);
        push(&mut scheduler, 1, 2, later);
        push(&mut scheduler, 2, 1, later);
        start_all(&mut scheduler, later);
        assert_eq!(scheduler.parked_room(100, later), [(10, 1)]);
        // A fast one needs no share.
        let later = prove(&mut scheduler, 4, ms(1), later);
        scheduler.set_parked(HashSet::from([40]));
        assert_eq!(scheduler.parked_room(100, later), [(40, 3 + 60)]);
    }

    #[test]
    fn a_place_in_a_share_is_everybodys() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        push(&mut scheduler, 1, 1, now);
        let (hanging, _) = scheduler.start(now).expect("a place");
        scheduler.set_parked(HashSet::from([20]));
        let later = now + SLOW + ms(1);
        scheduler.grow_old(later);
        assert!(scheduler.finish(hanging, later), "it was slow: another one may have waited for its place");
        let later = prove(&mut scheduler, 3, ms(1), later);
        push(&mut scheduler, 3, 1, later);
        let (quick, _) = scheduler.start(later).expect("a place");
        assert!(!scheduler.finish(quick, later + ms(1)));
    }

    #[test]
    fn newcomers_that_the_slow_leave_no_place_do_not_hold_up_the_others() {
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
        assert_eq!(scheduler.running, [0, 1, 6], "half of 8 for the slow, and what was tried besides");
        assert_eq!(scheduler.claim_budget(later).limit, 0, "the one that is tried may be quick");
        later += ms(6);
        let budget = scheduler.claim_budget(later);
        assert_eq!((budget.limit, budget.park), (1, vec![30, 40, 50, 60]), "it hangs, too");
        later += SLOW;
        let budget = scheduler.claim_budget(later);
        assert_eq!(
            (budget.limit, budget.park),
            (1, vec![30, 40, 50, 60]),
            "it may take hours until they have a place"
        );
        // Nor while those who are tried before them turn out to hang.
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
        // 3 places, 1 ms a call, 20 ms ahead: 60 rows.
        let budget = scheduler.claim_budget(now);
        assert_eq!((budget.limit, budget.batch_min, budget.park), (8 + 60 - 3, 2, vec![]));
    }

    #[test]
    fn a_call_that_was_put_back_comes_first_again() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        push(&mut scheduler, 1, 3, now);
        let (ticket, job) = scheduler.start(now).expect("a place");
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
