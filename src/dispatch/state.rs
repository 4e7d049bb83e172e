//! What the pool has in hand, from the moment that a row is handed in until it goes out, and what each event changes.
//!
//! The [`pool`](crate::dispatch::pool) keeps this state under its lock. It has no clock, no lock of its own, no channel and
//! no thread: each function gets the time, and returns what is to be done without the lock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dispatch::admission::Admission;
use crate::dispatch::gate::Gate;
use crate::dispatch::limits::Limits;
use crate::dispatch::row::{CALL_BYTES, Ended, Job, Row};
use crate::dispatch::scheduler::{ClaimBudget, Scheduler, Ticket};
use crate::dispatch::worker::Threads;
use crate::model::call::Call;
use crate::model::load::{BUSIEST, Load};
use crate::model::memory::{Memory, Room, Share};
use crate::model::row::Finished;

/// When claiming waits for memory, the daemon asks again after this time at the latest: rows grow old.
const RELIEVE_AGAIN: Duration = Duration::from_millis(100);
/// Ended rows that may wait to be committed: a few commits of the largest size. More rows are not claimed then.
const ENDED_MAX: usize = 4000;
/// Most bytes of text that are claimed at once: a byte can become six in the payload.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Least bytes of text that are claimed at once. A row has at most 32 KiB of them, so a claim takes more than one row.
const TEXT_BYTES_MIN: usize = 64 * 1024;
/// An old row keeps so many bytes of each answer while others need memory: enough to see what went wrong.
const OLD_ANSWER_BYTES: usize = 1024;

/// Rows that were admitted and whose calls are not made. They go out by [`Row::finished_without_calls`], which takes time
/// and needs no lock.
pub(super) type Outgoing = Vec<Arc<Row>>;

/// What the pool has in hand.
pub(super) struct State {
    memory: Arc<Memory>,
    /// Bytes of an answer's body that are kept at most.
    answer_bytes_max: usize,
    pub(super) scheduler: Scheduler<Job>,
    pub(super) admission: Admission<Arc<Row>>,
    pub(super) gate: Gate,
    pub(super) threads: Threads,
    /// Rows of which some calls have ended and others have not, by id and epoch.
    pub(super) half_done: HashMap<(i64, i64), Arc<Row>>,
    /// Rows that have gone out and are not committed yet.
    ended: usize,
    progress: u64,
    /// The daemon waits until no more than this many calls are in hand.
    awaited_in_hand: Option<usize>,
    /// The daemon waits until rows are committed, or admitted.
    awaits_release: bool,
    /// When the daemon asks for a budget again without being told to.
    pub(super) ask_again: Duration,
    /// When the old rows last had to give memory back.
    relieved: Option<Instant>,
}

impl State {
    /// Nothing in hand.
    pub(super) fn new(limits: Limits, memory: Arc<Memory>, answer_bytes_max: usize) -> State {
        State {
            memory,
            answer_bytes_max,
            scheduler: Scheduler::new(limits),
            admission: Admission::default(),
            gate: Gate::default(),
            threads: Threads::default(),
            half_done: HashMap::new(),
            ended: 0,
            progress: 0,
            awaited_in_hand: None,
            awaits_release: false,
            ask_again: RELIEVE_AGAIN,
            relieved: None,
        }
    }

    /// What may be claimed, if a claim is worth its round trip. If not, notes what the daemon waits for.
    pub(super) fn claim_budget(&mut self, now: Instant) -> Option<ClaimBudget> {
        let mut budget = self.scheduler.claim_budget(now);
        let is_tight = self.relieve(now);
        let is_held_up = is_tight || self.ended >= ENDED_MAX;
        budget.park.extend(self.admission.full(&self.memory));
        let paused_until = self.gate.paused_until(now);
        // Rows that wait for memory have no slot yet.
        budget.limit = budget.limit.saturating_sub(self.admission.waiting_count());
        let is_worth_it = budget.limit >= budget.batch_min && !is_held_up && paused_until.is_none();
        // What rows will need is not known before they are claimed: mostly what one webhook's answer needs.
        let sure = self.share(1).sure;
        budget.limit = budget.limit.min((self.memory.free() / (CALL_BYTES + sure)).max(1));
        self.awaited_in_hand =
            (!is_worth_it).then(|| self.scheduler.in_hand().saturating_sub(budget.batch_min));
        self.awaits_release = !is_worth_it;
        self.ask_again = match paused_until {
            Some(until) => until - now,
            None if is_tight => RELIEVE_AGAIN,
            None => budget.again,
        };
        is_worth_it.then_some(budget)
    }

