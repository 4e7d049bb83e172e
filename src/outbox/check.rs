//! Whether a database is in order, for `check` and for the start of the daemon: privileges, code of others, publications,
//! locks in the wrong hands, webhooks. Changes nothing.

use tokio_postgres::Row;

use crate::error::Result;
use crate::model::event::Webhook;
use crate::outbox::Store;
use crate::outbox::claim::webhook;

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
    /// Enabled webhooks with ids above `after`, at most `limit`, in order of id; each with its event and its project, which a
    /// view may leave out.
    pub async fn enabled_webhooks(
        &self,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(Webhook, Option<String>, Option<i64>)>> {
        let sql = include_str!("../../sql/queries/check/enabled_webhooks.sql");
        let rows = self.rows("reading webhooks", sql, &[&after, &limit]).await?;
        Ok(rows.iter().map(|row| (webhook(row.get(0), row, 1), row.get(3), row.get(4))).collect())
    }

    /// What the daemon needs, each with whether the current user may do it.
    pub async fn privileges(&self) -> Result<Vec<(String, bool)>> {
        let sql = include_str!("../../sql/queries/check/privileges.sql");
        let rows = self.rows("reading privileges", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Tables that row level security hides rows of from a role that must see all of them, each with that role. See
    /// `row_security.sql`.
    pub async fn row_security(&self) -> Result<Vec<(String, String)>> {
        let sql = include_str!("../../sql/queries/check/row_security.sql");
        let rows = self.rows("reading row level security", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Whose code would run in our sessions; empty in a database that is in order. See `foreign_code.sql`.
    pub async fn foreign_code(&self) -> Result<Vec<String>> {
        let sql = include_str!("../../sql/queries/check/foreign_code.sql");
        let rows = self.rows("finding code of others", sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Our tables whose rows Postgres lets no role update or delete because of a publication, each with its name. See
    /// `publications.sql`.
    pub async fn publications(&self) -> Result<Vec<(String, String)>> {
        let sql = include_str!("../../sql/queries/check/publications.sql");
        let rows = self.rows("reading publications", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Pending rows in the hand of instances that relay.instances does not list, among the first 100,000 pending
    /// and the first 100,000 parked rows. See `unlisted_epochs.sql`.
    pub async fn unlisted_epochs(&self) -> Result<i64> {
        let sql = include_str!("../../sql/queries/check/unlisted_epochs.sql");
        Ok(self.one("finding rows of unlisted instances", sql, &[]).await?.get(0))
    }

    /// Sessions that hold one of our advisory locks and should not: those of the transactions given, or all; at most
    /// 20. See `lock_holders.sql`.
    pub async fn lock_holders(&self, transactions: Option<&[String]>) -> Result<Vec<Holder>> {
        let sql = include_str!("../../sql/queries/check/lock_holders.sql");
        let rows = self.rows("finding the holders of our locks", sql, &[&transactions]).await?;
        let holder = |row: &Row| Holder {
            transaction: row.get(0),
            lock: row.get(1),
            backend: row.get(2),
            login: row.get(3),
            state: row.get(4),
        };
        Ok(rows.iter().map(holder).collect())
    }

    /// Names of the outbox's triggers that are missing or disabled.
    pub async fn missing_triggers(&self) -> Result<Vec<String>> {
        let sql = include_str!("../../sql/queries/check/missing_triggers.sql");
        let rows = self.rows("reading the triggers", sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
