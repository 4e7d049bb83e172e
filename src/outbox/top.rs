//! How it goes at this moment, for the live screen. Changes nothing.

use std::time::{Duration, SystemTime};

use crate::error::Result;
use crate::outbox::Store;

/// How far back calls are told of.
const TOLD: Duration = Duration::from_secs(15 * 60);
/// The span of rates and durations.
const RATED: Duration = Duration::from_secs(60);

/// Most calls that are read.
const CALLS_MAX: i64 = 10_000;

impl Store {
    /// How it goes, as a JSON object; see `sample.sql`. `now` and `last_id` are what [`Store::clock`] tells.
    pub async fn sample(&self, now: SystemTime, last_id: i64) -> Result<String> {
        let before = |span| now.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH);
        let sql = include_str!("../../sql/queries/top/sample.sql");
        Ok(self
            .one("looking how it goes", sql, &[&before(TOLD), &before(RATED), &(last_id - CALLS_MAX)])
            .await?
            .get(0))
    }
}
