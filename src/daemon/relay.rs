//! The daemon: claim, hand out, finish.
//!
//! Five loops on one thread, each on a session of its own: one claims rows and hands them to the worker threads, one
//! commits what comes back, one watches the sessions and the other instances, one throws away what is old, one measures
//! the age of the queue. When a session of the first three is lost, theirs are made anew; the worker threads go on
//! meanwhile, and their results wait.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::{Mutex, Notify};

use crate::cli::AfterCrash;
use crate::config::Config;
use crate::daemon::cursor::Look;
use crate::daemon::membership::{Instance, Peers, SURE};
use crate::daemon::outage::{self, Level, Outage};
use crate::daemon::retention::Retention;
use crate::daemon::sessions::{Link, Older, Patience, SILENCE, in_time};
use crate::daemon::signals::Stop;
use crate::daemon::stall;
use crate::daemon::stall::Stall;
use crate::daemon::systemd;
use crate::daemon::wakeup::{Cause, Wake};
use crate::delivery::client::Caller;
use crate::dispatch::pool::Pool;
use crate::dispatch::scheduler::ClaimBudget;
use crate::error::{Error, Result, one_line};
use crate::model::call::{Call, ErrorKind};
use crate::model::memory::Memory;
use crate::model::row::Claimed;
use crate::model::row::Finished;
use crate::outbox::{Role, STATEMENT_BYTES_MAX, Store};
use crate::telemetry::failure_log::Failures;
use crate::telemetry::metrics::{self, Metrics, Source};

/// Most rows in one finish.
const FINISH_MAX: usize = 1000;
/// A record that Postgres refuses keeps so many bytes of each text of the answer. If it is refused again, none.
const REFUSED_ANSWER_BYTES: usize = 1024;
/// When the finishing session was lost so many times in a row while it wrote the same large record, the record may be
/// what it is lost for.
const LOST_MAX: u32 = 3;
/// A record is large that has more bytes than this.
const LARGE_BYTES: usize = 256 * 1024;
/// How long a record that Postgres refuses in any form is set aside.
const SET_ASIDE: Duration = Duration::from_secs(10);
/// How often the other instances are looked at while we have rows in hand, or something is going on: with [`SURE`], the time
/// to a takeover.
const WATCH: Duration = Duration::from_millis(50);
/// The same when all is quiet.
const WATCH_QUIET: Duration = Duration::from_secs(1);
/// All is quiet when nobody has notified us and we have found nothing for this time.
const QUIET: Duration = Duration::from_secs(10);
/// How long after the next look at the liveness locks is due calls may still start: one that was frozen longer looks
/// first whether its rows are still its own.
const LATE: Duration = Duration::from_millis(250);
/// How often it is asked whether the sessions that claim and finish are heard.
const ASK: Duration = Duration::from_secs(1);
/// How long all that a reconnection does may take before it begins anew.
const CONNECT_MAX: Duration = Duration::from_secs(60);
/// How long a stop may take beyond the time limit of the calls in flight. Then whoever waits for a Postgres that is
/// away gives up.
const DRAIN: Duration = Duration::from_millis(900);
/// And whoever waits for a commit that is under way gives up after this time besides: what it records is not posted
/// again.
const DRAIN_COMMIT: Duration = Duration::from_secs(10);
/// How often we wake the other instances while there is more than we can do.
const CALL_PEERS: Duration = Duration::from_secs(1);
/// How often we wake them while we have anything in hand, so that none takes the quiet of its own for ours.
const STIR_PEERS: Duration = Duration::from_secs(5);
/// A call that runs for so much longer than it may is stuck.
const STUCK: Duration = Duration::from_secs(30);
/// How often systemd is told what we do.
const STATUS: Duration = Duration::from_secs(1);
/// How often the age of the queue is asked for, for the metrics and the status.
const MEASURE: Duration = Duration::from_secs(5);
/// How long the answer may take. The server itself gives up after 5 s.
const MEASURE_MAX: Duration = Duration::from_secs(10);
/// First and longest pause before something is tried again with Postgres; doubles each time, with jitter.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// What outlives a lost session.
struct Relay<'a> {
    config: &'a Config,
    stop: Stop,
    pool: Pool,
    caller: Arc<Caller>,
    ended_rows: Mutex<EndedRows>,
    // Rows in hand. Entered by the claim, taken out by the finish, or when they turn out to be lost.
    in_hand: RefCell<HashMap<i64, Held>>,
    // Rows to give back because we were told to stop, each with whether its calls are repeated ones. Only the claiming loop uses it.
    unstarted: RefCell<HashMap<i64, bool>>,
    // Set when we were told to stop and the claiming loop has claimed its last.
    claimed_last: Cell<bool>,
    // Rung when the claiming loop has ended, for the finishing loop.
    claiming_ended: Notify,
    // Rung when another instance's rows are to be taken over, for the claiming loop.
    takeover: Notify,
    failures: RefCell<Failures>,
    metrics: Metrics,
    // The other instances. Written by the watching loop and when we connect, read by the claiming loop.
    peers: RefCell<Peers>,
    // When we were notified or found something. Written by the claiming loop, read by the watching loop.
    active: Cell<Instant>,
    // Rung when the quiet is over, or there are rows in hand again, for the watching loop.
    stirred: Notify,
    // Ours that may have rows: of the link that serves, or served last, and of tries to make another one.
    epochs: RefCell<Vec<i64>>,
    // When we last woke the other instances.
    peers_called: Cell<Instant>,
    patience: Cell<Patience>,
    retention: Retention,
    // Whether a commit is under way. Written by the finishing loop, and when its session is lost.
    commits: Cell<bool>,
    // How often the finishing session was lost within a commit since the last one that succeeded.
    lost_commits: Cell<u32>,
}

