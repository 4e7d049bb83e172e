//! The worker threads: where asynchronous meets blocking, and the only place where it does.
//!
//! The relay hands rows in; a row begins when its share of the memory is free ([`crate::dispatch::admission`]); threads make the
//! calls, one blocking POST each; a row whose last call has ended goes out through a channel. Threads are started when
//! needed and leave when idle. Knows no Postgres. Which call is next is decided in [`crate::dispatch::scheduler`].
//!
//! Once a row has begun, no call of its waits for memory. What it holds for long while others need memory is taken from
//! it: its answers are kept shorter.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::dispatch::admission::Admission;
use crate::dispatch::scheduler::{Limits, Offer, Places, Ticket};
use crate::model::call::Outcome;
use crate::model::call::{Call, ErrorKind};
use crate::model::event::Webhook;
use crate::model::load::FULLEST;
use crate::model::load::Load;
use crate::model::memory::{Held, Memory, Room, Share};
use crate::model::row::Claimed;
use crate::model::row::Finished;

/// A thread without work leaves after this time.
const IDLE: Duration = Duration::from_secs(10);
/// Our own stack needs little; 256 threads of the usual 2 MiB would still be only address space, but the less the
/// better where memory is overcommitted strictly.
const STACK_BYTES: usize = 512 * 1024;
/// No call is started for this time after one that could not be made for a shortage of ours.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(200);
/// When claiming waits for memory, it looks again after this time at the latest: rows grow old.
const RELIEVE_AGAIN: Duration = Duration::from_millis(100);

/// Ended rows that may wait to be committed, a few commits' worth; more rows are not claimed then.
const ENDED_MAX: usize = 4000;
/// Bytes of text that are claimed at once. In the payload a byte can become six.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// And at least.
const TEXT_BYTES_MIN: usize = 64 * 1024;
/// Memory of a row in hand, besides its payload.
const ROW_BYTES: usize = 512;
/// Memory of a call, besides its URL and its answer: the job, the record, the request's headers.
const CALL_BYTES: usize = size_of::<Job>() + size_of::<Call>() + 512;
/// While others need memory, a row that began longer ago keeps less of its answers.
const OLD: Duration = Duration::from_millis(500);
/// So many bytes of each.
const OLD_ANSWER_BYTES: usize = 1024;

/// Makes one call, blocking. The answer keeps no more than the room allows.
pub type Post = dyn Fn(&Webhook, i64, &Arc<str>, &mut Room) -> Outcome + Send + Sync;

/// A row in hand.
struct Row {
    id: i64,
    // That it was claimed under.
    epoch: i64,
    project_id: i64,
    repeated: bool,
    // The event's texts were cut.
    cut: bool,
    // Its calls are not made; they end with this.
    skipped: Option<(ErrorKind, &'static str)>,
    body: Arc<str>,
    webhooks: Arc<[Arc<Webhook>]>,
    // Written under the pool's lock as the calls end; the last one takes all of it along.
    ended: Mutex<Ended>,
    // Calls that have started and were not put back. Written under the pool's lock.
    started: AtomicUsize,
    // Set under the pool's lock when it is not ours any more: it never goes out.
    abandoned: AtomicBool,
}

/// What there is of a row that has not ended.
struct Ended {
    calls: Vec<Call>,
    /// The row's memory, but for that of calls that have not ended.
    held: Held,
    // When it was admitted.
    since: Option<Instant>,
    // What it was admitted with.
    admitted_bytes: usize,
}

impl Row {
    fn ended(&self) -> MutexGuard<'_, Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finished(&self) -> Finished {
        let mut ended = self.ended();
        Finished {
            id: self.id,
            epoch: self.epoch,
            repeated: self.repeated,
            calls: std::mem::take(&mut ended.calls),
            held: ended.held.take(),
            aside: false,
        }
    }

