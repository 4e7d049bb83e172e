//! How long a stop may take.

use std::time::{Duration, Instant};

use crate::daemon::finisher::Commits;
use crate::daemon::in_hand::InHand;
use crate::daemon::signals::Stop;
use crate::daemon::systemd;
use crate::delivery::client::Caller;
use crate::dispatch::pool::Pool;
use crate::error::Error;

/// How long a stop may take beyond the time limit of the calls in flight, for a Postgres that is away.
const DRAIN: Duration = Duration::from_millis(900);
/// How much longer for a commit that is under way: what it records is not posted again.
const DRAIN_COMMIT: Duration = Duration::from_secs(10);
/// How often it is asked whether that commit has ended.
const ASK: Duration = Duration::from_millis(50);

/// The deadline of a stop.
pub(super) struct Drain<'a> {
    pub stop: &'a Stop,
    /// How long a call may take.
    pub timeout: Duration,
    pub in_hand: &'a InHand,
    pub commits: &'a Commits,
    pub pool: &'a Pool,
    pub caller: &'a Caller,
}

impl Drain<'_> {
    /// Resolves when the daemon was told to stop and it takes too long. Either Postgres is away or does not let it commit, or
    /// calls of rows that have begun wait for something that this host lacks.
    pub(super) async fn overdue(&self) -> Error {
        self.stop.wait().await;
        let shortages = self.pool.load().shortages;
        let limit = self.timeout + DRAIN;
        systemd::stopping(limit + DRAIN_COMMIT);
        tokio::time::sleep(limit).await;
        let given_up = Instant::now() + DRAIN_COMMIT;
        while self.commits.is_under_way() && Instant::now() < given_up {
            tokio::time::sleep(ASK).await;
        }
        let load = self.pool.load();
        let why = if load.ended == 0 && load.shortages > shortages {
            let lack = self.caller.lack();
            format!(
                "calls of its rows still wait ({})",
                lack.as_deref().unwrap_or("file descriptors, threads or memory are short")
            )
        } else {
            "Postgres is away or holds up its records".into()
        };
        Error::Failed(format!(
            "the daemon was told to stop, and {why}; rows whose calls are not recorded and will be made again: {}",
            self.in_hand.begun()
        ))
    }
}
