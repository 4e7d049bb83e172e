//! The queries: one typed function for each file under `sql/queries`, and the planner settings of each session.
//!
//! Knows no HTTP and no policy: what to claim, when to finish and what a failure means is decided by the callers.
//! Every function is one round trip and, unless it says otherwise, one transaction of its own.

pub mod lock_class;
pub mod migrations;

mod admin;
mod call_log;
mod claim;
mod finish;
mod instances;
mod retention;
mod role;
mod sleep_lock;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;
use std::time::{Duration, Instant};

pub use admin::Holder;
pub use call_log::{Key, Logged, Wanted};
pub use claim::Claim;
pub use finish::STATEMENT_BYTES_MAX;
pub use instances::{Lock, Peer, Vital};
pub use migrations::Server;
pub use retention::Turn;
pub use role::Role;
pub use sleep_lock::Sleep;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::error::{Error, Result};
use crate::postgres::{Session, Settings};

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
}
