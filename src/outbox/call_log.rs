//! The call log, as people read it. A statement reads a month of it at most, because each partition that it reads is five
//! locks. Two statements read from a time on that the caller names: those for open failures and for the calls of a row.
//! `call` reads one partition after the other.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tokio_postgres::Row;
use uuid::Uuid;

use crate::error::Result;
use crate::outbox::Store;

/// The span of the call log that one statement reads. Each of its partitions, and each index of those, is a lock in a
/// table that all sessions share. The table has 64 locks for each of `max_connections`, unless the site sets another
/// number: 6,400 by default. A month touches 32 partitions and takes 161 locks. The newest one, which has no end, also touches
/// the week ahead and the default partition, and takes 201. Both numbers are computed.
const SLICE: Duration = Duration::from_secs(SLICE_DAYS * 86400);
const SLICE_DAYS: u64 = 31;
/// How far back the clock of the daemon may have been put between two calls.
const CLOCK_JUMP: Duration = Duration::from_secs(86400);

/// Most repeats of one event that a person sees.
const REPEATS_MAX: i64 = 100;

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
    /// How many bytes its texts have.
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

/// A call with all that the log has of it.
#[derive(Clone, Debug)]
pub struct Whole {
    /// `relay.webhook_calls.id`.
    pub id: i64,
    /// The webhook that was called.
    pub webhook_id: i64,
    /// The call that it repeats.
    pub replay_of: Option<i64>,
    /// All columns.
    pub json: String,
    event_id: Uuid,
    start_time: SystemTime,
}

/// A call that repeats another one.
#[derive(Clone, Debug)]
pub struct Repeat {
    /// `relay.webhook_calls.id`.
    pub id: i64,
    /// First byte of work.
    pub start_time: SystemTime,
    /// The call that it repeats.
    pub replay_of: Option<i64>,
    /// Of the answer.
    pub status_code: Option<i32>,
    /// None for a success.
    pub error_kind: Option<String>,
}

/// What a webhook is now.
#[derive(Clone, Debug)]
pub struct Named {
    /// Whose events it gets; a view may leave it out.
    pub project_id: Option<i64>,
    /// Its name.
    pub name: String,
    /// Where it is called.
    pub url: String,
    /// Whether it is called.
    pub enabled: bool,
}

impl Store {
    /// The call of this id; none when the log does not have it.
    pub async fn call(&self, id: i64) -> Result<Option<Whole>> {
        let rows = self
            .rows("reading the call", include_str!("../../sql/queries/call_log/call.sql"), &[&id])
            .await?;
        Ok(rows.first().map(|row| Whole {
            id: row.get("id"),
            webhook_id: row.get("webhook_id"),
            replay_of: row.get("replay_of"),
            json: row.get("json"),
            event_id: row.get("event_id"),
            start_time: row.get("start_time"),
        }))
    }

    /// The replays of a call's event to its webhook that were made after it, the oldest first, at most [`REPEATS_MAX`]; and the
    /// outbox rows that are about to make one. Runs a statement for each month from the call to `now`.
    pub async fn repeats(&self, call: &Whole, now: SystemTime) -> Result<(Vec<Repeat>, Vec<i64>)> {
        let sql = include_str!("../../sql/queries/call_log/repeats.sql");
        let mut repeats: Vec<Repeat> = Vec::new();
        // A clock may jump between two calls; see relay.open_failures_since().
        let mut since = call.start_time.checked_sub(CLOCK_JUMP).unwrap_or(call.start_time);
        loop {
            let end = since.checked_add(SLICE).filter(|end| *end < now);
            let left = REPEATS_MAX - repeats.len() as i64;
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [&call.event_id, &call.webhook_id, &since, &end, &left];
            let rows = self.rows("reading what repeated the call", sql, &parameters).await?;
            repeats.extend(rows.iter().map(|row| Repeat {
                id: row.get("id"),
                start_time: row.get("start_time"),
                replay_of: row.get("replay_of"),
                status_code: row.get("status_code"),
                error_kind: row.get("error_kind"),
            }));
            match end {
                Some(end) if (repeats.len() as i64) < REPEATS_MAX => since = end,
                _ => break,
            }
        }
        repeats.retain(|repeat| repeat.id > call.id);
        let sql = include_str!("../../sql/queries/call_log/pending_repeats.sql");
        let rows = self
            .rows(
                "reading what is about to repeat the call",
                sql,
                &[&call.event_id, &call.webhook_id, &REPEATS_MAX],
            )
            .await?;
        Ok((repeats, rows.iter().map(|row| row.get(0)).collect()))
    }

    /// What these webhooks are, by id. Leaves out those that are gone, and all of them where their names cannot be read; see
    /// `relay.webhook_names()`.
    pub async fn webhook_names(&self, ids: &[i64]) -> Result<HashMap<i64, Named>> {
        let sql = include_str!("../../sql/queries/call_log/webhook_names.sql");
        let rows = self.rows("reading the webhooks' names", sql, &[&ids]).await?;
        let named = |row: &Row| {
            let text = |column| row.get::<_, Option<String>>(column).unwrap_or_default();
            let named = Named {
                project_id: row.get("project_id"),
                name: text("name"),
                url: text("url"),
                enabled: row.get::<_, Option<bool>>("enabled").unwrap_or_default(),
            };
            (row.get("webhook_id"), named)
        };
        Ok(rows.iter().map(named).collect())
    }

    /// The time by the database's clock, and the highest id that the call log has drawn.
    pub async fn clock(&self) -> Result<(SystemTime, i64)> {
        let row = self
            .one("asking for the time", include_str!("../../sql/queries/call_log/clock.sql"), &[])
            .await?;
        Ok((row.get(0), row.get(1)))
    }

    /// Which calls there are, the newest first, at most `limit`. Runs a statement for each month before `now`.
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

    /// Which calls there are with ids above `after` that are not among the `known`. Only calls that started within a
    /// month before `now` count. Returns at most `limit`, in order of id.
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

    /// These calls, in this order, except those that were dropped meanwhile; with all their columns as JSON when
    /// `json`. The caller keeps their bytes few, because all of them are in memory, some of them more than once. Runs
    /// a statement for the calls of each month.
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

    /// The calls of an outbox row that started at `since` or later, with all their columns.
    pub async fn calls_of_row(&self, outbox_id: i64, since: SystemTime) -> Result<Vec<Logged>> {
        let sql = include_str!("../../sql/queries/call_log/calls_of_row.sql");
        let rows = self.rows("reading calls", sql, &[&outbox_id, &since]).await?;
        Ok(rows.iter().map(Logged::of).collect())
    }

    /// A webhook's open failures that started at `since` or later and before `until`, the oldest first: ids, each with its
    /// project. Of more than `limit` the newest. See `open_failures.sql`.
    pub async fn open_failures(
        &self,
        webhook_id: i64,
        since: SystemTime,
        until: Option<SystemTime>,
        limit: i32,
    ) -> Result<Vec<(i64, i64)>> {
        let sql = include_str!("../../sql/queries/call_log/open_failures.sql");
        let rows = self.rows("reading open failures", sql, &[&webhook_id, &since, &until, &limit]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// The ids of a webhook's calls that started before `until`, the oldest first, at most `limit`. Runs a statement
    /// for each month up to `now`.
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
}

/// Days since 1970.
fn days(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / 86400
}
