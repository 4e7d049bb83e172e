//! The sessions of one registration: one that listens, one that claims, one that finishes. Made together, and lost
//! together: when one is, all are made anew.
//!
//! Knows when one is lost, also where nobody says so. What is done about it is decided by the [`relay`](crate::relay).

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::db::Settings;
use crate::error::{Error, Result};
use crate::instance::{Instance, Peers};
use crate::schema;
use crate::store::{Role, Store};

/// How long Postgres may take for an answer to what takes it a millisecond. Later we take the connection for dead:
/// packets may vanish without anybody saying so.
pub const SILENCE: Duration = Duration::from_secs(5);
/// The longest that a session which claims or finishes waits before the server is asked.
const SILENCE_MAX: Duration = Duration::from_secs(160);
/// How long we remember that a session was not heard.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The sessions of one registration.
pub struct Link {
    /// With the session that listens.
    pub instance: Instance,
    /// Claims, and gives back.
    pub claim: Store,
    /// Finishes.
    pub finish: Store,
    // Process ids of the server's ends of those two.
    backends: [i32; 2],
    // Since when they have waited in vain, as it seemed when the server was last asked.
    unheard: Cell<Overdue>,
}

/// Since when the sessions that claim and finish wait, if it is for too long.
type Overdue = [Option<Instant>; 2];

/// How long a session that claims or finishes may wait before the server is asked whether it works for it: at first
/// for [`SILENCE`]. Each time that it did not, it is twice as long from then on, 160 s at most, until ten minutes have
/// passed without: on a line that needs so long to carry a statement, the next try shall come through.
#[derive(Clone, Copy, Default)]
pub struct Patience {
    raised: Option<(Duration, Instant)>,
}

impl Patience {
    fn limit(self, now: Instant) -> Duration {
        self.raised.filter(|(_, at)| now - *at < REMEMBERED).map_or(SILENCE, |(limit, _)| limit)
    }

    fn raise(self, now: Instant) -> Patience {
        Patience { raised: Some(((2 * self.limit(now)).min(SILENCE_MAX), now)) }
    }
}

impl Link {
    /// Connects all sessions at once, and registers when they are there: an epoch that has only some of them would end
    /// when the next one fails. `adopt` is for whoever had rows in hand under an older epoch: it runs before anything
    /// else is done, because peers do not wait for long.
    pub async fn connect(
        settings: &Settings,
        peers: &RefCell<Peers>,
        adopt: impl AsyncFnOnce(&Instance) -> Result<()>,
    ) -> Result<Link> {
        let session = |role| Store::connect(settings, role);
        let (listen, claim, finish) =
            tokio::try_join!(session(Role::Listen), session(Role::Claim), session(Role::Finish))?;
        schema::require_current(&listen).await?;
        let instance = Instance::register(listen).await?;
        let backends = tokio::try_join!(instance.share(&claim), instance.share(&finish))?;
        adopt(&instance).await?;
        peers.borrow_mut().connected(instance.server_started(), Instant::now());
        instance.look_around(peers, Instant::now()).await?;
        Ok(Link { instance, claim, finish, backends: backends.into(), unheard: Cell::default() })
    }

    /// Fails when Postgres does not hear what a session says, or is not heard by it: something between us takes what is
    /// sent and does not pass it on. What nobody takes the kernel notices (`tcp_user_timeout`). To be called every second
    /// or so: what was so the last time and is now is so, and not only on its way.
    pub async fn require_heard(&self, patience: &Cell<Patience>) -> Result<()> {
        let limit = patience.get().limit(Instant::now());
        let unheard = self.unheard(limit).await?;
        let before = self.unheard.replace(unheard);
        if unheard.iter().zip(before).any(|(now, before)| now.is_some() && *now == before) {
            patience.set(patience.get().raise(Instant::now()));
            return Err(silence(limit));
        }
        Ok(())
    }

    /// Which sessions wait for longer than `limit` and have a Postgres that has nothing to do for them. The listening
    /// session is asked, which is known to work; one round trip when there is reason to ask.
    async fn unheard(&self, limit: Duration) -> Result<Overdue> {
        if self.overdue(limit) == [None; 2] {
            return Ok([None; 2]);
        }
        let idle = self.instance.session().not_at_work(&self.backends).await?;
        let [claim, finish] = self.overdue(limit);
        let unheard = |since: Option<Instant>, backend| since.filter(|_| idle.contains(&backend));
        Ok([unheard(claim, self.backends[0]), unheard(finish, self.backends[1])])
    }

    fn overdue(&self, limit: Duration) -> Overdue {
        let overdue = |session: &Store| session.waiting_since().filter(|since| since.elapsed() > limit);
        [overdue(&self.claim), overdue(&self.finish)]
    }

    /// Resolves when one of the sessions is lost. Cancel-safe.
    pub async fn lost(&self) -> Error {
        tokio::select! {
            error = self.instance.session().closed() => error,
            error = self.claim.closed() => error,
            error = self.finish.closed() => error,
        }
    }
}

/// The work's result, if Postgres takes no longer for it than this.
pub async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(silence(limit)))
}

fn silence(limit: Duration) -> Error {
    Error::Failed(format!("Postgres has not answered for {} s", limit.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_each_disappointment_and_is_forgotten() {
        let start = Instant::now();
        let once = Patience::default().raise(start);
        assert_eq!(Patience::default().limit(start), SILENCE);
        assert_eq!(once.limit(start), 2 * SILENCE);
        let late = start + REMEMBERED - Duration::from_secs(1);
        assert_eq!(once.raise(late).limit(start + REMEMBERED), 4 * SILENCE);
        assert_eq!(once.limit(start + REMEMBERED), SILENCE);
        let often = (0..9).fold(once, |patience, _| patience.raise(start));
        assert_eq!(often.limit(start), SILENCE_MAX);
    }
}
