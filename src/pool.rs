//! The worker threads: where asynchronous meets blocking, and the only place where it does.
//!
//! The relay hands rows in; threads make the calls, one blocking POST each; a row whose last call has ended goes out
//! through a channel. Threads are started when needed and leave when idle. Knows no Postgres. Which call is next is
//! decided in [`crate::places`].

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::call::{Call, ErrorKind};
use crate::endpoint::Outcome;
use crate::event::Webhook;
use crate::places::{Limits, Offer, Places, Ticket};
use crate::store::{Claimed, Finished};

/// A thread without work leaves after this time.
const IDLE: Duration = Duration::from_secs(10);
/// Our own stack needs little; 256 threads of the usual 2 MiB would still be only address space, but the less the
/// better where memory is overcommitted strictly.
const STACK_BYTES: usize = 512 * 1024;
/// No call is started for this time after one that could not be made for a shortage of ours.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(200);
/// When claiming waits for a quick endpoint, it looks again after this time at the latest: the endpoint may turn out
/// not to be quick.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Ended rows that may wait to be committed, a few commits' worth; more rows are not claimed then.
const ENDED_MAX: usize = 4000;

/// Webhooks that are named in a [`Load`].
pub const FULLEST: usize = 20;

/// Makes one call, blocking.
pub type Post = dyn Fn(&Webhook, i64, &Arc<str>) -> Outcome + Send + Sync;

/// A row in hand.
struct Row {
    id: i64,
    // That it was claimed under.
    epoch: i64,
    project_id: i64,
    repeated: bool,
    body: Arc<str>,
    webhooks: usize,
    // Written under the pool's lock as the calls end; the last one takes them all along.
    calls: Mutex<Vec<Call>>,
    // Calls that have started and were not put back. Written under the pool's lock.
    started: AtomicUsize,
    // Set under the pool's lock when it is not ours any more: it never goes out.
    abandoned: AtomicBool,
}

impl Row {
    fn finished(&self, calls: Vec<Call>) -> Finished {
        Finished { id: self.id, epoch: self.epoch, repeated: self.repeated, calls }
    }
}

struct Job {
    row: Arc<Row>,
    webhook: Webhook,
}

/// Handle to the threads; cheap to clone.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    post: Box<Post>,
    results: UnboundedSender<Finished>,
    result_bytes_max: usize,
    state: Mutex<State>,
    // For whoever waits in Pool::room or Pool::freed.
    freed: Notify,
}

/// What the threads are doing.
#[derive(Clone, Debug)]
pub struct Load {
    /// Calls running.
    pub running: usize,
    /// Calls that wait for a place.
    pub waiting: usize,
    /// Threads, busy or not.
    pub threads: usize,
    /// Memory of the calls that have ended and are not committed yet.
    pub result_bytes: usize,
    /// Pauses for a shortage of ours, since the start.
    pub shortages: u64,
    /// The webhooks with most calls running, at most [`FULLEST`], each with how many.
    pub fullest: Vec<(i64, usize)>,
}

struct State {
    places: Places<Job>,
    threads: usize,
    // Threads without work, the last one to go idle at the end: it is taken first, and the others can leave.
    idle: Vec<Thread>,
    // Memory of the calls that have ended and are not committed yet.
    result_bytes: usize,
    // Rows that have gone out and are not committed yet.
    ended: usize,
    paused_until: Option<Instant>,
    shortages: u64,
    // No call starts later than this.
    start_until: Option<Instant>,
    // Notify `freed` when no more than this many calls are in hand.
    notify_at: Option<usize>,
}

impl Pool {
    /// No threads yet. `post` makes a call; rows whose calls have all ended go to `results`. No call starts while
    /// more than `result_bytes_max` of results wait for [`Pool::release`].
    pub fn new(
        limits: Limits,
        result_bytes_max: usize,
        post: Box<Post>,
        results: UnboundedSender<Finished>,
    ) -> Pool {
        let state = State {
            places: Places::new(limits),
            threads: 0,
            idle: Vec::new(),
            result_bytes: 0,
            ended: 0,
            paused_until: None,
            shortages: 0,
            start_until: None,
            notify_at: None,
        };
        Pool {
            shared: Arc::new(Shared {
                post,
                results,
                result_bytes_max,
                state: Mutex::new(state),
                freed: Notify::new(),
            }),
        }
    }

