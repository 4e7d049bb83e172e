//! The reconnection: makes the sessions anew, for as long as it takes, and adopts the rows in hand under a new epoch.
//!
//! Waits for Postgres, with pauses from 50 ms to 3 s. Owns the sessions that are left of the last registration until their
//! rows belong to the new one. The worker threads go on meanwhile.

use std::time::Duration;

use crate::config::Config;
use crate::daemon::backoff::Backoff;
use crate::daemon::in_hand::InHand;
use crate::daemon::instance::Instance;
use crate::daemon::membership::Membership;
use crate::daemon::origin::Origin;
use crate::daemon::sessions::{OldSessions, SessionSet, in_time};
use crate::daemon::signals::Stop;
use crate::daemon::systemd;
use crate::daemon::watchdog::Watchdog;
use crate::dispatch::pool::Pool;
use crate::error::{Error, Result};
use crate::telemetry::health::{Health, Source};

/// How long all that one try does may take before the next one.
const CONNECT_MAX: Duration = Duration::from_secs(60);

/// Makes the sessions anew.
pub(super) struct Reconnect<'a> {
    pub config: &'a Config,
    pub stop: &'a Stop,
    pub pool: &'a Pool,
    pub in_hand: &'a InHand,
    pub origin: &'a Origin,
    pub membership: &'a Membership,
    pub health: &'a Health,
    pub watchdog: Watchdog<'a>,
}

impl Reconnect<'_> {
    /// Connects anew and adopts the rows in hand under the new epoch. None when the daemon was told to stop and has nothing
    /// to commit.
    ///
    /// # Errors
    ///
    /// When a restart is needed, or does not help: the schema has changed under the daemon, the database is another one, or a
    /// pooler gives its sessions away.
    pub(super) async fn run(&self, old: OldSessions) -> Result<Option<SessionSet>> {
        let nothing_to_commit = async {
            self.stop.wait().await;
            if !self.in_hand.is_empty() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            sessions = self.connect(old) => sessions.map(Some),
            () = nothing_to_commit => Ok(None),
        }
    }

    async fn connect(&self, mut old: OldSessions) -> Result<SessionSet> {
        let mut backoff = Backoff::new(self.config.database.user());
        loop {
            match self.watchdog.during(self.try_once(&mut old)).await {
                Ok(sessions) => return Ok(sessions),
                Err(error @ (Error::Schema(_) | Error::Installation(_) | Error::Pooled { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    let why = backoff.failed("waiting for Postgres", &error);
                    systemd::status(&format!("{why}, retry in {:.1} s", backoff.pause().as_secs_f64()));
                    self.health.set(Source::Sessions, Some(why));
                }
            }
            self.watchdog.during(backoff.wait()).await;
        }
    }

    async fn try_once(&self, old: &mut OldSessions) -> Result<SessionSet> {
        let adopt = async |instance: &Instance| self.adopt(instance).await;
        let connect = SessionSet::connect(&self.config.database, self.origin, self.membership, old, adopt);
        in_time(CONNECT_MAX, connect).await
    }

    /// Adopts the rows in hand under a new epoch, and ends the older ones.
    async fn adopt(&self, instance: &Instance) -> Result<()> {
        let new = instance.epoch();
        // A try whose answer was lost may have adopted the rows under its epoch.
        let older = self.membership.epochs();
        self.membership.add_epoch(new);
        // A session that was cut off within a statement may have our rows locked, for ever. The others keep the older epochs
        // alive.
        instance.end_older(&older, true).await?;
        let asked = self.in_hand.owned();
        let adopted = instance.session().adopt(&asked, &older, new).await?;
        // A lost row may have calls in flight; the finisher drops what they give.
        let lost = self.in_hand.adopted(&asked, &adopted, new);
        let abandoned = self.pool.abandon(&lost);
        if !abandoned.is_empty() {
            tracing::warn!(rows = abandoned.len(), "rows were taken over: their calls are not begun");
        }
        // What the older epochs had claimed beyond that, in a claim whose answer was lost, is anybody's now.
        instance.session().retire(&older, false).await?;
        instance.end_older(&older, false).await?;
        self.membership.only_epoch(new);
        Ok(())
    }
}
