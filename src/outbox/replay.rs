//! Events that an operator asks for: replays of calls, and tests of a webhook. Never decides which calls to repeat.

use std::time::SystemTime;

use tokio_postgres::error::SqlState;

use crate::error::{Error, Result};
use crate::model::event::EVENTS;
use crate::outbox::Store;

impl Store {
    /// Inserts a row for each of these calls that repeats it, all or none. Returns the ids of the rows.
    pub async fn replay(&self, call_ids: &[i64]) -> Result<Vec<i64>> {
        let rows = self
            .rows("replaying calls", include_str!("../../sql/queries/replay/replay.sql"), &[&call_ids])
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Inserts a row for each of these calls that is an open failure still; at most 1,000. Leaves out those that another
    /// session is repeating, and those whose webhook is gone, disabled or of another project. Returns the ids of the rows.
    pub async fn replay_failed(&self, call_ids: &[i64]) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/replay/replay_failed.sql");
        let rows = self.rows("replaying failed calls", sql, &[&call_ids]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// The project for which a webhook's calls can be repeated; none when the webhook is gone or disabled.
    pub async fn callable_for(&self, webhook_id: i64) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/replay/callable_for.sql");
        let rows = self.rows("reading the webhook", sql, &[&webhook_id]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Inserts a test event for one webhook. Returns the row's id.
    pub async fn send_test(&self, webhook_id: i64) -> Result<i64> {
        let sql = include_str!("../../sql/queries/replay/send_test.sql");
        let sent = self.one("sending a test event", sql, &[&webhook_id]).await;
        // A view in the place of relay.webhooks may have an event that the outbox does not take.
        if sent.as_ref().is_err_and(|error| error.sqlstate() == Some(&SqlState::CHECK_VIOLATION)) {
            return Err(Error::Failed(format!(
                "nothing was sent: webhook {webhook_id} is for an event that relay.outbox refuses, so no event meets it; set its \
                 event to {}",
                EVENTS.join(" or ")
            )));
        }
        Ok(sent?.get(0))
    }

    /// Whether an outbox row is done. A row that is gone was done.
    pub async fn is_done(&self, outbox_id: i64) -> Result<bool> {
        let rows = self
            .rows("reading the row", include_str!("../../sql/queries/replay/is_done.sql"), &[&outbox_id])
            .await?;
        Ok(rows.first().is_none_or(|row| row.get(0)))
    }

    /// What came of these outbox rows: the kinds of failures, none for success, each with how many calls. Their calls started at
    /// `since` or later.
    pub async fn outcomes(
        &self,
        outbox_ids: &[i64],
        since: SystemTime,
    ) -> Result<Vec<(Option<String>, u64)>> {
        let sql = include_str!("../../sql/queries/replay/outcomes.sql");
        let (lowest, highest) = (outbox_ids.iter().min(), outbox_ids.iter().max());
        let rows =
            self.rows("reading what came of it", sql, &[&outbox_ids, &lowest, &highest, &since]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get::<_, i64>(1).unsigned_abs())).collect())
    }
}
