//! The measuring loop: how old the queue is, for the metrics and the status line.
//!
//! Waits five seconds between two questions. Owns a session of its own, so that it is never in the way; without metrics and
//! without systemd it asks nothing. No loop decides by what it finds.

use std::convert::Infallible;
use std::time::Duration;

use crate::config::Config;
use crate::daemon::sessions::in_time;
use crate::daemon::systemd;
use crate::error::{Result, one_line};
use crate::outbox::{Role, Store};
use crate::telemetry::metrics::Metrics;

/// Time between two questions.
const MEASURE: Duration = Duration::from_secs(5);
/// How long an answer may take. The server itself gives up after 5 s.
const MEASURE_MAX: Duration = Duration::from_secs(10);

/// The measuring loop.
pub(super) struct QueueAge<'a> {
    pub config: &'a Config,
    pub metrics: &'a Metrics,
}

impl QueueAge<'_> {
    /// Measures for ever. What fails is asked again; meanwhile the age is not known.
    pub(super) async fn run(&self) -> Infallible {
        if self.config.metrics_listen.is_none() && !systemd::listens() {
            std::future::pending::<()>().await;
        }
        loop {
            if let Err(error) = self.measure().await {
                self.unknown();
                tracing::debug!(error = %one_line(&error), "the age of the queue is not known");
            }
            tokio::time::sleep(MEASURE).await;
        }
    }

    /// The age is not known.
    pub(super) fn unknown(&self) {
        self.metrics.oldest((f64::NAN, f64::NAN));
        self.metrics.retention_age(f64::NAN);
    }

    async fn measure(&self) -> Result<()> {
        let store = Store::connect(&self.config.database, Role::Metrics).await?;
        loop {
            self.metrics.oldest(in_time(MEASURE_MAX, store.oldest()).await?);
            self.metrics.retention_age(in_time(MEASURE_MAX, store.retention_age()).await?);
            tokio::time::sleep(MEASURE).await;
        }
    }
}
