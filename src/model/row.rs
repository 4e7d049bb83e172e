//! An outbox row on its way: claimed, and then with its calls.

use std::sync::Arc;

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
    /// The webhooks to call, shared with the other rows of the project; none for a parked row.
    pub webhooks: Arc<[Arc<Webhook>]>,
    /// The webhooks that were paused at the claim, shared in the same way: they are not called, and each has its record.
    pub paused: Arc<[Paused]>,
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

/// A row whose calls have ended, to be recorded.
#[derive(Debug)]
pub struct Finished {
    /// `relay.outbox.id`.
    pub id: i64,
    /// The epoch that it was claimed under.
    pub epoch: i64,
    /// Whether its calls may have been made before, by an instance that died.
    pub repeated: bool,
    /// One for each webhook that was enabled at the claim.
    pub calls: Vec<Call>,
    /// The memory that it takes.
    pub held: Held,
    /// It was set aside, and does not count as in hand any more.
    pub aside: bool,
}

impl Finished {
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
