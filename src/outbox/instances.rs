//! The instances: takes their liveness locks, registers them, and writes down which are dead. Never decides which are
//! dead: the caller names their epochs.

use std::time::{Duration, SystemTime};

use tokio_postgres::Row;

use crate::error::{Error, Result};
use crate::outbox::Store;

/// How often a session draws another key when another session has the lock of the first. Chance never takes so many random
/// keys in a row.
const KEYS_MAX: u32 = 8;

/// The advisory lock that a session holds as its sign of life.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    /// Its random key.
    pub key: i64,
    /// Process id of the backend that holds it.
    pub backend: i32,
}

/// Another listed instance.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its epoch.
    pub epoch: i64,
    /// Its round trip to Postgres.
    pub round_trip: Duration,
    /// Whether it lives.
    pub liveness: Liveness,
    /// It lives on a host of the same name as ours.
    pub near: bool,
}

/// What the liveness locks of a listed instance say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// A session holds one of its locks.
    Alive,
    /// No session holds one of its locks.
    Free,
    /// No session holds one of its locks, and the server has crashed since it registered: some of its claims may be
    /// lost.
    Crashed,
    /// Its locks were free, and this statement has marked it dead.
    DeclaredDead,
    /// An earlier statement has marked it dead.
    Dead,
}

impl Store {
    /// The advisory lock that is this session's sign of life. The first call draws one, and the session holds it for
    /// as long as it lives.
    pub async fn hold_lock(&self) -> Result<Lock> {
        match self.lock.get() {
            Some(lock) => Ok(lock),
            None => self.draw_lock().await,
        }
    }

    /// Draws a new advisory lock as this session's sign of life. The session keeps the old one, too.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] when other sessions hold all the random locks that were tried.
    pub async fn draw_lock(&self) -> Result<Lock> {
        let sql = include_str!("../../sql/queries/instances/draw_lock.sql");
        for _ in 0..KEYS_MAX {
            if let Some(row) = self.rows("taking a liveness lock", sql, &[]).await?.first() {
                let lock = Lock { key: row.get(0), backend: row.get(1) };
                self.lock.set(Some(lock));
                return Ok(lock);
            }
        }
        Err(Error::Failed(format!("taking a liveness lock: other sessions hold {KEYS_MAX} random ones")))
    }

    /// Lists the instance whose sessions hold the locks of these keys, with its round trip to Postgres. Returns when
    /// the server was started. Returns none when the first key, which is its epoch, was used before.
    pub async fn register(
        &self,
        keys: &[i64; 3],
        host: &str,
        pid: i32,
        version: &str,
    ) -> Result<Option<SystemTime>> {
        let (doing, sql) =
            ("registering the instance", include_str!("../../sql/queries/instances/register.sql"));
        self.statement(doing, sql).await?;
        let round_trip_ms = self.round_trip.get().as_secs_f32() * 1000.0;
        let rows = self.rows(doing, sql, &[&keys.as_slice(), &host, &pid, &version, &round_trip_ms]).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    /// Lists the lock of this key with these epochs too, so that they live on by it. Epochs that are marked dead stay dead.
    pub async fn keep_alive(&self, epochs: &[i64], key: i64) -> Result<()> {
        let sql = include_str!("../../sql/queries/instances/keep_alive.sql");
        self.rows("keeping older epochs alive", sql, &[&epochs, &key]).await?;
        Ok(())
    }

    /// Reads the liveness locks of the listed instances but ours, and marks those in `epochs` dead whose locks are
    /// free. Returns each instance, except the dead ones that are known to have no rows left.
    ///
    /// # Errors
    ///
    /// [`Error::Pooled`] when another backend than `backend`, which was this session's, runs the statement.
    pub async fn declare_dead(&self, epoch: i64, epochs: &[i64], backend: i32) -> Result<Vec<Peer>> {
        let doing = "finding dead instances";
        let sql = include_str!("../../sql/queries/instances/declare_dead.sql");
        let rows = self.rows(doing, sql, &[&epoch, &epochs, &backend]).await?;
        if rows.iter().any(|row| row.get::<_, &str>("state") == "elsewhere") {
            return Err(Error::Pooled { doing: doing.into() });
        }
        if rows.iter().any(|row| row.get::<_, &str>("state") == "unlisted") {
            return Err(Error::Failed(format!(
                "{doing}: this one is not in relay.instances any more, or was marked dead there, or another database was restored \
                 over this one; it registers anew"
            )));
        }
        let liveness = |row: &Row| match row.get("state") {
            "declared" => Liveness::DeclaredDead,
            "dead" => Liveness::Dead,
            "free" => Liveness::Free,
            "crashed" => Liveness::Crashed,
            _ => Liveness::Alive,
        };
        let round_trip = |row: &Row| {
            Duration::try_from_secs_f32(row.get::<_, f32>("round_trip_ms") / 1000.0).unwrap_or_default()
        };
        let peer = |row: &Row| Peer {
            epoch: row.get("epoch"),
            round_trip: round_trip(row),
            liveness: liveness(row),
            near: row.get("near"),
        };
        Ok(rows.iter().map(peer).collect())
    }

    /// Which of these backends wait for their client, or are gone. See `not_at_work.sql`.
    pub async fn not_at_work(&self, backends: &[i32]) -> Result<Vec<i32>> {
        let sql = include_str!("../../sql/queries/instances/not_at_work.sql");
        let rows = self.rows("asking after our sessions", sql, &[&backends]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Ends the sessions that hold the locks of these epochs, except those that hold a lock of the `keys`. With
    /// `cut_off` it ends only sessions that are within a statement or a transaction and wait for their client.
    /// Returns how many it ended. See `end_sessions.sql`.
    pub async fn end_sessions(&self, epochs: &[i64], keys: &[i64], cut_off: bool) -> Result<i64> {
        let sql = include_str!("../../sql/queries/instances/end_sessions.sql");
        Ok(self.one("ending sessions that were left", sql, &[&epochs, &keys, &cut_off]).await?.get(0))
    }

    /// Notes which dead instances have no rows left. Returns their epochs.
    pub async fn clear_dead(&self) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/instances/clear_dead.sql");
        let rows = self.rows("clearing dead instances", sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Marks these epochs dead; `cleared` when no row is claimed by them any more.
    pub async fn retire(&self, epochs: &[i64], cleared: bool) -> Result<()> {
        self.rows(
            "retiring the instance",
            include_str!("../../sql/queries/instances/retire.sql"),
            &[&epochs, &cleared],
        )
        .await?;
        Ok(())
    }
}
