//! The finishing loop: commits what has ended; the next commit starts when the last one returned.
//!
//! Waits for rows whose calls have ended, for the time to try a refused record again, and for the end of the claiming loop.
//! Owns the session that finishes and what is not committed yet. Makes no call, and makes none again: whatever Postgres
//! says, the calls were made.

use std::cell::Cell;
use std::collections::HashSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::daemon::backoff::Backoff;
use crate::daemon::in_hand::InHand;
use crate::daemon::inbox::Inbox;
use crate::daemon::pauser::FailingWebhooks;
use crate::daemon::record::{cut_suspect, make_storable};
use crate::daemon::sessions::SessionSet;
use crate::dispatch::pool::Pool;
use crate::error::{Error, Result};
use crate::model::message;
use crate::model::row::Finished;
use crate::outbox::{STATEMENT_BYTES_MAX, Store};
use crate::telemetry::failure_log::Failures;
use crate::telemetry::health::{Health, Source};
use crate::telemetry::metrics::Metrics;

/// When sessions were lost so many times while a commit was under way, and no commit succeeded in between, a large record may
/// be the cause. Then all large records of the next commit are cut.
const LOST_MAX: u32 = 3;
/// A commit that takes longer is told. It still counts: what it records is never posted again.
const COMMIT_LATE: Duration = Duration::from_secs(10);
/// Most rows of one commit that have a line each in the journal when their calls are not recorded. All are counted.
const FENCED_LINES_MAX: usize = 100;
/// Most calls of such a row that are named.
const FENCED_IDS_MAX: usize = 20;

/// Whether a commit is under way, and how many were lost. The finishing loop sets both. The drain deadline reads whether one
/// is under way. When a session is lost, the daemon counts a commit that was under way, before it reconnects; the finishing
/// loop reads the count.
#[derive(Default)]
pub(super) struct Commits {
    under_way: Cell<bool>,
    /// How often a session was lost while a commit was under way, since the last commit that succeeded.
    lost: Cell<u32>,
}

impl Commits {
    /// Whether one is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.get()
    }

    /// A session is lost. If a commit was under way, the daemon does not know what came of it, and counts that.
    pub(super) fn session_lost(&self) {
        if self.under_way.take() {
            self.lost.set(self.lost.get() + 1);
        }
    }
}

/// The finishing loop.
pub(super) struct Finisher<'a> {
    pub config: &'a Config,
    pub pool: &'a Pool,
    pub in_hand: &'a InHand,
    pub commits: &'a Commits,
    pub failures: &'a Failures,
    pub failing: &'a FailingWebhooks,
    pub health: &'a Health,
    pub metrics: &'a Metrics,
    pub inbox: Inbox,
}

/// What came of writing records.
struct Recorded {
    /// Ids of the rows that were claimed by this instance, and are done.
    done: Vec<i64>,
    /// How many of them had no calls.
    without_call: usize,
    /// Rows whose records are refused in any form.
    refused: Vec<i64>,
}

