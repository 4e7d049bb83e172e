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
use crate::dispatch::row::{CALL_BYTES, Job, Row, Unfinished};
use crate::dispatch::scheduler::{ClaimBudget, Scheduler, Ticket};
use crate::dispatch::worker::Threads;
use crate::model::call::Call;
use crate::model::load::{BUSIEST, Load};
use crate::model::memory::{Memory, Room, Share};
use crate::model::row::ClaimKey;

/// When claiming waits for memory, the daemon asks again after this time at the latest: rows grow old. Old rows give memory
/// back no more often than that, because the search goes through all calls that wait.
const RELIEVE_AGAIN: Duration = Duration::from_millis(100);
/// Ended rows that may wait to be committed: a few commits of the largest size. More rows are not claimed then.
const ENDED_MAX: usize = 4000;
/// Most bytes of text that are claimed at once: a byte can become six in the payload.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Least bytes of text that are claimed at once. A row has at most 32 KiB of them, so a claim takes more than one row.
const TEXT_BYTES_MIN: usize = 64 * 1024;
/// An old row keeps so many bytes of each answer while others need memory: enough to see what went wrong.
const OLD_ANSWER_BYTES: usize = 1024;

/// Rows that were admitted and of which no call is made. They go out by [`Row::finished_with_unmade`], which takes time and
/// needs no lock.
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
    /// Rows of which some calls have ended and others have not.
    pub(super) half_done: HashMap<ClaimKey, Arc<Row>>,
    /// Rows that have gone out and were not released yet.
    ended: usize,
    progress: u64,
    /// The daemon waits until no more than this many calls are in hand.
    awaited_in_hand: Option<usize>,
    /// The daemon waits until rows are not in hand any more: [`State::release`] says so.
    awaits_release: bool,
    /// After this time the daemon asks for a budget again without being told to.
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
            let (project_id, body) = (row.project_id, row.message.body.len());
            self.admission.push(Arc::new(row), project_id, bytes, body, now);
        }
    }

    /// Counts rows that go out without calls, because they met no webhook.
    pub(super) fn count_out(&mut self, rows: usize) {
        self.admission.count(rows);
        self.ended += rows;
    }

    /// Gives the calls of rows whose share of the memory is free to the scheduler. Returns the rows whose calls are not
    /// made.
    pub(super) fn admit(&mut self, now: Instant) -> Outgoing {
        let mut outgoing = Vec::new();
        while let Some((row, mut held)) = self.admission.admit(&self.memory, now) {
            let bytes = held.bytes() + row.message.body.len();
            if row.makes_no_calls() {
                row.unfinished().held.absorb(held);
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
            let mut unfinished = row.unfinished();
            (unfinished.since, unfinished.admitted_bytes) = (Some(now), bytes);
            unfinished.held.absorb(held);
            unfinished.calls.reserve_exact(row.webhooks.len());
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

    /// Whether a call would start if the lease had not ended, as far as the queues tell.
    pub(super) fn wants_lease(&self, now: Instant) -> bool {
        self.gate.lacks_lease(now) && self.gate.paused_until(now).is_none() && self.scheduler.may_start()
    }

    /// Takes the next call, if one may start.
    pub(super) fn start(&mut self, now: Instant) -> Option<(Ticket, Job)> {
        if !self.gate.is_open(now) {
            return None;
        }
        let (ticket, job) = self.scheduler.start(now)?;
        job.row.note_start();
        Some((ticket, job))
    }

    /// A call was not made: its turn comes again.
    pub(super) fn requeue(&mut self, ticket: Ticket, job: Job, now: Instant) {
        job.row.take_back_start();
        if job.row.is_abandoned() {
            self.scheduler.finish(ticket, now);
        } else {
            self.scheduler.requeue(ticket, job, now);
        }
    }

    /// A call has ended. Returns the row, if it was its last one, which goes out as those of [`Outgoing`] do. Returns also
    /// whether the daemon is to be told of free capacity.
    pub(super) fn finish(
        &mut self,
        ticket: Ticket,
        job: Job,
        call: Call,
        now: Instant,
    ) -> (Option<Arc<Row>>, bool) {
        self.progress += 1;
        let finished = self.record(job, call);
        let mut is_capacity_freed = self.scheduler.finish(ticket, now);
        if self.awaited_in_hand.is_some_and(|most| self.scheduler.in_hand() <= most) {
            self.awaited_in_hand = None;
            is_capacity_freed = true;
        }
        (finished, is_capacity_freed)
    }

    /// Adds a call to its row; with the last one the row goes out.
    fn record(&mut self, job: Job, call: Call) -> Option<Arc<Row>> {
        let Job { row, room, .. } = job;
        if row.is_abandoned() {
            return None;
        }
        let mut unfinished = row.unfinished();
        unfinished.held.absorb(room.ended(call.answer_bytes()));
        unfinished.calls.push(row.logged(call));
        let is_last = unfinished.calls.len() == row.webhooks.len();
        let is_first = unfinished.calls.len() == 1;
        let admitted_bytes = unfinished.admitted_bytes;
        drop(unfinished);
        if is_last {
            self.admission.calls_ended(row.project_id, admitted_bytes);
            self.ended += 1;
            self.half_done.remove(&row.key());
            return Some(row);
        }
        if is_first {
            self.half_done.insert(row.key(), row);
        }
        None
    }

    /// Takes rows out of hand: `out` that went out, and `admitted` that were admitted. Returns whether the daemon is to be
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

    /// Drops all calls but the rest of rows that have begun, which start without regard to the limits. Returns the rows
    /// that have not begun, each with whether it is a repeated one.
    pub(super) fn stop(&mut self, now: Instant) -> HashMap<ClaimKey, bool> {
        let mut unstarted: HashMap<ClaimKey, bool> =
            self.admission.waiting().map(|row| (row.key(), row.repeated)).collect();
        self.admission.retain(|_| false);
        for job in self.scheduler.take_waiting() {
            if job.row.has_begun() {
                self.scheduler.push(job.webhook.id, job.row.project_id, job, now);
            } else {
                unstarted.insert(job.row.key(), job.row.repeated);
            }
        }
        unstarted
    }

    /// Gives up rows that are not ours any more. Returns those that will never go out, and how many of them were admitted.
    pub(super) fn abandon(&mut self, rows: &HashSet<ClaimKey>) -> (HashSet<ClaimKey>, usize) {
        let waiting = self.admission.waiting().map(|row| row.key()).filter(|key| rows.contains(key));
        let mut abandoned: HashSet<ClaimKey> = waiting.collect();
        self.admission.retain(|row| !rows.contains(&row.key()));
        let mut admitted = 0;
        self.scheduler.retain_waiting(|job| {
            let keep = !rows.contains(&job.row.key());
            if !keep && job.row.abandon() {
                abandoned.insert(job.row.key());
                admitted += 1;
                self.admission.calls_ended(job.row.project_id, job.row.unfinished().admitted_bytes);
                // What its calls in flight hold is free when they end.
                drop(job.row.finished());
            }
            keep
        });
        self.half_done.retain(|key, _| !abandoned.contains(key));
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
            started: self.scheduler.started(),
            progress: self.progress,
            threads: self.threads.count(),
            memory_bytes: self.memory.used(),
            shortages: self.gate.shortages(),
            busiest: self.scheduler.busiest(BUSIEST),
        }
    }

    /// Whether most of the memory is taken, so that no more is claimed. In that case old rows keep less of their answers. They
    /// also do so while a row waits for memory that rows of other projects have. So no slow endpoint holds for long what
    /// others need.
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
                let Unfinished { calls, held, .. } = &mut *row.unfinished();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::row::{claimed, key, with_paused};
    use crate::model::call::ErrorKind;

    const LIMITS: Limits = Limits { workers: 4, per_webhook: 2 };
    const MIB: usize = 1024 * 1024;

    /// With so many rows handed in; row `n` has one webhook, `n`.
    fn state(rows: i64, memory: &Arc<Memory>, now: Instant) -> State {
        let mut state = State::new(LIMITS, memory.clone(), 1024);
        let row = |id: i64| Row::new(claimed(id, &[id]), None, memory);
        state.push((1..=rows).map(row).collect(), now);
        assert_eq!(state.admit(now).len(), 0);
        state
    }

    fn call(job: &Job) -> Call {
        Call::unanswered(&job.webhook, &job.row.message.body, ErrorKind::Connect, "refused")
    }

    #[test]
    fn nothing_is_claimed_while_memory_is_short_rows_wait_to_be_committed_or_calls_pause() {
        let (now, memory) = (Instant::now(), Memory::new(MIB));
        let mut state = state(0, &memory, now);
        assert_eq!(state.claim_budget(now).map(|budget| budget.limit), Some(LIMITS.workers));
        let held = memory.hold(MIB / 4 * 3 + 1);
        assert_eq!((state.claim_budget(now), state.ask_again), (None, RELIEVE_AGAIN));
        drop(held);
        state.count_out(ENDED_MAX);
        assert_eq!(state.claim_budget(now), None);
        assert!(state.release(1, 1), "the daemon waits for it");
        assert!(!state.release(0, 0), "it was told");
        assert!(state.claim_budget(now).is_some());
        state.gate.pause(now);
        assert_eq!(state.claim_budget(now), None);
        assert!(state.claim_budget(now + state.ask_again).is_some());
    }

    #[test]
    fn rows_that_wait_for_memory_take_from_the_budget() {
        let (now, memory) = (Instant::now(), Memory::new(MIB));
        let mut state = state(0, &memory, now);
        let held = memory.hold(MIB / 4 * 3);
        let large: Vec<i64> = (1..500).collect();
        state.push((1..=3).map(|id| Row::new(claimed(id, &large), None, &memory)).collect(), now);
        state.count_out(1);
        assert_eq!(state.admit(now).len(), 0);
        assert_eq!(state.load(now).waiting, 3 * large.len(), "beside another row none of them fits");
        drop(held);
        assert_eq!(state.claim_budget(now).map(|budget| budget.limit), Some(LIMITS.workers - 3));
    }

    #[test]
    fn a_call_that_ends_is_progress_and_one_that_is_requeued_is_none() {
        let (now, memory) = (Instant::now(), Memory::new(MIB));
        let mut state = state(2, &memory, now);
        state.gate.lease_until(now);
        assert!(!state.may_start(now) && state.start(now).is_none());
        state.gate.lease_until(now + RELIEVE_AGAIN);
        let (ticket, job) = state.start(now).expect("a call");
        assert!(job.row.has_begun() && state.load(now).progress == 0);
        let call = call(&job);
        assert!(state.finish(ticket, job, call, now).0.is_some());
        assert_eq!(state.load(now).progress, 1);
        let (ticket, job) = state.start(now).expect("the other row's");
        state.requeue(ticket, job, now);
        assert_eq!(state.load(now).progress, 1);
        assert_eq!(state.stop(now), HashMap::from([(key(2), false)]), "it has not begun");
    }

    #[test]
    fn with_its_last_call_a_row_goes_out_unless_it_was_given_up() {
        let (now, memory) = (Instant::now(), Memory::new(MIB));
        let mut state = state(0, &memory, now);
        state.push((1..=2).map(|id| Row::new(claimed(id, &[10, 11]), None, &memory)).collect(), now);
        assert_eq!(state.admit(now).len(), 0);
        let finish = |state: &mut State| {
            let (ticket, job) = state.start(now).expect("a call");
            let call = call(&job);
            let row = state.finish(ticket, job, call, now).0.map(|row| row.finished_with_unmade());
            row.map(|row| (row.id, row.calls.len()))
        };
        assert_eq!(finish(&mut state), None);
        assert_eq!(state.half_done.len(), 1);
        // Of the other row one call waits, and one runs.
        assert_eq!(finish(&mut state), Some((1, 2)));
        assert_eq!((state.half_done.len(), state.load(now).ended), (0, 1));
        let (ticket, job) = state.start(now).expect("a call");
        assert_eq!(state.abandon(&HashSet::from([key(2), key(3)])), (HashSet::from([key(2)]), 1));
        let call = call(&job);
        assert!(state.finish(ticket, job, call, now).0.is_none());
        assert!(state.start(now).is_none());
        assert_eq!((state.load(now).waiting, state.load(now).ended), (0, 1));
    }

    #[test]
    fn a_row_whose_calls_are_not_made_is_returned_with_its_memory() {
        let (now, memory) = (Instant::now(), Memory::new(MIB));
        let mut state = state(0, &memory, now);
        let skipped = Some((ErrorKind::Interrupted, "died"));
        state.push(vec![Row::new(claimed(1, &[10, 11]), skipped, &memory)], now);
        let outgoing = state.admit(now);
        assert!(!state.may_start(now) && state.load(now).ended == 1);
        let row = outgoing[0].finished_with_unmade();
        assert!(row.calls.iter().all(|call| call.error_kind == Some(ErrorKind::Interrupted)));
        assert_eq!((row.calls.len(), row.held.bytes()), (2, memory.used()));
    }

    #[test]
    fn a_paused_webhook_takes_no_slot_and_its_record_goes_out_with_the_row() {
        let (now, memory) = (Instant::now(), Memory::new(MIB));
        let mut state = state(0, &memory, now);
        let rows = [with_paused(claimed(1, &[10]), &[20, 21]), with_paused(claimed(2, &[]), &[20])];
        state.push(rows.map(|row| Row::new(row, None, &memory)).into(), now);
        let outgoing = state.admit(now);
        assert_eq!(outgoing.iter().map(|row| row.id).collect::<Vec<_>>(), [2], "it makes no call");
        let kinds = |row: &Arc<Row>| {
            let row = row.finished_with_unmade();
            row.calls.iter().map(|call| (call.webhook_id, call.error_kind)).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&outgoing[0]), [(20, Some(ErrorKind::Paused))]);
        let (ticket, job) = state.start(now).expect("the call to the other webhook");
        assert!(state.start(now).is_none(), "and no other");
        let call = call(&job);
        let row = state.finish(ticket, job, call, now).0.expect("its only call has ended");
        let (connect, paused) = (Some(ErrorKind::Connect), Some(ErrorKind::Paused));
        assert_eq!(kinds(&row), [(10, connect), (20, paused), (21, paused)]);
        drop((outgoing, row));
        assert_eq!((memory.used(), state.load(now).ended), (0, 2));
    }

    #[test]
    fn what_a_row_is_skipped_for_goes_before_a_pause() {
        let memory = Memory::new(MIB);
        let skipped = Some((ErrorKind::Interrupted, "died"));
        let row = Row::new(with_paused(claimed(1, &[10]), &[20]), skipped, &memory).finished_with_unmade();
        assert_eq!(row.calls.len(), 2);
        assert!(row.calls.iter().all(|call| call.error_kind == Some(ErrorKind::Interrupted)));
    }

    #[test]
    fn text_is_claimed_by_the_free_memory_within_bounds() {
        assert_eq!(text_bytes(0), 64 * 1024);
        assert_eq!(text_bytes(8 * MIB), 1024 * 1024);
        assert_eq!(text_bytes(usize::MAX), 4 * 1024 * 1024);
    }
}
