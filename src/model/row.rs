//! An outbox row on its way: claimed, and then with its calls.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::model::call::Call;
use crate::model::event::{Event, Webhook};
use crate::model::memory::Held;

/// A row that the claim returned.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// `relay.outbox.id`.
    pub id: i64,
    /// The epoch that it is claimed under.
    pub epoch: i64,
    /// Parked instead of claimed: its project is full.
    pub parked: bool,
    /// The epoch of the dead instance that had it in hand before, 0 for one that is forgotten.
    pub previous: Option<i64>,
    /// The event to deliver.
    pub event: Event,
    /// One of the event's texts was longer than what is delivered of it.
    pub cut: bool,
    /// The webhooks that the row meets and that are to be called: the enabled ones of its project for its event, or of these the one that the row names.
    /// Rows of one project and event that name none share them. None for a parked row.
    pub webhooks: Arc<[Arc<Webhook>]>,
    /// The webhooks that were paused at the claim, shared in the same way: they are not called, and each has its record.
    pub paused: Arc<[Paused]>,
    /// Why there are none of either kind, unless the row is parked.
    pub unmet: Option<Unmet>,
}

/// A webhook that is not called because it is paused, or its project.
#[derive(Clone, Debug)]
pub struct Paused {
    /// The webhook.
    pub webhook: Arc<Webhook>,
    /// What the record of the call says, shared with the other webhooks of the pause.
    pub message: Arc<str>,
}

impl Claimed {
    /// Whether an instance that died had it in hand: its calls may have been made.
    pub fn repeated(&self) -> bool {
        self.previous.is_some()
    }
}

/// Why a row meets no webhook, so that it is done without a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// The project has no enabled webhook.
    NoWebhook,
    /// The enabled webhooks of the project are for other events.
    OtherEvents,
    /// The webhook that the row names is not there, is disabled, or belongs to another project.
    Absent(i64),
    /// The webhook that the row names is for another event.
    OtherEvent(i64),
}

impl Unmet {
    /// Of a row that names this webhook, or none. `enabled`: the project has an enabled one such as the row names, for
    /// another event.
    pub fn new(only: Option<i64>, enabled: bool) -> Unmet {
        match (only, enabled) {
            (None, false) => Unmet::NoWebhook,
            (None, true) => Unmet::OtherEvents,
            (Some(id), false) => Unmet::Absent(id),
            (Some(id), true) => Unmet::OtherEvent(id),
        }
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unmet::NoWebhook => f.write_str("the project has no enabled webhook"),
            Unmet::OtherEvents => f.write_str("the enabled webhooks of the project are for other events"),
            Unmet::Absent(id) => {
                write!(f, "webhook {id} is gone, is disabled, or belongs to another project")
            }
            Unmet::OtherEvent(id) => write!(f, "webhook {id} is for another event"),
        }
    }
}

/// A row whose calls have ended, to be recorded.
#[derive(Debug)]
pub struct Finished {
    /// `relay.outbox.id`.
    pub id: i64,
    /// The epoch that it was claimed under.
    pub epoch: i64,
    /// `relay.outbox.event_id`.
    pub event_id: Uuid,
    /// The event's project.
    pub project_id: i64,
    /// The event's trace id, or the beginning of a long one.
    pub trace_id: String,
    /// Whether its calls may have been made before, by an instance that died.
    pub repeated: bool,
    /// One for each webhook that the row met at the claim; none when it met no webhook.
    pub calls: Vec<Call>,
    /// The memory that it takes.
    pub held: Held,
    /// It was set aside, and does not count as in hand any more.
    pub aside: bool,
}

impl Finished {
    /// Which claim of which row.
    pub fn key(&self) -> ClaimKey {
        ClaimKey { id: self.id, epoch: self.epoch, event_id: self.event_id }
    }

    /// Bytes that its records have on the way to Postgres, roughly.
    pub fn record_bytes(&self) -> usize {
        self.calls.iter().map(Call::record_bytes).sum()
    }

    /// Counts anew what it takes: its records were made shorter. The payload is there once.
    pub fn weigh(&mut self) {
        let body = self.calls.first().map_or(0, |call| call.request_body.len());
        let records: usize =
            self.calls.iter().map(|call| call.record_bytes() - call.request_body.len()).sum();
        self.held.set(body + records);
    }
}

/// Which claim of which row: a row may be claimed again, and Postgres may draw its id again for another event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClaimKey {
    /// `relay.outbox.id`.
    pub id: i64,
    /// The epoch that it was claimed under.
    pub epoch: i64,
    /// `relay.outbox.event_id`.
    pub event_id: Uuid,
}

/// The claim of a row in hand, as a new epoch asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// `relay.outbox.id`.
    pub id: i64,
    /// The epoch that it was claimed under.
    pub claimed: i64,
    /// `relay.outbox.event_id`: only both together say that it is the same row.
    pub event_id: Uuid,
    /// The previous owner.
    pub previous: Option<i64>,
}

impl Owned {
    /// Which claim of which row.
    pub fn key(&self) -> ClaimKey {
        ClaimKey { id: self.id, epoch: self.claimed, event_id: self.event_id }
    }
}