/// A row that is ours.
#[derive(Clone, Copy)]
struct Held {
    /// The epoch that it was claimed under. A row that was taken from us and came back was claimed twice: what the
    /// calls of the first claim give is not the second one's.
    claimed: i64,
    /// The epoch that it is claimed by: a later one of ours when it was adopted.
    epoch: i64,
    /// Who had it before us.
    previous: Option<i64>,
}

/// What came of a look at both lanes.
struct Looked {
    any: bool,
    /// There may be more.
    more: bool,
}

/// What systemd was told last.
struct Status {
    told: Instant,
    calls: u64,
    text: String,
}

/// Rows whose calls have ended. The finishing loop has it locked for as long as it runs.
struct EndedRows {
    results: UnboundedReceiver<Finished>,
    // Taken from `results` and not committed yet.
    uncommitted: Vec<Finished>,
    // Postgres refuses each record of these.
    aside: Aside,
}

/// Rows whose records Postgres refuses in any form. One of them is tried again now and then; when it is taken, so are the
/// others.
#[derive(Default)]
struct Aside {
    rows: VecDeque<Finished>,
    try_at: Option<Instant>,
    // The last one that was tried was taken.
    open: bool,
}

impl Aside {
    /// Whether it is time to try.
    async fn due(&self) {
        match self.try_at {
            Some(at) if !self.rows.is_empty() => tokio::time::sleep_until(at.into()).await,
            _ => std::future::pending().await,
        }
    }

    fn take(&mut self) -> impl Iterator<Item = Finished> {
        let count = if self.open { FINISH_MAX } else { 1 };
        self.rows.drain(..count.min(self.rows.len()))
    }

    /// What came of a commit: so many rows that were aside are done, so many are refused again, and these are refused.
    fn learn(&mut self, done: usize, again: usize, refused: Vec<Finished>) {
        if again > 0 {
            (self.open, self.try_at) = (false, Some(Instant::now() + SET_ASIDE));
        } else if done > 0 {
            (self.open, self.try_at) = (true, Some(Instant::now()));
        } else if !refused.is_empty() && self.rows.is_empty() {
            (self.open, self.try_at) = (false, Some(Instant::now() + SET_ASIDE));
        }
        self.rows.extend(refused);
    }
}

/// The daemon, until it is told to stop or cannot go on.
///
/// # Errors
///
/// What keeps it from starting. Once it runs, a lost session is no error: it reconnects for as long as it takes.
pub async fn run(config: &Config, stop: Stop) -> Result<()> {
    let server = match config.metrics_listen {
        Some(address) => Some(metrics::Server::bind(address).await?),
        None => None,
    };
    let mut endpoint = config.endpoint.clone();
    // The very port, also where any free one was asked for.
    endpoint.metrics_port = server.as_ref().map(metrics::Server::port).transpose()?;
    let caller = Arc::new(Caller::new(endpoint)?);
    let (to_results, results) = mpsc::unbounded_channel();
    let post = Box::new({
        let caller = caller.clone();
        move |webhook: &_, outbox_id, body: &_, room: &mut _| caller.call(webhook, outbox_id, body, room)
    });
    let relay = Relay {
        config,
        stop,
        pool: Pool::new(
            config.limits,
            Memory::new(config.memory_bytes_max),
            config.endpoint.response_body_bytes_max,
            post,
            to_results,
        ),
        caller,
        ended_rows: Mutex::new(EndedRows { results, uncommitted: Vec::new(), aside: Aside::default() }),
        in_hand: RefCell::default(),
        unstarted: RefCell::default(),
        claimed_last: Cell::new(false),
        claiming_ended: Notify::new(),
        takeover: Notify::new(),
        failures: RefCell::default(),
        metrics: Metrics::default(),
        peers: RefCell::default(),
        active: Cell::new(Instant::now()),
        stirred: Notify::new(),
        epochs: RefCell::default(),
        peers_called: Cell::new(Instant::now()),
        patience: Cell::default(),
        retention: Retention::default(),
        commits: Cell::new(false),
        lost_commits: Cell::new(0),
    };
    tokio::select! {
        result = relay.live_and_tell(server) => result,
        error = relay.overdue() => Err(error),
    }
}

