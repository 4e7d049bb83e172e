//! Who may be called next: places per webhook, the share of the slow, and how much to claim.
//!
//! Pure rules over plain state, no threads, no clock of its own: every function that needs the time is given it.
//! Threads are the scarce thing (DESIGN section 5, Fairness): a webhook has at most `per_webhook` calls running, and
//! all webhooks that are not known to be fast have together at most half of the threads, so that a hundred dead
//! endpoints still leave room for the rest. A webhook is fast when its calls have lately ended within [`SLOW`]; one
//! that was never called yet has to prove it.

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
    /// Most calls running to webhooks that are not known to be fast.
    fn slow(&self) -> usize {
        (self.workers / 2).max(1)
    }
}

/// A call that was started; handed back when it ended.
#[derive(Debug)]
pub struct Ticket {
    webhook_id: i64,
    started: Instant,
    /// Whether it counts against the share of the slow.
    slow: bool,
}

impl Ticket {
    /// The webhook that is being called.
    pub fn webhook_id(&self) -> i64 {
        self.webhook_id
    }
}

/// What may be claimed now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Rows that can start soon.
    pub limit: usize,
    /// Below this limit a claim is not worth its round trip.
    pub worth: usize,
    /// Projects with a full webhook: their rows are parked, not claimed.
    pub park: Vec<i64>,
}

struct Endpoint<J> {
    project_id: i64,
    waiting: VecDeque<J>,
    running: Vec<Instant>,
    /// Moving average of the calls' duration; none before the first has ended.
    duration: Option<Duration>,
    /// Whether it stands in one of the two queues.
    queued: bool,
    last_used: Instant,
}