    /// What its calls need, besides the payload: at most so much, also where it has tens of thousands of them. Others do not
    /// wait for minutes for one that is alone.
    fn need(&self, share: Share, most: usize) -> usize {
        let urls: usize = self.webhooks.iter().map(|webhook| 2 * webhook.url.len()).sum();
        let answer = if self.skipped.is_some() { 0 } else { share.sure };
        (urls + self.webhooks.len() * (CALL_BYTES + answer)).min(most)
    }

    /// A call as its log has it.
    fn logged(&self, mut call: Call) -> Call {
        if self.cut {
            call.note("texts of the event are longer than 8 KiB and were cut");
        }
        call
    }

    fn is_old(&self, now: Instant) -> bool {
        self.ended().since.is_some_and(|since| now.saturating_duration_since(since) > OLD)
    }
}

struct Job {
    row: Arc<Row>,
    webhook: Arc<Webhook>,
    room: Room,
}

/// Handle to the threads; cheap to clone.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    post: Box<Post>,
    results: UnboundedSender<Finished>,
    memory: Arc<Memory>,
    /// Bytes of an answer's body that are kept at most.
    answer_bytes_max: usize,
    state: Mutex<State>,
    // For whoever waits in Pool::room or Pool::freed.
    freed: Notify,
}

struct State {
    places: Places<Job>,
    admission: Admission<Arc<Row>>,
    // Rows of which some calls have ended and others have not, by id and epoch.
    half_done: HashMap<(i64, i64), Arc<Row>>,
    threads: usize,
    // Threads without work, the last one to go idle at the end: it is taken first, and the others can leave.
    idle: Vec<Thread>,
    // Rows that have gone out and are not committed yet.
    ended: usize,
    progress: u64,
    paused_until: Option<Instant>,
    shortages: u64,
    // No call starts later than this.
    start_until: Option<Instant>,
    // Notify `freed` when no more than this many calls are in hand.
    notify_at: Option<usize>,
    // Notify `freed` when rows are committed, or admitted.
    notify_released: bool,
    // When to look again without being notified.
    look_again: Duration,
    // When what is held for long was last looked at.
    relieved: Option<Instant>,
}

impl Pool {
    /// No threads yet. `post` makes a call, whose answer keeps at most `answer_bytes_max` of its body; rows whose calls have
    /// all ended go to `results`. What the rows hold of `memory` is free when they are dropped, and
    /// [`Pool::released`] says so.
    pub fn new(
        limits: Limits,
        memory: Arc<Memory>,
        answer_bytes_max: usize,
        post: Box<Post>,
        results: UnboundedSender<Finished>,
    ) -> Pool {
        let state = State {
            places: Places::new(limits),
            admission: Admission::default(),
            half_done: HashMap::new(),
            threads: 0,
            idle: Vec::new(),
            ended: 0,
            progress: 0,
            paused_until: None,
            shortages: 0,
            start_until: None,
            notify_at: None,
            notify_released: false,
            look_again: RELIEVE_AGAIN,
            relieved: None,
        };
        Pool {
            shared: Arc::new(Shared {
                post,
                results,
                memory,
                answer_bytes_max,
                state: Mutex::new(state),
                freed: Notify::new(),
            }),
        }
    }

