//! What a monitoring system asks a relay: `/metrics`, `/healthz` and the like.

use std::thread;
use std::time::Instant;

pub use test_support::http::{ask, get};

use super::{DEADLINE, LOOK};

/// The value of a series in what `/metrics` answered.
pub fn value(metrics: &str, series: &str) -> Option<f64> {
    let line =
        metrics.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

/// Scrapes until a series has a value that is wanted; returns the whole of that scrape.
pub fn until(port: u16, series: &str, wanted: impl Fn(f64) -> bool) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (status, metrics) = get(port, "/metrics");
        assert_eq!(status, 200);
        if value(&metrics, series).is_some_and(&wanted) {
            return metrics;
        }
        assert!(Instant::now() < deadline, "{series}\n{metrics}");
        thread::sleep(LOOK);
    }
}

/// Asks a path until the answer's status and text are wanted; returns the text of that answer.
pub fn until_answer(port: u16, path: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (status, text) = get(port, path);
        if wanted(status, &text) {
            return text;
        }
        assert!(Instant::now() < deadline, "{path}: {status} {text}");
        thread::sleep(LOOK);
    }
}

/// Asks until `/healthz` says that the relay does not work, for a reason that is wanted; returns the reason.
pub fn until_unhealthy(port: u16, wanted: impl Fn(&str) -> bool) -> String {
    until_answer(port, "/healthz", |status, why| status == 503 && wanted(why))
}
