//! What commands and metrics ask of a database: how it goes, and whether it is in order. Never claims or finishes a
//! row.

use std::time::SystemTime;

use tokio_postgres::Row;

use crate::error::Result;
use crate::model::event::Webhook;
use crate::outbox::Store;
use crate::outbox::claim::webhook;

/// The span of the calls and of the rows without calls that `status` counts, as its output says.
const STATUS_MINUTES: i32 = 5;

/// A session that holds one of our advisory locks and should not, or that holds the sleep lock for long.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Names the holder and its transaction.
    pub transaction: String,
    /// Which lock: `liveness`, `sleep`, `retention` or `migrate`.
    pub lock: String,
    /// Process id of its backend; none for a prepared transaction.
    pub backend: Option<i32>,
    /// The user that has logged in.
    pub login: Option<String>,
    /// What the session does, where we may see it.
    pub state: Option<String>,
}

impl Store {
    /// How it goes, as a JSON object. Two round trips: the first asks for the time. See `status.sql`.
    pub async fn status(&self) -> Result<String> {
        let minutes_ago = include_str!("../../sql/queries/admin/minutes_ago.sql");
        let since: SystemTime =
            self.one("asking for the time", minutes_ago, &[&STATUS_MINUTES]).await?.get(0);
        let sql = include_str!("../../sql/queries/admin/status.sql");
        Ok(self.one("asking for the status", sql, &[&since]).await?.get(0))
    }

    /// Seconds since the oldest row that is not done was inserted: of the pending rows, and of the parked ones.
    pub async fn oldest(&self) -> Result<(f64, f64)> {
        let row = self
            .one("asking how old the queue is", include_str!("../../sql/queries/admin/oldest.sql"), &[])
            .await?;
        Ok((row.get(0), row.get(1)))
    }

    /// Inserts a row for each of these calls that repeats it, all or none. Returns the ids of the rows.
    pub async fn replay(&self, call_ids: &[i64]) -> Result<Vec<i64>> {
        let rows = self
            .rows("replaying calls", include_str!("../../sql/queries/admin/replay.sql"), &[&call_ids])
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Inserts a row for each of these calls that is an open failure still; at most 1,000. Leaves out those that another
    /// session is repeating, and those whose webhook is gone, disabled or of another project. Returns the ids of the rows.
    pub async fn replay_failed(&self, call_ids: &[i64]) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/admin/replay_failed.sql");
        let rows = self.rows("replaying failed calls", sql, &[&call_ids]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// The project for which a webhook's calls can be repeated; none when the webhook is gone or disabled.
    pub async fn callable_for(&self, webhook_id: i64) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/admin/callable_for.sql");
        let rows = self.rows("reading the webhook", sql, &[&webhook_id]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Inserts a test event for one webhook. Returns the row's id.
    pub async fn send_test(&self, webhook_id: i64) -> Result<i64> {
        let sql = include_str!("../../sql/queries/admin/send_test.sql");
        Ok(self.one("sending a test event", sql, &[&webhook_id]).await?.get(0))
    }

    /// Whether an outbox row is done. A row that is gone was done.
    pub async fn is_done(&self, outbox_id: i64) -> Result<bool> {
        let rows = self
            .rows("looking at the row", include_str!("../../sql/queries/admin/is_done.sql"), &[&outbox_id])
            .await?;
        Ok(rows.first().is_none_or(|row| row.get(0)))
    }

    /// Enabled webhooks with ids above `after`, at most `limit`, in order of id; each with its event and its project, which a
    /// view may leave out.
    pub async fn enabled_webhooks(
        &self,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(Webhook, Option<String>, Option<i64>)>> {
        let sql = include_str!("../../sql/queries/admin/enabled_webhooks.sql");
        let rows = self.rows("reading webhooks", sql, &[&after, &limit]).await?;
        Ok(rows.iter().map(|row| (webhook(row.get(0), row, 1), row.get(3), row.get(4))).collect())
    }

    /// What the daemon needs, each with whether the current user may do it.
    pub async fn privileges(&self) -> Result<Vec<(String, bool)>> {
        let sql = include_str!("../../sql/queries/admin/privileges.sql");
        let rows = self.rows("looking at privileges", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Tables that row level security hides rows of from a role that must see all of them, each with that role. See
    /// `row_security.sql`.
    pub async fn row_security(&self) -> Result<Vec<(String, String)>> {
        let sql = include_str!("../../sql/queries/admin/row_security.sql");
        let rows = self.rows("looking at row level security", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Whose code would run in our sessions; empty in a database that is in order. See `foreign_code.sql`.
    pub async fn foreign_code(&self) -> Result<Vec<String>> {
        let sql = include_str!("../../sql/queries/admin/foreign_code.sql");
        let rows = self.rows("looking for code of others", sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Our tables whose rows Postgres lets nobody update or delete because of a publication, each with its name. See
    /// `publications.sql`.
    pub async fn publications(&self) -> Result<Vec<(String, String)>> {
        let sql = include_str!("../../sql/queries/admin/publications.sql");
        let rows = self.rows("looking at publications", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Pending rows in the hand of instances that relay.instances does not list, among the first 100,000 of each lane. See
    /// `unlisted_epochs.sql`.
    pub async fn unlisted_epochs(&self) -> Result<i64> {
        let sql = include_str!("../../sql/queries/admin/unlisted_epochs.sql");
        Ok(self.one("looking for rows of unlisted instances", sql, &[]).await?.get(0))
    }

    /// Sessions that hold one of our advisory locks and should not: those of the transactions given, or all; at most
    /// 20. See `lock_holders.sql`.
    pub async fn lock_holders(&self, transactions: Option<&[String]>) -> Result<Vec<Holder>> {
        let sql = include_str!("../../sql/queries/admin/lock_holders.sql");
        let rows = self.rows("looking who holds our locks", sql, &[&transactions]).await?;
        let holder = |row: &Row| Holder {
            transaction: row.get(0),
            lock: row.get(1),
            backend: row.get(2),
            login: row.get(3),
            state: row.get(4),
        };
        Ok(rows.iter().map(holder).collect())
    }

    /// Whether the trigger that wakes a sleeping relay is in place.
    pub async fn wake_trigger(&self) -> Result<bool> {
        let sql = include_str!("../../sql/queries/admin/wake_trigger.sql");
        Ok(self.one("looking at the trigger", sql, &[]).await?.get(0))
    }
}
