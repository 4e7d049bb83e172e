//! Whether the daemon works, for `/healthz`, `/readyz`, the status line of systemd and the metric `healthy`; whether it makes
//! progress, for `/livez`. Never decides anything: the loops say what they know, each for itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The parts of the daemon that may say that it does not work, in the order of telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// It is told to stop.
    Stop,
    /// The sessions with Postgres: not there yet, or lost.
    Sessions,
    /// The way out of this host to the endpoints.
    WayOut,
    /// Nothing moves.
    Stall,
    /// The claiming loop.
    Claim,
    /// The finishing loop.
    Finish,
    /// Rows that were set aside, because Postgres refuses their records. The other rows go on: the daemon is ready.
    Aside,
}

/// Why the daemon does not work, and whether it makes progress.
pub(crate) struct Health {
    /// Each source writes its own entry; people read all of them.
    reasons: RefCell<BTreeMap<Source, String>>,
    /// The watchdog writes it, `/livez` reads it.
    life: Cell<Life>,
}

/// Whether the daemon makes progress.
#[derive(Clone, Copy)]
enum Life {
    /// It has not begun to look at itself.
    Unknown,
    /// It has made progress when it looked. It looks again before this time.
    Until(Instant),
    /// It has looked, and something hangs.
    Hangs(&'static str),
}

impl Health {
    /// Of a daemon that has no session yet.
    pub(crate) fn starting() -> Health {
        Health {
            reasons: RefCell::new(BTreeMap::from([(Source::Sessions, "starting".into())])),
            life: Cell::new(Life::Unknown),
        }
    }

    /// Notes why a source does not work, or with none that it knows no reason.
    pub(crate) fn set(&self, source: Source, why: Option<String>) {
        let mut reasons = self.reasons.borrow_mut();
        match why {
            Some(why) => _ = reasons.insert(source, why),
            None => _ = reasons.remove(&source),
        }
    }

    /// Why the daemon does not work; none when it works.
    pub(crate) fn why(&self) -> Option<String> {
        self.reasons_of(|_| true)
    }

    /// Why the daemon delivers no rows; none when its sessions are there and it delivers.
    pub(crate) fn why_not_ready(&self) -> Option<String> {
        self.reasons_of(|source| source != Source::Aside)
    }

    fn reasons_of(&self, counts: impl Fn(Source) -> bool) -> Option<String> {
        let reasons = self.reasons.borrow();
        let all: Vec<&str> =
            reasons.iter().filter(|(source, _)| counts(**source)).map(|(_, why)| why.as_str()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Notes that the daemon makes progress, and within what time it looks again.
    pub(crate) fn lives(&self, again: Duration, now: Instant) {
        self.life.set(Life::Until(now + again));
    }

    /// Notes what hangs.
    pub(crate) fn hangs(&self, what: &'static str) {
        self.life.set(Life::Hangs(what));
    }

    /// Why the daemon makes no progress; none when it does, and before its first look.
    pub(crate) fn why_not_alive(&self, now: Instant) -> Option<&'static str> {
        match self.life.get() {
            Life::Until(again) if now > again => Some("the daemon does not look whether it makes progress"),
            Life::Unknown | Life::Until(_) => None,
            Life::Hangs(what) => Some(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_speaks_for_itself() {
        let health = Health::starting();
        assert_eq!(health.why().as_deref(), Some("starting"));
        health.set(Source::Sessions, None);
        assert_eq!(health.why(), None);
        health.set(Source::Finish, Some("no record".into()));
        health.set(Source::Claim, Some("no claim".into()));
        assert_eq!(health.why().as_deref(), Some("no claim; no record"));
        health.set(Source::Finish, None);
        assert_eq!(
            health.why().as_deref(),
            Some("no claim"),
            "what one has overcome says nothing of the other"
        );
        health.set(Source::Claim, None);
        assert_eq!(health.why(), None);
    }

    #[test]
    fn a_row_that_is_set_aside_is_a_fault_and_keeps_no_other_row_from_delivery() {
        let health = Health::starting();
        assert_eq!(health.why_not_ready().as_deref(), Some("starting"));
        health.set(Source::Sessions, None);
        health.set(Source::Aside, Some("1 row".into()));
        assert_eq!((health.why().as_deref(), health.why_not_ready()), (Some("1 row"), None));
        for source in
            [Source::Stop, Source::Sessions, Source::WayOut, Source::Stall, Source::Claim, Source::Finish]
        {
            health.set(source, Some("why".into()));
            assert_eq!(health.why_not_ready().as_deref(), Some("why"), "{source:?}");
            health.set(source, None);
        }
    }

    #[test]
    fn a_daemon_that_hangs_or_does_not_look_any_more_makes_no_progress() {
        let (now, health, second) = (Instant::now(), Health::starting(), Duration::from_secs(1));
        assert_eq!(health.why_not_alive(now + second * 1000), None, "it waits for its first sessions");
        health.lives(second, now);
        assert_eq!(health.why_not_alive(now + second), None);
        assert!(health.why_not_alive(now + second * 2).is_some());
        health.hangs("a call");
        assert_eq!(health.why_not_alive(now), Some("a call"));
        health.lives(second, now + second * 2);
        assert_eq!(health.why_not_alive(now + second * 2), None);
    }
}
