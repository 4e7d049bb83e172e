//! The sessions of one registration: one that listens, one that claims, one that finishes. Made together, and lost
//! together: when one is, all are made anew.
//!
//! Knows when a session is lost, also when neither Postgres nor the kernel says so. The [`daemon`](crate::daemon) decides
//! what is done about it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::daemon::instance::Instance;
use crate::daemon::membership::Membership;
use crate::daemon::origin::Origin;
use crate::error::{Error, Result};
use crate::outbox::migrations;
use crate::outbox::{Role, Store};
use crate::postgres::{Settings, Timeline};

/// How long Postgres may take for an answer to what takes it a millisecond. After that the daemon treats the session as
/// lost: packets may vanish without an error on either side.
pub(super) const SILENCE: Duration = Duration::from_secs(5);
/// The longest that a session which claims or finishes waits before the server is asked.
const SILENCE_MAX: Duration = Duration::from_secs(160);
/// First and longest pause before Postgres is asked again for a session that it had no room for: a backend needs a moment
/// to exit. Doubles each time.
const ROOM_RETRY_MIN: Duration = Duration::from_millis(1);
const ROOM_RETRY_MAX: Duration = Duration::from_millis(50);
/// Number of times that the daemon asks again before it lets older sessions of its own go. Sessions that it asked for at the
/// same time may have been in each other's way.
const ROOM_TRIES: u32 = 5;
/// The daemon gives up asking after this time.
const ROOM_MAX: Duration = Duration::from_secs(2);
/// How long the daemon remembers that a session was unresponsive.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The sessions of one registration.
pub(super) struct SessionSet {
    /// With the session that listens.
    pub instance: Instance,
    /// Claims, and gives back.
    pub claim: Store,
    /// Finishes.
    pub finish: Store,
    /// The newest migration of a schema that is newer than this program and works with it.
    pub newer_schema: Option<i32>,
    // Since when they have waited in vain, as the server said when it was last asked.
    unresponsive: Cell<Overdue>,
}

/// Since when the sessions that claim and finish wait, if it is for too long.
type Overdue = [Option<Instant>; 2];

/// How long a session that claims or finishes may wait before the daemon asks the server whether it works for it.
///
/// [`SILENCE`] at first. Each time that the server did not, the limit doubles, up to 160 s: on a slow line the next statement
/// comes through then. After ten minutes without such a case it is [`SILENCE`] again.
#[derive(Clone, Copy, Default)]
pub(super) struct SilenceLimit {
    raised: Option<(Duration, Instant)>,
}

impl SilenceLimit {
    fn limit(self, now: Instant) -> Duration {
        self.raised.filter(|(_, at)| now - *at < REMEMBERED).map_or(SILENCE, |(limit, _)| limit)
    }

    fn raise(self, now: Instant) -> SilenceLimit {
        SilenceLimit { raised: Some(((2 * self.limit(now)).min(SILENCE_MAX), now)) }
    }
}

impl SessionSet {
    /// Connects all sessions at once, and registers when they are there: an epoch that has only some of them would end
    /// when the next one fails. `adopt` adopts the rows that this process had in hand under an older epoch. It runs before
    /// anything else, because peers do not wait for long. When Postgres has no room for the sessions because of `older` ones,
    /// the daemon lets those go.
    pub(super) async fn connect(
        settings: &Settings,
        origin: &Origin,
        membership: &Membership,
        older: &mut OldSessions,
        adopt: impl AsyncFnOnce(&Instance) -> Result<()>,
    ) -> Result<SessionSet> {
        let [listen, claim, finish] = older.replaced(settings).await?;
        // In the middle of a failover, too, one that claims here and records there would record nothing. Whether they have
        // reached different clusters is asked below.
        let differs =
            |timeline: &Timeline| listen.timeline.as_ref().is_some_and(|first| first.differs(timeline));
        if [&claim, &finish].iter().any(|session| session.timeline.as_ref().is_some_and(differs)) {
            return Err(Error::Failed("the sessions have reached different servers of a failover".into()));
        }
        let newer_schema = migrations::require_usable(&listen).await?;
        // Each of them: in the middle of a failover they may have reached different servers.
        origin.require(&listen).await?;
        tokio::try_join!(origin.require(&claim), origin.require(&finish))?;
        let instance = Instance::register(listen, &claim, &finish).await?;
        adopt(&instance).await?;
        // Once more: `migrate` looks for listed instances after it has made the database a copy, so one of the two sees
        // the other.
        origin.require(instance.session()).await?;
        // After that, because peers do not wait for it; before the first claim, which reads the webhooks.
        migrations::require_own_code(instance.session()).await?;
        membership.connected(instance.server_started(), Instant::now());
        instance.look_around(membership, Instant::now()).await?;
        Ok(SessionSet { instance, claim, finish, newer_schema, unresponsive: Cell::default() })
    }

    /// What is left of it, to be kept until another session set has adopted its rows. `epochs` are ours that may have rows.
    pub(super) fn into_old(self, epochs: Vec<i64>) -> OldSessions {
        OldSessions {
            epochs,
            sessions: vec![self.claim, self.finish, self.instance.into_session()],
            holder: None,
        }
    }

    /// Fails when a session waits for Postgres while Postgres waits for that session: something between them takes what is
    /// sent and does not pass it on. (When the network does not even take it, the kernel notices: `tcp_user_timeout`.) To be
    /// called every second or so: only what was so the last time, too, counts, because an answer may be on its way.
    pub(super) async fn require_responsive(&self, silence_limit: &mut SilenceLimit) -> Result<()> {
        let limit = silence_limit.limit(Instant::now());
        let unresponsive = self.unresponsive(limit).await?;
        let before = self.unresponsive.replace(unresponsive);
        if unresponsive.iter().zip(before).any(|(now, before)| now.is_some() && *now == before) {
            *silence_limit = silence_limit.raise(Instant::now());
            return Err(silence(limit));
        }
        Ok(())
    }