    /// What may be claimed now, if a claim is worth its round trip.
    pub fn try_offer(&self) -> Option<Offer> {
        let mut state = self.shared.lock();
        let offer = state.places.offer(Instant::now());
        let held = state.result_bytes > self.shared.result_bytes_max / 2
            || state.ended >= ENDED_MAX
            || state.paused();
        let taken = offer.limit >= offer.worth && !held;
        state.notify_at = (!taken).then(|| state.places.in_hand().saturating_sub(offer.worth));
        self.shared.wake_one(state);
        taken.then_some(offer)
    }

    /// Starts what may start by now without anything having ended: a webhook's class changes with time, and a thread
    /// that was refused to us may be had. To be called every second or so.
    pub fn nudge(&self) {
        let mut state = self.shared.lock();
        state.places.grow_old(Instant::now());
        self.shared.wake_one(state);
    }

    /// Waits until [`Pool::try_offer`] may have something. Cancel-safe.
    pub async fn room(&self) {
        tokio::select! {
            () = self.shared.freed.notified() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }

    /// Waits until a call of a project with parked rows has ended.
    pub async fn freed(&self) {
        self.shared.freed.notified().await;
    }

    /// Starts the calls of a row, as places become free. A row without webhooks is finished at once.
    pub fn hand_in(&self, rows: Vec<Claimed>) {
        // What takes time comes before the lock: the threads take it for each call.
        let rows: Vec<(Arc<Row>, Vec<Webhook>)> = rows
            .into_iter()
            .map(|claimed| {
                let row = Row {
                    id: claimed.id,
                    epoch: claimed.epoch,
                    project_id: claimed.event.project_id,
                    repeated: claimed.repeated(),
                    body: claimed.event.payload().into(),
                    webhooks: claimed.webhooks.len(),
                    calls: Mutex::new(Vec::with_capacity(claimed.webhooks.len())),
                    started: AtomicUsize::new(0),
                    abandoned: AtomicBool::new(false),
                };
                (Arc::new(row), claimed.webhooks)
            })
            .collect();
        let now = Instant::now();
        let mut state = self.shared.lock();
        for (row, webhooks) in rows {
            if webhooks.is_empty() {
                state.ended += 1;
                self.shared.send(row.finished(Vec::new()));
            }
            for webhook in webhooks {
                state.places.push(webhook.id, row.project_id, Job { row: row.clone(), webhook }, now);
            }
        }
        self.shared.wake_one(state);
    }

    /// Sends a row out whose calls are not made.
    pub fn skip(&self, row: Finished) {
        let mut state = self.shared.lock();
        state.ended += 1;
        state.result_bytes += row.size();
        drop(state);
        self.shared.send(row);
    }

    /// Says that so many rows that went out, with results of this size, are committed, or given up.
    pub fn release(&self, rows: usize, bytes: usize) {
        let mut state = self.shared.lock();
        let was_held = state.result_bytes > self.shared.result_bytes_max;
        state.ended = state.ended.saturating_sub(rows);
        state.result_bytes = state.result_bytes.saturating_sub(bytes);
        if was_held {
            self.shared.wake_one(state);
        }
    }

    /// Says which projects have parked rows.
    pub fn set_parked(&self, projects: HashSet<i64>) {
        self.shared.lock().places.set_parked(projects);
    }

    /// Parked projects that have room, each with how many rows.
    pub fn parked_room(&self, most: usize) -> Vec<(i64, i64)> {
        self.shared.lock().places.parked_room(most, Instant::now())
    }

    /// Starts nothing new but the rest of rows that have begun; returns the ids of the rows that have not, each with
    /// whether it is a repeated one.
    pub fn stop(&self) -> HashMap<i64, bool> {
        let mut state = self.shared.lock();
        let now = Instant::now();
        let mut unstarted = HashMap::new();
        for job in state.places.take_waiting() {
            if job.row.started.load(Ordering::Relaxed) > 0 {
                state.places.push(job.webhook.id, job.row.project_id, job, now);
            } else {
                unstarted.insert(job.row.id, job.row.repeated);
            }
        }
        self.shared.wake_one(state);
        unstarted
    }

    /// Says until when calls may start; from then on they wait for the next word. A process that was frozen, or cut
    /// off from Postgres, must not begin calls of rows that a peer may have taken over. Before the first word there
    /// is no limit.
    pub fn may_start_until(&self, until: Instant) {
        let mut state = self.shared.lock();
        state.start_until = Some(until);
        self.shared.wake_one(state);
    }

    /// Gives up rows that are not ours any more: calls of theirs that wait are dropped. Returns the ids of those that
    /// will never go out; the others have all their calls in flight, or have gone out already.
    pub fn abandon(&self, ids: &HashSet<i64>) -> HashSet<i64> {
        let mut abandoned = HashSet::new();
        let mut bytes = 0;
        let mut state = self.shared.lock();
        state.places.retain_waiting(|job| {
            let keep = !ids.contains(&job.row.id);
            if !keep && abandoned.insert(job.row.id) {
                job.row.abandoned.store(true, Ordering::Relaxed);
                let mut calls = job.row.calls.lock().unwrap_or_else(PoisonError::into_inner);
                bytes += calls.drain(..).map(|call| call.size()).sum::<usize>();
            }
            keep
        });
        drop(state);
        self.release(0, bytes);
        abandoned
    }

    /// How long the call has been running that runs for longest.
    pub fn longest_running(&self) -> Duration {
        self.shared.lock().places.oldest_running().map_or(Duration::ZERO, |started| started.elapsed())
    }

    /// What the threads are doing now.
    pub fn load(&self) -> Load {
        let state = self.shared.lock();
        Load {
            running: state.places.running(),
            waiting: state.places.in_hand() - state.places.running(),
            threads: state.threads,
            result_bytes: state.result_bytes,
            shortages: state.shortages,
            fullest: state.places.fullest(FULLEST),
        }
    }

    /// Calls running now.
    pub fn running(&self) -> usize {
        self.shared.lock().places.running()
    }
}

impl State {
    fn paused(&self) -> bool {
        self.paused_until.is_some_and(|until| Instant::now() < until)
    }

