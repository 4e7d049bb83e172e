//! The queries: one typed function for each file under `sql/queries`, and the planner settings of each session.
//!
//! Knows no HTTP and no policy: what to claim, when to finish and what a failure means is decided by the callers.
//! Every function is one round trip and, unless it says otherwise, one transaction of its own.

pub mod migrations;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::error::{Error, Result};
use crate::model::call::Call;
use crate::model::event::{Event, Secret, Webhook};
use crate::model::row::Claimed;
use crate::model::row::Finished;
use crate::model::snapshot::Snapshot;
use crate::postgres::{Session, Settings};

/// The span of the call log that one statement reads: each partition of it, and each index of those, is a lock in a table
/// that all sessions share (64 for each of `max_connections`, unless set). A month takes 160 of 6,400.
const SLICE: Duration = Duration::from_secs(SLICE_DAYS * 86400);
const SLICE_DAYS: u64 = 31;
/// The span of the calls that `status` looks at.
const STATUS_MINUTES: i32 = 5;

/// What a session is for: its name in `pg_stat_activity` and how its statements are planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Claims and gives back; holds the sleep lock. Its commits need not reach the disk: a server crash ends the
    /// session, and with it the claims.
    Claim,
    /// Finishes: what it committed is on disk.
    Finish,
    /// LISTEN and the liveness lock. Never in a transaction.
    Listen,
    /// Retention.
    Retention,
    /// Asks how old the queue is, for the metrics.
    Metrics,
    /// A command for people.
    Command,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Claim => "claim",
            Role::Finish => "finish",
            Role::Listen => "listen",
            Role::Retention => "retention",
            Role::Metrics => "metrics",
            Role::Command => "command",
        }
    }

    /// The tables of a queue are empty in one moment and full in the next, so statistics mislead: each session is
    /// told the one shape that its statements have. Claims go from few rows to an index; a finish joins two lists of
    /// the same length, which a nested loop would do in their product. Generic plans: planning would cost more than
    /// running.
    fn settings(self) -> &'static str {
        match self {
            Role::Claim => {
                "SET synchronous_commit = off; SET plan_cache_mode = force_generic_plan; \
                 SET enable_seqscan = off; SET enable_bitmapscan = off; \
                 SET enable_hashjoin = off; SET enable_mergejoin = off"
            }
            Role::Finish => {
                "SET synchronous_commit = on; SET plan_cache_mode = force_generic_plan; \
                 SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_nestloop = off"
            }
            // A few locks that others never hold for long; what waits longer is tried again later.
            Role::Retention => {
                "SET lock_timeout = '200ms'; SET enable_seqscan = off; SET enable_bitmapscan = off"
            }
            // Values differ much in what they select, and planning is nothing beside a person's patience. A person, and a
            // migration, waits for locks no longer than the site wants.
            Role::Command => "RESET lock_timeout; SET plan_cache_mode = force_custom_plan",
            Role::Metrics => {
                "SET statement_timeout = '5s'; SET enable_seqscan = off; SET enable_bitmapscan = off"
            }
            Role::Listen => "",
        }
    }
}

/// A session with its prepared statements.
pub struct Store {
    session: Session,
    // Written and read by this session's one task only.
    prepared: RefCell<HashMap<&'static str, Statement>>,
    // When the statement was sent whose answer has not come yet. Of two at a time, the later one.
    waiting_since: Cell<Option<Instant>>,
    // The shortest time in which an answer came: what the network takes, on a machine that is busy, too.
    round_trip: Cell<Duration>,
    // Its sign of life, when it has been asked for one.
    lock: Cell<Option<Lock>>,
}

/// How often a session draws a key anew whose lock somebody has. Random ones are not taken twice in a row by chance.
const KEYS_MAX: u32 = 8;

/// The advisory lock that a session holds as its sign of life.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    /// Its random key.
    pub key: i64,
    /// Process id of the backend that holds it.
    pub backend: i32,
}

/// What came of trying the sleep lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// We hold it: whoever inserts notifies us.
    Taken,
    /// Somebody who inserts holds it shared, and does not notify.
    Inserting,
    /// A sleeping instance holds it: whoever inserts notifies us, and the instance says when it wakes.
    Peer,
    /// Somebody else holds it, who says nothing.
    Other,
}

/// Somebody who holds one of our advisory locks and should not, or for long.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Names the holder and its transaction.
    pub transaction: String,
    /// Which lock: `liveness`, `sleep`, `retention` or `migrate`.
    pub lock: String,
    /// Process id of its backend; none for a prepared transaction.
    pub backend: Option<i32>,
    /// Who has logged in.
    pub login: Option<String>,
    /// What the session does, where we may see it.
    pub state: Option<String>,
}

/// Ends the waiting for an answer, whether it came or nobody wants it any more.
struct Waiting<'a>(&'a Cell<Option<Instant>>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

impl Deref for Store {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

/// Most bytes of records in one statement, but for a single record that has more: they are in memory up to three times
/// while they are sent.
pub const STATEMENT_BYTES_MAX: usize = 1024 * 1024;
/// What is delivered and logged of each text of an event. `claim.sql` fetches one character more, and `relay.cut_text`
/// cuts what is logged of the others.
const EVENT_TEXT_BYTES_MAX: usize = 8192;

/// What a claim returned.
#[derive(Debug, Default)]
pub struct Claim {
    /// In order of id.
    pub rows: Vec<Claimed>,
    /// There may be more: the texts of these were as much as one claim takes.
    pub more: bool,
}

/// Another listed instance.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its epoch.
    pub epoch: i64,
    /// How far it is from Postgres.
    pub round_trip: Duration,
    /// Whether it lives.
    pub vital: Vital,
}