    /// Which sessions wait for longer than `limit` and have a Postgres that has nothing to do for them. The listening
    /// session is asked, which is known to work; one round trip when there is reason to ask.
    async fn unresponsive(&self, limit: Duration) -> Result<Overdue> {
        if self.overdue(limit) == [None; 2] {
            return Ok([None; 2]);
        }
        let backends = self.instance.working_backends();
        let idle = self.instance.session().not_at_work(&backends).await?;
        let [claim, finish] = self.overdue(limit);
        let unresponsive = |since: Option<Instant>, backend| since.filter(|_| idle.contains(&backend));
        Ok([unresponsive(claim, backends[0]), unresponsive(finish, backends[1])])
    }

    fn overdue(&self, limit: Duration) -> Overdue {
        let overdue = |session: &Store| session.waiting_since().filter(|since| since.elapsed() > limit);
        [overdue(&self.claim), overdue(&self.finish)]
    }

    /// Resolves when one of the sessions is lost. Cancel-safe.
    pub(super) async fn lost(&self) -> Error {
        tokio::select! {
            error = self.instance.session().closed() => error,
            error = self.claim.closed() => error,
            error = self.finish.closed() => error,
        }
    }
}

/// The sessions that are left of a session set. As long as one of them lives, so do the older epochs, and no peer takes our
/// rows over.
#[derive(Default)]
pub(super) struct OldSessions {
    epochs: Vec<i64>,
    // Some may be lost.
    sessions: Vec<Store>,
    // Which of the new sessions keeps the older epochs alive.
    holder: Option<usize>,
}

impl OldSessions {
    /// Connects the sessions of a new set. Those that are left are kept, unless Postgres has no room for both (a
    /// `CONNECTION LIMIT`, a full server) and has room for the new ones without them. Then the lock of a new session is
    /// listed with the older epochs before the old ones are let go, so that these epochs live on all the while.
    ///
    /// # Errors
    ///
    /// The first that failed. What keeps the older epochs alive is still there.
    async fn replaced(&mut self, settings: &Settings) -> Result<[Store; 3]> {
        const ROLES: [Role; 3] = [Role::Listen, Role::Claim, Role::Finish];
        self.holder = None;
        let [listen, claim, finish] = ROLES.map(|role| Store::connect(settings, role));
        let tried: [Result<Store>; 3] = tokio::join!(listen, claim, finish).into();
        let mut new = tried.map(Some);
        let give_up = Instant::now() + ROOM_MAX;
        let (mut pause, mut tries) = (ROOM_RETRY_MIN, 0);
        loop {
            // One after the other from here on: those that ask at once count against each other.
            let Some(missing) = new.iter().position(|tried| !matches!(tried, Some(Ok(_)))) else {
                return Ok(new.map(|tried| tried.and_then(Result::ok).expect("none is missing")));
            };
            match new[missing].take() {
                Some(Err(error)) if !error.is_crowded() => {
                    self.keep_holder(new);
                    return Err(error);
                }
                Some(Err(error)) => {
                    tries += 1;
                    let is_hopeless = if tries > ROOM_TRIES && !self.sessions.is_empty() {
                        tries = 0;
                        !self.let_go(&new).await?
                    } else {
                        Instant::now() > give_up
                    };
                    if is_hopeless {
                        self.keep_holder(new);
                        return Err(error);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(ROOM_RETRY_MAX);
                }
                _ => {}
            }
            new[missing] = Some(Store::connect(settings, ROLES[missing]).await);
        }
    }

    /// Lets sessions go that are left, if the new session set has room then. False: it would not, and nothing was done.
    async fn let_go(&mut self, new: &[Option<Result<Store>>; 3]) -> Result<bool> {
        self.sessions.retain(|session| !session.is_closed());
        let found: Vec<(usize, &Store)> = new
            .iter()
            .enumerate()
            .filter_map(|(at, tried)| Some((at, tried.as_ref()?.as_ref().ok()?)))
            .collect();
        if found.len() + self.sessions.len() < new.len() {
            return Ok(false);
        }
        let Some((at, holder)) = found.first() else {
            // All three are there; the others stay until a new one keeps the epochs alive.
            self.sessions.remove(0);
            return Ok(true);
        };
        let lock = holder.hold_lock().await?;
        holder.keep_alive(&self.epochs, lock.key).await?;
        // Postgres may not hear of it when we merely close them.
        let ended = holder.end_sessions(&self.epochs, &[lock.key], false).await?;
        self.sessions.clear();
        self.holder = Some(*at);
        tracing::warn!(ended, "no room for a session: our own older ones were let go; see CONNECTION LIMIT");
        Ok(true)
    }

    /// After a failure: the new session that keeps the older epochs alive is what is left now.
    fn keep_holder(&mut self, mut new: [Option<Result<Store>>; 3]) {
        if let Some(at) = self.holder.take() {
            self.sessions.extend(new[at].take().and_then(Result::ok));
        }
    }
}

/// The work's result, if Postgres takes no longer for it than this.
pub(super) async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
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
        let once = SilenceLimit::default().raise(start);
        assert_eq!(SilenceLimit::default().limit(start), SILENCE);
        assert_eq!(once.limit(start), 2 * SILENCE);
        let late = start + REMEMBERED - Duration::from_secs(1);
        assert_eq!(once.raise(late).limit(start + REMEMBERED), 4 * SILENCE);
        assert_eq!(once.limit(start + REMEMBERED), SILENCE);
        let often = (0..9).fold(once, |patience, _| patience.raise(start));
        assert_eq!(often.limit(start), SILENCE_MAX);
    }
}
