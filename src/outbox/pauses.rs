//! Pauses: who is not called, and the calls that were held back. Never decides whom to pause: a person does, or the
//! daemon's rule.

use std::time::SystemTime;

use tokio_postgres::Row;

use crate::error::Result;
use crate::outbox::Store;

/// Whom a pause is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One webhook.
    Webhook(i64),
    /// All webhooks of a project.
    Project(i64),
}

impl Target {
    fn ids(self) -> (Option<i64>, Option<i64>) {
        match self {
            Target::Webhook(id) => (Some(id), None),
            Target::Project(id) => (None, Some(id)),
        }
    }
}

/// What came of a resume.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// Since when the target was paused; none when it was not.
    pub paused_since: Option<SystemTime>,
    /// The webhook's project, when that is paused, too.
    pub paused_project: Option<i64>,
    /// Whether the webhook is there and enabled; true for a project.
    pub can_be_called: bool,
}

/// A pause without an end.
#[derive(Clone, Debug)]
pub struct Forgotten {
    /// Of whom.
    pub target: Target,
    /// Since when.
    pub since: SystemTime,
    /// Who paused.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl Store {
    /// Pauses a webhook or a project, until a time or until an operator resumes.
    ///
    /// # Errors
    ///
    /// When there is no such webhook, the end is past, or the reason is too long.
    pub async fn pause(&self, target: Target, reason: &str, until: Option<SystemTime>) -> Result<()> {
        let sql = include_str!("../../sql/queries/pauses/pause.sql");
        let (webhook, project) = target.ids();
        self.rows("pausing", sql, &[&webhook, &project, &reason, &until]).await?;
        Ok(())
    }

    /// Ends a pause, and repeats no call. See `resume.sql`.
    pub async fn resume(&self, target: Target) -> Result<Resumed> {
        let sql = include_str!("../../sql/queries/pauses/resume.sql");
        let (webhook, project) = target.ids();
        let row = self.one("resuming", sql, &[&webhook, &project]).await?;
        Ok(Resumed { paused_since: row.get(0), paused_project: row.get(1), can_be_called: row.get(2) })
    }

    /// Calls that were held back since then, or within 31 days if that is longer, and can be repeated; the oldest first, at
    /// most `limit`. [`Store::replay_failed`] repeats them.
    pub async fn held_back(&self, target: Target, since: Option<SystemTime>, limit: i32) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/pauses/held_back.sql");
        let (webhook, project) = target.ids();
        let doing = "reading calls that were held back";
        let rows = self.rows(doing, sql, &[&webhook, &project, &since, &limit]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Rows of the target that instances have in hand. What they hold back is recorded when they are done.
    pub async fn rows_in_hand(&self, target: Target) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/pauses/in_hand.sql");
        let (webhook, project) = target.ids();
        let rows = self.rows("reading rows in hand", sql, &[&webhook, &project]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// How many of these rows are not done.
    pub async fn not_done(&self, outbox_ids: &[i64]) -> Result<i64> {
        let sql = include_str!("../../sql/queries/pauses/not_done.sql");
        Ok(self.one("reading rows in hand", sql, &[&outbox_ids]).await?.get(0))
    }

    /// Pauses a webhook for the daemon, unless the log has a success of it since then. Returns whether this has paused it.
    pub async fn pause_failing(&self, webhook_id: i64, since: SystemTime, reason: &str) -> Result<bool> {
        let sql = include_str!("../../sql/queries/pauses/pause_failing.sql");
        Ok(self.one("pausing a webhook", sql, &[&webhook_id, &since, &reason]).await?.get(0))
    }

    /// Pauses without an end that are older than so many days, the oldest first, at most `limit`.
    pub async fn forgotten_pauses(&self, days: i32, limit: i64) -> Result<Vec<Forgotten>> {
        let sql = include_str!("../../sql/queries/pauses/forgotten.sql");
        let rows = self.rows("reading pauses", sql, &[&days, &limit]).await?;
        let forgotten = |row: &Row| Forgotten {
            target: match row.get(0) {
                Some(webhook_id) => Target::Webhook(webhook_id),
                None => Target::Project(row.get(1)),
            },
            since: row.get(2),
            by: row.get(3),
            reason: row.get(4),
        };
        Ok(rows.iter().map(forgotten).collect())
    }
}
