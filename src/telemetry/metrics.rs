//! What is counted, and under which names.
//!
//! All of it happens on the relay's one asynchronous thread, a batch at a time. Counting never waits, and never asks Postgres.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Instant;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::model::call::{Call, ErrorKind};
use crate::model::load::{BUSIEST, Load};
use crate::telemetry::exposition::{self, Format};
use crate::telemetry::process::Process;
use crate::telemetry::recent_calls::RecentCalls;

type Labels = [(&'static str, String); 1];
type Seconds = Gauge<f64, AtomicU64>;
type Count = Gauge<i64, AtomicI64>;

/// The counters.
pub(crate) struct Metrics {
    registry: Registry,
    durations: HashMap<&'static str, Histogram>,
    // The histograms' counts say so, too.
    recorded: Counter,
    /// Calls whose receivers may have seen them before.
    pub repeated: Counter,
    /// Rows of which nothing was recorded, because they were done, gone, or another instance's.
    pub fenced: Counter,
    /// Rows that were marked done.
    pub done: Counter,
    /// Those of them that met no webhook, so that no call was made.
    pub without_call: Counter,
    /// Claims of pending rows, whether or not they found any. Claims of parked rows are not counted.
    pub claims: Counter,
    /// Rows that were claimed, among them those that were parked before.
    pub claimed: Counter,
    /// Rows that were parked.
    pub parked: Counter,
    finishes: Histogram,
    wakeups: Family<Labels, Counter>,
    /// Session sets that were made anew.
    pub reconnects: Counter,
    /// Instances that this one has declared dead.
    pub takeovers: Counter,
    /// Webhooks that this daemon has paused.
    pub webhooks_paused: Counter,
    in_hand: Count,
    running: Count,
    waiting: Count,
    threads: Count,
    memory_bytes: Count,
    shortages: Counter,
    busiest: Family<Labels, Count>,
    // One thread: a call is noted, or the metrics are written, one after the other.
    recent: RefCell<RecentCalls>,
    recent_calls: Family<Labels, Count>,
    recent_failures: Family<Labels, Count>,
    healthy: Count,
    oldest_pending: Seconds,
    oldest_parked: Seconds,
    retention: Seconds,
}

/// For a call without an error.
const SUCCESS: &str = "success";

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::new()));
        let r = registry.sub_registry_with_prefix("promptpal_relay");
        let by_outcome = Family::<Labels, Histogram>::new_with_constructor(|| {
            // 1 ms to 33 s: beyond the longest usual --timeout.
            Histogram::new(exponential_buckets(0.001, 2.0, 16))
        });
        let text = "Duration of calls by outcome: success, or the error_kind";
        r.register_with_unit("call_duration", text, Unit::Seconds, by_outcome.clone());
        let outcomes = ErrorKind::ALL.map(ErrorKind::as_str).into_iter().chain([SUCCESS]);
        let durations = outcomes
            .map(|outcome| (outcome, by_outcome.get_or_create_owned(&label("outcome", outcome))))
            .collect();
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            r.register(name, help, counter.clone());
            counter
        };
        let repeated = counter("calls_repeated", "Calls that an instance that died may have made before");
        let fenced =
            counter("rows_fenced", "Rows of which nothing was recorded, because they were not ours any more");
        let done = counter("rows_done", "Rows that were marked done");
        let without_call =
            counter("rows_without_call", "Rows that were marked done without a call: they met no webhook");
        let claims = counter("claims", "Claims of pending rows, whether or not they found any");
        let claimed = counter("rows_claimed", "Rows that were claimed");
        let parked = counter("rows_parked", "Rows that were parked: they wait for capacity of their project");
        let reconnects = counter("reconnects", "Connections to Postgres that were made anew");
        let takeovers = counter("takeovers", "Dead instances that were found");
        let webhooks_paused =
            counter("webhooks_paused", "Webhooks that this daemon has paused (--pause-failing)");
        let shortages =
            counter("shortage_pauses", "Pauses for want of descriptors, threads, memory or a way out");
        let finishes = Histogram::new(exponential_buckets(1.0, 4.0, 6));
        r.register("finish_rows", "Rows recorded in one transaction", finishes.clone());
        let wakeups = Family::<Labels, Counter>::default();
        r.register("wakeups", "Ends of a wait of the claiming loop, by cause", wakeups.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Count::default();
            r.register(name, help, gauge.clone());
            gauge
        };
        let in_hand = gauge("rows_in_hand", "Rows that are claimed and not recorded");
        let running = gauge("calls_running", "Calls in flight");
        let waiting = gauge("calls_waiting", "Calls that wait for a slot");
        let threads = gauge("threads", "Threads for calls");
        let memory_bytes = gauge("memory_bytes", "Memory of rows in hand, of what --memory allows");
        let healthy = gauge("healthy", "1 while all is well, as /healthz has it; else 0");
        let busiest = Family::<Labels, Count>::default();
        let text = "Calls in flight to the 20 webhooks that have most";
        r.register("webhook_calls_running", text, busiest.clone());
        let recent_calls = Family::<Labels, Count>::default();
        let text = "Calls of the last five minutes to the 20 webhooks of which most calls failed";
        r.register("webhook_recent_calls", text, recent_calls.clone());
        let recent_failures = Family::<Labels, Count>::default();
        let text = "Failed calls of the last five minutes to the 20 webhooks of which most calls failed";
        r.register("webhook_recent_failures", text, recent_failures.clone());
        let mut seconds = |name: &str, help: &str| {
            let gauge = Seconds::default();
            r.register_with_unit(name, help, Unit::Seconds, gauge.clone());
            gauge
        };
        let oldest_pending =
            seconds("oldest_pending_age", "Age of the oldest row that is not done and not parked");
        let oldest_parked = seconds("oldest_parked_age", "Age of the oldest parked row");
        let retention = seconds(
            "retention_age",
            "Time since old rows and partitions were last all thrown away, by any instance",
        );
        retention.set(f64::NAN);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "This program", Info::new(version));
        Metrics {
            registry,
            durations,
            recorded: Counter::default(),
            repeated,
            fenced,
            done,
            without_call,
            claims,
            claimed,
            parked,
            finishes,
            wakeups,
            reconnects,
            takeovers,
            webhooks_paused,
            in_hand,
            running,
            waiting,
            threads,
            memory_bytes,
            shortages,
            busiest,
            recent: RefCell::default(),
            recent_calls,
            recent_failures,
            healthy,
            oldest_pending,
            oldest_parked,
            retention,
        }
    }
}

