//! The call log: rows of `relay.webhook_calls`. A job gets its answer when its row is committed.
//!
//! In batches, one session writes what all jobs have brought since its last commit. Alone, each row is a transaction of its own
//! on a session of a pool, as a plain INSERT in a handler is.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::call::Call;

/// Most rows of one statement, and most that wait.
const BATCH: usize = 500;
/// Sessions of the pool when each row is written alone.
const SESSIONS: usize = 20;

/// A transaction of its own. The columns are those that the relay writes.
const INSERT: &str = "
    INSERT INTO relay.webhook_calls (
        outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body, status_code,
        response_headers, response_body, response_bytes, response_truncated, start_time, end_time, is_timeout,
        succeeded, repeated, remote_addr, user_agent, ip, event_id)
    SELECT c.outbox_id, c.webhook_id, c.project_id, replace(c.event_id::text, '-', ''), c.url, c.request_headers::jsonb,
           c.request_body, c.status_code, c.response_headers::jsonb, c.response_body, length(c.response_body), false,
           c.start_time, c.end_time, false, c.status_code BETWEEN 200 AND 299, false, c.remote_addr, '', '', c.event_id
      FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::integer[],
                  $9::text[], $10::text[], $11::text[], $12::timestamptz[], $13::timestamptz[])
           AS c (outbox_id, webhook_id, project_id, event_id, url, request_headers, request_body, status_code,
                 response_headers, response_body, remote_addr, start_time, end_time)";

type Entry = (Call, oneshot::Sender<()>);

/// What the jobs hold.
#[derive(Clone, Debug)]
pub struct Log {
    entries: mpsc::Sender<Entry>,
    written: watch::Receiver<u64>,
}

/// Writes, on a session of its own.
pub struct Writer {
    session: tokio_postgres::Client,
    batch: usize,
    entries: Arc<Mutex<mpsc::Receiver<Entry>>>,
    written: Arc<watch::Sender<u64>>,
}

/// How many sessions write, and how many rows at a time.
pub fn mode(name: &str) -> Option<(usize, usize)> {
    match name {
        "batches" => Some((1, BATCH)),
        "alone" => Some((SESSIONS, 1)),
        _ => None,
    }
}

/// A log whose writers have at most so many rows in a statement.
pub fn open(sessions: Vec<tokio_postgres::Client>, batch: usize) -> (Log, Vec<Writer>) {
    let (sender, receiver) = mpsc::channel(BATCH);
    let (count, counted) = watch::channel(0);
    let (entries, written) = (Arc::new(Mutex::new(receiver)), Arc::new(count));
    let writers = sessions.into_iter().map(|session| Writer {
        session,
        batch,
        entries: entries.clone(),
        written: written.clone(),
    });
    (Log { entries: sender, written: counted }, writers.collect())
}

impl Log {
    /// Returns when the row is committed.
    pub async fn write(&self, call: Call) -> Result<(), String> {
        let (answer, committed) = oneshot::channel();
        self.entries.send((call, answer)).await.map_err(|_| "the log is closed".to_owned())?;
        committed.await.map_err(|_| "the log is closed".to_owned())
    }

    /// Waits until so many rows are committed.
    pub async fn until(&mut self, rows: u64) -> Result<(), watch::error::RecvError> {
        self.written.wait_for(|written| *written >= rows).await.map(|_| ())
    }
}

impl Writer {
    /// The next batch is what has come while the one before was written.
    pub async fn run(self) -> Result<(), tokio_postgres::Error> {
        let insert = self.session.prepare(INSERT).await?;
        let mut batch = Vec::with_capacity(self.batch);
        while self.entries.lock().await.recv_many(&mut batch, self.batch).await > 0 {
            let calls: Vec<&Call> = batch.iter().map(|(call, _)| call).collect();
            self.session.execute(&insert, &Columns::of(&calls).parameters()).await?;
            self.written.send_modify(|written| *written += batch.len() as u64);
            for (_, answer) in batch.drain(..) {
                // A job that has been given up does not wait.
                answer.send(()).unwrap_or_default();
            }
        }
        Ok(())
    }
}

struct Columns<'a> {
    id: Vec<i64>,
    webhook_id: Vec<i64>,
    project_id: Vec<i64>,
    event_id: Vec<Uuid>,
    url: Vec<&'a str>,
    request_headers: Vec<&'a str>,
    request_body: Vec<&'a str>,
    status: Vec<i32>,
    response_headers: Vec<&'a str>,
    response_body: Vec<&'a str>,
    remote_addr: Vec<Option<&'a str>>,
    start: Vec<SystemTime>,
    end: Vec<SystemTime>,
}

impl<'a> Columns<'a> {
    fn of(calls: &[&'a Call]) -> Columns<'a> {
        Columns {
            id: calls.iter().map(|call| call.job.id).collect(),
            webhook_id: calls.iter().map(|call| call.job.webhook_id).collect(),
            project_id: calls.iter().map(|call| call.job.body.project_id).collect(),
            event_id: calls.iter().map(|call| call.job.event_id).collect(),
            url: calls.iter().map(|call| call.job.url.as_str()).collect(),
            request_headers: calls.iter().map(|call| call.request_headers.as_str()).collect(),
            request_body: calls.iter().map(|call| call.request_body.as_str()).collect(),
            status: calls.iter().map(|call| i32::from(call.status)).collect(),
            response_headers: calls.iter().map(|call| call.response_headers.as_str()).collect(),
            response_body: calls.iter().map(|call| call.response_body.as_str()).collect(),
            remote_addr: calls.iter().map(|call| call.remote_addr.as_deref()).collect(),
            start: calls.iter().map(|call| call.start).collect(),
            end: calls.iter().map(|call| call.end).collect(),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 13] {
        [
            &self.id,
            &self.webhook_id,
            &self.project_id,
            &self.event_id,
            &self.url,
            &self.request_headers,
            &self.request_body,
            &self.status,
            &self.response_headers,
            &self.response_body,
            &self.remote_addr,
            &self.start,
            &self.end,
        ]
    }
}