impl Finisher<'_> {
    /// Commits until all that was in hand is recorded and no more rows come; then returns.
    ///
    /// # Errors
    ///
    /// When the session is lost.
    pub(super) async fn run(&mut self, sessions: &SessionSet) -> Result<()> {
        loop {
            // What a lost session left comes first.
            self.commit(&sessions.finish).await?;
            if self.in_hand.is_drained() {
                return Ok(());
            }
            tokio::select! {
                () = self.inbox.more() => {}
                () = self.in_hand.closed() => {}
            }
        }
    }

    /// Commits all that is uncommitted; only a lost session ends it early. What Postgres refuses in any form is set aside, so
    /// that the other rows do not wait for it.
    async fn commit(&mut self, finish: &Store) -> Result<()> {
        loop {
            self.drop_lost();
            self.tell_aside();
            // One epoch, but for those that were in hand when a session was lost.
            let first = self.inbox.uncommitted.first().and_then(|first| self.in_hand.epoch_of(first));
            let Some(epoch) = first else { return Ok(()) };
            let count = self.same_statement(epoch);
            let rows = &mut self.inbox.uncommitted[..count];
            if self.commits.lost.get() >= LOST_MAX {
                rows.iter_mut().for_each(cut_suspect);
            }
            let recorder =
                Recorder { config: self.config, commits: self.commits, health: self.health, finish };
            let recorded = recorder.record(epoch, rows).await?;
            self.commits.lost.set(0);
            self.learn(count, &recorded);
        }
    }

    /// Drops the rows whose claims are lost: another instance records their calls.
    fn drop_lost(&mut self) {
        let is_lost = |row: &mut Finished| self.in_hand.epoch_of(row).is_none();
        let lost: Vec<Finished> = self.inbox.uncommitted.extract_if(.., is_lost).collect();
        if !lost.is_empty() {
            self.note_fenced(&lost.iter().collect::<Vec<_>>());
            let in_hand = lost.iter().filter(|row| !row.aside).count();
            drop(lost);
            self.pool.released(in_hand);
        }
    }

    /// Says on `/healthz` what is set aside.
    fn tell_aside(&self) {
        let aside = &self.inbox.aside;
        let why = (aside.len() > 0)
            .then(|| format!("Postgres refuses the records of {} rows: see the journal", aside.len()));
        // Then no row is delivered any more.
        let waits = aside.bytes() > self.config.memory_bytes_max / 4 * 3;
        let so = "rows that are set aside take most of --memory, and claiming waits";
        self.health.set(Source::Finish, waits.then(|| so.into()));
        self.health.set(Source::Aside, why);
    }

    /// How many rows, from the first on, are claimed by this epoch and fit into one statement.
    fn same_statement(&self, epoch: i64) -> usize {
        let mut bytes = 0;
        let fits = |row: &&Finished| {
            let first = bytes == 0;
            bytes += row.record_bytes();
            self.in_hand.epoch_of(row) == Some(epoch) && (first || bytes <= STATEMENT_BYTES_MAX)
        };
        self.inbox.uncommitted.iter().take_while(fits).count()
    }

    /// Takes out the first `count` rows, which were recorded or refused.
    fn learn(&mut self, count: usize, recorded: &Recorded) {
        self.metrics.finish(recorded.done.len());
        self.metrics.without_call.inc_by(recorded.without_call as u64);
        let done: HashSet<i64> = recorded.done.iter().copied().collect();
        let is_fenced = |row: &&Finished| !done.contains(&row.id) && !recorded.refused.contains(&row.id);
        let fenced: Vec<&Finished> = self.inbox.uncommitted[..count].iter().filter(is_fenced).collect();
        if !fenced.is_empty() {
            self.note_fenced(&fenced);
        }
        // Those that were set aside before, and those that are from now on, do not count as in hand.
        let (mut in_hand, mut taken, mut again, mut refused) = (0, 0, 0, Vec::new());
        let now = Instant::now();
        for mut row in self.inbox.uncommitted.drain(..count) {
            in_hand += usize::from(!row.aside);
            if recorded.refused.contains(&row.id) {
                again += usize::from(std::mem::replace(&mut row.aside, true));
                refused.push(row);
                continue;
            }
            taken += usize::from(row.aside);
            self.in_hand.over(row.key());
            // The calls of a fenced row have no record here.
            for call in row.calls.iter().filter(|_| done.contains(&row.id)) {
                self.metrics.call(call, row.repeated);
                self.failures.note(&row, call);
                self.failing.note(call, now);
            }
        }
        self.inbox.aside.learn(taken, again, refused, now);
        self.pool.released(in_hand);
    }

    /// Says which calls were made and are not recorded here.
    fn note_fenced(&self, rows: &[&Finished]) {
        self.metrics.fenced.inc_by(rows.len() as u64);
        tracing::warn!(
            fenced = rows.len(),
            "rows were done or taken over already: nothing recorded for them"
        );
        for row in rows.iter().filter(|row| !row.calls.is_empty()).take(FENCED_LINES_MAX) {
            let ids =
                row.calls.iter().take(FENCED_IDS_MAX).map(|call| message::id(row.event_id, call.webhook_id));
            tracing::warn!(
                outbox_id = row.id,
                event_id = %row.event_id.simple(),
                calls = row.calls.len(),
                message_ids = ids.collect::<Vec<_>>().join(" "),
                "calls are not recorded here: their row is another instance's, done, or gone"
            );
        }
    }
}

