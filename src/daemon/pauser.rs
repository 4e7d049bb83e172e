//! The pausing loop: pauses webhooks whose endpoints fail (`--pause-failing`), by a session of its own.
//!
//! Waits for a verdict of the rule ([`failing`](super::failing)), which the finishing loop feeds, and for the time to try
//! again what Postgres refused. It opens its session when there is something to pause, and closes it afterwards. It is never
//! in the way of a claim or a finish, and ends no pause.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use crate::config::Config;
use crate::daemon::failing::{Event, Failing, Verdict};
use crate::daemon::sessions::in_time;
use crate::error::{Result, one_line};
use crate::model::call::Call;
use crate::outbox::{Role, Store};
use crate::telemetry::metrics::Metrics;

/// Most webhooks that wait to be paused. More come again with their next failures.
const WAITING_MAX: usize = 1000;
/// How long until what could not be paused is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long Postgres may take for one webhook. The server itself gives up after 10 s.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// A webhook that is to be paused.
#[derive(Clone, Debug)]
struct Wanted {
    webhook_id: i64,
    /// No call that started since then may have succeeded, by any instance.
    since: SystemTime,
    reason: String,
}

/// The failing webhooks, and those that are to be paused. The finishing loop writes it, the pausing loop reads it. Outlives
/// a lost session.
pub(super) struct FailingWebhooks {
    /// None without `--pause-failing`: nothing is counted.
    failing: Option<RefCell<Failing>>,
    wanted: RefCell<VecDeque<Wanted>>,
    /// Rung when there is one more, for the pausing loop.
    more: Notify,
}

impl FailingWebhooks {
    /// Nothing has failed.
    pub(super) fn new(pause_failing: Option<Duration>) -> FailingWebhooks {
        FailingWebhooks {
            failing: pause_failing.map(|after| RefCell::new(Failing::new(after))),
            wanted: RefCell::default(),
            more: Notify::new(),
        }
    }

    /// A call was recorded.
    pub(super) fn note(&self, call: &Call, now: Instant) {
        let (Some(failing), Some(event)) = (&self.failing, Event::of(call)) else { return };
        let Some(verdict) = failing.borrow_mut().note(call.webhook_id, event, now) else { return };
        let mut wanted = self.wanted.borrow_mut();
        if wanted.len() < WAITING_MAX && wanted.iter().all(|other| other.webhook_id != call.webhook_id) {
            wanted.push_back(Wanted::new(call, verdict));
            self.more.notify_one();
        }
    }

    fn first(&self) -> Option<Wanted> {
        self.wanted.borrow().front().cloned()
    }

    /// The first one is done.
    fn done(&self) {
        self.wanted.borrow_mut().pop_front();
    }

    /// The first one cannot be paused now: the others are not to wait for it.
    fn put_last(&self) {
        self.wanted.borrow_mut().rotate_left(1);
    }
}

impl Wanted {
    fn new(call: &Call, verdict: Verdict) -> Wanted {
        let (since, reason) = match verdict {
            Verdict::Gone => (call.end_time, "the endpoint answered 410 (gone)".into()),
            Verdict::Failing { calls, lasting } => {
                let kind = call.error_kind.map_or("", |kind| kind.as_str());
                let status = call.status_code.map(|status| format!(" {status}")).unwrap_or_default();
                let lasting_s = Duration::from_secs(lasting.as_secs());
                let long = humantime::format_duration(lasting_s);
                let reason =
                    format!("all {calls} calls within {long} failed, the last one with {kind}{status}");
                (SystemTime::now().checked_sub(lasting).unwrap_or(SystemTime::UNIX_EPOCH), reason)
            }
        };
        Wanted { webhook_id: call.webhook_id, since, reason }
    }
}

/// The pausing loop.
pub(super) struct Pauser<'a> {
    pub config: &'a Config,
    pub failing: &'a FailingWebhooks,
    pub metrics: &'a Metrics,
}

impl Pauser<'_> {
    /// Pauses for ever. What fails is tried again.
    pub(super) async fn run(&self) -> Infallible {
        loop {
            // What a lost session left comes first.
            while let Err(error) = self.pause_all().await {
                tracing::warn!(error = %one_line(&error), "a failing webhook cannot be paused, trying again in {} s", AGAIN.as_secs());
                tokio::time::sleep(AGAIN).await;
            }
            self.failing.more.notified().await;
        }
    }

    async fn pause_all(&self) -> Result<()> {
        if self.failing.first().is_none() {
            return Ok(());
        }
        let store = in_time(PAUSE_MAX, Store::connect(&self.config.database, Role::Pause)).await?;
        // The first one stays there until it is done: others are only added behind it.
        while let Some(Wanted { webhook_id, since, reason }) = self.failing.first() {
            let paused = in_time(PAUSE_MAX, store.pause_failing(webhook_id, since, &reason)).await;
            let paused = paused.inspect_err(|_| self.failing.put_last())?;
            self.failing.done();
            if paused {
                self.metrics.webhooks_paused.inc();
                tracing::warn!(
                    webhook_id,
                    reason,
                    "webhook paused: it is not called until an operator resumes it (promptpal-relay resume --webhook {webhook_id})"
                );
            } else {
                tracing::debug!(
                    webhook_id,
                    reason,
                    "not paused: the webhook is paused already, or has answered another instance"
                );
            }
        }
        Ok(())
    }
}
