//! The handle to the worker threads: asynchronous meets blocking here, and nowhere else.
//!
//! The daemon hands rows in. A row begins when its share of the memory is free ([`admission`](crate::dispatch::admission)).
//! Threads make the calls, one blocking POST each (`worker`); they are started when needed and leave when idle. A row whose
//! last call has ended goes out through a channel. The handle decides nothing: under the lock it asks `state`. It knows no
//! Postgres.
//!
//! Once a row has begun, none of its calls waits for memory. While others need memory, an old row keeps less of its
//! answers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::dispatch::limits::Limits;
use crate::dispatch::row::{Row, Skipped};
use crate::dispatch::scheduler::ClaimBudget;
use crate::dispatch::state::{self, Outgoing, State};
use crate::model::call::{ErrorKind, Outcome};
use crate::model::event::Webhook;
use crate::model::load::Load;
use crate::model::memory::{Memory, Room};
use crate::model::message::Message;
use crate::model::row::{ClaimKey, Claimed, Finished};

/// Parked projects that are noted under one lock: a few microseconds, also where the daemon has read ten thousand of them.
const PARKED_CHUNK: usize = 100;

/// Makes one call, blocking. The answer keeps no more than the room allows.
pub(crate) type Post = dyn Fn(&Webhook, &Message, &mut Room) -> Outcome + Send + Sync;

/// Handle to the threads; cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

/// What the handles and the threads share.
pub(super) struct Shared {
    pub(super) post: Box<Post>,
    results: UnboundedSender<Finished>,
    memory: Arc<Memory>,
    // Each thread takes the lock once for each call: what takes time happens before it or after it.
    state: Mutex<State>,
    /// The daemon waits for it in [`Pool::wait_for_capacity`] or in [`Pool::capacity_freed`].
    pub(super) capacity_freed: Notify,
    /// The monitor waits for it in [`Pool::lease_wanted`].
    pub(super) lease_wanted: Notify,
}

impl Pool {
    /// No threads yet. `post` makes a call, whose answer keeps at most `answer_bytes_max` of its body; rows whose calls have
    /// all ended go to `results`. What the rows hold of `memory` is free when they are dropped, and
    /// [`Pool::released`] says so.
    pub(crate) fn new(
        limits: Limits,
        memory: Arc<Memory>,
        answer_bytes_max: usize,
        post: Box<Post>,
        results: UnboundedSender<Finished>,
    ) -> Pool {
        let state = Mutex::new(State::new(limits, memory.clone(), answer_bytes_max));
        let (capacity_freed, lease_wanted) = (Notify::new(), Notify::new());
        Pool { shared: Arc::new(Shared { post, results, memory, state, capacity_freed, lease_wanted }) }
    }