    /// A call was not made: its turn comes again.
    fn put_back(&mut self, ticket: Ticket, job: Job) {
        job.row.started.fetch_sub(1, Ordering::Relaxed);
        self.places.put_back(ticket, job, Instant::now());
    }

    /// Adds a call to its row; with the last one the row goes out.
    fn record(&mut self, row: &Row, call: Call) -> Option<Finished> {
        if row.abandoned.load(Ordering::Relaxed) {
            return None;
        }
        self.result_bytes += call.size();
        let mut calls = row.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.push(call);
        let is_last = calls.len() == row.webhooks;
        self.ended += usize::from(is_last);
        is_last.then(|| row.finished(std::mem::take(&mut calls)))
    }

    /// Whether a call may start, as far as it is not for the places to say.
    fn may_start(&self, result_bytes_max: usize) -> bool {
        let in_time = self.start_until.is_none_or(|until| Instant::now() < until);
        in_time && !self.paused() && self.result_bytes <= result_bytes_max
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under this lock would be a defect of ours; the state is still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes a thread if there is a call to start; each thread that takes one wakes the next. So there are as many
    /// awake as calls that can run, and short calls need few. Takes the lock's guard: waking is a system call, which
    /// the others need not wait for.
    fn wake_one(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if !state.may_start(self.result_bytes_max) || !state.places.may_start() {
            return;
        }
        if let Some(thread) = state.idle.pop() {
            drop(state);
            thread.unpark();
        } else if state.threads < state.places.running_max() {
            let shared = self.clone();
            let thread = thread::Builder::new().name("call".into()).stack_size(STACK_BYTES);
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                Err(error) => {
                    tracing::warn!(%error, threads = state.threads, "cannot start another thread");
                    state.paused_until = Some(Instant::now() + SHORTAGE_PAUSE);
                }
            }
        }
    }

    /// A thread: one call after the other.
    fn work(self: Arc<Self>) {
        let mut ended = None;
        while let Some((ticket, job)) = self.next(ended.take()) {
            let Job { row, webhook } = &job;
            let outcome = catch_unwind(AssertUnwindSafe(|| (self.post)(webhook, row.id, &row.body)))
                .unwrap_or_else(|_| {
                    let text = "the call ended in a panic; see the journal";
                    Outcome::Called(Call::unanswered(webhook, &row.body, ErrorKind::Internal, text))
                });
            match outcome {
                Outcome::Called(call) => ended = Some((ticket, job, call)),
                Outcome::Shortage(reason) => self.pause(ticket, job, &reason),
                // It has waited already, and the others are not concerned: no pause.
                Outcome::Crowded => self.lock().put_back(ticket, job),
            }
        }
    }