impl Relay<'_> {
    /// Lives, with metrics if they are wanted.
    async fn live_and_tell(&self, server: Option<metrics::Server>) -> Result<()> {
        match server {
            None => self.live().await,
            Some(server) => {
                let load = || (self.pool.load(), self.in_hand.borrow().len());
                tokio::select! {
                    result = self.live() => result,
                    never = server.serve(&self.metrics, load) => match never {},
                }
            }
        }
    }

    /// From the first connection to the last commit.
    async fn live(&self) -> Result<()> {
        let mut older = Older::default();
        let mut link = tokio::select! {
            link = Link::connect(&self.config.database, &self.peers, &mut older, async |_| Ok(())) => link?,
            () = self.stop.wait() => return Ok(()),
        };
        self.epochs.replace(vec![link.instance.epoch()]);
        self.metrics.trouble(Source::Sessions, None);
        systemd::ready();
        tracing::info!(epoch = link.instance.epoch(), database = %self.config.database.describe(), "relaying");
        while let Err(error) = self.serve(&link).await {
            // Our sessions are not ours (a pooler): nothing that is done on them can be relied on.
            if matches!(error, Error::Pooled { .. }) {
                return Err(error);
            }
            self.pool.lease_until(Instant::now());
            if self.commits.take() {
                self.lost_commits.set(self.lost_commits.get() + 1);
            }
            // What was wrong with statements on the old sessions is not known of the new ones.
            self.metrics.trouble(Source::Claim, None);
            self.metrics.trouble(Source::Finish, None);
            self.metrics.trouble(Source::Sessions, Some(self.with_advice("lost Postgres", &error)));
            self.metrics.oldest((f64::NAN, f64::NAN));
            self.metrics.retention_age(f64::NAN);
            tracing::warn!(error = %one_line(&error), "lost Postgres, reconnecting; calls in flight go on");
            // A session that ends says why a moment before it is closed. If none ends, a statement failed for another
            // reason: do not turn that into a storm of connections.
            let refused = matches!(error, Error::Postgres { .. });
            if refused && tokio::time::timeout(RETRY_MAX, link.lost()).await.is_err() {
                tracing::debug!("all sessions are there still");
            }
            // The sessions that are left keep our epoch alive until our rows in hand are the new one's.
            let older = link.into_older(self.epochs.borrow().clone());
            let Some(again) = self.reconnect(older).await? else { return Ok(()) };
            link = again;
            self.metrics.reconnects.inc();
            self.metrics.trouble(Source::Sessions, None);
            tracing::info!(epoch = link.instance.epoch(), "found Postgres again");
        }
        tracing::info!("drained");
        if let Err(error) = link.instance.retire().await {
            // Nothing is in hand; a peer or the next start finds that out.
            tracing::warn!(error = %one_line(&error), "left without signing off");
        }
        Ok(())
    }

    /// Works until drained (Ok) or until a session is lost (Err).
    async fn serve(&self, link: &Link) -> Result<()> {
        tokio::select! {
            result = self.claiming(link) => result,
            result = self.finishing(link) => result,
            result = self.watching(link) => result,
            never = self.retention.keep_house(self.config) => match never {},
            never = self.measuring() => match never {},
        }
    }

    // ---- claim ------------------------------------------------------------------------------------------------

    /// Claims what can start soon and hands it to the threads, until told to stop. Ends only with an error.
    async fn claiming(&self, link: &Link) -> Result<()> {
        let mut wake = Wake::new(&link.claim, link.instance.session(), self.config.poll_interval);
        let epoch = link.instance.epoch();
        let mut look = Look::new(&link.claim, epoch, &self.pool, &self.peers, &self.takeover, &self.metrics);
        let mut pause = RETRY_MIN;
        let mut outage = Outage::default();
        while !self.stop.asked() {
            self.park_late(link, &mut look).await?;
            if self.peers.borrow().is_gathering() {
                // After a crash of the server a claim may be lost that a peer still acts upon (claims are not
                // flushed). It takes its rows over when it comes back; until then nobody claims.
                tokio::select! {
                    () = self.takeover.notified() => continue,
                    () = self.stop.wait() => break,
                }
            }
            let Some(budget) = self.pool.claim_budget() else {
                // Nobody shall notify us while we could not act upon it; those who slept because we did hear of it.
                wake.rouse().await?;
                if self.owes_peers(&wake) {
                    self.call_peers(&link.claim, Duration::ZERO).await?;
                }
                tokio::select! {
                    () = self.pool.wait_for_capacity() => continue,
                    () = self.stop.wait() => break,
                }
            };
            let found = match self.look(&mut look, &budget).await {
                Ok(found) => found,
                Err(error) if link.claim.is_closed() => return Err(error),
                Err(error) => {
                    let why = self.tell_refusal(&mut outage, "rows cannot be claimed", &error, pause);
                    self.metrics.trouble(Source::Claim, Some(why));
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stop.wait() => break,
                    }
                    pause = longer(pause);
                    continue;
                }
            };
            if std::mem::replace(&mut pause, RETRY_MIN) > RETRY_MIN {
                outage = Outage::default();
                self.metrics.trouble(Source::Claim, None);
            }
            if found.any {
                self.stir();
                wake.rouse().await?;
                let pause = match found.more {
                    true if self.owes_peers(&wake) => Duration::ZERO,
                    true => CALL_PEERS,
                    false => STIR_PEERS,
                };
                self.call_peers(&link.claim, pause).await?;
            }
            if found.more {
                continue;
            }
            let cause = tokio::select! {
                cause = wake.rest(look.reason()) => cause?,
                () = self.stop.wait() => break,
            };
            self.metrics.wakeup(cause.name());
            match cause {
                Cause::LastLook => look.want_the_oldest(),
                Cause::Poll => look.want_the_oldest(),
                Cause::Notified => {
                    // An inserter may have drawn its ids long ago, but that is not what it notifies us of as a rule.
                    self.stir();
                    look.want_the_oldest_after_the_new();
                }
                Cause::Dozing | Cause::Other => {}
            }
        }
        self.give_back(link).await?;
        self.claimed_last.set(true);
        self.claiming_ended.notify_one();
        std::future::pending().await
    }

    /// Gives rows back that wait for others of their own project, and puts them into the slow lane: there they cost nothing.
    async fn park_late(&self, link: &Link, look: &mut Look<'_>) -> Result<()> {
        let late = self.pool.take_late();
        // With those of a try whose session was lost: they are in hand, and in nobody's hands.
        self.unstarted.borrow_mut().extend(late.iter().map(|(id, _, repeated)| (*id, *repeated)));
        if self.unstarted.borrow().is_empty() {
            return Ok(());
        }
        let given = self.give_back_unstarted(link, true).await?;
        self.metrics.parked.inc_by(given as u64);
        look.note_parked(late.iter().map(|(_, project_id, _)| *project_id));
        Ok(())
    }

    /// Claims from both lanes, and hands out what is found.
    async fn look(&self, look: &mut Look<'_>, budget: &ClaimBudget) -> Result<Looked> {
        let pending = look.pending(budget.limit, &budget.park).await?;
        let any = !pending.rows.is_empty();
        self.hand_out(pending.rows);
        let parked = look.parked().await?;
        let looked = Looked { any: any || !parked.rows.is_empty(), more: pending.more || parked.more };
        self.hand_out(parked.rows);
        Ok(looked)
    }

    /// Whether others may sleep because we did, and have not been told that we do not any more.
    fn owes_peers(&self, wake: &Wake<'_>) -> bool {
        wake.freed() > Some(self.peers_called.get())
    }

    /// Wakes the other instances, if that was not done within `pause`.
    async fn call_peers(&self, session: &Store, pause: Duration) -> Result<()> {
        if self.peers_called.get().elapsed() >= pause && self.peers.borrow().alive() > 0 {
            self.peers_called.set(Instant::now());
            session.notify_peers().await?;
        }
        Ok(())
    }

    /// The quiet is over.
    fn stir(&self) {
        let now = Instant::now();
        if now - self.active.replace(now) > QUIET {
            self.stirred.notify_one();
        }
    }

    /// Hands claimed rows to the threads. With `--after-crash record` rows that a dead instance had in hand are
    /// recorded as interrupted instead.
    fn hand_out(&self, rows: Vec<Claimed>) {
        if rows.is_empty() {
            return;
        }
        if self.in_hand.borrow().is_empty() {
            self.stirred.notify_one();
        }
        let held = |row: &Claimed| Held { claimed: row.epoch, epoch: row.epoch, previous: row.previous };
        self.in_hand.borrow_mut().extend(rows.iter().map(|row| (row.id, held(row))));
        self.metrics.claimed.inc_by(rows.len() as u64);
        let record = self.config.after_crash == AfterCrash::Record;
        let (interrupted, rows): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| record && row.repeated());
        self.pool.hand_in(rows);
        if !interrupted.is_empty() {
            let text = "the instance that had this call in hand died; it may or may not have been made";
            self.pool.skip(interrupted, ErrorKind::Interrupted, text);
        }
    }

    /// We are stopping: what has not begun goes back, for a peer or the next start.
    async fn give_back(&self, link: &Link) -> Result<()> {
        self.metrics.trouble(Source::Stop, Some("stopping".into()));
        self.unstarted.borrow_mut().extend(self.pool.stop());
        let given_back = if self.unstarted.borrow().is_empty() {
            0
        } else {
            self.give_back_unstarted(link, false).await?
        };
        let running = self.pool.running();
        tracing::info!(given_back, running, "stopping: calls in flight are finished");
        Ok(())
    }

    /// Gives back what has not begun; how many rows.
    async fn give_back_unstarted(&self, link: &Link, park: bool) -> Result<usize> {
        let ids: Vec<i64> = self.unstarted.borrow().keys().copied().collect();
        let repeated: Vec<i64> =
            self.unstarted.borrow().iter().filter(|(_, repeated)| **repeated).map(|(id, _)| *id).collect();
        link.claim.give_back(link.instance.epoch(), &ids, &repeated, park).await?;
        self.in_hand.borrow_mut().retain(|id, _| !ids.contains(id));
        self.unstarted.borrow_mut().clear();
        Ok(ids.len())
    }

    // ---- finish -----------------------------------------------------------------------------------------------

    /// Commits what has ended; the next commit starts when the last one returned. Returns when drained.
    async fn finishing(&self, link: &Link) -> Result<()> {
        let mut rows = self.ended_rows.lock().await;
        let EndedRows { results, uncommitted, aside } = &mut *rows;
        loop {
            // What a lost session left comes first.
            self.commit(link, uncommitted, aside).await?;
            if self.claimed_last.get() && self.in_hand.borrow().is_empty() {
                return Ok(());
            }
            tokio::select! {
                _ = results.recv_many(uncommitted, FINISH_MAX) => {}
                () = self.claiming_ended.notified() => {}
                () = aside.due() => uncommitted.extend(aside.take()),
            }
        }
    }

    /// Commits these rows, whatever it takes short of a lost session. What is committed is taken out, and what Postgres
    /// refuses in any form is set aside, so that the others do not wait for it.
    async fn commit(&self, link: &Link, uncommitted: &mut Vec<Finished>, aside: &mut Aside) -> Result<()> {
        loop {
            let lost: Vec<Finished> =
                uncommitted.extract_if(.., |row| self.epoch_of(row).is_none()).collect();
            if !lost.is_empty() {
                self.note_fenced(lost.len());
                let in_hand = lost.iter().filter(|row| !row.aside).count();
                drop(lost);
                self.pool.released(in_hand);
            }
            let why = (!aside.rows.is_empty()).then(|| {
                let held: usize = aside.rows.iter().map(|row| row.held.bytes()).sum();
                let waits = held > self.config.memory_bytes_max / 4 * 3;
                let so = if waits { "; they take most of --memory, and claiming waits" } else { "" };
                format!("Postgres refuses the records of {} rows: see the journal{so}", aside.rows.len())
            });
            self.metrics.trouble(Source::Finish, why);
            // One epoch, but for those that were in hand when a session was lost.
            let Some(epoch) = uncommitted.first().and_then(|first| self.epoch_of(first)) else {
                return Ok(());
            };
            let mut bytes = 0;
            let fits = |row: &&Finished| {
                let first = bytes == 0;
                bytes += row.record_bytes();
                self.epoch_of(row) == Some(epoch) && (first || bytes <= STATEMENT_BYTES_MAX)
            };
            let same = uncommitted.iter().take_while(fits).count();
            let rows = &mut uncommitted[..same];
            if self.lost_commits.get() >= LOST_MAX {
                rows.iter_mut().for_each(|row| self.suspect(row));
            }
            let recorded = self.record(&link.finish, epoch, rows).await?;
            self.lost_commits.set(0);
            self.metrics.finish(recorded.ours);
            let done = same - recorded.refused.len();
            if recorded.ours < done {
                self.note_fenced(done - recorded.ours);
            }
            // Those that were set aside before, and those that are from now on, do not count as in hand.
            let (mut in_hand, mut taken, mut again, mut refused) = (0, 0, 0, Vec::new());
            for mut row in uncommitted.drain(..same) {
                in_hand += usize::from(!row.aside);
                if recorded.refused.contains(&row.id) {
                    again += usize::from(std::mem::replace(&mut row.aside, true));
                    refused.push(row);
                    continue;
                }
                taken += usize::from(row.aside);
                self.in_hand.borrow_mut().remove(&row.id);
                for call in &row.calls {
                    self.metrics.call(call, row.repeated);
                    self.failures.borrow_mut().note(row.id, call);
                }
            }
            aside.learn(taken, again, refused);
            self.pool.released(in_hand);
        }
    }

    /// Takes a large record for what the session is lost for, again and again, and makes it shorter: something on the way
    /// may not let it through.
    fn suspect(&self, row: &mut Finished) {
        if row.record_bytes() > LARGE_BYTES {
            tracing::error!(
                outbox_id = row.id,
                bytes = row.record_bytes(),
                "Postgres was lost again and again while this record was written: its answers are cut"
            );
            let why = "the answer is kept shorter: Postgres was lost while the record was written";
            row.calls.iter_mut().for_each(|call| call.shorten(REFUSED_ANSWER_BYTES, why));
            row.weigh();
        }
    }

    /// The epoch that a row is claimed by, as far as we know; none when its claim is lost, whether or not we have
    /// claimed the row again since.
    fn epoch_of(&self, row: &Finished) -> Option<i64> {
        let in_hand = self.in_hand.borrow();
        in_hand.get(&row.id).filter(|held| held.claimed == row.epoch).map(|held| held.epoch)
    }

    /// Writes the records of some rows. A record that Postgres refuses is found by halving, and made shorter, and then
    /// bare; what has nothing to do with the data is tried again until it works: the calls were made, and are never made
    /// again for it.
    ///
    /// # Errors
    ///
    /// Only when the session is lost.
    async fn record(&self, finish: &Store, epoch: i64, rows: &mut [Finished]) -> Result<Recorded> {
        let mut pause = RETRY_MIN;
        let mut outage = Outage::default();
        loop {
            self.commits.set(true);
            let recorded = finish.finish(epoch, rows).await;
            let error = match recorded {
                Ok(ours) => {
                    self.commits.set(false);
                    return Ok(Recorded { ours: ours.len(), refused: Vec::new() });
                }
                // Whether it was within a commit is asked when the session is made anew.
                Err(error) if finish.is_closed() => return Err(error),
                Err(error) => error,
            };
            self.commits.set(false);
            if error.is_data() {
                match rows {
                    [row] => {
                        if !make_storable(row, &error) {
                            return Ok(Recorded { ours: 0, refused: vec![row.id] });
                        }
                    }
                    rows => {
                        let (left, right) = rows.split_at_mut(rows.len() / 2);
                        let mut all = Box::pin(self.record(finish, epoch, left)).await?;
                        let other = Box::pin(self.record(finish, epoch, right)).await?;
                        all.ours += other.ours;
                        all.refused.extend(other.refused);
                        return Ok(all);
                    }
                }
                continue;
            }
            let why = self.tell_refusal(&mut outage, "calls cannot be recorded", &error, pause);
            self.metrics.trouble(Source::Finish, Some(why));
            tokio::time::sleep(pause).await;
            pause = longer(pause);
        }
    }

    fn note_fenced(&self, rows: usize) {
        self.metrics.fenced.inc_by(rows as u64);
        tracing::warn!(fenced = rows, "rows were done or taken over already: nothing recorded for them");
    }

    // ---- watch ------------------------------------------------------------------------------------------------

    /// Ends when a session is lost.
    async fn watching(&self, link: &Link) -> Result<()> {
        let mut watchdog = tokio::time::interval(systemd::watchdog_interval().unwrap_or(WATCH_QUIET));
        // A look proves that the sessions were there when it began, and so were the liveness lock and our claims.
        let mut looked = Instant::now();
        let mut asked = looked;
        let mut stall = Stall::default();
        let mut status = Status { told: looked, calls: self.metrics.calls(), text: String::new() };
        loop {
            let next_look = looked + self.watch_pause(&self.peers.borrow());
            self.pool.lease_until(next_look + LATE);
            tokio::select! {
                error = link.lost() => return Err(error),
                _ = watchdog.tick() => self.tell_watchdog(&stall),
                () = self.stirred.notified() => {}
                () = tokio::time::sleep_until(next_look.into()) => {
                    self.pool.tick();
                    self.caller.close_resting();
                    self.failures.borrow_mut().flush();
                    self.tell_status(&mut status);
                    self.look_for_stall(&mut stall);
                    let start = Instant::now();
                    if in_time(SILENCE, self.look_around(link, start)).await? {
                        self.takeover.notify_one();
                    }
                    looked = start;
                    if asked.elapsed() >= ASK {
                        asked = start;
                        in_time(SILENCE, link.require_heard(&self.patience)).await?;
                    }
                }
            }
        }
    }

    /// Looks at the other instances; while we have anything in hand, sees to it that they look at us.
    async fn look_around(&self, link: &Link, now: Instant) -> Result<bool> {
        if !self.in_hand.borrow().is_empty() {
            self.call_peers(link.instance.session(), STIR_PEERS).await?;
        }
        link.instance.look_around(&self.peers, now).await
    }

    /// Says when nothing moves although there is something to do, and nobody else says why.
    fn look_for_stall(&self, stall: &mut Stall) {
        let load = self.pool.load();
        let before = stall.is_stalled();
        stall.look(&load, Instant::now());
        if stall.is_stalled() == before {
            return;
        }
        let why = stall.is_stalled().then(|| {
            format!(
                "{} calls wait, and none has started or been recorded for {} s",
                load.waiting,
                stall::LIMIT.as_secs()
            )
        });
        match &why {
            Some(why) => tracing::error!(
                rows = self.in_hand.borrow().len(),
                memory_bytes = load.memory_bytes,
                shortages = load.shortages,
                "{why}; if this does not pass, restart the daemon"
            ),
            None => tracing::info!("calls go on"),
        }
        self.metrics.trouble(Source::Stall, why);
    }

    /// We make progress: this thread runs, or nobody would be here, no call has outlived its time limit by much, and what
    /// waits is not kept by us. A Postgres that is away, or that keeps us waiting, is no reason to be restarted.
    fn tell_watchdog(&self, stall: &Stall) {
        let longest = self.pool.longest_running();
        if longest >= self.config.endpoint.timeout + STUCK {
            tracing::error!(
                running_s = longest.as_secs(),
                "a call does not end; the watchdog is not told that all is well"
            );
        } else if stall.is_long(Instant::now()) {
            tracing::error!("calls wait and nothing moves; the watchdog is not told that all is well");
        } else {
            systemd::watchdog();
        }
    }

    /// What we do, for `systemctl status`; at most once a second, and only what is new.
    fn tell_status(&self, status: &mut Status) {
        let now = Instant::now();
        let pause = now - status.told;
        if pause < STATUS {
            return;
        }
        let calls = self.metrics.calls();
        let rate = (calls - status.calls) as f64 / pause.as_secs_f64();
        (status.told, status.calls) = (now, calls);
        let in_hand = self.in_hand.borrow().len();
        let oldest = self.metrics.oldest_age().filter(|age| *age > 0.0);
        let text = match (self.metrics.why(), in_hand, oldest) {
            _ if self.stop.asked() => format!("stopping: {} calls in flight", self.pool.running()),
            (Some(why), ..) => why,
            (None, 0, None) => "idle, nothing waits".into(),
            (None, _, None) => format!("{rate:.0} calls/s, {in_hand} rows in hand"),
            (None, _, Some(age)) => format!("{rate:.0} calls/s, {in_hand} rows in hand, oldest {age:.1} s"),
        };
        if text != status.text {
            systemd::status(&text);
            status.text = text;
        }
    }

    /// Asks now and then how old the queue is, if anybody wants to know. A session of its own: it is never in the way.
    async fn measuring(&self) -> Infallible {
        if self.config.metrics_listen.is_none() && !systemd::listens() {
            std::future::pending::<()>().await;
        }
        loop {
            if let Err(error) = self.measure().await {
                self.metrics.oldest((f64::NAN, f64::NAN));
                self.metrics.retention_age(f64::NAN);
                tracing::debug!(error = %one_line(&error), "the age of the queue is not known");
            }
            tokio::time::sleep(MEASURE).await;
        }
    }

    async fn measure(&self) -> Result<()> {
        let store = Store::connect(&self.config.database, Role::Metrics).await?;
        loop {
            self.metrics.oldest(in_time(MEASURE_MAX, store.oldest()).await?);
            self.metrics.retention_age(in_time(MEASURE_MAX, store.retention_age()).await?);
            tokio::time::sleep(MEASURE).await;
        }
    }

    /// How long until the next look at the other instances.
    fn watch_pause(&self, peers: &Peers) -> Duration {
        if peers.any_suspect() {
            SURE
        } else if self.active.get().elapsed() < QUIET || !self.in_hand.borrow().is_empty() {
            WATCH
        } else {
            WATCH_QUIET
        }
    }

    /// Ends when we were told to stop and it takes too long: Postgres is away, or does not let us commit.
    async fn overdue(&self) -> Error {
        self.stop.wait().await;
        let patience = self.config.endpoint.timeout + DRAIN;
        systemd::stopping(patience + DRAIN_COMMIT);
        tokio::time::sleep(patience).await;
        let given_up = Instant::now() + DRAIN_COMMIT;
        while self.commits.get() && Instant::now() < given_up {
            tokio::time::sleep(WATCH).await;
        }
        let unstarted = self.unstarted.borrow();
        let left = self.in_hand.borrow().keys().filter(|id| !unstarted.contains_key(id)).count();
        Error::Failed(format!(
            "told to stop, and Postgres is away or holds us up; rows that are not recorded and will be posted again: {left}"
        ))
    }

    /// Connects anew, for as long as it takes, and takes our own rows in hand over to the new epoch. None when we
    /// were told to stop and have nothing to commit.
    ///
    /// # Errors
    ///
    /// When a restart is needed, or does not help: the schema has changed under us, or a pooler gives our sessions away.
    async fn reconnect(&self, older: Older) -> Result<Option<Link>> {
        let nothing_to_commit = async {
            self.stop.wait().await;
            if !self.in_hand.borrow().is_empty() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            link = self.connect_again(older) => link.map(Some),
            () = nothing_to_commit => Ok(None),
        }
    }

    async fn connect_again(&self, mut older: Older) -> Result<Link> {
        let mut pause = RETRY_MIN;
        let mut outage = Outage::default();
        loop {
            match self.telling_watchdog(self.connect_and_adopt(&mut older)).await {
                Ok(link) => return Ok(link),
                Err(error @ (Error::Schema(_) | Error::Pooled { .. })) => return Err(error),
                Err(error) => {
                    let why = self.tell_refusal(&mut outage, "waiting for Postgres", &error, pause);
                    systemd::status(&format!("{why}, retry in {:.1} s", pause.as_secs_f64()));
                    self.metrics.trouble(Source::Sessions, Some(why));
                }
            }
            self.telling_watchdog(tokio::time::sleep(pause)).await;
            pause = longer(pause);
        }
    }

    /// Tells in the journal that a try has failed and when the next one is due. Returns it as it is for `/healthz`.
    fn tell_refusal(&self, outage: &mut Outage, what: &str, error: &Error, pause: Duration) -> String {
        let retry_ms = pause.as_millis() as u64;
        let why = one_line(error);
        let advice = outage::advice(error, self.config.database.user());
        let advice = advice.map(|advice| format!("; {advice}")).unwrap_or_default();
        match outage.failed(error, Instant::now()) {
            Level::Error => tracing::error!(error = %why, retry_ms, "{what}{advice}"),
            Level::Warn => tracing::warn!(error = %why, retry_ms, "{what}{advice}"),
            Level::Debug => tracing::debug!(error = %why, retry_ms, "{what}"),
        }
        self.with_advice(what, error)
    }

    /// What is wrong, why, and what the operator can do about it.
    fn with_advice(&self, what: &str, error: &Error) -> String {
        let why = one_line(error);
        match outage::advice(error, self.config.database.user()) {
            Some(advice) => format!("{what}: {why}; {advice}"),
            None => format!("{what}: {why}"),
        }
    }

    /// Does the work, and tells the watchdog meanwhile: hosts that do not answer take their time, and are no hang.
    async fn telling_watchdog<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut watchdog = tokio::time::interval(systemd::watchdog_interval().unwrap_or(WATCH_QUIET));
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = watchdog.tick() => self.tell_watchdog(&Stall::default()),
            }
        }
    }

    async fn connect_and_adopt(&self, older: &mut Older) -> Result<Link> {
        let adopt = async |instance: &Instance| self.adopt(instance).await;
        let connect = Link::connect(&self.config.database, &self.peers, older, adopt);
        in_time(CONNECT_MAX, connect).await
    }

    /// Takes the rows that we have in hand over to a new epoch, and ends the older ones.
    async fn adopt(&self, instance: &Instance) -> Result<()> {
        let new = instance.epoch();
        // A try whose answer was lost may have taken the rows over to its epoch.
        let older = self.epochs.borrow().clone();
        self.epochs.borrow_mut().push(new);
        // One that was cut off within a statement may have our rows locked, for ever. The others keep the older epochs alive.
        instance.end_older(&older, true).await?;
        let held: Vec<_> = self.in_hand.borrow().iter().map(|(id, held)| (*id, held.previous)).collect();
        let adopted = instance.session().adopt(&held, &older, new).await?;
        let mut lost: HashSet<i64> = held.into_iter().map(|(id, _)| id).collect();
        adopted.iter().for_each(|id| _ = lost.remove(id));
        let abandoned = self.pool.abandon(&lost);
        if !abandoned.is_empty() {
            tracing::warn!(rows = abandoned.len(), "rows were taken over: their calls are not begun");
        }
        {
            // Those of the lost that have calls in flight give a result that is nobody's.
            let mut in_hand = self.in_hand.borrow_mut();
            in_hand.retain(|id, _| !lost.contains(id));
            in_hand.values_mut().for_each(|held| held.epoch = new);
        }
        // What they had claimed beyond that, in a claim whose answer was lost, is anybody's now.
        instance.session().retire(&older, false).await?;
        instance.end_older(&older, false).await?;
        self.epochs.replace(vec![new]);
        Ok(())
    }
}

