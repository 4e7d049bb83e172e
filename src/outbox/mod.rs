//! The schema `relay`: each file under `sql/queries` belongs to one typed function, in a file for each folder there. Only
//! those under `postgres` belong to the room of that name. Never knows HTTP, threads or policy: the callers decide what to
//! claim, when to finish and what a failure means.
//!
//! [`Store`] is a session with its prepared statements. A function of it is one round trip and one transaction of its own,
//! unless it says otherwise. `status` makes two round trips and `draw_lock` up to eight. `finish` makes several in one
//! transaction when the records are large. `calls`, `call_ids`, `whole_calls` and `repeats` make one for each month. The first use of a
//! statement prepares it, which is one round trip more.

pub(crate) mod installation;
pub(crate) mod lock_class;
pub(crate) mod migrations;

mod call_log;
mod check;
mod claim;
mod finish;
mod instances;
mod pauses;
mod replay;
mod retention;
mod role;
mod sleep_lock;
mod status;
mod top;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;
use std::time::{Duration, Instant};

pub(crate) use call_log::{Key, Logged, Repeat, Wanted, Whole};
pub(crate) use check::Holder;
pub(crate) use claim::Claim;
pub(crate) use finish::STATEMENT_BYTES_MAX;
pub(crate) use instances::Lock;
pub use instances::{Liveness, Peer};
pub use pauses::Target;
pub use role::Role;
pub use sleep_lock::Sleep;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::error::{Error, Result};
use crate::postgres::{Session, Settings};

/// A session with its prepared statements.
pub struct Store {
    session: Session,
    // Only this session's one task writes and reads it.
    prepared: RefCell<HashMap<&'static str, Statement>>,
    // When the session sent the statement whose answer it waits for. Of two at a time, the later one.
    waiting_since: Cell<Option<Instant>>,
    // The shortest time in which an answer came. On a busy machine, too, that is what the network takes.
    round_trip: Cell<Duration>,
    // Its sign of life, once a caller has asked for one.
    lock: Cell<Option<Lock>>,
}

/// Ends the wait for an answer when it is dropped: the answer came, or the caller dropped the call.
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

impl Store {
    /// Connects a session and sets it up for its role.
    ///
    /// # Errors
    ///
    /// What [`Settings::connect`] returns.
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

    /// When the session sent the statement whose answer it waits for; none while it waits for no answer.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since.get()
    }

    fn wait(&self) -> Waiting<'_> {
        self.waiting_since.set(Some(Instant::now()));
        Waiting(&self.waiting_since)
    }

    /// Waits for an answer, and notes the round trip.
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
        let statement = self.answer(self.session.prepare(sql)).await.map_err(Error::postgres(doing))?;
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
        self.answer(self.session.query(&statement, parameters)).await.map_err(Error::postgres(doing))
    }

    async fn one(
        &self,
        doing: &'static str,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row> {
        let _waiting = self.wait();
        let statement = self.statement(doing, sql).await?;
        self.answer(self.session.query_one(&statement, parameters)).await.map_err(Error::postgres(doing))
    }
}
