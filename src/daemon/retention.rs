//! What is made ahead and what is thrown away: partitions of the call log, done outbox rows, ended pauses, dead instances.
//!
//! Runs now and then on a session of its own, in one of several instances at a time. Each step is a short transaction
//! with a short `lock_timeout`: it is never in the way of an insert or a finish for longer. What fails does not keep
//! the rest from being done, and is tried again at the next run.
//!
//! When it ran and what it dropped stands in the database (`relay.retention`), so that reconnections, restarts and other
//! instances do not hasten it. What is old is so by Postgres' clock, and that may be wrong. Nothing is thrown away until it
//! has gone on for an hour without a jump, as our own clock and the runs before tell.

use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::error::SqlState;

use crate::config::Config;
use crate::error::{Error, Result, one_line};
use crate::outbox::{Role, Store};
use crate::postgres::Settings;

/// Time between two runs.
const PAUSE: Duration = Duration::from_secs(600);
/// Time to the next run after one that could not do all: a report that held a lock may be over soon.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// Least pause, where the database says when the next run is due.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// How long a run may take. Most is done in less than a second; what is left of much goes on with the next one.
const RUN_MAX: Duration = Duration::from_secs(3600);
/// A clock that is off by more has jumped, and is not believed until it was steady for so long; so long is the pause between
/// two drops, too. So a clock that is wrong for an hour costs nothing, and one that is wrong for longer one partition an
/// hour, while the journal warns.
const STEADY: Duration = Duration::from_secs(3600);
/// Work that is not done for so long is a warning, and again each time after so long.
const LATE: Duration = Duration::from_secs(3600);
/// Days for which there is a partition of the call log ahead: long enough for a weekend with the daemon off.
const DAYS_AHEAD: i32 = 7;
/// Ids in one deleting statement: a few milliseconds of work.
const WINDOW: i64 = 5000;
/// Calls without a partition that are deleted with one statement.
const STRAYS: i32 = 5000;

/// What this process remembers from one run to the next, also while it reconnects.
#[derive(Default)]
pub struct Retention {
    // Postgres' clock when our last run began, and ours.
    noted: Option<(SystemTime, Instant)>,
    // When it was last told that the work is late.
    warned: Option<Instant>,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All was done.
    Complete,
    /// Partitions were made, and nothing was thrown away: the clock has not been steady for long enough.
    Unsteady,
    /// The next run is due after this time.
    NotYet(Duration),
    /// Another instance is at it.
    Busy,
}

