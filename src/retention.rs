//! What is made ahead and what is thrown away: partitions of the call log, done outbox rows, dead instances.
//!
//! Runs now and then on a session of its own, in one of several instances at a time, with a short `lock_timeout`: it
//! is never in the way of an insert or a finish. What fails is tried again at the next run.

use std::convert::Infallible;
use std::time::Duration;

use crate::config::Config;
use crate::db::Settings;
use crate::error::{Result, one_line};
use crate::store::{Role, Store};

/// Time between two runs.
const PAUSE: Duration = Duration::from_secs(600);
/// Days for which there is a partition of the call log ahead: long enough for a weekend with the daemon off.
const DAYS_AHEAD: i32 = 7;
/// Ids in one deleting statement: a few milliseconds of work.
const WINDOW: i64 = 5000;

/// Runs for ever; errors are logged and do not end it.
pub async fn keep_house(config: &Config) -> Infallible {
    loop {
        if let Err(error) = run(&config.database, config.retain_calls, config.retain_outbox).await {
            tracing::warn!(error = %one_line(&error), "retention failed, trying again in {} s", PAUSE.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One run. False when another instance is at it.
pub async fn run(database: &Settings, retain_calls: Duration, retain_outbox: Duration) -> Result<bool> {
    let store = Store::connect(database, Role::Retention).await?;
    if !store.try_retention().await? {
        return Ok(false);
    }
    let made = store.make_partitions(DAYS_AHEAD).await?;
    let dropped = store.drop_partitions(retain_calls).await?;
    let deleted = delete_done(&store, retain_outbox).await?;
    store.clear_dead().await?;
    tracing::debug!(made, dropped, deleted, "retention");
    Ok(true)
}

/// Deletes what is done and old enough, window by window from the lowest id up to the first that is too young.
async fn delete_done(store: &Store, keep: Duration) -> Result<i64> {
    let Some((first, last)) = store.outbox_bounds().await? else { return Ok(0) };
    let (mut after, mut total) = (first - 1, 0);
    while after < last {
        let (deleted, young) = store.delete_done(after, after + WINDOW, keep).await?;
        total += deleted;
        after += WINDOW;
        if young {
            break;
        }
    }
    Ok(total)
}
