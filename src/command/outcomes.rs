//! What comes of rows that a command has inserted: waits until they are done, and counts their calls.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use crate::command::progress::Progress;
use crate::error::{Error, Result};
use crate::outbox::Store;

/// Rows that one statement looks at.
const PART: usize = 1000;
/// How often to look whether the rows are done.
const LOOK: Duration = Duration::from_millis(200);

/// What came of the rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcomes {
    rows: usize,
    succeeded: u64,
    /// Failed calls, by `error_kind`.
    failed: BTreeMap<String, u64>,
    not_done: u64,
}

impl Outcomes {
    /// Waits until the rows are done, `patience` at most. Their calls started at `since` or later.
    ///
    /// # Errors
    ///
    /// When the outbox or the log cannot be read.
    pub(crate) async fn of(
        store: &Store,
        rows: &[i64],
        since: SystemTime,
        patience: Duration,
    ) -> Result<Outcomes> {
        let mut outcomes = Outcomes { rows: rows.len(), ..Outcomes::default() };
        let mut progress = Progress::of(rows.len(), "rows done");
        let start = Instant::now();
        for (part, rows) in rows.chunks(PART).enumerate() {
            let left = loop {
                let left = store.not_done(rows).await?.unsigned_abs();
                progress.at(part * PART + rows.len() - usize::try_from(left).unwrap_or(0).min(rows.len()));
                // Once it has passed, the others are looked at, and not waited for.
                if left == 0 || start.elapsed() > patience {
                    break left;
                }
                tokio::time::sleep(LOOK).await;
            };
            outcomes.not_done += left;
            for (kind, count) in store.outcomes(rows, since).await? {
                match kind {
                    None => outcomes.succeeded += count,
                    Some(kind) => *outcomes.failed.entry(kind).or_default() += count,
                }
            }
        }
        Ok(outcomes)
    }

    /// In words: `7 of 9 calls succeeded; 2 failed (timeout 2)`.
    pub(crate) fn told(&self) -> String {
        let failed: u64 = self.failed.values().sum();
        let mut text = format!("{} of {} calls succeeded", self.succeeded, self.rows);
        if failed > 0 {
            let kinds: Vec<String> =
                self.failed.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            text += &format!("; {failed} failed ({})", kinds.join(", "));
        }
        if self.not_done > 0 {
            text += &format!("; {} are not made yet", self.not_done);
        }
        let rows = u64::try_from(self.rows).unwrap_or(u64::MAX);
        let silent = rows.saturating_sub(self.succeeded + failed + self.not_done);
        if silent > 0 {
            text += &format!("; {silent} were not made: the webhook was disabled meanwhile, or is gone");
        }
        text
    }

    /// Succeeds when every call did.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`], with what to do next.
    pub(crate) fn require_success(&self) -> Result<()> {
        if self.not_done > 0 {
            return Err(Error::Failed(format!(
                "{} rows are not done yet, and still will be: see promptpal-relay status",
                self.not_done
            )));
        }
        match u64::try_from(self.rows).unwrap_or(u64::MAX).saturating_sub(self.succeeded) {
            0 => Ok(()),
            others => Err(Error::Failed(format!("{others} calls did not succeed"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_the_rows_is_told() {
        let good = Outcomes { rows: 3, succeeded: 3, ..Outcomes::default() };
        assert_eq!(good.told(), "3 of 3 calls succeeded");
        assert!(good.require_success().is_ok());
        let failed = BTreeMap::from([("timeout".to_owned(), 2), ("dns".to_owned(), 1)]);
        let mixed = Outcomes { rows: 9, succeeded: 3, failed, not_done: 2 };
        assert_eq!(
            mixed.told(),
            "3 of 9 calls succeeded; 3 failed (dns 1, timeout 2); 2 are not made yet; 1 were not made: the webhook was \
             disabled meanwhile, or is gone"
        );
        assert!(
            mixed.require_success().is_err_and(|error| error.to_string().contains("2 rows are not done"))
        );
        let silent = Outcomes { rows: 1, ..Outcomes::default() };
        assert!(silent.require_success().is_err_and(|error| error.to_string().contains("1 calls did not")));
    }
}