    /// What may be claimed now, if a claim is worth its round trip.
    pub fn try_offer(&self) -> Option<Offer> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let mut offer = state.places.offer(now);
        let tight = state.relieve(&self.shared.memory, now);
        let held = tight || state.ended >= ENDED_MAX;
        offer.park.extend(state.admission.full(&self.shared.memory));
        let paused = state.paused_until.filter(|until| *until > now);
        // Those that wait for memory have no place yet.
        offer.limit = offer.limit.saturating_sub(state.admission.waiting_count());
        let taken = offer.limit >= offer.worth && !held && paused.is_none();
        // What rows will need is not known before they are claimed: mostly what one webhook's answer needs.
        let sure =
            Share::of_row(1, self.shared.answer_bytes_max, self.shared.memory.max(), state.places.workers())
                .sure;
        offer.limit = offer.limit.min((self.shared.memory.free() / (CALL_BYTES + sure)).max(1));
        state.notify_at = (!taken).then(|| state.places.in_hand().saturating_sub(offer.worth));
        state.notify_released = !taken;
        state.look_again = match paused {
            Some(until) => until - now,
            None if tight => RELIEVE_AGAIN,
            None => offer.again,
        };
        self.shared.wake_one(state);
        taken.then_some(offer)
    }

    /// Bytes of text that may be claimed now.
    pub fn text_bytes(&self) -> i64 {
        let bytes = (self.shared.memory.free() / 8).clamp(TEXT_BYTES_MIN, TEXT_BYTES_MAX);
        i64::try_from(bytes).unwrap_or(i64::MAX)
    }

    /// Starts what may start by now without anything having ended: a webhook's class changes with time, a thread
    /// that was refused to us may be had, and a row may have become old. To be called every second or so.
    pub fn nudge(&self) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        state.places.grow_old(now);
        if state.admission.waiting_count() > 0 {
            state.relieve(&self.shared.memory, now);
            self.shared.admit(&mut state, now);
        }
        self.shared.wake_one(state);
    }

    /// Waits until [`Pool::try_offer`] may have something. Cancel-safe.
    pub async fn room(&self) {
        let look_again = self.shared.lock().look_again;
        tokio::select! {
            () = self.shared.freed.notified() => {}
            () = tokio::time::sleep(look_again) => {}
        }
    }

    /// Waits until a call of a project with parked rows has ended.
    pub async fn freed(&self) {
        self.shared.freed.notified().await;
    }

    /// Starts the calls of rows, as memory and places become free. A row without webhooks is finished at once.
    pub fn hand_in(&self, rows: Vec<Claimed>) {
        self.take(rows, None);
    }

    /// Sends rows out, as memory becomes free, whose calls are not made, and ended with this.
    pub fn skip(&self, rows: Vec<Claimed>, kind: ErrorKind, message: &'static str) {
        self.take(rows, Some((kind, message)));
    }

    fn take(&self, rows: Vec<Claimed>, skipped: Option<(ErrorKind, &'static str)>) {
        // What takes time comes before the lock: the threads take it for each call.
        let rows: Vec<Row> = rows
            .into_iter()
            .map(|claimed| {
                let body: Arc<str> = claimed.event.payload().into();
                let held = self.shared.memory.hold(ROW_BYTES + body.len());
                Row {
                    id: claimed.id,
                    epoch: claimed.epoch,
                    project_id: claimed.event.project_id,
                    repeated: claimed.repeated(),
                    cut: claimed.cut,
                    skipped,
                    body,
                    webhooks: claimed.webhooks,
                    ended: Mutex::new(Ended { calls: Vec::new(), held, since: None, admitted_bytes: 0 }),
                    started: AtomicUsize::new(0),
                    abandoned: AtomicBool::new(false),
                }
            })
            .collect();
        let now = Instant::now();
        let mut state = self.shared.lock();
        for row in rows {
            if row.webhooks.is_empty() {
                state.admission.count();
                state.ended += 1;
                self.shared.send(row.finished());
            } else {
                let bytes = row.need(self.shared.share(&state, &row), self.shared.memory.max() / 4);
                let project_id = row.project_id;
                let body = row.body.len();
                state.admission.push(Arc::new(row), project_id, bytes, body, now);
            }
        }
        self.shared.admit(&mut state, now);
        self.shared.wake_one(state);
    }

    /// Says that so many rows that went out are committed, or given up, and dropped.
    pub fn released(&self, rows: usize) {
        self.released_of(rows, rows);
    }

    /// So many rows that went out, and so many that were admitted, are not in hand any more.
    fn released_of(&self, out: usize, admitted: usize) {
        let mut state = self.shared.lock();
        state.ended = state.ended.saturating_sub(out);
        state.progress += out as u64;
        state.admission.ended(admitted);
        let notify = std::mem::take(&mut state.notify_released);
        if state.admission.waiting_count() > 0 {
            self.shared.admit(&mut state, Instant::now());
            self.shared.wake_one(state);
        } else {
            drop(state);
        }
        if notify {
            self.shared.freed.notify_one();
        }
    }

    /// Says which projects have parked rows.
    pub fn set_parked(&self, projects: HashSet<i64>) {
        self.shared.lock().places.set_parked(projects);
    }

    /// Parked projects that have room, each with how many rows.
    pub fn parked_room(&self, most: usize) -> Vec<(i64, i64)> {
        let mut state = self.shared.lock();
        let mut rooms = state.places.parked_room(most, Instant::now());
        rooms.retain_mut(|(project_id, rows)| {
            let room = state.admission.room(*project_id, &self.shared.memory);
            *rows = (*rows).min(i64::try_from(room).unwrap_or(i64::MAX));
            *rows > 0
        });
        rooms
    }

    /// Takes out rows that have not begun and have waited for long for others of their own project, to be given back and
    /// parked: id, project, and whether it is a repeated one.
    pub fn take_late(&self) -> Vec<(i64, i64, bool)> {
        let mut state = self.shared.lock();
        if state.admission.waiting_count() == 0 {
            return Vec::new();
        }
        let late = state.admission.take_late(&self.shared.memory, Instant::now());
        late.iter().map(|row| (row.id, row.project_id, row.repeated)).collect()
    }

    /// Starts nothing new but the rest of rows that have begun; returns the ids of the rows that have not, each with
    /// whether it is a repeated one.
    pub fn stop(&self) -> HashMap<i64, bool> {
        let mut state = self.shared.lock();
        let now = Instant::now();
        let mut unstarted: HashMap<i64, bool> =
            state.admission.waiting().map(|row| (row.id, row.repeated)).collect();
        state.admission.retain(|_| false);
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
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let waiting = state.admission.waiting().map(|row| row.id).filter(|id| ids.contains(id));
        let mut abandoned: HashSet<i64> = waiting.collect();
        state.admission.retain(|row| !ids.contains(&row.id));
        let mut admitted = 0;
        state.places.retain_waiting(|job| {
            let keep = !ids.contains(&job.row.id);
            if !keep && !job.row.abandoned.swap(true, Ordering::Relaxed) {
                abandoned.insert(job.row.id);
                admitted += 1;
                state.admission.calls_ended(job.row.project_id, job.row.ended().admitted_bytes);
                // What its calls hold that are in flight is free when they end.
                drop(job.row.finished());
            }
            keep
        });
        state.half_done.retain(|(id, _), _| !abandoned.contains(id));
        drop(guard);
        self.released_of(0, admitted);
        abandoned
    }

    /// How long the call has been running that runs for longest.
    pub fn longest_running(&self) -> Duration {
        self.shared.lock().places.longest_running(Instant::now())
    }

    /// What the threads are doing now.
    pub fn load(&self) -> Load {
        let state = self.shared.lock();
        Load {
            running: state.places.running(),
            longest_running: state.places.longest_running(Instant::now()),
            waiting: state.places.in_hand() - state.places.running()
                + state.admission.waiting().map(|row| row.webhooks.len()).sum::<usize>(),
            ended: state.ended,
            progress: state.progress,
            threads: state.threads,
            memory_bytes: self.shared.memory.used(),
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
        // It was none.
        self.progress -= 1;
        if job.row.abandoned.load(Ordering::Relaxed) {
            self.places.finish(ticket, Instant::now());
        } else {
            self.places.put_back(ticket, job, Instant::now());
        }
    }

    /// Adds a call to its row; with the last one the row goes out.
    fn record(&mut self, job: Job, call: Call) -> Option<Finished> {
        let Job { row, room, .. } = job;
        if row.abandoned.load(Ordering::Relaxed) {
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

    /// Whether a call may start, as far as it is not for the places to say.
    fn may_start(&self) -> bool {
        self.start_until.is_none_or(|until| Instant::now() < until) && !self.paused()
    }

    /// Whether most of the memory is taken, so that no more is claimed. Then, and while a row waits for memory that rows of
    /// other projects have, old rows keep less of their answers: no endpoint that is slow holds for long what others need.
    fn relieve(&mut self, memory: &Memory, now: Instant) -> bool {
        let tight = || memory.used() > memory.max() / 4 * 3;
        let lately = self.relieved.is_some_and(|at| now.saturating_duration_since(at) < RELIEVE_AGAIN);
        if !lately && (tight() || self.admission.lacks_memory(memory)) {
            self.relieved = Some(now);
            self.places.for_each_waiting(|job| {
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
        tight()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under this lock would be a defect of ours; the state is still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn share(&self, state: &State, row: &Row) -> Share {
        Share::of_row(row.webhooks.len(), self.answer_bytes_max, self.memory.max(), state.places.workers())
    }

    /// Gives the calls of rows whose share of the memory is free to the places, and sends those out that are skipped.
    fn admit(&self, state: &mut State, now: Instant) {
        while let Some((row, mut held)) = state.admission.admit(&self.memory, now) {
            let share = self.share(state, &row);
            let bytes = held.bytes() + row.body.len();
            if let Some((kind, message)) = row.skipped {
                let call =
                    |webhook: &Arc<Webhook>| row.logged(Call::unanswered(webhook, &row.body, kind, message));
                let mut ended = row.ended();
                ended.held.absorb(held);
                ended.calls = row.webhooks.iter().map(call).collect();
                drop(ended);
                state.admission.calls_ended(row.project_id, bytes);
                state.ended += 1;
                self.send(row.finished());
                continue;
            }
            for webhook in row.webhooks.iter() {
                let room = Room::new(held.split(share.sure), share.most);
                let job = Job { row: row.clone(), webhook: webhook.clone(), room };
                state.places.push(webhook.id, row.project_id, job, now);
            }
            let mut ended = row.ended();
            (ended.since, ended.admitted_bytes) = (Some(now), bytes);
            ended.held.absorb(held);
            ended.calls.reserve_exact(row.webhooks.len());
        }
    }

    /// Wakes a thread if there is a call to start; each thread that takes one wakes the next. So there are as many
    /// awake as calls that can run, and short calls need few. Takes the lock's guard: waking is a system call, which
    /// the others need not wait for.
    fn wake_one(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if !state.may_start() || !state.places.may_start() {
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
        while let Some((ticket, mut job)) = self.next(ended.take()) {
            let Job { row, webhook, room } = &mut job;
            let outcome = catch_unwind(AssertUnwindSafe(|| (self.post)(webhook, row.id, &row.body, room)))
                .unwrap_or_else(|_| {
                    let text = "the call ended in a panic; see the journal";
                    Outcome::Called(Call::unanswered(webhook, &row.body, ErrorKind::Internal, text))
                });
            match outcome {
                Outcome::Called(call) => ended = Some((ticket, job, call)),
                Outcome::ResourceExhausted(reason) => self.pause(ticket, job, &reason),
                // It has waited already, and the others are not concerned: no pause.
                Outcome::ResolverBusy => self.lock().put_back(ticket, job),
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
            finished = state.record(job, call);
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
            let may = state.may_start();
            if let Some((ticket, job)) = may.then(|| state.places.start(Instant::now())).flatten() {
                job.row.started.fetch_add(1, Ordering::Relaxed);
                state.progress += 1;
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
    use crate::model::event::Event;

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
        let webhook = |id: &i64| Arc::new(Webhook { id: *id, url: "http://a/".into(), signing_secret: None });
        Claimed {
            id,
            epoch: 1,
            parked: false,
            previous: None,
            event,
            cut: false,
            webhooks: webhooks.iter().map(webhook).collect(),
        }
    }

    fn success(webhook: &Webhook, body: &Arc<str>) -> Outcome {
        let mut call = Call::unanswered(webhook, body, ErrorKind::Internal, "");
        (call.error_kind, call.error_message) = (None, None);
        Outcome::Called(call)
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
        let pool = new(LIMITS, Box::new(|w, _, body, _| success(w, body)), results);
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
        let post = Box::new(|_: &Webhook, _: i64, _: &Arc<str>, _: &mut Room| panic!("no call is made"));
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
        let post = |w: &Webhook, id: i64, body: &Arc<str>, _: &mut Room| {
            assert!(id != 1, "a defect");
            success(w, body)
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
        let post = move |w: &Webhook, _: i64, body: &Arc<str>, _: &mut Room| match tries
            .fetch_add(1, Ordering::SeqCst)
        {
            0 => Outcome::ResourceExhausted("too many open files".into()),
            _ => success(w, body),
        };
        let pool = new(LIMITS, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10])]);
        assert!(out.recv().await.expect("a row").calls[0].succeeded());
    }

    #[tokio::test]
    async fn a_call_that_found_no_thread_for_its_name_is_made_later_and_nobody_pauses() {
        let (results, mut out) = unbounded_channel();
        let ((open, wait), tries) = (gate(), AtomicUsize::new(0));
        let post = move |w: &Webhook, _: i64, body: &Arc<str>, _: &mut Room| {
            if w.id == 10 && tries.fetch_add(1, Ordering::SeqCst) < 3 {
                wait();
                return Outcome::ResolverBusy;
            }
            success(w, body)
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
    async fn a_row_whose_only_call_was_put_back_has_not_begun() {
        let (results, _out) = unbounded_channel();
        let pool = new(LIMITS, Box::new(|_, _, _, _| Outcome::ResourceExhausted("none".into())), results);
        pool.hand_in(vec![claimed(1, &[10])]);
        while pool.load().shortages == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.stop(), HashMap::from([(1, false)]), "the pause is long enough");
    }

    #[tokio::test]
    async fn stopping_gives_back_the_rows_that_have_not_begun_and_finishes_the_others() {
        let (results, mut out) = unbounded_channel();
        let (open, wait) = gate();
        let post = move |w: &Webhook, _: i64, body: &Arc<str>, _: &mut Room| {
            if w.id == 10 {
                wait();
            }
            success(w, body)
        };
        let pool = new(Limits { workers: 1, per_webhook: 1 }, Box::new(post), results);
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
        let pool = new(LIMITS, Box::new(|w, _, body, _| success(w, body)), results);
        pool.may_start_until(Instant::now());
        pool.hand_in(vec![claimed(1, &[10]), claimed(2, &[10])]);
        pool.nudge();
        assert!(out.try_recv().is_err() && pool.running() == 0);
        assert_eq!(pool.abandon(&HashSet::from([1, 7])), HashSet::from([1]));
        pool.may_start_until(Instant::now() + IDLE);
        assert_eq!(out.recv().await.expect("a row").id, 2);
        assert!(out.try_recv().is_err());
    }

    /// A success whose answer has so many bytes.
    fn answer(webhook: &Webhook, body: &Arc<str>, room: &mut Room, bytes: usize) -> Outcome {
        let Outcome::Called(mut call) = success(webhook, body) else { unreachable!("it was made above") };
        call.response_body = Some("x".repeat(room.allow(bytes)));
        Outcome::Called(call)
    }

    #[tokio::test]
    async fn rows_with_long_answers_that_wait_for_slow_calls_keep_nobody_from_anything() {
        // The first answers at once, with 64 KiB; the second waits for the gate. Their rows need a hundred times as much
        // memory as there is.
        let (results, mut out) = unbounded_channel();
        let (open, wait) = gate();
        let post = move |w: &Webhook, _: i64, body: &Arc<str>, room: &mut Room| {
            if w.id == 11 {
                wait();
            }
            answer(w, body, room, 64 * 1024)
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
        let post = move |w: &Webhook, _: i64, body: &Arc<str>, room: &mut Room| {
            if w.id == 11 {
                wait();
            }
            answer(w, body, room, 64 * 1024)
        };
        let memory = Memory::new(MIB);
        let pool = Pool::new(LIMITS, memory.clone(), 64 * 1024, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10, 11])]);
        while pool.running() == 0 || pool.shared.lock().half_done.is_empty() {
            tokio::task::yield_now().await;
        }
        let other = memory.hold(MIB);
        assert!(pool.try_offer().is_none());
        // As if it had begun long ago.
        pool.shared.lock().half_done[&(1, 1)].ended().since = Instant::now().checked_sub(2 * OLD);
        let before = memory.used();
        assert!(pool.shared.lock().relieve(&memory, Instant::now() + RELIEVE_AGAIN));
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
        let post = move |w: &Webhook, _: i64, body: &Arc<str>, _: &mut Room| {
            wait();
            success(w, body)
        };
        let memory = Memory::new(MIB);
        let pool = Pool::new(LIMITS, memory.clone(), 64 * 1024, Box::new(post), results);
        let many: Vec<i64> = (10..5000).collect();
        pool.hand_in(vec![claimed(1, &[10]), claimed(2, &many), claimed(3, &many)]);
        while pool.running() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.load().waiting, 2 * many.len(), "neither fits beside the first");
        assert_eq!(pool.abandon(&HashSet::from([2])), HashSet::from([2]));
        assert_eq!(pool.stop(), HashMap::from([(3, false)]));
        open.send(()).expect("the thread waits");
        assert_eq!(out.recv().await.expect("a row").id, 1);
        pool.released(1);
        assert_eq!((memory.used(), pool.load().waiting), (0, 0));
    }

    #[tokio::test]
    async fn while_all_places_hang_nobody_looks_for_room_again_and_again() {
        let (results, mut out) = unbounded_channel();
        let (open, wait) = gate();
        let post = move |w: &Webhook, _: i64, body: &Arc<str>, _: &mut Room| {
            wait();
            success(w, body)
        };
        let pool = new(Limits { workers: 1, per_webhook: 1 }, Box::new(post), results);
        pool.hand_in(vec![claimed(1, &[10])]);
        // At first it may be quick, and it is looked often.
        while pool.try_offer().is_some() || pool.shared.lock().look_again < Duration::from_millis(100) {
            tokio::task::yield_now().await;
        }
        let looks = tokio::time::timeout(Duration::from_millis(50), pool.room()).await;
        assert!(looks.is_err(), "it was every 5 ms");
        open.send(()).expect("the thread waits");
        pool.room().await;
        drop(out.recv().await.expect("a row"));
        pool.released(1);
        assert!(pool.try_offer().is_some());
    }

    #[tokio::test]
    async fn memory_that_becomes_free_is_told_to_who_waits_for_it() {
        let (results, mut out) = unbounded_channel();
        let memory = Memory::new(MIB);
        let pool =
            Pool::new(LIMITS, memory.clone(), 64 * 1024, Box::new(|w, _, body, _| success(w, body)), results);
        let other = memory.hold(MIB);
        pool.hand_in(vec![claimed(1, &[10])]);
        let row = out.recv().await.expect("it is alone, and begins");
        assert!(pool.try_offer().is_none());
        pool.shared.lock().look_again = IDLE;
        drop((other, row));
        pool.released(1);
        tokio::time::timeout(IDLE / 2, pool.room()).await.expect("it is told, not polled");
        assert!(pool.try_offer().is_some());
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
            let post = move |w: &Webhook, id: i64, body: &Arc<str>, room: &mut Room| {
                let (size, ms) = scripts[usize::try_from(id).expect("small")][&w.id];
                thread::sleep(Duration::from_millis(ms));
                answer(w, body, room, size)
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
                    pool.nudge();
                }
            });
            proptest::prop_assert_eq!(memory.used(), 0);
        }
    }
}