impl<J> Endpoint<J> {
    fn in_hand(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// How long a call takes, as far as is known: the average, or the age of the oldest call that still runs.
    fn estimate(&self, now: Instant) -> Duration {
        let age = self.running.iter().min().map_or(Duration::ZERO, |oldest| now - *oldest);
        self.duration.unwrap_or_default().max(age)
    }

    fn is_fast(&self, now: Instant) -> bool {
        self.duration.is_some() && self.estimate(now) <= SLOW
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
pub struct Places<J> {
    limits: Limits,
    endpoints: HashMap<i64, Endpoint<J>>,
    // Webhooks with a waiting call and a free place of their own, in turn. Each stands in one of them at most; the
    // class is looked at again when it is taken.
    fast: VecDeque<i64>,
    slow: VecDeque<i64>,
    running: usize,
    slow_running: usize,
    waiting: usize,
    /// Which queue is asked first; they take turns.
    slow_first: bool,
    /// Places per webhook and the share of the slow no longer count: we are stopping, and what is left shall start.
    unlimited: bool,
    /// Projects that have parked rows.
    parked: HashSet<i64>,
}

impl<J> Places<J> {
    /// No calls.
    pub fn new(limits: Limits) -> Self {
        Places {
            limits,
            endpoints: HashMap::new(),
            fast: VecDeque::new(),
            slow: VecDeque::new(),
            running: 0,
            slow_running: 0,
            waiting: 0,
            slow_first: false,
            unlimited: false,
            parked: HashSet::new(),
        }
    }

    /// Calls running.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Calls waiting and running.
    pub fn in_hand(&self) -> usize {
        self.running + self.waiting
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
        let has_place = self.unlimited || endpoint.running.len() < self.limits.per_webhook;
        if endpoint.queued || endpoint.waiting.is_empty() || !has_place {
            return;
        }
        endpoint.queued = true;
        if endpoint.is_fast(now) { &mut self.fast } else { &mut self.slow }.push_back(webhook_id);
    }

    /// Whether [`Places::start`] would start a call.
    pub fn may_start(&self) -> bool {
        self.running < self.limits.workers
            && (!self.fast.is_empty() || (!self.slow.is_empty() && self.slow_has_place()))
    }

    fn slow_has_place(&self) -> bool {
        self.unlimited || self.slow_running < self.limits.slow()
    }

    /// Takes the next call that may start, the webhooks in turn.
    pub fn start(&mut self, now: Instant) -> Option<(Ticket, J)> {
        while self.may_start() {
            let slow_can = !self.slow.is_empty() && self.slow_has_place();
            let from_slow = slow_can && (self.slow_first || self.fast.is_empty());
            let webhook_id = if from_slow { self.slow.pop_front() } else { self.fast.pop_front() }
                .expect("the queue that is asked is not empty");
            let endpoint = self.endpoints.get_mut(&webhook_id).expect("a queued webhook is known");
            endpoint.queued = false;
            let slow = !endpoint.is_fast(now);
            if slow && !from_slow {
                // It has become slow while it stood in the queue of the fast.
                self.queue(webhook_id, now);
                continue;
            }
            let Some(job) = endpoint.waiting.pop_front() else { continue };
            endpoint.running.push(now);
            endpoint.last_used = now;
            self.waiting -= 1;
            self.running += 1;
            self.slow_running += usize::from(slow);
            self.slow_first = !from_slow;
            self.queue(webhook_id, now);
            return Some((Ticket { webhook_id, started: now, slow }, job));
        }
        None
    }

    /// Frees the place of a call that has ended. True when somebody should look again: its project has parked rows.
    pub fn finish(&mut self, ticket: Ticket, now: Instant) -> bool {
        let took = now - ticket.started;
        let Some(project_id) = self.free(&ticket, now, |endpoint| {
            // Three quarters old, one quarter new: a few calls change the class, one does not.
            endpoint.duration = Some(endpoint.duration.map_or(took, |old| (old * 3 + took) / 4));
        }) else {
            return false;
        };
        self.parked.contains(&project_id)
    }

    /// Frees the place of a call that could not be made for a shortage of ours, and puts it first again.
    pub fn put_back(&mut self, ticket: Ticket, job: J, now: Instant) {
        self.waiting += 1;
        self.free(&ticket, now, |endpoint| endpoint.waiting.push_front(job));
    }

    fn free(&mut self, ticket: &Ticket, now: Instant, change: impl FnOnce(&mut Endpoint<J>)) -> Option<i64> {
        self.running -= 1;
        self.slow_running -= usize::from(ticket.slow);
        let endpoint = self.endpoints.get_mut(&ticket.webhook_id)?;
        if let Some(at) = endpoint.running.iter().position(|started| *started == ticket.started) {
            endpoint.running.swap_remove(at);
        }
        endpoint.last_used = now;
        change(endpoint);
        let project_id = endpoint.project_id;
        self.queue(ticket.webhook_id, now);
        Some(project_id)
    }

    /// How much may be claimed now, and whose rows are to be parked.
    pub fn offer(&mut self, now: Instant) -> Offer {
        self.endpoints.retain(|_, e| e.in_hand() > 0 || now - e.last_used < FORGET);
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
                if endpoint.estimate(now) <= QUICK {
                    wait = true;
                } else {
                    park.push(endpoint.project_id);
                }
            }
        }
        let ahead_all = ahead_all.min(AHEAD_MAX);
        let limit = (self.limits.workers + ahead_all).saturating_sub(self.running + waiting_soon);
        // Many small claims cost more than few large ones, but only where much is going on.
        let worth = (self.limits.workers / 4).min(ahead_all).max(1);
        park.sort_unstable();
        park.dedup();
        Offer { limit: if wait { 0 } else { limit }, worth, park }
    }

    fn is_full(&self, endpoint: &Endpoint<J>, now: Instant) -> bool {
        endpoint.in_hand() >= self.limits.per_webhook + endpoint.ahead(&self.limits, now)
            || (!endpoint.is_fast(now) && !self.slow_has_place() && !endpoint.waiting.is_empty())
    }

    /// Says which projects have parked rows, so that [`Places::finish`] tells when to look for them.
    pub fn set_parked(&mut self, projects: HashSet<i64>) {
        self.parked = projects;
    }

    /// Parked projects that have room, each with how many rows.
    pub fn parked_room(&self, now: Instant) -> Vec<(i64, i64)> {
        let mut rooms: HashMap<i64, usize> =
            self.parked.iter().map(|project| (*project, self.limits.per_webhook)).collect();
        for endpoint in self.endpoints.values().filter(|e| e.in_hand() > 0) {
            if let Some(room) = rooms.get_mut(&endpoint.project_id) {
                let most = self.limits.per_webhook + endpoint.ahead(&self.limits, now);
                let own =
                    if self.is_full(endpoint, now) { 0 } else { most.saturating_sub(endpoint.in_hand()) };
                *room = own.min(*room);
            }
        }
        let mut rooms: Vec<(i64, i64)> = rooms
            .into_iter()
            .filter(|(_, room)| *room > 0)
            .map(|(project, room)| (project, i64::try_from(room).unwrap_or(i64::MAX)))
            .collect();
        rooms.sort_unstable();
        rooms
    }

    /// Takes all waiting calls out, for stopping; what is pushed again starts without regard to the places.
    pub fn take_waiting(&mut self) -> Vec<J> {
        self.unlimited = true;
        self.waiting = 0;
        self.fast.clear();
        self.slow.clear();
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
    fn push(places: &mut Places<u32>, webhook_id: i64, calls: u32, now: Instant) {
        for job in 0..calls {
            places.push(webhook_id, webhook_id * 10, job, now);
        }
    }

    fn start_all(places: &mut Places<u32>, now: Instant) -> Vec<Ticket> {
        std::iter::from_fn(|| places.start(now).map(|(ticket, _)| ticket)).collect()
    }

    /// A webhook that is known to answer within `took`.
    fn prove(places: &mut Places<u32>, webhook_id: i64, took: Duration, now: Instant) -> Instant {
        push(places, webhook_id, 1, now);
        let (ticket, _) = places.start(now).expect("a place");
        places.finish(ticket, now + took);
        now + took
    }

    #[test]
    fn a_webhook_has_no_more_than_its_places() {
        let now = Instant::now();
        let mut places = Places::new(LIMITS);
        let now = prove(&mut places, 1, ms(1), now);
        push(&mut places, 1, 10, now);
        let mut tickets = start_all(&mut places, now);
        assert_eq!(tickets.len(), 3);
        places.finish(tickets.remove(0), now);
        assert_eq!(start_all(&mut places, now).len(), 1);
    }

    #[test]
    fn unproven_webhooks_share_half_of_the_threads() {
        let now = Instant::now();
        let mut places = Places::new(LIMITS);
        for webhook_id in 1..=4 {
            push(&mut places, webhook_id, 3, now);
        }
        assert_eq!(start_all(&mut places, now).len(), 4, "half of 8");
        // A proven one still gets a thread.
        let mut places = Places::new(LIMITS);
        let now = prove(&mut places, 9, ms(1), now);
        for webhook_id in 1..=4 {
            push(&mut places, webhook_id, 3, now);
        }
        start_all(&mut places, now);
        push(&mut places, 9, 3, now);
        let started = start_all(&mut places, now);
        assert_eq!(started.iter().filter(|t| t.webhook_id == 9).count(), 3);
    }

    #[test]
    fn a_webhook_that_hangs_becomes_slow_while_it_waits_in_the_queue() {
        let now = Instant::now();
        let mut places = Places::new(LIMITS);
        let now = prove(&mut places, 1, ms(1), now);
        push(&mut places, 1, 10, now);
        let running = start_all(&mut places, now);
        assert!(running.iter().all(|t| !t.slow));
        let later = now + SLOW + ms(1);
        let mut running = running.into_iter();
        // One call ends after more than a second; the next one counts as slow.
        places.finish(running.next().expect("three"), later);
        assert!(start_all(&mut places, later).iter().all(|t| t.slow));
    }

    #[test]
    fn webhooks_take_turns() {
        let now = Instant::now();
        let mut places = Places::new(Limits { workers: 4, per_webhook: 4 });
        let now = prove(&mut places, 1, ms(1), now);
        let now = prove(&mut places, 2, ms(1), now);
        push(&mut places, 1, 10, now);
        push(&mut places, 2, 10, now);
        let started = start_all(&mut places, now);
        assert_eq!(started.iter().map(|t| t.webhook_id).collect::<Vec<_>>(), [1, 2, 1, 2]);
    }

    #[test]
    fn a_full_slow_webhook_has_its_rows_parked_and_unparked_as_places_become_free() {
        let now = Instant::now();
        let mut places = Places::new(LIMITS);
        push(&mut places, 1, 3, now);
        let tickets = start_all(&mut places, now);
        assert_eq!(places.offer(now).limit, 0, "it may be quick: wait a moment");
        let later = now + ms(50);
        let offer = places.offer(later);
        assert_eq!(offer.park, [10]);
        assert_eq!(offer.limit, 5);
        places.set_parked(HashSet::from([10]));
        assert_eq!(places.parked_room(later), []);
        let mut tickets = tickets.into_iter();
        assert!(places.finish(tickets.next().expect("three"), now + ms(2000)), "somebody must look");
        assert_eq!(places.parked_room(now + ms(2000)), [(10, 1)]);
    }

    #[test]
    fn a_fast_webhook_is_claimed_ahead() {
        let now = Instant::now();
        let mut places = Places::new(LIMITS);
        let now = prove(&mut places, 1, ms(1), now);
        push(&mut places, 1, 3, now);
        start_all(&mut places, now);
        // 3 places, 1 ms a call, 20 ms ahead: 60 rows.
        assert_eq!(places.offer(now), Offer { limit: 8 + 60 - 3, worth: 2, park: vec![] });
    }

    #[test]
    fn a_call_that_was_put_back_comes_first_again() {
        let now = Instant::now();
        let mut places = Places::new(LIMITS);
        push(&mut places, 1, 3, now);
        let (ticket, job) = places.start(now).expect("a place");
        assert_eq!(job, 0);
        places.put_back(ticket, job, now);
        assert_eq!(places.in_hand(), 3);
        assert_eq!(places.start(now).map(|(_, job)| job), Some(0));
    }

    #[test]
    fn stopping_gives_out_what_waits_and_lifts_the_limits() {
        let now = Instant::now();
        let mut places = Places::new(LIMITS);
        push(&mut places, 1, 10, now);
        let running = start_all(&mut places, now);
        assert_eq!((running.len(), places.take_waiting().len()), (3, 7));
        assert_eq!(places.in_hand(), 3);
        push(&mut places, 1, 2, now);
        assert_eq!(start_all(&mut places, now).len(), 2);
    }
}