/// What the liveness lock of a listed instance says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vital {
    /// Its lock is held.
    Alive,
    /// Its lock is free.
    Free,
    /// Its lock is free, and the server has crashed since it registered: claims of its may be lost.
    Crashed,
    /// Its lock was free, and it was marked dead just now.
    Buried,
    /// It was marked dead before.
    Dead,
}

/// What a run of the retention may do.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Postgres' clock when the run began: what is old is so by this time.
    pub now: SystemTime,
    /// No run is due yet; one is after this time.
    pub wait: Option<Duration>,
    /// The clock has jumped by so many seconds, or nobody ran for so long.
    pub off_s: Option<f64>,
    /// The clock has been steady for long enough to throw away what is old by it.
    pub steady: bool,
    /// The last partition was dropped long enough ago.
    pub may_drop: bool,
}

/// Which calls are wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Of this webhook only.
    pub webhook_id: Option<i64>,
    /// Failed ones only.
    pub failed: bool,
    /// Started then or later.
    pub since: SystemTime,
}

/// A call of the log that is not read yet.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `relay.webhook_calls.id`.
    pub id: i64,
    /// First byte of work.
    pub start_time: SystemTime,
    /// Bytes that its texts have.
    pub bytes: usize,
}

impl Key {
    fn of(row: &Row) -> Key {
        let bytes: i64 = row.get("bytes");
        Key {
            id: row.get("id"),
            start_time: row.get("start_time"),
            bytes: usize::try_from(bytes).unwrap_or(0),
        }
    }
}

/// A call as the log has it, for people.
#[derive(Clone, Debug)]
pub struct Logged {
    /// `relay.webhook_calls.id`.
    pub id: i64,
    /// First byte of work.
    pub start_time: SystemTime,
    /// The webhook that was called.
    pub webhook_id: i64,
    /// Its project.
    pub project_id: i64,
    /// From the outbox row.
    pub trace_id: String,
    /// The webhook's URL at the time.
    pub url: String,
    /// Of the answer.
    pub status_code: Option<i32>,
    /// None for a success.
    pub error_kind: Option<String>,
    /// What happened.
    pub error_message: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// Whether the receiver may have seen it before.
    pub repeated: bool,
    /// All columns, when they were asked for.
    pub json: Option<String>,
}

impl Logged {
    fn of(row: &Row) -> Logged {
        Logged {
            id: row.get("id"),
            start_time: row.get("start_time"),
            webhook_id: row.get("webhook_id"),
            project_id: row.get("project_id"),
            trace_id: row.get("trace_id"),
            url: row.get("url"),
            status_code: row.get("status_code"),
            error_kind: row.get("error_kind"),
            error_message: row.get("error_message"),
            seconds: row.get("seconds"),
            repeated: row.get("repeated"),
            json: row.get("json"),
        }
    }
}

/// What the server says of itself.
#[derive(Clone, Debug)]
pub struct Server {
    /// As `server_version_num`: 150018.
    pub version: i32,
    /// Encoding of the database.
    pub encoding: String,
    /// Whether `relay.migrations` exists.
    pub has_migrations: bool,
}

impl Store {
    /// Connects a session and sets it up for its role.
    pub async fn connect(settings: &Settings, role: Role) -> Result<Store> {
        let session = settings.connect(role.name(), role.settings()).await?;
        Ok(Store {
            session,
            prepared: RefCell::default(),
            waiting_since: Cell::default(),
            round_trip: Cell::new(Duration::MAX),
            lock: Cell::default(),
        })
    }

