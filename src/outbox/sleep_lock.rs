//! The sleep lock: takes it, releases it, and wakes the instances that sleep. Never waits for the lock, and never
//! decides when to sleep.

use crate::error::Result;
use crate::outbox::Store;

/// What came of trying the sleep lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// We hold it: each insert notifies us.
    Taken,
    /// An inserting transaction holds it shared, and does not notify.
    Inserting,
    /// A sleeping instance holds it: each insert notifies us, and the instance says when it wakes.
    Peer,
    /// A stranger holds it, who says nothing.
    Other,
}

impl Store {
    /// Takes the sleep lock for this session, if no session has it.
    pub async fn try_sleep(&self) -> Result<Sleep> {
        let sql = include_str!("../../sql/queries/sleep_lock/try_sleep.sql");
        Ok(match self.one("taking the sleep lock", sql, &[]).await?.get(0) {
            "taken" => Sleep::Taken,
            "inserting" => Sleep::Inserting,
            "peer" => Sleep::Peer,
            _ => Sleep::Other,
        })
    }

    /// Releases the sleep lock.
    pub async fn wake_up(&self) -> Result<()> {
        self.one("freeing the sleep lock", include_str!("../../sql/queries/sleep_lock/wake_up.sql"), &[])
            .await?;
        Ok(())
    }

    /// Wakes the other instances.
    pub async fn notify_peers(&self) -> Result<()> {
        self.rows(
            "waking the other instances",
            include_str!("../../sql/queries/sleep_lock/notify_peers.sql"),
            &[],
        )
        .await?;
        Ok(())
    }
}