    /// Records the call that has ended, frees its place, and takes the next call; waits for it, up to [`IDLE`]. All
    /// under one lock, and what wakes others after it.
    fn next(self: &Arc<Self>, ended: Option<(Ticket, Job, Call)>) -> Option<(Ticket, Job)> {
        let mut state = self.lock();
        let mut freed = false;
        let mut finished = None;
        if let Some((ticket, job, call)) = ended {
            finished = state.record(&job.row, call);
            freed = state.places.finish(ticket, Instant::now());
            if state.notify_at.is_some_and(|at| state.places.in_hand() <= at) {
                state.notify_at = None;
                freed = true;
            }
        }
        let mut tell = || {
            finished.take().into_iter().for_each(|finished| self.send(finished));
            if std::mem::take(&mut freed) {
                self.freed.notify_one();
            }
        };
        let me = thread::current();
        loop {
            let may = state.may_start(self.result_bytes_max);
            if let Some((ticket, job)) = may.then(|| state.places.start(Instant::now())).flatten() {
                job.row.started.fetch_add(1, Ordering::Relaxed);
                self.wake_one(state);
                tell();
                return Some((ticket, job));
            }
            state.idle.push(me.clone());
            drop(state);
            tell();
            let since = Instant::now();
            let pause = self.wait_for_work();
            state = self.lock();
            // Whoever wakes us takes us off the list; still on it, nobody did.
            if let Some(at) = state.idle.iter().position(|thread| thread.id() == me.id()) {
                state.idle.remove(at);
                if since.elapsed() >= IDLE && !pause {
                    state.threads -= 1;
                    return None;
                }
            }
        }
    }

    /// Parks this thread until it is woken or [`IDLE`] is over; after a shortage only as long as the pause. Whether
    /// it was a pause.
    fn wait_for_work(&self) -> bool {
        let until = self.lock().paused_until.filter(|until| *until > Instant::now());
        thread::park_timeout(until.map_or(IDLE, |until| until - Instant::now()));
        until.is_some()
    }

    fn send(&self, finished: Finished) {
        if let Err(error) = self.results.send(finished) {
            // The relay is gone and the process about to end: the row stays claimed and will be taken over.
            tracing::debug!(outbox_id = error.0.id, "a call ended after the relay");
        }
    }

    fn pause(self: &Arc<Self>, ticket: Ticket, job: Job, reason: &str) {
        let mut state = self.lock();
        if !state.paused() {
            state.shortages += 1;
            tracing::warn!(reason, running = state.places.running(), "short of resources, calls wait");
        }
        state.paused_until = Some(Instant::now() + SHORTAGE_PAUSE);
        state.put_back(ticket, job);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::SystemTime;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::event::Event;

    fn claimed(id: i64, webhooks: &[i64]) -> Claimed {
        let event = Event {
            event: "onPromptFinished".into(),
            project_id: 1,
            prompt_id: 1,
            user_id: "u".into(),
            result: 0,
            finished_at: SystemTime::now(),
            duration_ms: 1,
            prompt_tokens: 1,
            completion_tokens: 1,
            total_tokens: None,
            cached: false,
            ip: String::new(),
            user_agent: String::new(),
            provider_id: None,
            provider_default_model: None,
        };
        let webhook = |id: &i64| Webhook { id: *id, url: "http://a/".into(), signing_secret: None };
        Claimed {
            id,
            epoch: 1,
            parked: false,
            previous: None,
            event,
            webhooks: webhooks.iter().map(webhook).collect(),
        }
    }

    fn success(webhook: &Webhook, body: &Arc<str>) -> Outcome {
        let mut call = Call::unanswered(webhook, body, ErrorKind::Internal, "");
        (call.error_kind, call.error_message) = (None, None);
        Outcome::Called(call)
    }

    const LIMITS: Limits = Limits { workers: 4, per_webhook: 2 };

    #[tokio::test]
    async fn a_row_goes_out_once_with_a_call_for_each_webhook() {
        let (results, mut out) = unbounded_channel();
        let pool = Pool::new(LIMITS, usize::MAX, Box::new(|w, _, body| success(w, body)), results);
        pool.hand_in(vec![claimed(1, &[10, 11, 12]), claimed(2, &[])]);
        let mut got = [out.recv().await.expect("a row"), out.recv().await.expect("a row")];
        got.sort_by_key(|row| row.id);
        let mut called: Vec<_> = got[0].calls.iter().map(|call| call.webhook_id).collect();
        called.sort_unstable();
        assert_eq!(called, [10, 11, 12]);
        assert!(got[1].calls.is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_a_failed_call_and_the_thread_goes_on() {
        let (results, mut out) = unbounded_channel();
        let post = |w: &Webhook, id: i64, body: &Arc<str>| {
            assert!(id != 1, "a defect");
            success(w, body)
        };
        let pool = Pool::new(LIMITS, usize::MAX, Box::new(post), results);
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
        let post = move |w: &Webhook, _: i64, body: &Arc<str>| match tries.fetch_add(1, Ordering::SeqCst) {
            0 => Outcome::Shortage("too many open files".into()),
            _ => success(w, body),
        };
        let pool = Pool::new(LIMITS, usize::MAX, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10])]);
        assert!(out.recv().await.expect("a row").calls[0].succeeded());
    }