    /// Adds rows that have calls to make, or to record as not made.
    pub(super) fn push(&mut self, rows: Vec<Row>, now: Instant) {
        for row in rows {
            let bytes = row.need(self.share(row.webhooks.len()), self.memory.max() / 4);
            let (project_id, body) = (row.project_id, row.body.len());
            self.admission.push(Arc::new(row), project_id, bytes, body, now);
        }
    }

    /// Counts rows that go out without calls, because no webhook is enabled.
    pub(super) fn count_out(&mut self, rows: usize) {
        self.admission.count(rows);
        self.ended += rows;
    }

    /// Gives the calls of rows whose share of the memory is free to the scheduler. Returns the rows whose calls are not
    /// made.
    pub(super) fn admit(&mut self, now: Instant) -> Outgoing {
        let mut outgoing = Vec::new();
        while let Some((row, mut held)) = self.admission.admit(&self.memory, now) {
            let bytes = held.bytes() + row.body.len();
            if row.skipped.is_some() {
                row.ended().held.absorb(held);
                self.admission.calls_ended(row.project_id, bytes);
                self.ended += 1;
                outgoing.push(row);
                continue;
            }
            let share = self.share(row.webhooks.len());
            for webhook in row.webhooks.iter() {
                let room = Room::new(held.split(share.sure), share.most);
                let job = Job { row: row.clone(), webhook: webhook.clone(), room };
                self.scheduler.push(webhook.id, row.project_id, job, now);
            }
            let mut ended = row.ended();
            (ended.since, ended.admitted_bytes) = (Some(now), bytes);
            ended.held.absorb(held);
            ended.calls.reserve_exact(row.webhooks.len());
        }
        outgoing
    }

    /// What changes with time alone: calls grow slow, and rows grow old.
    pub(super) fn tick(&mut self, now: Instant) -> Outgoing {
        self.scheduler.grow_old(now);
        if self.admission.waiting_count() == 0 {
            return Vec::new();
        }
        self.relieve(now);
        self.admit(now)
    }

    /// Whether a call may start.
    pub(super) fn may_start(&self, now: Instant) -> bool {
        self.gate.is_open(now) && self.scheduler.may_start()
    }

    /// Takes the next call, if one may start.
    pub(super) fn start(&mut self, now: Instant) -> Option<(Ticket, Job)> {
        if !self.gate.is_open(now) {
            return None;
        }
        let (ticket, job) = self.scheduler.start(now)?;
        job.row.note_start();
        self.progress += 1;
        Some((ticket, job))
    }

    /// A call was not made: its turn comes again.
    pub(super) fn requeue(&mut self, ticket: Ticket, job: Job, now: Instant) {
        job.row.take_back_start();
        // The call was no progress.
        self.progress -= 1;
        if job.row.is_abandoned() {
            self.scheduler.finish(ticket, now);
        } else {
            self.scheduler.requeue(ticket, job, now);
        }
    }

    /// A call has ended. Returns the row, if it was its last one, and whether the daemon is to be told of free capacity.
    pub(super) fn finish(
        &mut self,
        ticket: Ticket,
        job: Job,
        call: Call,
        now: Instant,
    ) -> (Option<Finished>, bool) {
        let finished = self.record(job, call);
        let mut is_capacity_freed = self.scheduler.finish(ticket, now);
        if self.awaited_in_hand.is_some_and(|most| self.scheduler.in_hand() <= most) {
            self.awaited_in_hand = None;
            is_capacity_freed = true;
        }
        (finished, is_capacity_freed)
    }

    /// Adds a call to its row; with the last one the row goes out.
    fn record(&mut self, job: Job, call: Call) -> Option<Finished> {
        let Job { row, room, .. } = job;
        if row.is_abandoned() {
            return None;
        }
        let mut ended = row.ended();
        ended.held.absorb(room.ended(call.answer_bytes()));
        ended.calls.push(row.logged(call));
        let is_last = ended.calls.len() == row.webhooks.len();
        let is_first = ended.calls.len() == 1;
        let admitted_bytes = ended.admitted_bytes;
        drop(ended);
        if is_last {
            self.admission.calls_ended(row.project_id, admitted_bytes);
            self.ended += 1;
            self.half_done.remove(&(row.id, row.epoch));
            return Some(row.finished());
        }
        if is_first {
            self.half_done.insert((row.id, row.epoch), row);
        }
        None
    }

    /// So many rows that went out, and so many that were admitted, are not in hand any more. Whether the daemon is to be
    /// told.
    pub(super) fn release(&mut self, out: usize, admitted: usize) -> bool {
        self.ended = self.ended.saturating_sub(out);
        self.progress += out as u64;
        self.admission.ended(admitted);
        std::mem::take(&mut self.awaits_release)
    }

