//! How it goes: what `status` shows, and the age of the queue for the metrics. Changes nothing.

use std::time::SystemTime;

use crate::error::Result;
use crate::outbox::Store;

/// The span of the calls and of the rows without calls that `status` counts, as its output says.
const STATUS_MINUTES: i32 = 5;

impl Store {
    /// How it goes, as a JSON object. Two round trips: the first asks for the time. See `status.sql`.
    pub async fn status(&self) -> Result<String> {
        let minutes_ago = include_str!("../../sql/queries/status/minutes_ago.sql");
        let since: SystemTime =
            self.one("asking for the time", minutes_ago, &[&STATUS_MINUTES]).await?.get(0);
        let sql = include_str!("../../sql/queries/status/status.sql");
        Ok(self.one("asking for the status", sql, &[&since]).await?.get(0))
    }

    /// Seconds since the oldest row that is not done was inserted: of the pending rows, and of the parked ones.
    pub async fn oldest(&self) -> Result<(f64, f64)> {
        let row = self
            .one("asking how old the queue is", include_str!("../../sql/queries/status/oldest.sql"), &[])
            .await?;
        Ok((row.get(0), row.get(1)))
    }
}
