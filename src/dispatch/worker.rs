//! A worker thread's life: it takes a call, makes it, records it, takes the next one; without work it waits, and leaves.
//!
//! A thread decides nothing: which call is next, and whether one may start, is for [`state`](crate::dispatch::state) to
//! say. As few threads are awake as calls can run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::dispatch::pool::Shared;
use crate::dispatch::row::Job;
use crate::dispatch::scheduler::Ticket;
use crate::dispatch::state::State;
use crate::model::call::{Call, ErrorKind, Outcome};

/// A thread without work leaves after this time: longer than the pauses within a busy spell, short enough that memory comes
/// back after it.
pub(super) const IDLE: Duration = Duration::from_secs(10);
/// Stack of a thread. A call needs little. 256 threads of the usual 2 MiB would still be only address space, but less is
/// better where memory is overcommitted strictly.
const STACK_BYTES: usize = 512 * 1024;

/// The threads, as the pool's lock guards them.
#[derive(Default)]
pub(super) struct Threads {
    count: usize,
    /// Threads without work; the last one to become idle at the end. That one is woken first, so that the others can leave.
    idle: Vec<Thread>,
}

impl Threads {
    /// Threads, busy or not.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Takes a thread off the list of the idle. True: it was on the list, so no other thread has woken it.
    fn take_off(&mut self, thread: &Thread) -> bool {
        let at = self.idle.iter().position(|idle| idle.id() == thread.id());
        at.map(|at| self.idle.remove(at)).is_some()
    }
}

impl Shared {
    /// Wakes a thread, or starts one, if a call may start. Each thread that takes a call wakes the next one. So there are as
    /// many awake as calls that can run, and short calls need few. Takes the lock's guard: to wake a thread is a system
    /// call, and the other threads need not wait for it.
    pub(super) fn wake_one(self: &Arc<Self>, mut state: MutexGuard<'_, State>, now: Instant) {
        if !state.may_start(now) {
            let wants_lease = state.wants_lease(now);
            drop(state);
            if wants_lease {
                self.lease_wanted.notify_one();
            }
            return;
        }
        if let Some(thread) = state.threads.idle.pop() {
            drop(state);
            thread.unpark();
        } else if state.threads.count < state.scheduler.running_max() {
            let shared = self.clone();
            let thread = thread::Builder::new().name("call".into()).stack_size(STACK_BYTES);
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.threads.count += 1,
                Err(error) => {
                    tracing::warn!(%error, threads = state.threads.count, "cannot start another thread");
                    state.gate.pause(now);
                }
            }
        }
    }

    /// A thread: one call after the other.
    fn work(self: Arc<Self>) {
        let mut ended = None;
        while let Some((ticket, mut job)) = self.next(ended.take()) {
            let Job { row, webhook, room } = &mut job;
            let outcome = catch_unwind(AssertUnwindSafe(|| (self.post)(webhook, &row.message, room)))
                .unwrap_or_else(|_| {
                    let text = "the call ended in a panic; see the journal";
                    Outcome::Called(Call::unanswered(webhook, &row.message.body, ErrorKind::Internal, text))
                });
            match outcome {
                Outcome::Called(call) => ended = Some((ticket, job, call)),
                Outcome::ResourceExhausted(reason) => self.pause(ticket, job, &reason),
                Outcome::NoWayOut(reason) => {
                    // The monitor tells it: this is met again and again.
                    tracing::debug!(reason, "no way out, calls wait");
                    let (mut state, now) = (self.lock(), Instant::now());
                    state.gate.note_shortage(now);
                    state.requeue(ticket, job, now);
                }
                // The call has waited already, and the shortage does not concern other calls: no pause.
                Outcome::ResolverBusy | Outcome::RefusalUnclear => {
                    self.lock().requeue(ticket, job, Instant::now())
                }
            }
        }
    }

    /// Records the call that has ended, frees its slot, and takes the next call; waits for one, up to [`IDLE`]. All of it
    /// happens under one lock, and what wakes others comes after it.
    fn next(self: &Arc<Self>, ended: Option<(Ticket, Job, Call)>) -> Option<(Ticket, Job)> {
        let mut state = self.lock();
        let mut now = Instant::now();
        let (mut finished, mut is_capacity_freed) = match ended {
            Some((ticket, job, call)) => state.finish(ticket, job, call, now),
            None => (None, false),
        };
        let mut tell = || {
            finished.take().into_iter().for_each(|row| self.send(row.finished_with_unmade()));
            if std::mem::take(&mut is_capacity_freed) {
                self.capacity_freed.notify_one();
            }
        };
        let me = thread::current();
        loop {
            if let Some(started) = state.start(now) {
                self.wake_one(state, now);
                tell();
                return Some(started);
            }
            let wants_lease = state.wants_lease(now);
            state.threads.idle.push(me.clone());
            drop(state);
            if wants_lease {
                self.lease_wanted.notify_one();
            }
            tell();
            let since = Instant::now();
            let is_pause = self.wait_for_work();
            state = self.lock();
            now = Instant::now();
            // A thread that wakes this one takes it off the list.
            if state.threads.take_off(&me) && now - since >= IDLE && !is_pause {
                state.threads.count -= 1;
                return None;
            }
        }
    }

    /// Parks this thread until it is woken or [`IDLE`] is over; after a shortage only as long as the pause. Whether it was a
    /// pause.
    fn wait_for_work(&self) -> bool {
        let now = Instant::now();
        let until = self.lock().gate.paused_until(now);
        thread::park_timeout(until.map_or(IDLE, |until| until - now));
        until.is_some()
    }

    /// A call could not be made for a shortage of ours: its turn comes again, after a pause for all calls.
    fn pause(self: &Arc<Self>, ticket: Ticket, job: Job, reason: &str) {
        let mut state = self.lock();
        let now = Instant::now();
        if state.gate.note_shortage(now) {
            tracing::warn!(reason, running = state.scheduler.running(), "short of resources, calls wait");
        }
        state.requeue(ticket, job, now);
    }
}
