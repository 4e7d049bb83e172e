//! Failed calls in the journal: one line for each, and a sum in a flood of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::model::call::{Call, ErrorKind};
use crate::model::row::Finished;
use crate::telemetry::terminal::escaped;

/// A webhook has one line in this time. Further failures are counted, and [`Failures::flush`] tells how many there were.
const QUIET: Duration = Duration::from_secs(1);
/// Webhooks of which failures are counted. Beyond it each failure of another webhook has a line of its own.
const WEBHOOKS_MAX: usize = 10_000;

/// What was told lately, by webhook.
#[derive(Default)]
pub(crate) struct Failures {
    // One thread: a call is noted, or the flood is told, one after the other.
    lately: RefCell<HashMap<i64, Lately>>,
}

struct Lately {
    told: Instant,
    untold: u64,
}

impl Failures {
    /// Logs a call if it failed. One that was held back for a pause did not: it is no news.
    pub(crate) fn note(&self, row: &Finished, call: &Call) {
        let Some(kind) = call.error_kind.filter(|kind| *kind != ErrorKind::Paused) else { return };
        let now = Instant::now();
        let mut by_webhook = self.lately.borrow_mut();
        let has_room = by_webhook.len() < WEBHOOKS_MAX;
        match by_webhook.get_mut(&call.webhook_id) {
            Some(lately) if now - lately.told < QUIET => {
                lately.untold += 1;
                return;
            }
            Some(lately) => lately.told = now,
            None if has_room => {
                by_webhook.insert(call.webhook_id, Lately { told: now, untold: 0 });
            }
            None => {}
        }
        let duration = call.end_time.duration_since(call.start_time).unwrap_or_default();
        // What is said of a status may have a header of the answer, and the field `status` has the rest.
        let why = call.error_message.as_deref().filter(|_| kind != ErrorKind::HttpStatus).map(escaped);
        tracing::info!(
            webhook_id = call.webhook_id,
            outbox_id = row.id,
            project_id = row.project_id,
            trace_id = %escaped(&row.trace_id),
            error_kind = kind.as_str(),
            error = why.as_deref(),
            status = call.status_code,
            duration_ms = duration.as_millis() as u64,
            "call failed"
        );
    }

    /// Logs the counts of failures that have no line of their own, and forgets webhooks whose calls have not failed since.
    pub(crate) fn flush(&self) {
        let now = Instant::now();
        self.lately.borrow_mut().retain(|webhook_id, lately| {
            if now - lately.told < QUIET {
                return true;
            }
            let untold = std::mem::take(&mut lately.untold);
            if untold > 0 {
                lately.told = now;
                tracing::info!(webhook_id, calls = untold, "more calls failed");
            }
            untold > 0
        });
    }
}
