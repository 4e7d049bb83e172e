//! This process as an instance: its epoch, its liveness locks, and its registration.
//!
//! Each session of an instance draws a random key and takes its advisory lock. Only then the instance is listed, with these
//! keys, so that an instance that has just registered is not taken for dead. It lives for as long as any of its sessions
//! does. An instance that has lost a session registers anew, and adopts its rows in hand before it lets the others go.
//! A free lock is looked at twice. Only locks count that a session of a daemon's login holds; other sessions neither keep an
//! instance alive nor take its lock away. Never waits for a lock inside Postgres: a waiting session would hold back vacuum.

use std::time::{Instant, SystemTime};

use crate::daemon::membership::Membership;
use crate::error::{Error, Result, one_line};
use crate::outbox::Store;

/// The channel that sleeping relays listen to; `relay.wake()` notifies it.
const LISTEN: &str = "LISTEN promptpal_relay";

/// How often an epoch is drawn anew when it is refused. Random ones are not refused twice in a row by chance.
const EPOCHS_MAX: u32 = 8;

/// This process, registered; the session here is the one that listens.
pub(super) struct Instance {
    epoch: i64,
    /// Keys of the locks of its sessions.
    keys: [i64; 3],
    /// Process ids of their backends: of the one that listens, claims, finishes.
    backends: [i32; 3],
    server_started: SystemTime,
    store: Store,
}

impl Instance {
    /// Listens on this session, has it and the two others take their locks, and lists the instance. Declares no instance dead:
    /// a process that has rows in hand under an older epoch adopts those first.
    pub(super) async fn register(store: Store, claim: &Store, finish: &Store) -> Result<Instance> {
        // A statement of its own, so committed when it returns: what is inserted from here on is heard of.
        store.batch_execute(LISTEN).await.map_err(Error::postgres("listening"))?;
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        let (mut own, claim, finish) =
            tokio::try_join!(store.hold_lock(), claim.hold_lock(), finish.hold_lock())?;
        for _ in 0..EPOCHS_MAX {
            let keys = [own.key, claim.key, finish.key];
            let registered = store.register(&keys, &host, pid, env!("CARGO_PKG_VERSION")).await?;
            if let Some(server_started) = registered {
                let backends = [own.backend, claim.backend, finish.backend];
                return Ok(Instance { epoch: own.key, keys, backends, server_started, store });
            }
            own = store.draw_lock().await?;
        }
        Err(Error::Failed(format!(
            "registering the instance: {EPOCHS_MAX} random epochs were refused; see whether relay.instances has a trigger or a rule"
        )))
    }

    /// The epoch that stamps our claims.
    pub(super) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Process ids of the backends of the sessions that claim and finish.
    pub(super) fn working_backends(&self) -> [i32; 2] {
        [self.backends[1], self.backends[2]]
    }

    /// When the server started that it is registered with.
    pub(super) fn server_started(&self) -> SystemTime {
        self.server_started
    }

    /// The session that listens.
    pub(super) fn session(&self) -> &Store {
        &self.store
    }

    /// That session, which goes on without being this instance's.
    pub(super) fn into_session(self) -> Store {
        self.store
    }

    /// Looks at the liveness locks, and declares the instances dead that are overdue `now`. One round trip.
    ///
    /// # Errors
    ///
    /// [`Error::Pooled`] when a pooler has given our session away: no session is ours then.
    pub(super) async fn look_around(&self, membership: &Membership, now: Instant) -> Result<()> {
        let overdue = membership.overdue(now);
        let found = self.store.declare_dead(self.epoch, &overdue, self.backends[0]).await?;
        membership.learn(&found, now);
        Ok(())
    }

    /// Ends the sessions that are left of older epochs of ours. The server may not hear us on them, and would keep them, and
    /// the locks that they hold, for ever. With `cut_off` only those that are within a statement or a transaction and wait to
    /// hear more. Where we may not end them it is said in the log, and is no error.
    pub(super) async fn end_older(&self, epochs: &[i64], cut_off: bool) -> Result<()> {
        match self.store.end_sessions(epochs, &self.keys, cut_off).await {
            Ok(ended) => tracing::debug!(ended, "sessions that were left are ended"),
            Err(error) if self.store.is_closed() => return Err(error),
            Err(error) => tracing::warn!(
                error = %one_line(&error),
                "lost sessions may be left on the server: terminate those of promptpal-relay that are older than this"
            ),
        }
        Ok(())
    }

    /// The end of this instance: it has nothing in hand any more. Wakes the others: one that slept because we had the
    /// sleep lock has to take it.
    pub(super) async fn retire(self) -> Result<()> {
        self.store.retire(&[self.epoch()], true).await?;
        self.store.notify_peers().await
    }
}