    #[tokio::test]
    async fn a_call_that_found_no_thread_for_its_name_is_made_later_and_nobody_pauses() {
        let (results, mut out) = unbounded_channel();
        let (open, gate) = mpsc::channel::<()>();
        let (gate, tries) = (Mutex::new(gate), AtomicUsize::new(0));
        let post = move |w: &Webhook, _: i64, body: &Arc<str>| {
            if w.id == 10 && tries.fetch_add(1, Ordering::SeqCst) < 3 {
                gate.lock().expect("one at a time").recv().expect("the test holds the gate");
                return Outcome::Crowded;
            }
            success(w, body)
        };
        let pool = Pool::new(Limits { workers: 1, per_webhook: 1 }, usize::MAX, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10]), claimed(2, &[11])]);
        open.send(()).expect("the thread waits");
        assert_eq!(out.recv().await.expect("the other's").id, 2, "it comes behind the others");
        open.send(()).and_then(|()| open.send(())).expect("the thread waits");
        assert!(out.recv().await.expect("a row").calls[0].succeeded());
        assert_eq!(pool.load().shortages, 0);
    }

    #[tokio::test]
    async fn a_row_whose_only_call_was_put_back_has_not_begun() {
        let (results, _out) = unbounded_channel();
        let pool =
            Pool::new(LIMITS, usize::MAX, Box::new(|_, _, _| Outcome::Shortage("none".into())), results);
        pool.hand_in(vec![claimed(1, &[10])]);
        while pool.load().shortages == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.stop(), HashMap::from([(1, false)]), "the pause is long enough");
    }

    #[tokio::test]
    async fn stopping_gives_back_the_rows_that_have_not_begun_and_finishes_the_others() {
        let (results, mut out) = unbounded_channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let post = move |w: &Webhook, _: i64, body: &Arc<str>| {
            if w.id == 10 {
                gate.lock().expect("one at a time").recv().expect("the test holds the gate");
            }
            success(w, body)
        };
        let pool = Pool::new(Limits { workers: 1, per_webhook: 1 }, usize::MAX, Box::new(post), results);
        // Row 1 begins with webhook 10 and waits there; its call to 11 and row 2 have not begun.
        pool.hand_in(vec![claimed(1, &[10, 11]), claimed(2, &[10])]);
        while pool.running() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.stop(), HashMap::from([(2, false)]));
        open.send(()).expect("the thread waits");
        assert_eq!(out.recv().await.expect("row 1").calls.len(), 2);
    }

    #[tokio::test]
    async fn no_call_starts_after_its_time_until_the_next_word() {
        let (results, mut out) = unbounded_channel();
        let pool = Pool::new(LIMITS, usize::MAX, Box::new(|w, _, body| success(w, body)), results);
        pool.may_start_until(Instant::now());
        pool.hand_in(vec![claimed(1, &[10]), claimed(2, &[10])]);
        pool.nudge();
        assert!(out.try_recv().is_err() && pool.running() == 0);
        assert_eq!(pool.abandon(&HashSet::from([1, 7])), HashSet::from([1]));
        pool.may_start_until(Instant::now() + IDLE);
        assert_eq!(out.recv().await.expect("a row").id, 2);
        assert!(out.try_recv().is_err());
    }

    #[tokio::test]
    async fn no_call_starts_while_too_many_results_wait() {
        let (results, mut out) = unbounded_channel();
        let one = Limits { workers: 1, per_webhook: 1 };
        let pool = Pool::new(one, 0, Box::new(|w, _, body| success(w, body)), results);
        pool.hand_in(vec![claimed(1, &[10]), claimed(2, &[10])]);
        let first = out.recv().await.expect("a row");
        pool.hand_in(vec![claimed(3, &[10])]);
        assert!(out.try_recv().is_err(), "one result waits, and that is too many");
        pool.release(1, first.calls[0].size());
        assert!(out.recv().await.is_some());
    }
}
