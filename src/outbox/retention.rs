//! The retention: makes and drops partitions of the call log, deletes done rows, and notes when it ran. Never decides
//! how long anything is kept.

use std::time::{Duration, SystemTime};

use crate::error::Result;
use crate::outbox::Store;

/// What a run of the retention may do.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Postgres' clock when the run began. What is old is old by this time.
    pub now: SystemTime,
    /// No run is due yet; the next one is due after this time.
    pub wait: Option<Duration>,
    /// The clock has jumped by so many seconds, or no instance ran for so long.
    pub off_s: Option<f64>,
    /// The clock has been steady for long enough, so that what is old by it may be thrown away.
    pub steady: bool,
    /// The last partition was dropped long enough ago.
    pub may_drop: bool,
}

impl Store {
    /// Takes the lock of the retention for this session. Returns whether no other daemon has it.
    pub async fn try_retention(&self) -> Result<bool> {
        let sql = include_str!("../../sql/queries/retention/try_lock.sql");
        Ok(self.one("taking the lock of the retention", sql, &[]).await?.get(0))
    }

    /// Begins a run of the retention if one is due. `noted` is [`Turn::now`] of our last run, and the time since then
    /// by our own clock. See `retention/begin.sql`.
    pub async fn begin_retention(
        &self,
        noted: Option<(SystemTime, Duration)>,
        pause: Duration,
        pause_after_failure: Duration,
        steady: Duration,
    ) -> Result<Turn> {
        let sql = include_str!("../../sql/queries/retention/begin.sql");
        let (noted, elapsed) = noted.unzip();
        let seconds =
            [elapsed.unwrap_or_default(), pause, pause_after_failure, steady].map(|d| d.as_secs_f64());
        let [elapsed, pause, pause_after_failure, steady] = &seconds;
        let row = self
            .one("beginning the retention", sql, &[&noted, elapsed, pause, pause_after_failure, steady])
            .await?;
        Ok(Turn {
            now: row.get("now"),
            wait: row.get::<_, Option<f64>>("wait_s").and_then(|s| Duration::try_from_secs_f64(s).ok()),
            off_s: row.get("off_s"),
            steady: row.get("steady"),
            may_drop: row.get("may_drop"),
        })
    }

    /// Notes the end of a run, whether it did all of its work, and that the next one is due after `pause`.
    pub async fn end_retention(&self, complete: bool, pause: Duration) -> Result<()> {
        let sql = include_str!("../../sql/queries/retention/end.sql");
        self.rows("ending the retention", sql, &[&complete, &pause.as_secs_f64()]).await?;
        Ok(())
    }

    /// Seconds since the retention last did all of its work, in whichever instance; NaN when that is not known.
    pub async fn retention_age(&self) -> Result<f64> {
        let sql = include_str!("../../sql/queries/retention/age.sql");
        let rows = self.rows("asking when the retention ran", sql, &[]).await?;
        Ok(rows.first().map_or(f64::NAN, |row| row.get(0)))
    }

    /// Makes the partition of the call log for the day so many days ahead, if it is missing. Returns whether it did.
    pub async fn make_partition(&self, days_ahead: i32) -> Result<bool> {
        let sql = include_str!("../../sql/queries/retention/make_partition.sql");
        Ok(self.one("making a partition of the call log", sql, &[&days_ahead]).await?.get(0))
    }

    /// Names of the daily partitions of the call log that end before that time.
    pub async fn expired_partitions(&self, before: SystemTime) -> Result<Vec<String>> {
        let sql = include_str!("../../sql/queries/retention/expired_partitions.sql");
        let rows = self.rows("finding old partitions", sql, &[&before]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Drops a daily partition of the call log if it ends before that time, and notes it. Returns whether it did.
    pub async fn drop_partition(&self, name: &str, before: SystemTime) -> Result<bool> {
        let sql = include_str!("../../sql/queries/retention/drop_partition.sql");
        Ok(self.one("dropping a partition of the call log", sql, &[&name, &before]).await?.get(0))
    }

    /// Deletes calls without a daily partition that started before that time, at most `most`. Returns how many.
    pub async fn delete_strays(&self, before: SystemTime, most: i32) -> Result<i64> {
        let sql = include_str!("../../sql/queries/retention/delete_strays.sql");
        Ok(self.one("deleting stray calls", sql, &[&before, &most]).await?.get(0))
    }

    /// Deletes pauses that ended by themselves before that time. Returns how many.
    pub async fn delete_ended_pauses(&self, before: SystemTime) -> Result<i64> {
        let sql = include_str!("../../sql/queries/retention/delete_ended_pauses.sql");
        Ok(self.one("deleting ended pauses", sql, &[&before]).await?.get(0))
    }

    /// The lowest id in the outbox; none when it is empty.
    pub async fn lowest_id(&self) -> Result<Option<i64>> {
        let sql = include_str!("../../sql/queries/retention/lowest_id.sql");
        let rows = self.rows("reading the outbox", sql, &[]).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    /// Deletes outbox rows that were done before `before`, with ids from `first` to below `beyond`. `now` is when the
    /// run began. Returns how many, and the next id to look at; none when no later row can be old enough.
    pub async fn delete_done(
        &self,
        first: i64,
        beyond: i64,
        before: SystemTime,
        now: SystemTime,
    ) -> Result<(i64, Option<i64>)> {
        let sql = include_str!("../../sql/queries/retention/delete_done.sql");
        let row = self.one("deleting done rows", sql, &[&first, &beyond, &before, &now]).await?;
        Ok((row.get(0), row.get(1)))
    }
}
