//! What `sample.sql` tells, as data. Never draws, never decides.

use serde::Deserialize;

use crate::error::{Error, Result};

/// How it goes at one moment.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Sample {
    /// The time of the day by the database's clock.
    pub(crate) now: String,
    /// This time as Unix time.
    pub(crate) now_s: f64,
    /// Whether this is a standby, where nothing tells which instances run.
    pub(crate) standby: bool,
    /// The span of the rates.
    pub(crate) covered_s: f64,
    /// Calls in the span of the rates.
    pub(crate) calls: u64,
    /// Failed ones in it.
    pub(crate) failed: u64,
    /// Rows that are not done and not parked; [`COUNTED_MAX`] at most.
    pub(crate) pending: i64,
    /// Rows that wait for a slot; [`COUNTED_MAX`] at most.
    pub(crate) parked: i64,
    /// Those of both that an instance has in hand.
    pub(crate) in_hand: i64,
    /// How old the oldest pending row is; none where there is none.
    pub(crate) pending_age_s: Option<f64>,
    /// How old the oldest parked row is.
    pub(crate) parked_age_s: Option<f64>,
    /// The daemons.
    pub(crate) instances: Vec<Instance>,
    /// Rows that are not done, by project.
    pub(crate) projects: Vec<Project>,
    /// Calls by spans of [`SPAN_S`].
    pub(crate) spans: Vec<Span>,
    /// How many pauses there are.
    pub(crate) paused: i64,
    /// Some of them.
    pub(crate) pauses: Vec<Pause>,
    /// The webhooks that were called.
    pub(crate) webhooks: Vec<Webhook>,
    /// The last failed calls, the newest first.
    pub(crate) failures: Vec<Failure>,
}

/// Rows of each kind that the statement counts.
pub(crate) const COUNTED_MAX: i64 = 5000;
/// The span in which calls are counted.
pub(crate) const SPAN_S: i64 = 5;

/// A daemon.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Instance {
    pub(crate) host: String,
    pub(crate) pid: i64,
    pub(crate) version: String,
    pub(crate) age_s: f64,
}

/// Rows of a project that are not done.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Project {
    pub(crate) project_id: i64,
    pub(crate) in_hand: i64,
    pub(crate) waiting: i64,
}

/// The calls of a span.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Span {
    /// Unix time of its beginning.
    pub(crate) key: i64,
    pub(crate) calls: u64,
    pub(crate) failed: u64,
}

/// Who is not called.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Pause {
    pub(crate) webhook_id: Option<i64>,
    pub(crate) project_id: Option<i64>,
}

/// A webhook that was called.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Webhook {
    pub(crate) webhook_id: i64,
    pub(crate) project_id: i64,
    /// Calls in the span of the rates.
    pub(crate) calls: i64,
    /// Failed ones in it.
    pub(crate) failed: i64,
    pub(crate) p50_s: Option<f64>,
    pub(crate) p95_s: Option<f64>,
    pub(crate) last_call: i64,
    pub(crate) last_failure: Option<i64>,
    /// Of the last failure.
    pub(crate) status_code: Option<i32>,
    pub(crate) error_kind: Option<String>,
    pub(crate) message: Option<String>,
}

/// A failed call.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Failure {
    pub(crate) id: i64,
    pub(crate) webhook_id: i64,
    /// The time of the day.
    pub(crate) start: String,
    pub(crate) seconds: f64,
    pub(crate) status_code: Option<i32>,
    pub(crate) error_kind: Option<String>,
    pub(crate) message: Option<String>,
}

impl Sample {
    /// From the statement's answer.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] when it is another statement's.
    pub(crate) fn of(json: &str) -> Result<Sample> {
        serde_json::from_str(json).map_err(|error| Error::Failed(format!("reading how it goes: {error}")))
    }
}