    /// Parked projects that have capacity, each with how many rows.
    pub(super) fn parked_room(&mut self, most: usize, now: Instant) -> Vec<(i64, i64)> {
        let mut rooms = self.scheduler.parked_room(most, now);
        rooms.retain_mut(|(project_id, rows)| {
            let room = self.admission.room(*project_id, &self.memory);
            *rows = (*rows).min(i64::try_from(room).unwrap_or(i64::MAX));
            *rows > 0
        });
        rooms
    }

    /// Takes out rows that have not begun and have waited for long for others of their own project.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<Arc<Row>> {
        self.admission.take_late(&self.memory, now)
    }

    /// Drops all calls but the rest of rows that have begun, which start without regard to the limits. Returns the ids of
    /// the rows that have not begun, each with whether it is a repeated one.
    pub(super) fn stop(&mut self, now: Instant) -> HashMap<i64, bool> {
        let mut unstarted: HashMap<i64, bool> =
            self.admission.waiting().map(|row| (row.id, row.repeated)).collect();
        self.admission.retain(|_| false);
        for job in self.scheduler.take_waiting() {
            if job.row.has_begun() {
                self.scheduler.push(job.webhook.id, job.row.project_id, job, now);
            } else {
                unstarted.insert(job.row.id, job.row.repeated);
            }
        }
        unstarted
    }

    /// Gives up rows that are not ours any more. Returns the ids of those that will never go out, and how many of them were
    /// admitted.
    pub(super) fn abandon(&mut self, ids: &HashSet<i64>) -> (HashSet<i64>, usize) {
        let waiting = self.admission.waiting().map(|row| row.id).filter(|id| ids.contains(id));
        let mut abandoned: HashSet<i64> = waiting.collect();
        self.admission.retain(|row| !ids.contains(&row.id));
        let mut admitted = 0;
        self.scheduler.retain_waiting(|job| {
            let keep = !ids.contains(&job.row.id);
            if !keep && job.row.abandon() {
                abandoned.insert(job.row.id);
                admitted += 1;
                self.admission.calls_ended(job.row.project_id, job.row.ended().admitted_bytes);
                // What its calls in flight hold is free when they end.
                drop(job.row.finished());
            }
            keep
        });
        self.half_done.retain(|(id, _), _| !abandoned.contains(id));
        (abandoned, admitted)
    }

    /// What is going on.
    pub(super) fn load(&self, now: Instant) -> Load {
        Load {
            running: self.scheduler.running(),
            longest_running: self.scheduler.longest_running(now),
            waiting: self.scheduler.in_hand() - self.scheduler.running()
                + self.admission.waiting().map(|row| row.webhooks.len()).sum::<usize>(),
            ended: self.ended,
            progress: self.progress,
            threads: self.threads.count(),
            memory_bytes: self.memory.used(),
            shortages: self.gate.shortages(),
            busiest: self.scheduler.busiest(BUSIEST),
        }
    }

    /// Whether most of the memory is taken, so that no more is claimed. Then old rows keep less of their answers, and also
    /// while a row waits for memory that rows of other projects have: no slow endpoint holds for long what others need.
    pub(super) fn relieve(&mut self, now: Instant) -> bool {
        let is_tight = |memory: &Memory| memory.used() > memory.max() / 4 * 3;
        let lately = self.relieved.is_some_and(|at| now.saturating_duration_since(at) < RELIEVE_AGAIN);
        if !lately && (is_tight(&self.memory) || self.admission.lacks_memory(&self.memory)) {
            self.relieved = Some(now);
            self.scheduler.for_each_waiting(|job| {
                if job.row.is_old(now) {
                    job.room.shrink(OLD_ANSWER_BYTES);
                }
            });
            for row in self.half_done.values().filter(|row| row.is_old(now)) {
                let Ended { calls, held, .. } = &mut *row.ended();
                for call in calls {
                    let before = call.answer_bytes();
                    if before > 2 * OLD_ANSWER_BYTES {
                        call.shorten(OLD_ANSWER_BYTES, "the answer is kept shorter: memory was short");
                        held.set((held.bytes() + call.answer_bytes()).saturating_sub(before));
                    }
                }
            }
        }
        is_tight(&self.memory)
    }

    /// What the answers to a row with so many webhooks may keep.
    fn share(&self, webhooks: usize) -> Share {
        Share::of_row(webhooks, self.answer_bytes_max, self.memory.max(), self.scheduler.workers())
    }
}

/// How many bytes of text may be claimed at once, with so much memory free.
pub(super) fn text_bytes(free: usize) -> i64 {
    i64::try_from((free / 8).clamp(TEXT_BYTES_MIN, TEXT_BYTES_MAX)).expect("it is clamped to a few MiB")
}