fn label(name: &'static str, value: impl ToString) -> Labels {
    [(name, value.to_string())]
}

impl Metrics {
    /// Counts a call that was recorded.
    pub(crate) fn call(&self, call: &Call, repeated: bool) {
        let took = call.end_time.duration_since(call.start_time).unwrap_or_default();
        let outcome = call.error_kind.map_or(SUCCESS, ErrorKind::as_str);
        self.durations[outcome].observe(took.as_secs_f64());
        self.recorded.inc();
        if repeated {
            self.repeated.inc();
        }
        if call.error_kind.is_none_or(ErrorKind::is_of_the_endpoint) {
            self.recent.borrow_mut().note(call.webhook_id, call.error_kind.is_some(), Instant::now());
        }
    }

    /// How many calls were recorded.
    pub(crate) fn calls(&self) -> u64 {
        self.recorded.get()
    }

    /// Counts a transaction that recorded so many rows.
    pub(crate) fn finish(&self, rows: usize) {
        self.finishes.observe(rows as f64);
        self.done.inc_by(rows as u64);
    }

    /// Counts a wait of the claiming loop that ended, by its reason.
    pub(crate) fn wakeup(&self, cause: &str) {
        self.wakeups.get_or_create(&label("cause", cause)).inc();
    }

    /// Sets how old the oldest pending and the oldest parked row are, in seconds; NaN when it is not known.
    pub(crate) fn oldest(&self, (pending, parked): (f64, f64)) {
        self.oldest_pending.set(pending);
        self.oldest_parked.set(parked);
    }

    /// Sets how long ago the retention last did all of its work, in seconds; NaN when it is not known.
    pub(crate) fn retention_age(&self, age: f64) {
        self.retention.set(age);
    }

    /// How old the oldest row is that is not done, in seconds; none when it is not known.
    pub(crate) fn oldest_age(&self) -> Option<f64> {
        let age = self.oldest_pending.get().max(self.oldest_parked.get());
        (!age.is_nan()).then_some(age)
    }

    /// All of it in a format.
    pub(crate) fn text(&self, format: Format, load: &Load, in_hand: usize, is_healthy: bool) -> String {
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.in_hand.set(number(in_hand));
        self.running.set(number(load.running));
        self.waiting.set(number(load.waiting));
        self.threads.set(number(load.threads));
        self.memory_bytes.set(number(load.memory_bytes));
        self.healthy.set(i64::from(is_healthy));
        self.shortages.inc_by(load.shortages.saturating_sub(self.shortages.get()));
        self.busiest.clear();
        for (webhook_id, calls) in &load.busiest {
            self.busiest.get_or_create(&label("webhook", webhook_id)).set(number(*calls));
        }
        self.recent_calls.clear();
        self.recent_failures.clear();
        let worst = self.recent.borrow_mut().worst(BUSIEST, Instant::now());
        for (webhook_id, tally) in worst {
            let labels = label("webhook", webhook_id);
            let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
            self.recent_calls.get_or_create(&labels).set(count(tally.calls));
            self.recent_failures.get_or_create(&labels).set(count(tally.failures));
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        match format {
            Format::OpenMetrics => text,
            Format::Text => exposition::text(&text),
        }
    }
}
