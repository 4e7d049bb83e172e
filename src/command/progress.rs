//! How far a long command has come: a bar on a terminal, and a line now and then in a log. Written to standard error.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::command::whole::span;

/// How often a line is written where there is no terminal.
const TELL: Duration = Duration::from_secs(2);
/// How often the bar is drawn in a second: a person sees it move, and a slow line carries it.
const DRAWN_HZ: u8 = 5;
/// Without colours: it looks the same everywhere.
const TEMPLATE: &str = "[{bar:30}] {pos} of {len} {msg}, {per_sec}, {eta} left";

/// How far a command has come.
pub(crate) struct Progress {
    // None where standard error is no terminal.
    bar: Option<ProgressBar>,
    what: &'static str,
    total: usize,
    done: usize,
    start: Instant,
    told: Instant,
    tells: bool,
}

impl Progress {
    /// Begins: `total` things are to be done, which `what` names.
    pub(crate) fn of(total: usize, what: &'static str) -> Progress {
        let bar = io::stderr().is_terminal().then(|| bar(total, what));
        let now = Instant::now();
        Progress { bar, what, total, done: 0, start: now, told: now, tells: true }
    }

    /// Begins, for a command that writes a line for each thing that it has done.
    pub(crate) fn beside_lines(total: usize, what: &'static str) -> Progress {
        let mut progress = Progress::of(total, what);
        progress.tells = false;
        progress
    }

    /// Tells that `done` things are done by now.
    pub(crate) fn at(&mut self, done: usize) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        } else if self.tells && self.told.elapsed() > TELL {
            self.told = Instant::now();
            eprintln!("{}", line(self.done, self.total, self.what, self.start.elapsed()));
        }
    }

    /// Tells that `more` things are done besides.
    pub(crate) fn add(&mut self, more: usize) {
        self.at(self.done + more);
    }

    /// Writes a text behind the bar. False where there is no bar: the caller logs it then. The log has a thread of its own, so
    /// a line of it would stand in the middle of the bar.
    pub(crate) fn says(&self, text: impl Into<String>) -> bool {
        self.bar.as_ref().map(|bar| bar.set_message(text.into())).is_some()
    }
}

impl Drop for Progress {
    /// What the command says at last stands alone.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: usize, what: &'static str) -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(DRAWN_HZ);
    let style = ProgressStyle::with_template(TEMPLATE).expect("the template is one").progress_chars("#> ");
    ProgressBar::with_draw_target(Some(total as u64), target).with_style(style).with_message(what)
}

/// The line for a log.
fn line(done: usize, total: usize, what: &str, took: Duration) -> String {
    let rate = done as f64 / took.as_secs_f64().max(0.001);
    if done == 0 {
        return format!("0 of {total} {what}");
    }
    let left = (total.saturating_sub(done)) as f64 / rate;
    format!("{done} of {total} {what}, {rate:.1}/s, {} left", span(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_count_rate_and_the_time_that_is_left() {
        let took = Duration::from_secs(4);
        assert_eq!(line(40, 1040, "calls", took), "40 of 1040 calls, 10.0/s, 2 min left");
        assert_eq!(line(5, 5, "calls", took), "5 of 5 calls, 1.2/s, 0 ms left");
        assert_eq!(line(0, 5, "calls", took), "0 of 5 calls");
    }
}
