//! Which timeline a server writes on, and whether that is an old one.
//!
//! Each promotion of a standby begins a timeline with a higher number. A primary that comes back after a failover, and is no
//! standby, goes on with the old one: what it has pending was delivered from the new one. A pure rule; asks no server.

use std::sync::{Arc, Mutex};

use tokio_postgres::SimpleQueryMessage;

/// The timeline that a server writes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The system identifier: other clusters have other timelines.
    cluster: String,
    number: u32,
}

impl Timeline {
    /// Whether the other one is another timeline of the same cluster.
    pub fn differs(&self, other: &Timeline) -> bool {
        self.cluster == other.cluster && self.number != other.number
    }

    /// From the answer to `timeline.sql`; none from a standby.
    pub(super) fn read(answer: &[SimpleQueryMessage]) -> Option<Timeline> {
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })?;
        let number = u32::from_str_radix(row.get(1)?, 16).ok()?;
        Some(Timeline { cluster: row.get(0)?.to_owned(), number })
    }
}

/// The newest timeline on which this process has opened a session. All clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Newest(Arc<Mutex<Option<Timeline>>>);

/// A server is an old primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Old {
    /// Its timeline.
    pub number: u32,
    /// The timeline that was there before.
    pub newest: u32,
}

impl Newest {
    /// Notes the timeline of a session that has been opened.
    ///
    /// # Errors
    ///
    /// When a session of this process was on a newer timeline of the same cluster.
    pub(super) fn admit(&self, found: &Timeline) -> Result<(), Old> {
        let mut newest = self.0.lock().expect("nothing panics while holding it");
        match newest.as_ref().filter(|newest| newest.cluster == found.cluster) {
            Some(newest) if newest.number > found.number => {
                Err(Old { number: found.number, newest: newest.number })
            }
            _ => {
                *newest = Some(found.clone());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(cluster: &str, number: u32) -> Timeline {
        Timeline { cluster: cluster.to_owned(), number }
    }

    #[test]
    fn who_has_been_on_a_newer_timeline_does_not_go_back() {
        let newest = Newest::default();
        let clone = newest.clone();
        assert_eq!(newest.admit(&on("a", 2)), Ok(()));
        assert_eq!(clone.admit(&on("a", 1)), Err(Old { number: 1, newest: 2 }));
        assert_eq!(newest.admit(&on("a", 2)), Ok(()));
        assert_eq!(clone.admit(&on("a", 3)), Ok(()));
        assert_eq!(newest.admit(&on("a", 2)), Err(Old { number: 2, newest: 3 }));
        // Another cluster is for others to judge.
        assert_eq!(newest.admit(&on("b", 1)), Ok(()));
    }
}