/// What came of writing records.
struct Recorded {
    /// Rows that were ours, and are done.
    ours: usize,
    /// Rows whose records are refused in any form.
    refused: Vec<i64>,
}

/// Makes the records of a row that Postgres refuses such that it may take them: their answers short, and when they are
/// short already, the records bare. False: they were bare already.
fn make_storable(row: &mut Finished, error: &Error) -> bool {
    const BARE: &str = "the call was made, its record could not be stored";
    let is_bare = |call: &Call| call.error_message.as_deref().is_some_and(|text| text.starts_with(BARE));
    if row.calls.iter().all(is_bare) {
        tracing::error!(
            outbox_id = row.id,
            error = %one_line(error),
            "not even a bare record can be stored: it is tried again in {} s. Mend what refuses it (a constraint, a trigger)",
            SET_ASIDE.as_secs()
        );
        return false;
    }
    let before = row.record_bytes();
    let why = format!("the answer is kept shorter: Postgres refused the record: {}", one_line(error));
    row.calls.iter_mut().for_each(|call| call.shorten(REFUSED_ANSWER_BYTES, &why));
    if row.record_bytes() + REFUSED_ANSWER_BYTES >= before {
        tracing::error!(outbox_id = row.id, error = %one_line(error), "a record could not be stored, a bare one is written");
        for call in &mut row.calls {
            call.request_headers = "{}".into();
            call.response_headers = None;
            call.response_body = None;
            call.response_truncated = true;
            call.error_kind = Some(ErrorKind::Internal);
            call.error_message = Some(format!("{BARE}: {}", one_line(error)));
            call.remote_addr = None;
        }
    } else {
        tracing::error!(outbox_id = row.id, error = %one_line(error), "a record could not be stored, a shorter one is written");
    }
    row.weigh();
    true
}

/// The next pause: twice as long, a little random, bounded. Several relays that lost the same Postgres do not come
/// back in step.
fn longer(pause: Duration) -> Duration {
    (pause * 2).min(RETRY_MAX) * fastrand::u32(750..1250) / 1000
}