/// Writes records with one session.
struct Recorder<'a> {
    config: &'a Config,
    commits: &'a Commits,
    health: &'a Health,
    finish: &'a Store,
}

impl Recorder<'_> {
    /// Writes the records of some rows. A record that Postgres refuses is found by halving, and made shorter, and then bare.
    /// What has nothing to do with the data is tried again until it works: the calls were made, and are never made again for
    /// it.
    ///
    /// # Errors
    ///
    /// Only when the session is lost.
    async fn record(&self, epoch: i64, rows: &mut [Finished]) -> Result<Recorded> {
        let mut backoff = Backoff::new(self.config.database.user());
        loop {
            self.commits.under_way.set(true);
            let recorded = self.tell_when_late(rows.len(), self.finish.finish(epoch, rows)).await;
            let error = match recorded {
                Ok(done) => {
                    self.commits.under_way.set(false);
                    let without_call = without_call(rows, &done);
                    return Ok(Recorded { done, without_call, refused: Vec::new() });
                }
                // It stays under way: the daemon counts that when it notes the loss.
                Err(error) if self.finish.is_closed() || matches!(error, Error::Pooled { .. }) => {
                    return Err(error);
                }
                Err(error) => error,
            };
            self.commits.under_way.set(false);
            if !error.is_data() {
                let why = backoff.failed("calls cannot be recorded", &error);
                self.health.set(Source::Finish, Some(why));
                backoff.wait().await;
                continue;
            }
            match rows {
                [row] => {
                    if !make_storable(row, &error) {
                        return Ok(Recorded { done: Vec::new(), without_call: 0, refused: vec![row.id] });
                    }
                }
                rows => {
                    let (left, right) = rows.split_at_mut(rows.len() / 2);
                    let mut all = Box::pin(self.record(epoch, left)).await?;
                    let other = Box::pin(self.record(epoch, right)).await?;
                    all.done.extend(other.done);
                    all.without_call += other.without_call;
                    all.refused.extend(other.refused);
                    return Ok(all);
                }
            }
        }
    }
}

impl Recorder<'_> {
    /// Waits for a commit of the records of so many rows. When it takes long, the operator is told what may hold it up:
    /// neither a lock nor a standby that is away is an error of the session.
    async fn tell_when_late<T>(&self, rows: usize, commit: impl Future<Output = T>) -> T {
        let mut commit = pin!(commit);
        tokio::select! {
            done = &mut commit => return done,
            () = tokio::time::sleep(COMMIT_LATE) => {}
        }
        let why = format!(
            "Postgres has not committed the records of {rows} rows for {} s: another session holds a lock, or the standby that a \
             synchronous replication waits for is away",
            COMMIT_LATE.as_secs()
        );
        tracing::warn!("{why}; no call is made again for it");
        self.health.set(Source::Finish, Some(why));
        let done = commit.await;
        self.health.set(Source::Finish, None);
        done
    }
}

/// How many of these rows have no calls and are done.
fn without_call(rows: &[Finished], done: &[i64]) -> usize {
    let mut ids = rows.iter().filter(|row| row.calls.is_empty()).map(|row| row.id).peekable();
    if ids.peek().is_none() {
        return 0;
    }
    let done: HashSet<i64> = done.iter().copied().collect();
    ids.filter(|id| done.contains(id)).count()
}
