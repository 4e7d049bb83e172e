//! The finish: marks rows done and writes their call logs, in one transaction. Never decides what to do about a
//! record that Postgres refuses.

use std::ops::Range;
use std::time::SystemTime;

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::model::call::Call;
use crate::model::row::Finished;
use crate::outbox::Store;

/// Most bytes of records in one statement, unless a single record has more. While the session sends records, they are
/// in memory up to three times.
pub(crate) const STATEMENT_BYTES_MAX: usize = 1024 * 1024;

impl Store {
    /// Marks rows done and writes their call logs, all or nothing. Returns the ids that were still ours. Another instance
    /// has finished or taken over the other rows, and nothing is written for them.
    ///
    /// This is one statement (`finish.sql`), or one transaction of several when the records have more than
    /// [`STATEMENT_BYTES_MAX`].
    ///
    /// # Errors
    ///
    /// [`Error::is_data`] holds when Postgres cannot store one of the records.
    pub async fn finish(&self, epoch: i64, rows: &[Finished]) -> Result<Vec<i64>> {
        let calls: Vec<(&Finished, &Call)> =
            rows.iter().flat_map(|row| row.calls.iter().map(move |call| (row, call))).collect();
        let pieces = pieces(calls.iter().map(|(_, call)| call.record_bytes()));
        let ids = Ids {
            ids: rows.iter().map(|row| row.id).collect(),
            event_ids: rows.iter().map(|row| row.event_id).collect(),
            without_call: rows.iter().map(|row| row.calls.is_empty()).collect(),
        };
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
        ids: &Ids,
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

    async fn mark_done(&self, ids: &Ids, epoch: i64, calls: &[(&Finished, &Call)]) -> Result<Vec<i64>> {
        let columns = Columns::of(calls);
        let mut parameters: Vec<&(dyn ToSql + Sync)> =
            vec![&ids.ids, &ids.event_ids, &ids.without_call, &epoch];
        parameters.extend(columns.parameters());
        let sql = include_str!("../../sql/queries/finish/finish.sql");
        let done = self.rows("recording calls", sql, &parameters).await?;
        Ok(done.iter().map(|row| row.get(0)).collect())
    }

    /// Runs BEGIN, COMMIT or ROLLBACK.
    async fn command(&self, sql: &str) -> Result<()> {
        let _waiting = self.wait();
        self.session.batch_execute(sql).await.map_err(Error::postgres("recording calls"))
    }
}

/// Which rows: a row is the same row only by both of its ids.
struct Ids {
    ids: Vec<i64>,
    event_ids: Vec<Uuid>,
    /// Whether each has no calls at all.
    without_call: Vec<bool>,
}

/// Where to cut a list of records. Each piece has at most [`STATEMENT_BYTES_MAX`], or is a single record.
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