    /// What may be claimed now, if a claim is worth its round trip.
    pub(crate) fn claim_budget(&self) -> Option<ClaimBudget> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let budget = state.claim_budget(now);
        self.shared.wake_one(state, now);
        budget
    }

    /// Bytes of text that may be claimed now.
    pub(crate) fn text_bytes(&self) -> i64 {
        state::text_bytes(self.shared.memory.free())
    }

    /// Starts what may start by now although no call has ended. A webhook's class changes with time, the system may now give
    /// a thread that it refused, and a row may have become old. The monitor calls it with each of its looks, a second apart at
    /// most. It does not while a look waits for Postgres, nor during a reconnection.
    pub(crate) fn tick(&self) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let outgoing = state.tick(now);
        self.shared.wake_one(state, now);
        self.shared.send_out(outgoing);
    }

    /// Waits until [`Pool::claim_budget`] may have something. Cancel-safe.
    pub(crate) async fn wait_for_capacity(&self) {
        let ask_again = self.shared.lock().ask_again;
        tokio::select! {
            () = self.shared.capacity_freed.notified() => {}
            () = tokio::time::sleep(ask_again) => {}
        }
    }

    /// Waits until a claim may find more than the last one. That is when a slot for a parked row is free, or when rows were
    /// released. It is also when as few calls are in hand as the daemon has waited for. Cancel-safe.
    pub(crate) async fn capacity_freed(&self) {
        self.shared.capacity_freed.notified().await;
    }

    /// Starts the calls of rows, as memory and slots become free. A row without webhooks goes out at once. Paused webhooks are
    /// not called, and take no slot: their records go out with the row.
    pub(crate) fn hand_in(&self, rows: Vec<Claimed>) {
        self.take(rows, None);
    }

    /// Sends rows out, as memory becomes free, whose calls are not made: the call logs have this kind and message.
    pub(crate) fn skip(&self, rows: Vec<Claimed>, kind: ErrorKind, message: &'static str) {
        self.take(rows, Some((kind, message)));
    }

    fn take(&self, rows: Vec<Claimed>, skipped: Option<Skipped>) {
        let rows = rows.into_iter().map(|claimed| Row::new(claimed, skipped, &self.shared.memory));
        let (without_calls, rows): (Vec<Row>, Vec<Row>) = rows.partition(Row::has_no_webhook);
        let now = Instant::now();
        let mut state = self.shared.lock();
        state.count_out(without_calls.len());
        state.push(rows, now);
        let outgoing = state.admit(now);
        self.shared.wake_one(state, now);
        without_calls.iter().for_each(|row| self.shared.send(row.finished()));
        self.shared.send_out(outgoing);
    }

    /// Says that so many rows that went out are committed, given up, or set aside. What they held is free when the caller has
    /// dropped them.
    pub(crate) fn released(&self, rows: usize) {
        self.release(self.shared.lock(), rows, rows);
    }

    /// Takes rows out of hand: `out` that went out, and `admitted` that were admitted.
    fn release(&self, mut state: MutexGuard<'_, State>, out: usize, admitted: usize) {
        let is_awaited = state.release(out, admitted);
        if state.admission.waiting_count() > 0 {
            let now = Instant::now();
            let outgoing = state.admit(now);
            self.shared.wake_one(state, now);
            self.shared.send_out(outgoing);
        } else {
            drop(state);
        }
        if is_awaited {
            self.shared.capacity_freed.notify_one();
        }
    }

    /// Notes projects that have parked rows, until [`Pool::forget_parked`]. The scheduler's set of them is the only one.
    pub(crate) fn note_parked(&self, projects: &[i64]) {
        for some in projects.chunks(PARKED_CHUNK) {
            self.shared.lock().scheduler.note_parked(some);
        }
    }

    /// Forgets a project that has no parked rows any more.
    pub(crate) fn forget_parked(&self, project: i64) {
        self.shared.lock().scheduler.forget_parked(project);
    }

    /// Parked projects that have capacity, each with how many rows; at most so many rows in all.
    pub(crate) fn parked_room(&self, most: usize) -> Vec<(i64, i64)> {
        self.shared.lock().parked_room(most, Instant::now())
    }

    /// Takes out rows that have not begun and have waited for long for others of their own project. The daemon gives them back
    /// and parks them. Returns of each which it is, its project, and whether it is a repeated one.
    pub(crate) fn take_late(&self) -> Vec<(ClaimKey, i64, bool)> {
        let late = self.shared.lock().take_late(Instant::now());
        late.iter().map(|row| (row.key(), row.project_id, row.repeated)).collect()
    }

    /// Starts nothing new but the rest of rows that have begun; returns the rows that have not, each with whether it is a
    /// repeated one.
    pub(crate) fn stop(&self) -> HashMap<ClaimKey, bool> {
        let mut state = self.shared.lock();
        let now = Instant::now();
        let unstarted = state.stop(now);
        self.shared.wake_one(state, now);
        unstarted
    }

    /// Leases the claims until then: no call starts later, until the next lease. A process that was frozen, or cut off
    /// from Postgres, must not begin calls of rows that a peer may have taken over. Before the first lease there is no limit.
    pub(crate) fn lease_until(&self, until: Instant) {
        let mut state = self.shared.lock();
        state.gate.lease_until(until);
        self.shared.wake_one(state, Instant::now());
    }

    /// Resolves when a call waits for the next lease. Cancel-safe. For one loop.
    pub(crate) async fn lease_wanted(&self) {
        loop {
            self.shared.lease_wanted.notified().await;
            // The next lease may have come meanwhile.
            if self.shared.lock().wants_lease(Instant::now()) {
                return;
            }
        }
    }

    /// Gives up rows that are not ours any more: their calls that wait are dropped. Returns the rows that will never go
    /// out; the others have all their calls in flight, or have gone out already.
    pub(crate) fn abandon(&self, rows: &HashSet<ClaimKey>) -> HashSet<ClaimKey> {
        let mut state = self.shared.lock();
        let (abandoned, admitted) = state.abandon(rows);
        self.release(state, 0, admitted);
        abandoned
    }

    /// How long the oldest call has been running.
    pub(crate) fn longest_running(&self) -> Duration {
        self.shared.lock().scheduler.longest_running(Instant::now())
    }

    /// What the threads are doing now.
    pub(crate) fn load(&self) -> Load {
        self.shared.lock().load(Instant::now())
    }

    /// Calls running now.
    pub(crate) fn running(&self) -> usize {
        self.shared.lock().scheduler.running()
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under this lock would be a defect of ours; the state is still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the records of calls that are not made, and sends their rows out. Takes time, so not under the lock.
    fn send_out(&self, outgoing: Outgoing) {
        outgoing.iter().for_each(|row| self.send(row.finished_with_unmade()));
    }

    /// Sends a row out to be committed.
    pub(super) fn send(&self, finished: Finished) {
        if let Err(error) = self.results.send(finished) {
            // The daemon is gone and the process about to end: the row stays claimed and will be taken over.
            tracing::debug!(outbox_id = error.0.id, "a call ended after the relay");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::dispatch::row::{OLD, claimed, key};
    use crate::dispatch::worker::IDLE;
    use crate::model::call::Call;

    fn success(webhook: &Webhook, message: &Message) -> Outcome {
        let mut call = Call::unanswered(webhook, &message.body, ErrorKind::Internal, "");
        (call.error_kind, call.error_message) = (None, None);
        Outcome::Called(call)
    }

    /// The number of a row that `claimed` has made.
    fn id(message: &Message) -> usize {
        usize::try_from(message.event_id.as_u128()).expect("small")
    }

    const MIB: usize = 1024 * 1024;

    fn new(limits: Limits, post: Box<Post>, results: UnboundedSender<Finished>) -> Pool {
        Pool::new(limits, Memory::new(64 * MIB), 64 * 1024, post, results)
    }

    const LIMITS: Limits = Limits { workers: 4, per_webhook: 2 };

    /// A gate for calls, and what opens it for one of them at a time.
    fn gate() -> (mpsc::Sender<()>, impl Fn() + Send + Sync) {
        let (open, gate) = mpsc::channel();
        let gate = Mutex::new(gate);
        (open, move || gate.lock().expect("one at a time").recv().expect("the test holds the gate"))
    }

    #[tokio::test]
    async fn a_row_goes_out_once_with_a_call_for_each_webhook() {
        let (results, mut out) = unbounded_channel();
        let pool = new(LIMITS, Box::new(|w, message, _| success(w, message)), results);
        pool.hand_in(vec![claimed(1, &[10, 11, 12]), claimed(2, &[])]);
        let mut got = [out.recv().await.expect("a row"), out.recv().await.expect("a row")];
        got.sort_by_key(|row| row.id);
        let mut called: Vec<_> = got[0].calls.iter().map(|call| call.webhook_id).collect();
        called.sort_unstable();
        assert_eq!(called, [10, 11, 12]);
        assert!(got[1].calls.is_empty());
    }

    #[tokio::test]
    async fn rows_that_are_skipped_take_no_more_memory_than_others() {
        let (results, mut out) = unbounded_channel();
        let memory = Memory::new(16 * MIB);
        let post = Box::new(|_: &Webhook, _: &Message, _: &mut Room| panic!("no call is made"));
        let pool = Pool::new(LIMITS, memory.clone(), 64 * 1024, post, results);
        let webhooks: Vec<i64> = (1..=1000).collect();
        pool.skip((1..=100).map(|id| claimed(id, &webhooks)).collect(), ErrorKind::Interrupted, "died");
        for _ in 0..100 {
            assert!(memory.used() <= memory.max(), "{} bytes", memory.used());
            assert!(out.len() < 50, "{} rows of 1,000 calls are there at once", out.len());
            let row = out.recv().await.expect("a row");
            assert_eq!(row.calls.len(), 1000);
            assert!(row.calls.iter().all(|call| call.error_kind == Some(ErrorKind::Interrupted)));
            drop(row);
            pool.released(1);
        }
        assert_eq!(pool.load().waiting, 0);
    }

    #[tokio::test]
    async fn a_panic_is_a_failed_call_and_the_thread_goes_on() {
        let (results, mut out) = unbounded_channel();
        let post = |w: &Webhook, message: &Message, _: &mut Room| {
            assert!(id(message) != 1, "a defect");
            success(w, message)
        };
        let pool = new(LIMITS, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10]), claimed(2, &[10])]);
        let mut got = [out.recv().await.expect("a row"), out.recv().await.expect("a row")];
        got.sort_by_key(|row| row.id);
        assert_eq!(got[0].calls[0].error_kind, Some(ErrorKind::Internal));
        assert!(got[1].calls[0].succeeded());
    }

    #[tokio::test]
    async fn a_shortage_is_no_failed_call() {
        let (results, mut out) = unbounded_channel();
        let tries = AtomicUsize::new(0);
        let post =
            move |w: &Webhook, message: &Message, _: &mut Room| match tries.fetch_add(1, Ordering::SeqCst) {
                0 => Outcome::ResourceExhausted("too many open files".into()),
                _ => success(w, message),
            };
        let pool = new(LIMITS, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10])]);
        assert!(out.recv().await.expect("a row").calls[0].succeeded());
    }

    #[tokio::test]
    async fn a_call_that_found_no_thread_for_its_name_is_made_later_and_nobody_pauses() {
        let (results, mut out) = unbounded_channel();
        let ((open, wait), tries) = (gate(), AtomicUsize::new(0));
        let post = move |w: &Webhook, message: &Message, _: &mut Room| {
            if w.id == 10 && tries.fetch_add(1, Ordering::SeqCst) < 3 {
                wait();
                return Outcome::ResolverBusy;
            }
            success(w, message)
        };
        let pool = new(Limits { workers: 1, per_webhook: 1 }, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10]), claimed(2, &[11])]);
        open.send(()).expect("the thread waits");
        assert_eq!(out.recv().await.expect("the other's").id, 2, "it comes behind the others");
        open.send(()).and_then(|()| open.send(())).expect("the thread waits");
        assert!(out.recv().await.expect("a row").calls[0].succeeded());
        assert_eq!(pool.load().shortages, 0);
    }

    #[tokio::test]
    async fn a_row_whose_only_call_was_requeued_has_not_begun() {
        let (results, _out) = unbounded_channel();
        let pool = new(LIMITS, Box::new(|_, _, _| Outcome::ResourceExhausted("none".into())), results);
        pool.hand_in(vec![claimed(1, &[10])]);
        while pool.load().shortages == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.stop(), HashMap::from([(key(1), false)]), "the pause is long enough");
    }

    #[tokio::test]
    async fn stopping_gives_back_the_rows_that_have_not_begun_and_finishes_the_others() {
        let (results, mut out) = unbounded_channel();
        let (open, wait) = gate();
        let post = move |w: &Webhook, message: &Message, _: &mut Room| {
            if w.id == 10 {
                wait();
            }
            success(w, message)
        };
        let pool = new(Limits { workers: 1, per_webhook: 1 }, Box::new(post), results);
        // Row 1 begins with webhook 10 and waits there; its call to 11 and row 2 have not begun.
        pool.hand_in(vec![claimed(1, &[10, 11]), claimed(2, &[10])]);
        while pool.running() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.stop(), HashMap::from([(key(2), false)]));
        open.send(()).expect("the thread waits");
        assert_eq!(out.recv().await.expect("row 1").calls.len(), 2);
    }

    #[tokio::test]
    async fn no_call_starts_after_the_lease_until_the_next_one() {
        let (results, mut out) = unbounded_channel();
        let pool = new(LIMITS, Box::new(|w, message, _| success(w, message)), results);
        pool.lease_until(Instant::now());
        pool.hand_in(vec![claimed(1, &[10]), claimed(2, &[10])]);
        pool.tick();
        assert!(out.try_recv().is_err() && pool.running() == 0);
        tokio::time::timeout(IDLE, pool.lease_wanted()).await.expect("the calls wait for it");
        assert_eq!(pool.abandon(&HashSet::from([key(1), key(7)])), HashSet::from([key(1)]));
        pool.lease_until(Instant::now() + IDLE);
        assert_eq!(out.recv().await.expect("a row").id, 2);
        assert!(out.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_slot_that_is_freed_after_the_lease_asks_for_the_next_one() {
        let (results, mut out) = unbounded_channel();
        let (open, wait) = gate();
        let post = move |w: &Webhook, message: &Message, _: &mut Room| {
            wait();
            success(w, message)
        };
        let pool = new(Limits { workers: 1, per_webhook: 1 }, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10]), claimed(2, &[10])]);
        while pool.running() == 0 {
            tokio::task::yield_now().await;
        }
        pool.lease_until(Instant::now());
        let wanted = tokio::time::timeout(Duration::ZERO, pool.lease_wanted()).await;
        assert!(wanted.is_err(), "no call could start");
        open.send(()).expect("the thread waits");
        tokio::time::timeout(IDLE, pool.lease_wanted()).await.expect("a call waits for it");
        pool.tick();
        assert_eq!((pool.running(), pool.load().waiting), (0, 1));
        pool.lease_until(Instant::now() + IDLE);
        let wanted = tokio::time::timeout(Duration::ZERO, pool.lease_wanted()).await;
        assert!(wanted.is_err(), "it is there");
        open.send(()).expect("the thread takes it");
        for id in [1, 2] {
            assert_eq!(out.recv().await.expect("a row").id, id);
        }
    }

    /// A success whose answer has so many bytes.
    fn answer(webhook: &Webhook, message: &Message, room: &mut Room, bytes: usize) -> Outcome {
        let Outcome::Called(mut call) = success(webhook, message) else { unreachable!("it was made above") };
        call.response_body = Some("x".repeat(room.allow(bytes)));
        Outcome::Called(call)
    }

    #[tokio::test]
    async fn rows_with_long_answers_that_wait_for_slow_calls_keep_nobody_from_anything() {
        // The first answers at once, with 64 KiB; the second waits for the gate. Their rows need a hundred times as much
        // memory as there is.
        let (results, mut out) = unbounded_channel();
        let (open, wait) = gate();
        let post = move |w: &Webhook, message: &Message, room: &mut Room| {
            if w.id == 11 {
                wait();
            }
            answer(w, message, room, 64 * 1024)
        };
        let memory = Memory::new(MIB);
        let limits = Limits { workers: 8, per_webhook: 4 };
        let pool = Pool::new(limits, memory.clone(), 64 * 1024, Box::new(post), results);
        pool.hand_in((1..=800).map(|id| claimed(id, &[10, 11])).collect());
        for _ in 1..=800 {
            open.send(()).expect("the threads wait");
        }
        let mut ended = HashSet::new();
        while ended.len() < 800 {
            let row = out.recv().await.expect("a row");
            assert_eq!(row.calls.len(), 2);
            assert!(memory.used() < 3 * MIB, "payloads besides");
            assert!(ended.insert(row.id));
            drop(row);
            pool.released(1);
        }
        assert_eq!((memory.used(), pool.load().waiting), (0, 0));
    }

    #[tokio::test]
    async fn an_old_row_keeps_less_of_its_answers_when_memory_is_short() {
        let (results, mut out) = unbounded_channel();
        let (open, wait) = gate();
        let post = move |w: &Webhook, message: &Message, room: &mut Room| {
            if w.id == 11 {
                wait();
            }
            answer(w, message, room, 64 * 1024)
        };
        let memory = Memory::new(MIB);
        let pool = Pool::new(LIMITS, memory.clone(), 64 * 1024, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10, 11])]);
        while pool.running() == 0 || pool.shared.lock().half_done.is_empty() {
            tokio::task::yield_now().await;
        }
        let other = memory.hold(MIB);
        assert!(pool.claim_budget().is_none());
        // As if it had begun long ago.
        pool.shared.lock().half_done.values().next().expect("row 1").unfinished().since =
            Instant::now().checked_sub(2 * OLD);
        let before = memory.used();
        assert!(pool.shared.lock().relieve(Instant::now() + OLD));
        assert!(memory.used() < before - 60 * 1024);
        drop(other);
        open.send(()).expect("the thread waits");
        let row = out.recv().await.expect("a row");
        let kept: Vec<_> = row.calls.iter().map(|call| (call.webhook_id, call.response_truncated)).collect();
        assert_eq!(kept, [(10, true), (11, false)]);
        assert!(row.calls[0].error_message.as_deref().is_some_and(|text| text.contains("memory was short")));
        drop(row);
        pool.released(1);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn rows_that_wait_for_memory_are_given_back_and_given_up() {
        let (results, mut out) = unbounded_channel();
        let (open, wait) = gate();
        let post = move |w: &Webhook, message: &Message, _: &mut Room| {
            wait();
            success(w, message)
        };
        let memory = Memory::new(MIB);
        let pool = Pool::new(LIMITS, memory.clone(), 64 * 1024, Box::new(post), results);
        let many: Vec<i64> = (10..5000).collect();
        pool.hand_in(vec![claimed(1, &[10]), claimed(2, &many), claimed(3, &many)]);
        while pool.running() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.load().waiting, 2 * many.len(), "neither fits beside the first");
        assert_eq!(pool.abandon(&HashSet::from([key(2)])), HashSet::from([key(2)]));
        assert_eq!(pool.stop(), HashMap::from([(key(3), false)]));
        open.send(()).expect("the thread waits");
        assert_eq!(out.recv().await.expect("a row").id, 1);
        pool.released(1);
        assert_eq!((memory.used(), pool.load().waiting), (0, 0));
    }

    #[tokio::test]
    async fn while_all_slots_hang_the_daemon_does_not_ask_again_and_again() {
        let (results, mut out) = unbounded_channel();
        let (open, wait) = gate();
        let post = move |w: &Webhook, message: &Message, _: &mut Room| {
            wait();
            success(w, message)
        };
        let pool = new(Limits { workers: 1, per_webhook: 1 }, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10])]);
        // At first the call may be quick, and the daemon asks often.
        while pool.claim_budget().is_some() || pool.shared.lock().ask_again < Duration::from_millis(100) {
            tokio::task::yield_now().await;
        }
        let looks = tokio::time::timeout(Duration::from_millis(50), pool.wait_for_capacity()).await;
        assert!(looks.is_err(), "it was every 5 ms");
        open.send(()).expect("the thread waits");
        pool.wait_for_capacity().await;
        drop(out.recv().await.expect("a row"));
        pool.released(1);
        assert!(pool.claim_budget().is_some());
    }

    #[tokio::test]
    async fn a_daemon_that_waits_for_memory_is_told_when_some_is_free() {
        let (results, mut out) = unbounded_channel();
        let memory = Memory::new(MIB);
        let pool = Pool::new(
            LIMITS,
            memory.clone(),
            64 * 1024,
            Box::new(|w, message, _| success(w, message)),
            results,
        );
        let other = memory.hold(MIB);
        pool.hand_in(vec![claimed(1, &[10])]);
        let row = out.recv().await.expect("it is alone, and begins");
        assert!(pool.claim_budget().is_none());
        pool.shared.lock().ask_again = IDLE;
        drop((other, row));
        pool.released(1);
        tokio::time::timeout(IDLE / 2, pool.wait_for_capacity()).await.expect("it is told, not polled");
        assert!(pool.claim_budget().is_some());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

        /// Whatever the rows need, and however long their calls take: every row ends, with all its calls.
        #[test]
        fn every_row_ends(
            rows in proptest::collection::vec(
                (proptest::collection::vec((1i64..30, 0usize..3_000_000, 0u64..3), 0..40), 0usize..200_000), 1..60),
            memory in 64usize * 1024..4 * MIB,
            workers in 1usize..24,
            per_webhook in 1usize..6,
            answer_max in 0usize..3_000_000,
        ) {
            let (results, mut out) = unbounded_channel();
            let plans: Vec<HashMap<i64, (usize, u64)>> = rows
                .iter()
                .map(|(webhooks, _)| webhooks.iter().map(|(id, size, ms)| (*id, (*size, *ms))).collect())
                .collect();
            let scripts = plans.clone();
            let post = move |w: &Webhook, message: &Message, room: &mut Room| {
                let (size, ms) = scripts[id(message)][&w.id];
                thread::sleep(Duration::from_millis(ms));
                answer(w, message, room, size)
            };
            let memory = Memory::new(memory);
            let pool = Pool::new(
                Limits { workers, per_webhook }, memory.clone(), answer_max, Box::new(post), results);
            let claims = plans.iter().zip(&rows).enumerate().map(|(id, (plan, (_, text)))| {
                let webhooks: Vec<i64> = plan.keys().copied().collect();
                let mut row = claimed(i64::try_from(id).expect("small"), &webhooks);
                row.event.user_agent = "x".repeat(*text);
                row
            });
            pool.hand_in(claims.collect());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            runtime.block_on(async {
                for _ in 0..plans.len() {
                    let next = tokio::time::timeout(Duration::from_secs(60), out.recv());
                    let row = next.await.expect("no row ends").expect("the pool is there");
                    assert_eq!(row.calls.len(), plans[usize::try_from(row.id).expect("small")].len());
                    drop(row);
                    pool.released(1);
                    pool.tick();
                }
            });
            proptest::prop_assert_eq!(memory.used(), 0);
        }
    }
}
