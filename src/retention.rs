//! What is made ahead and what is thrown away: partitions of the call log, done outbox rows, dead instances.
//!
//! Runs now and then on a session of its own, in one of several instances at a time. Each step is a short transaction
//! with a short `lock_timeout`: it is never in the way of an insert or a finish for longer. What fails does not keep
//! the rest from being done, and is tried again at the next run.

use std::convert::Infallible;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::config::Config;
use crate::db::Settings;
use crate::error::{Error, Result, one_line};
use crate::store::{Role, Store};

/// Time between two runs.
const PAUSE: Duration = Duration::from_secs(600);
/// The same after one that could not do all: somebody's report may be over soon.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// How long a run may take. Most is done in less than a second; what is left of much goes on with the next one.
const RUN_MAX: Duration = Duration::from_secs(3600);
/// Days for which there is a partition of the call log ahead: long enough for a weekend with the daemon off.
const DAYS_AHEAD: i32 = 7;
/// Ids in one deleting statement: a few milliseconds of work.
const WINDOW: i64 = 5000;
/// Calls without a partition that are deleted with one statement.
const STRAYS: i32 = 5000;

/// Runs for ever; errors are logged and do not end it.
pub async fn keep_house(config: &Config) -> Infallible {
    loop {
        let run = run(&config.database, config.retain_calls, config.retain_outbox);
        let in_time = tokio::time::timeout(RUN_MAX, run).await.unwrap_or_else(|_| {
            Err(Error::Failed(format!("the retention has not ended within {} min", RUN_MAX.as_secs() / 60)))
        });
        let pause = match in_time {
            Ok(_) => PAUSE,
            Err(error) => {
                let pause = PAUSE_AFTER_FAILURE;
                tracing::warn!(error = %one_line(&error), "retention could not do all, trying again in {} s", pause.as_secs());
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// One run. False when another instance is at it.
///
/// # Errors
///
/// The first thing that failed; what does not depend on it was done.
pub async fn run(database: &Settings, retain_calls: Duration, retain_outbox: Duration) -> Result<bool> {
    let store = Store::connect(database, Role::Retention).await?;
    if !store.try_retention().await? {
        return Ok(false);
    }
    let mut done = Done::default();
    for day in 0..=DAYS_AHEAD {
        done.made += usize::from(done.unless_failed(store.make_partition(day).await).unwrap_or_default());
    }
    done.unless_failed(drop_oldest(&store, retain_calls).await);
    let strays = done.unless_failed(delete_strays(&store, retain_calls).await).unwrap_or_default();
    let deleted = done.unless_failed(delete_done(&store, retain_outbox).await).unwrap_or_default();
    done.unless_failed(store.clear_dead().await);
    tracing::debug!(made = done.made, strays, deleted, "retention");
    done.failed.map_or(Ok(true), Err)
}

/// What one run did.
#[derive(Default)]
struct Done {
    made: usize,
    failed: Option<Error>,
}

impl Done {
    /// The value, or a note of the first failure.
    fn unless_failed<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.failed.get_or_insert(error)).ok()
    }
}

/// Drops the oldest partition that can be. One at a time: a clock that is wrong for an hour shall not cost the whole
/// log. One that cannot be (something of a DBA's depends on it) keeps none that follow it; one that somebody reads does:
/// so many waits for a lock that inserts wait behind are too many.
async fn drop_oldest(store: &Store, keep: Duration) -> Result<()> {
    for name in store.expired_partitions(keep).await? {
        match store.drop_partition(&name, keep).await {
            Ok(true) => {
                tracing::info!(partition = %name, "dropped: older than --retain-calls");
                return Ok(());
            }
            Ok(false) => tracing::warn!(partition = %name, "not dropped: somebody has changed it meanwhile"),
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

async fn delete_strays(store: &Store, keep: Duration) -> Result<i64> {
    let mut total = 0;
    loop {
        let deleted = store.delete_strays(keep, STRAYS).await?;
        total += deleted;
        if deleted < i64::from(STRAYS) {
            return Ok(total);
        }
    }
}

/// Deletes what is done and old enough, window by window from the lowest id up to the first that is too young. Gaps
/// are jumped over.
async fn delete_done(store: &Store, keep: Duration) -> Result<i64> {
    let (mut next, mut total) = (store.lowest_id().await?, 0);
    while let Some(first) = next {
        let deleted;
        (deleted, next) = store.delete_done(first, first + WINDOW, keep).await?;
        total += deleted;
    }
    Ok(total)
}