impl Retention {
    /// Runs for ever; errors are logged and do not end it.
    pub async fn run(&mut self, config: &Config) -> Infallible {
        loop {
            let run = self.run_once(&config.database, config.retain_calls, config.retain_outbox);
            let in_time = tokio::time::timeout(RUN_MAX, run).await.unwrap_or_else(|_| {
                Err(Error::Failed(format!(
                    "the retention has not ended within {} min",
                    RUN_MAX.as_secs() / 60
                )))
            });
            if let Ok(outcome) = in_time {
                tracing::debug!(?outcome, "retention");
            }
            let pause = match in_time {
                Ok(Outcome::NotYet(wait)) => wait.clamp(PAUSE_MIN, PAUSE),
                Ok(_) => PAUSE,
                Err(error) => {
                    let pause = PAUSE_AFTER_FAILURE;
                    tracing::warn!(error = %one_line(&error), "the retention has not done all of its work; it tries again in {} s", pause.as_secs());
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// One run, if it is due.
    ///
    /// # Errors
    ///
    /// The first thing that failed; what does not depend on it was done.
    pub async fn run_once(
        &mut self,
        database: &Settings,
        retain_calls: Duration,
        retain_outbox: Duration,
    ) -> Result<Outcome> {
        let store = Store::connect(database, Role::Retention).await?;
        // The sessions that claim may be elsewhere still.
        store.installation().await?.require_original()?;
        let outcome = match store.try_retention().await? {
            true => self.turn(&store, retain_calls, retain_outbox).await,
            false => Ok(Outcome::Busy),
        };
        if !matches!(outcome, Ok(Outcome::Complete)) {
            self.warn_if_late(&store).await?;
        }
        outcome
    }

    async fn turn(
        &mut self,
        store: &Store,
        retain_calls: Duration,
        retain_outbox: Duration,
    ) -> Result<Outcome> {
        let noted = self.noted.map(|(noted, at)| (noted, at.elapsed()));
        let turn = store.begin_retention(noted, PAUSE, PAUSE_AFTER_FAILURE, STEADY).await?;
        if let Some(wait) = turn.wait {
            return Ok(Outcome::NotYet(wait));
        }
        self.noted = Some((turn.now, Instant::now()));
        if let Some(off_s) = turn.off_s {
            tracing::warn!(
                off_s = off_s.round(),
                "Postgres' clock differs from what the last run of the retention expects: no daemon ran, or that clock has \
                 jumped. Nothing is thrown away until it has been steady for {} min",
                STEADY.as_secs() / 60
            );
        }
        let mut done = Done::default();
        for day in 0..=DAYS_AHEAD {
            done.made += usize::from(done.unless_failed(store.make_partition(day).await).unwrap_or_default());
        }
        if turn.steady {
            let before = |keep| turn.now.checked_sub(keep).unwrap_or(SystemTime::UNIX_EPOCH);
            if turn.may_drop {
                done.unless_failed(drop_oldest(store, before(retain_calls)).await);
            }
            done.strays =
                done.unless_failed(delete_strays(store, before(retain_calls)).await).unwrap_or_default();
            done.deleted = done
                .unless_failed(delete_done(store, before(retain_outbox), turn.now).await)
                .unwrap_or_default();
            done.unless_failed(store.delete_ended_pauses(before(retain_outbox)).await);
        }
        done.unless_failed(store.clear_dead().await);
        tracing::debug!(
            made = done.made,
            strays = done.strays,
            deleted = done.deleted,
            steady = turn.steady,
            "thrown away"
        );
        if let Some(error) = done.failed {
            return Err(error);
        }
        store.end_retention(turn.steady, PAUSE).await?;
        Ok(if turn.steady { Outcome::Complete } else { Outcome::Unsteady })
    }

    /// Says now and then that the work is late, whatever keeps it.
    async fn warn_if_late(&mut self, store: &Store) -> Result<()> {
        let age = Duration::try_from_secs_f64(store.retention_age().await?).unwrap_or_default();
        let told = self.warned.is_some_and(|at| at.elapsed() < LATE);
        if age > LATE && !told {
            self.warned = Some(Instant::now());
            tracing::warn!(
                age_s = age.as_secs(),
                "retention is late: no instance has thrown away all that is old for more than {} min",
                LATE.as_secs() / 60
            );
        }
        Ok(())
    }
}

/// What one run did.
#[derive(Default)]
struct Done {
    made: usize,
    strays: i64,
    deleted: i64,
    failed: Option<Error>,
}

impl Done {
    /// The value, or a note of the first failure.
    fn unless_failed<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.failed.get_or_insert(error)).ok()
    }
}

/// Drops the oldest partition that can be dropped. One at a time: a clock that is wrong for an hour does not cost the whole
/// log. A partition that cannot be dropped (something of a DBA's depends on it) does not keep the next one from it. A
/// partition that a session reads does: inserts wait behind each wait for its lock.
async fn drop_oldest(store: &Store, before: SystemTime) -> Result<()> {
    for name in store.expired_partitions(before).await? {
        match store.drop_partition(&name, before).await {
            Ok(true) => {
                tracing::info!(partition = %name, "dropped: older than --retain-calls");
                return Ok(());
            }
            Ok(false) => {
                tracing::warn!(partition = %name, "not dropped: another session has changed it meanwhile")
            }
            Err(error) if matches!(error.sqlstate(), None | Some(&SqlState::LOCK_NOT_AVAILABLE)) => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(partition = %name, error = %one_line(&error), "cannot be dropped, though older than --retain-calls");
            }
        }
    }
    Ok(())
}

async fn delete_strays(store: &Store, before: SystemTime) -> Result<i64> {
    let mut total = 0;
    loop {
        let deleted = store.delete_strays(before, STRAYS).await?;
        total += deleted;
        if deleted < i64::from(STRAYS) {
            return Ok(total);
        }
    }
}

/// Deletes what is done and old enough, window by window from the lowest id up to the first that is too young. Gaps
/// are jumped over.
async fn delete_done(store: &Store, before: SystemTime, now: SystemTime) -> Result<i64> {
    let (mut next, mut total) = (store.lowest_id().await?, 0);
    while let Some(first) = next {
        let deleted;
        (deleted, next) = store.delete_done(first, first + WINDOW, before, now).await?;
        total += deleted;
    }
    Ok(total)
}