    /// When the statement was sent whose answer has not come yet, if there is one.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since.get()
    }

    fn wait(&self) -> Waiting<'_> {
        self.waiting_since.set(Some(Instant::now()));
        Waiting(&self.waiting_since)
    }

    /// Waits for an answer: one round trip.
    async fn answer<T, E>(
        &self,
        answer: impl Future<Output = std::result::Result<T, E>>,
    ) -> std::result::Result<T, E> {
        let start = Instant::now();
        let answer = answer.await?;
        self.round_trip.set(self.round_trip.get().min(start.elapsed()));
        Ok(answer)
    }

    /// Prepares a statement on its first use.
    async fn statement(&self, doing: &'static str, sql: &'static str) -> Result<Statement> {
        if let Some(statement) = self.prepared.borrow().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.answer(self.session.prepare(sql)).await.map_err(Error::prepared(doing))?;
        self.prepared.borrow_mut().insert(sql, statement.clone());
        Ok(statement)
    }

    async fn rows(
        &self,
        doing: &'static str,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        let _waiting = self.wait();
        let statement = self.statement(doing, sql).await?;
        self.answer(self.session.query(&statement, parameters)).await.map_err(Error::prepared(doing))
    }

    async fn one(
        &self,
        doing: &'static str,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row> {
        let _waiting = self.wait();
        let statement = self.statement(doing, sql).await?;
        self.answer(self.session.query_one(&statement, parameters)).await.map_err(Error::prepared(doing))
    }

    /// Claims up to `limit` rows with ids above `cursor`, in order of id, with at most so many bytes of text unless it is a
    /// single one; rows of the projects in `park` are parked instead. See `claim.sql`.
    pub async fn claim(
        &self,
        cursor: i64,
        dead: &[i64],
        limit: usize,
        epoch: i64,
        park: &[i64],
        text_bytes_max: i64,
    ) -> Result<Claim> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = include_str!("../../sql/queries/claim/claim.sql");
        let rows = self
            .rows("claiming rows", sql, &[&cursor, &dead, &limit, &epoch, &park, &text_bytes_max])
            .await?;
        Ok(gather(&rows, epoch, text_bytes_max))
    }

    /// Which transactions are running.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let row =
            self.one("taking a snapshot", include_str!("../../sql/queries/claim/snapshot.sql"), &[]).await?;
        Ok(Snapshot { xmin: row.get("xmin"), xmax: row.get("xmax") })
    }

    /// Claims the oldest parked rows of each project, at most as many as its room, and with at most so many bytes of text
    /// unless it is a single one. See `claim_parked.sql`.
    pub async fn claim_parked(
        &self,
        projects: &[i64],
        rooms: &[i64],
        dead: &[i64],
        epoch: i64,
        text_bytes_max: i64,
    ) -> Result<Claim> {
        let sql = include_str!("../../sql/queries/claim/claim_parked.sql");
        let rows = self
            .rows("claiming parked rows", sql, &[&projects, &rooms, &dead, &epoch, &text_bytes_max])
            .await?;
        Ok(gather(&rows, epoch, text_bytes_max))
    }

    /// Projects that have parked rows, at most `limit`.
    pub async fn parked_projects(&self, limit: i64) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/claim/parked_projects.sql");
        let rows = self.rows("looking for parked rows", sql, &[&limit]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Marks rows done and writes their call logs, all or nothing. Returns the ids that were still ours; the others
    /// were finished or taken over by somebody else, and nothing was written for them. One statement, see `finish.sql`;
    /// where the records have more than [`STATEMENT_BYTES_MAX`], one transaction of several.
    ///
    /// Fails with [`Error::is_data`] when one of the records cannot be stored.
    pub async fn finish(&self, epoch: i64, rows: &[Finished]) -> Result<Vec<i64>> {
        let calls: Vec<(&Finished, &Call)> =
            rows.iter().flat_map(|row| row.calls.iter().map(move |call| (row, call))).collect();
        let pieces = pieces(calls.iter().map(|(_, call)| call.record_bytes()));
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        match pieces.as_slice() {
            [] | [_] => self.mark_done(&ids, epoch, &calls).await,
            [first, others @ ..] => {
                let (first, others) =
                    (&calls[first.clone()], others.iter().map(|piece| &calls[piece.clone()]));
                let finished = self.finish_in_parts(&ids, epoch, first, others).await;
                if finished.is_err() && !self.is_closed() {
                    self.command("ROLLBACK").await?;
                }
                finished
            }
        }
    }

    async fn finish_in_parts<'a>(
        &self,
        ids: &[i64],
        epoch: i64,
        first: &[(&Finished, &Call)],
        others: impl Iterator<Item = &'a [(&'a Finished, &'a Call)]>,
    ) -> Result<Vec<i64>> {
        self.command("BEGIN").await?;
        let done = self.mark_done(ids, epoch, first).await?;
        for calls in others {
            let columns = Columns::of(calls);
            let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&done];
            parameters.extend(columns.parameters());
            let sql = include_str!("../../sql/queries/finish/log_calls.sql");
            self.rows("recording calls", sql, &parameters).await?;
        }
        self.command("COMMIT").await?;
        Ok(done)
    }

    async fn mark_done(&self, ids: &[i64], epoch: i64, calls: &[(&Finished, &Call)]) -> Result<Vec<i64>> {
        let columns = Columns::of(calls);
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&ids, &epoch];
        parameters.extend(columns.parameters());
        let sql = include_str!("../../sql/queries/finish/finish.sql");
        let done = self.rows("recording calls", sql, &parameters).await?;
        Ok(done.iter().map(|row| row.get(0)).collect())
    }

    /// BEGIN, COMMIT or ROLLBACK.
    async fn command(&self, sql: &str) -> Result<()> {
        let _waiting = self.wait();
        self.session.batch_execute(sql).await.map_err(Error::postgres("recording calls"))
    }

    /// Gives claimed rows back that were not started, `repeated` ones of which a dead instance had in hand before, and
    /// wakes a sleeping peer; `park` puts them into the slow lane. Returns how many were still ours.
    pub async fn give_back(&self, epoch: i64, ids: &[i64], repeated: &[i64], park: bool) -> Result<i64> {
        let sql = include_str!("../../sql/queries/claim/give_back.sql");
        Ok(self.one("giving rows back", sql, &[&ids, &epoch, &repeated, &park]).await?.get(0))
    }

    /// The advisory lock that is this session's sign of life; draws one when it is asked for the first time. The session
    /// holds it for as long as it lives.
    pub async fn hold_lock(&self) -> Result<Lock> {
        match self.lock.get() {
            Some(lock) => Ok(lock),
            None => self.draw_lock().await,
        }
    }

    /// The same, and always a new one.
    pub async fn draw_lock(&self) -> Result<Lock> {
        let sql = include_str!("../../sql/queries/instances/draw_lock.sql");
        for _ in 0..KEYS_MAX {
            if let Some(row) = self.rows("taking a liveness lock", sql, &[]).await?.first() {
                let lock = Lock { key: row.get(0), backend: row.get(1) };
                self.lock.set(Some(lock));
                return Ok(lock);
            }
        }
        Err(Error::Failed(format!("taking a liveness lock: {KEYS_MAX} random ones are held by somebody")))
    }

    /// Lists the instance whose sessions hold the locks of these keys, with how far it is from Postgres. Tells when the
    /// server was started; none when the first key, its epoch, was used before.
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

    /// Lets these epochs live on by the lock of that key.
    pub async fn keep_alive(&self, epochs: &[i64], key: i64) -> Result<()> {
        let sql = include_str!("../../sql/queries/instances/keep_alive.sql");
        self.rows("keeping older epochs alive", sql, &[&epochs, &key]).await?;
        Ok(())
    }

    /// Looks at the liveness locks of the listed instances but ours, and marks those in `sure` dead whose lock is
    /// free. Returns each that is alive, suspect, buried, or dead and not known to have no rows left.
    ///
    /// # Errors
    ///
    /// [`Error::Pooled`] when the statement does not run on that backend, which was this session's.
    pub async fn bury(&self, epoch: i64, sure: &[i64], backend: i32) -> Result<Vec<Peer>> {
        let doing = "looking for dead instances";
        let sql = include_str!("../../sql/queries/instances/bury.sql");
        let rows = self.rows(doing, sql, &[&epoch, &sure, &backend]).await?;
        if rows.iter().any(|row| row.get::<_, &str>("state") == "elsewhere") {
            return Err(Error::Pooled { doing: doing.into() });
        }
        let vital = |row: &Row| match row.get("state") {
            "buried" => Vital::Buried,
            "dead" => Vital::Dead,
            "free" => Vital::Free,
            "crashed" => Vital::Crashed,
            _ => Vital::Alive,
        };
        let round_trip = |row: &Row| {
            Duration::try_from_secs_f32(row.get::<_, f32>("round_trip_ms") / 1000.0).unwrap_or_default()
        };
        let peer =
            |row: &Row| Peer { epoch: row.get("epoch"), round_trip: round_trip(row), vital: vital(row) };
        Ok(rows.iter().map(peer).collect())
    }

    /// Which of these backends wait for their client, or are gone. See `not_at_work.sql`.
    pub async fn not_at_work(&self, backends: &[i32]) -> Result<Vec<i32>> {
        let sql = include_str!("../../sql/queries/instances/not_at_work.sql");
        let rows = self.rows("asking after our sessions", sql, &[&backends]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Ends the sessions that hold the locks of these epochs, but those that hold a lock of the `keys`; with `cut_off` only
    /// those that are within a statement or a transaction and wait for their client. How many. See `end_sessions.sql`.
    pub async fn end_sessions(&self, epochs: &[i64], keys: &[i64], cut_off: bool) -> Result<i64> {
        let sql = include_str!("../../sql/queries/instances/end_sessions.sql");
        Ok(self.one("ending sessions that were left", sql, &[&epochs, &keys, &cut_off]).await?.get(0))
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

    /// Takes rows that we had in hand under `older` epochs, each with who had it before us, over to `new`; returns the
    /// ids of those that are still ours.
    pub async fn adopt(&self, held: &[(i64, Option<i64>)], older: &[i64], new: i64) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/claim/adopt.sql");
        let (ids, previous): (Vec<i64>, Vec<Option<i64>>) = held.iter().copied().unzip();
        let rows = self.rows("taking over our own rows", sql, &[&ids, &previous, &older, &new]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Notes which dead instances have no rows left; returns their epochs.
    pub async fn clear_dead(&self) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/instances/clear_dead.sql");
        let rows = self.rows("clearing dead instances", sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Marks an instance dead; `cleared` when no row is claimed by it any more.
    pub async fn retire(&self, epochs: &[i64], cleared: bool) -> Result<()> {
        self.rows(
            "retiring the instance",
            include_str!("../../sql/queries/instances/retire.sql"),
            &[&epochs, &cleared],
        )
        .await?;
        Ok(())
    }

    /// Takes the sleep lock for this session, if nobody has it.
    pub async fn try_sleep(&self) -> Result<Sleep> {
        let sql = include_str!("../../sql/queries/sleep_lock/try_sleep.sql");
        Ok(match self.one("taking the sleep lock", sql, &[]).await?.get(0) {
            "taken" => Sleep::Taken,
            "inserting" => Sleep::Inserting,
            "peer" => Sleep::Peer,
            _ => Sleep::Other,
        })
    }

    /// Frees the sleep lock.
    pub async fn wake_up(&self) -> Result<()> {
        self.one("freeing the sleep lock", include_str!("../../sql/queries/sleep_lock/wake_up.sql"), &[])
            .await?;
        Ok(())
    }

    /// Who holds our advisory locks and should not, of those transactions or of all; at most 20. See `lock_holders.sql`.
    pub async fn lock_holders(&self, transactions: Option<&[String]>) -> Result<Vec<Holder>> {
        let sql = include_str!("../../sql/queries/admin/lock_holders.sql");
        let rows = self.rows("looking who holds our locks", sql, &[&transactions]).await?;
        let holder = |row: &Row| Holder {
            transaction: row.get(0),
            lock: row.get(1),
            backend: row.get(2),
            login: row.get(3),
            state: row.get(4),
        };
        Ok(rows.iter().map(holder).collect())
    }

    /// What the server says of itself. Works without our schema.
    pub async fn server(&self) -> Result<Server> {
        let row = self
            .one("asking for the version", include_str!("../../sql/queries/migrations/server.sql"), &[])
            .await?;
        Ok(Server { version: row.get(0), encoding: row.get(1), has_migrations: row.get(2) })
    }

    /// What `migrate` has applied: version, name, checksum.
    pub async fn migrations(&self) -> Result<Vec<(i32, String, String)>> {
        let sql = include_str!("../../sql/queries/migrations/applied.sql");
        let rows = self.rows("reading relay.migrations", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
    }

    /// Writes down a migration; to be called in its transaction.
    pub async fn record_migration(&self, version: i32, name: &str, checksum: &str) -> Result<()> {
        let sql = include_str!("../../sql/queries/migrations/record.sql");
        self.rows("recording the migration", sql, &[&version, &name, &checksum]).await?;
        Ok(())
    }

    /// Takes the lock of `migrate` for this session. Whether it was free.
    pub async fn try_migrate(&self) -> Result<bool> {
        let sql = include_str!("../../sql/queries/migrations/try_lock.sql");
        Ok(self.one("taking the lock of migrate", sql, &[]).await?.get(0))
    }

    /// What the daemon needs, each with whether the current user may do it.
    pub async fn privileges(&self) -> Result<Vec<(String, bool)>> {
        let sql = include_str!("../../sql/queries/admin/privileges.sql");
        let rows = self.rows("looking at privileges", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Enabled webhooks with ids above `after`, at most `limit`.
    pub async fn enabled_webhooks(&self, after: i64, limit: i64) -> Result<Vec<Webhook>> {
        let sql = include_str!("../../sql/queries/admin/enabled_webhooks.sql");
        let rows = self.rows("reading webhooks", sql, &[&after, &limit]).await?;
        Ok(rows.iter().map(|row| webhook(row.get(0), row, 1)).collect())
    }

    /// What time it is by the database's clock, and the highest id of a call that has been drawn.
    pub async fn clock(&self) -> Result<(SystemTime, i64)> {
        let row = self
            .one("asking for the time", include_str!("../../sql/queries/call_log/clock.sql"), &[])
            .await?;
        Ok((row.get(0), row.get(1)))
    }

    /// Which calls there are, newest first, at most `limit`. A statement for each month before `now`.
    pub async fn calls(&self, wanted: &Wanted, now: SystemTime, limit: i64) -> Result<Vec<Key>> {
        let sql = include_str!("../../sql/queries/call_log/calls.sql");
        let Wanted { webhook_id, failed, since } = wanted;
        let mut keys: Vec<Key> = Vec::new();
        let mut before: Option<SystemTime> = None;
        loop {
            let start = before.unwrap_or(now).checked_sub(SLICE).unwrap_or(*since).max(*since);
            let left = limit - keys.len() as i64;
            let rows = self.rows("reading calls", sql, &[webhook_id, failed, &start, &before, &left]).await?;
            keys.extend(rows.iter().map(Key::of));
            if start <= *since || keys.len() as i64 >= limit {
                return Ok(keys);
            }
            before = Some(start);
        }
    }

    /// Which calls there are with ids above `after` that are not among the `known` and started within a month before
    /// `now`, in order of id, at most `limit`.
    pub async fn calls_after(
        &self,
        wanted: &Wanted,
        now: SystemTime,
        after: i64,
        known: &[i64],
        limit: i64,
    ) -> Result<Vec<Key>> {
        let sql = include_str!("../../sql/queries/call_log/calls_after.sql");
        let Wanted { webhook_id, failed, .. } = wanted;
        let since = now.checked_sub(SLICE).unwrap_or(SystemTime::UNIX_EPOCH);
        let rows =
            self.rows("reading calls", sql, &[webhook_id, failed, &since, &after, &known, &limit]).await?;
        Ok(rows.iter().map(Key::of).collect())
    }

    /// These calls, in this order, but for those that were dropped meanwhile; with all their columns as JSON when `json`.
    /// Keep their bytes few: all are in memory, some times over. A statement for those of each month.
    pub async fn whole_calls(&self, keys: &[Key], json: bool) -> Result<Vec<Logged>> {
        let sql = include_str!("../../sql/queries/call_log/whole_calls.sql");
        let mut calls: Vec<Logged> = Vec::with_capacity(keys.len());
        for keys in
            keys.chunk_by(|one, next| days(one.start_time) / SLICE_DAYS == days(next.start_time) / SLICE_DAYS)
        {
            let ids: Vec<i64> = keys.iter().map(|key| key.id).collect();
            let starts = || keys.iter().map(|key| key.start_time);
            let (lowest, highest) = (ids.iter().min(), ids.iter().max());
            let (first, last) = (starts().min(), starts().max());
            let rows =
                self.rows("reading calls", sql, &[&ids, &lowest, &highest, &first, &last, &json]).await?;
            let place: HashMap<i64, usize> = ids.iter().copied().zip(0..).collect();
            let before = calls.len();
            calls.extend(rows.iter().map(Logged::of));
            calls[before..].sort_by_key(|call| place.get(&call.id));
        }
        Ok(calls)
    }

    /// The calls of an outbox row that were started since then, with all their columns.
    pub async fn calls_of_row(&self, outbox_id: i64, since: SystemTime) -> Result<Vec<Logged>> {
        let sql = include_str!("../../sql/queries/call_log/calls_of_row.sql");
        let rows = self.rows("reading calls", sql, &[&outbox_id, &since]).await?;
        Ok(rows.iter().map(Logged::of).collect())
    }

    /// The ids of a webhook's calls that started before `until`, oldest first, at most `limit`. A statement for each
    /// month up to `now`.
    pub async fn call_ids(
        &self,
        wanted: &Wanted,
        until: Option<SystemTime>,
        now: SystemTime,
        limit: i64,
    ) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/call_log/call_ids.sql");
        let Wanted { webhook_id, failed, since } = wanted;
        let mut ids: Vec<i64> = Vec::new();
        let mut since = *since;
        loop {
            let end = since.checked_add(SLICE).filter(|end| *end < until.unwrap_or(now));
            let before = end.or(until);
            let left = limit - ids.len() as i64;
            let rows = self.rows("reading calls", sql, &[webhook_id, failed, &since, &before, &left]).await?;
            ids.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
            match end {
                Some(end) if (ids.len() as i64) < limit => since = end,
                _ => return Ok(ids),
            }
        }
    }

    /// How old the oldest row is that is not done, in seconds: in the queue's order, and in the slow lane.
    pub async fn oldest(&self) -> Result<(f64, f64)> {
        let row = self
            .one("asking how old the queue is", include_str!("../../sql/queries/admin/oldest.sql"), &[])
            .await?;
        Ok((row.get(0), row.get(1)))
    }

    /// Inserts a row for each of these calls that repeats it, all or none; returns the ids of the rows.
    pub async fn replay(&self, call_ids: &[i64]) -> Result<Vec<i64>> {
        let rows = self
            .rows("replaying calls", include_str!("../../sql/queries/admin/replay.sql"), &[&call_ids])
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Inserts a test event for one webhook; returns the row's id.
    pub async fn send_test(&self, webhook_id: i64) -> Result<i64> {
        let sql = include_str!("../../sql/queries/admin/send_test.sql");
        Ok(self.one("sending a test event", sql, &[&webhook_id]).await?.get(0))
    }

    /// Whether an outbox row is done; one that is gone was done.
    pub async fn is_done(&self, outbox_id: i64) -> Result<bool> {
        let rows = self
            .rows("looking at the row", include_str!("../../sql/queries/admin/is_done.sql"), &[&outbox_id])
            .await?;
        Ok(rows.first().is_none_or(|row| row.get(0)))
    }

    /// How it goes, as a JSON object. See `status.sql`.
    pub async fn status(&self) -> Result<String> {
        let minutes_ago = include_str!("../../sql/queries/admin/minutes_ago.sql");
        let since: SystemTime =
            self.one("asking for the time", minutes_ago, &[&STATUS_MINUTES]).await?.get(0);
        let sql = include_str!("../../sql/queries/admin/status.sql");
        Ok(self.one("asking for the status", sql, &[&since]).await?.get(0))
    }

    /// Whether the trigger that wakes a sleeping relay is in place.
    pub async fn wake_trigger(&self) -> Result<bool> {
        let sql = include_str!("../../sql/queries/admin/wake_trigger.sql");
        Ok(self.one("looking at the trigger", sql, &[]).await?.get(0))
    }

    /// Tables that row level security keeps from somebody who must see all of them, each with that role. See
    /// `row_security.sql`.
    pub async fn row_security(&self) -> Result<Vec<(String, String)>> {
        let sql = include_str!("../../sql/queries/admin/row_security.sql");
        let rows = self.rows("looking at row level security", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Whose code would run in our sessions; none in a database that is in order. See `foreign_code.sql`.
    pub async fn foreign_code(&self) -> Result<Vec<String>> {
        let sql = include_str!("../../sql/queries/admin/foreign_code.sql");
        let rows = self.rows("looking for code of others", sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Our tables whose rows cannot be updated or deleted because of a publication, each with its name. See
    /// `publications.sql`.
    pub async fn publications(&self) -> Result<Vec<(String, String)>> {
        let sql = include_str!("../../sql/queries/admin/publications.sql");
        let rows = self.rows("looking at publications", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Makes the partition of the call log for the day so many days ahead, if it is missing; whether it did.
    pub async fn make_partition(&self, days_ahead: i32) -> Result<bool> {
        let sql = include_str!("../../sql/queries/retention/make_partition.sql");
        Ok(self.one("making a partition of the call log", sql, &[&days_ahead]).await?.get(0))
    }

    /// Names of daily partitions of the call log that end before that time.
    pub async fn expired_partitions(&self, before: SystemTime) -> Result<Vec<String>> {
        let sql = include_str!("../../sql/queries/retention/expired_partitions.sql");
        let rows = self.rows("looking for old partitions", sql, &[&before]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Drops a daily partition of the call log if it ends before that time, and notes it; whether it did.
    pub async fn drop_partition(&self, name: &str, before: SystemTime) -> Result<bool> {
        let sql = include_str!("../../sql/queries/retention/drop_partition.sql");
        Ok(self.one("dropping a partition of the call log", sql, &[&name, &before]).await?.get(0))
    }

    /// Deletes calls without a daily partition that started before that time, at most so many; how many.
    pub async fn delete_strays(&self, before: SystemTime, most: i32) -> Result<i64> {
        let sql = include_str!("../../sql/queries/retention/delete_strays.sql");
        Ok(self.one("deleting stray calls", sql, &[&before, &most]).await?.get(0))
    }

    /// Deletes outbox rows that were done before that time, with ids from `first` to below `beyond`. Returns how many,
    /// and the next id to look at, if there is any worth it.
    pub async fn delete_done(
        &self,
        first: i64,
        beyond: i64,
        before: SystemTime,
        now: SystemTime,
    ) -> Result<(i64, Option<i64>)> {
        let sql = include_str!("../../sql/queries/retention/delete_done.sql");
        let row = self.one("deleting done rows", sql, &[&first, &beyond, &before, &now]).await?;
        Ok((row.get(0), row.get(1)))
    }

    /// Begins a run of the retention if one is due. `noted` is what [`Turn::now`] was in our last run, and how long that
    /// is ago by our own clock. See `begin_retention.sql`.
    pub async fn begin_retention(
        &self,
        noted: Option<(SystemTime, Duration)>,
        pause: Duration,
        pause_after_failure: Duration,
        steady: Duration,
    ) -> Result<Turn> {
        let sql = include_str!("../../sql/queries/retention/begin.sql");
        let (noted, elapsed) = noted.unzip();
        let seconds =
            [elapsed.unwrap_or_default(), pause, pause_after_failure, steady].map(|d| d.as_secs_f64());
        let [elapsed, pause, pause_after_failure, steady] = &seconds;
        let row = self
            .one("beginning the retention", sql, &[&noted, elapsed, pause, pause_after_failure, steady])
            .await?;
        Ok(Turn {
            now: row.get("now"),
            wait: row.get::<_, Option<f64>>("wait_s").and_then(|s| Duration::try_from_secs_f64(s).ok()),
            off_s: row.get("off_s"),
            steady: row.get("steady"),
            may_drop: row.get("may_drop"),
        })
    }

    /// Notes the end of a run, whether it did all of its work, and that the next one is due after `pause`.
    pub async fn end_retention(&self, complete: bool, pause: Duration) -> Result<()> {
        let sql = include_str!("../../sql/queries/retention/end.sql");
        self.rows("ending the retention", sql, &[&complete, &pause.as_secs_f64()]).await?;
        Ok(())
    }

    /// Seconds since the retention last did all of its work, in whichever instance; NaN when that is not known.
    pub async fn retention_age(&self) -> Result<f64> {
        let sql = include_str!("../../sql/queries/retention/age.sql");
        let rows = self.rows("asking when the retention ran", sql, &[]).await?;
        Ok(rows.first().map_or(f64::NAN, |row| row.get(0)))
    }

    /// Takes the lock of the retention for this session. Whether it was free.
    pub async fn try_retention(&self) -> Result<bool> {
        let sql = include_str!("../../sql/queries/retention/try_lock.sql");
        Ok(self.one("taking the lock of the retention", sql, &[]).await?.get(0))
    }

    /// The lowest id in the outbox, when it has rows.
    pub async fn lowest_id(&self) -> Result<Option<i64>> {
        let sql = include_str!("../../sql/queries/retention/lowest_id.sql");
        let rows = self.rows("looking at the outbox", sql, &[]).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }
}

/// Days since 1970.
fn days(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / 86400
}

/// Where to cut a list of records, so that each piece has at most [`STATEMENT_BYTES_MAX`], or is a single record.
fn pieces(sizes: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (at, size) in sizes.enumerate() {
        match pieces.last_mut() {
            Some(piece) if bytes + size <= STATEMENT_BYTES_MAX => {
                piece.end = at + 1;
                bytes += size;
            }
            _ => {
                pieces.push(at..at + 1);
                bytes = size;
            }
        }
    }
    pieces
}

/// Calls as the statements take them: one array a column, in the order of their parameters.
struct Columns<'a> {
    outbox_id: Vec<i64>,
    webhook_id: Vec<i64>,
    url: Vec<&'a str>,
    request_headers: Vec<&'a str>,
    request_body: Vec<&'a str>,
    status_code: Vec<Option<i32>>,
    response_headers: Vec<Option<&'a str>>,
    response_body: Vec<Option<&'a str>>,
    response_bytes: Vec<i64>,
    response_truncated: Vec<bool>,
    start_time: Vec<SystemTime>,
    end_time: Vec<SystemTime>,
    is_timeout: Vec<bool>,
    error_message: Vec<Option<&'a str>>,
    error_kind: Vec<Option<&'static str>>,
    repeated: Vec<bool>,
    remote_addr: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn of(calls: &[(&'a Finished, &'a Call)]) -> Columns<'a> {
        fn column<'a, T>(
            calls: &[(&'a Finished, &'a Call)],
            value: impl Fn(&'a Finished, &'a Call) -> T,
        ) -> Vec<T> {
            calls.iter().map(|&(row, call)| value(row, call)).collect()
        }
        Columns {
            outbox_id: column(calls, |row, _| row.id),
            webhook_id: column(calls, |_, call| call.webhook_id),
            url: column(calls, |_, call| call.url.as_str()),
            request_headers: column(calls, |_, call| call.request_headers.as_str()),
            request_body: column(calls, |_, call| &*call.request_body),
            status_code: column(calls, |_, call| call.status_code.map(i32::from)),
            response_headers: column(calls, |_, call| call.response_headers.as_deref()),
            response_body: column(calls, |_, call| call.response_body.as_deref()),
            response_bytes: column(calls, |_, call| i64::try_from(call.response_bytes).unwrap_or(i64::MAX)),
            response_truncated: column(calls, |_, call| call.response_truncated),
            start_time: column(calls, |_, call| call.start_time),
            end_time: column(calls, |_, call| call.end_time),
            is_timeout: column(calls, |_, call| call.is_timeout()),
            error_message: column(calls, |_, call| call.error_message.as_deref()),
            error_kind: column(calls, |_, call| call.error_kind.map(|kind| kind.as_str())),
            repeated: column(calls, |row, _| row.repeated),
            remote_addr: column(calls, |_, call| call.remote_addr.as_deref()),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 17] {
        [
            &self.outbox_id,
            &self.webhook_id,
            &self.url,
            &self.request_headers,
            &self.request_body,
            &self.status_code,
            &self.response_headers,
            &self.response_body,
            &self.response_bytes,
            &self.response_truncated,
            &self.start_time,
            &self.end_time,
            &self.is_timeout,
            &self.error_message,
            &self.error_kind,
            &self.repeated,
            &self.remote_addr,
        ]
    }
}

/// What a claim returns becomes one value for each outbox row; rows of a project share its webhooks. Columns are taken by
/// position, as claim.sql and claim_parked.sql have them: to look for them by name takes longer than to read them.
fn gather(rows: &[Row], epoch: i64, text_bytes_max: i64) -> Claim {
    let mut previous: HashMap<i64, i64> = HashMap::new();
    let mut webhooks: HashMap<(i64, &str), Vec<Arc<Webhook>>> = HashMap::new();
    for row in rows {
        match row.get(0) {
            "before" => _ = previous.insert(row.get(1), row.get(20)),
            // A view over foreign tables may have nulls: a webhook without an id is none.
            "webhook" => {
                if let Some(id) = row.get::<_, Option<i64>>(1) {
                    let event = (row.get(4), row.get(3));
                    webhooks.entry(event).or_default().push(Arc::new(webhook(id, row, 21)));
                }
            }
            _ => {}
        }
    }
    let none: Arc<[Arc<Webhook>]> = Arc::new([]);
    let webhooks: HashMap<(i64, &str), Arc<[Arc<Webhook>]>> = webhooks
        .into_iter()
        .map(|(event, mut webhooks)| {
            webhooks.sort_unstable_by_key(|webhook| webhook.id);
            (event, webhooks.into())
        })
        .collect();
    let of = |row: &Row| {
        let all = webhooks.get(&(row.get(4), row.get(3))).unwrap_or(&none);
        match row.get::<_, Option<i64>>(18) {
            None => all.clone(),
            Some(only) => all.iter().filter(|webhook| webhook.id == only).cloned().collect(),
        }
    };
    let mut text_bytes = 0;
    let mut claimed: Vec<Claimed> = Vec::with_capacity(rows.len());
    for row in rows.iter().filter(|row| row.get::<_, &str>(0) == "row") {
        let (id, parked) = (row.get(1), row.get(2));
        let mut event = event(row);
        let (is_longer, bytes) = event.cut_texts(EVENT_TEXT_BYTES_MAX);
        text_bytes += bytes;
        claimed.push(Claimed {
            id,
            epoch,
            parked,
            previous: previous.get(&id).copied(),
            event,
            cut: is_longer || row.get(19),
            webhooks: if parked { none.clone() } else { of(row) },
        });
    }
    claimed.sort_unstable_by_key(|row| row.id);
    Claim { rows: claimed, more: i64::try_from(text_bytes).unwrap_or(i64::MAX) > text_bytes_max }
}

fn event(row: &Row) -> Event {
    Event {
        event: row.get(3),
        project_id: row.get(4),
        prompt_id: row.get(5),
        user_id: row.get(6),
        result: row.get(7),
        finished_at: row.get::<_, SystemTime>(8),
        duration_ms: row.get(9),
        prompt_tokens: row.get(10),
        completion_tokens: row.get(11),
        total_tokens: row.get(12),
        cached: row.get(13),
        ip: row.get(14),
        user_agent: row.get(15),
        provider_id: row.get(16),
        provider_default_model: row.get(17),
    }
}

/// Its URL is in that column, its secret in the next.
fn webhook(id: i64, row: &Row, url: usize) -> Webhook {
    Webhook {
        id,
        // A view over foreign tables may have nulls here; an empty URL becomes a logged bad_url.
        url: row.get::<_, Option<String>>(url).unwrap_or_default(),
        signing_secret: row.get::<_, Option<String>>(url + 1).map(Secret),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_cut_into_pieces_that_one_statement_takes() {
        const MAX: usize = STATEMENT_BYTES_MAX;
        assert_eq!(pieces([].into_iter()), []);
        assert_eq!(pieces([1, MAX - 1, 1].into_iter()), [0..2, 2..3]);
        assert_eq!(pieces([9 * MAX, 1, 9 * MAX].into_iter()), [0..1, 1..2, 2..3]);
        assert_eq!(pieces(std::iter::repeat_n(MAX / 3, 7)), [0..3, 3..6, 6..7]);
    }
}
