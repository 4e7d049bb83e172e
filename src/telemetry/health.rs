//! Whether the daemon works, for `/healthz`, the status line of systemd and the metric `healthy`. Never decides anything: the
//! loops say what they know, each for itself.

use std::cell::RefCell;
use std::collections::BTreeMap;

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
}

/// Why the daemon does not work, by source. Each source writes its own entry; people read all of them.
pub(crate) struct Health(RefCell<BTreeMap<Source, String>>);

impl Health {
    /// Of a daemon that has no session yet.
    pub(crate) fn starting() -> Health {
        Health(RefCell::new(BTreeMap::from([(Source::Sessions, "starting".into())])))
    }

    /// Notes why a source does not work, or with none that it knows no reason.
    pub(crate) fn set(&self, source: Source, why: Option<String>) {
        let mut reasons = self.0.borrow_mut();
        match why {
            Some(why) => _ = reasons.insert(source, why),
            None => _ = reasons.remove(&source),
        }
    }

    /// Why the daemon does not work; none when it works.
    pub(crate) fn why(&self) -> Option<String> {
        let reasons = self.0.borrow();
        let all: Vec<&str> = reasons.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
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
}
