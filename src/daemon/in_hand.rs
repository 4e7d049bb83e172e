//! The rows that this process has in hand: claimed, and not recorded yet.
//!
//! The claiming loop enters them, the finishing loop takes them out, a reconnection adopts them under a new epoch. The monitor
//! and the drain deadline read how many there are. All run on one thread. Holds no row, only what is known of its claim.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::model::row::{ClaimKey, Claimed, Finished, Owned};

/// The claim of one row.
#[derive(Clone, Copy)]
struct Claim {
    /// The epoch that it was claimed under. A row that was taken from this instance and came back was claimed twice: what
    /// the calls of the first claim give is not the second claim's.
    claimed: i64,
    /// The epoch that it is claimed by: a later one of this process when the row was adopted.
    epoch: i64,
    /// Who the event is: the same id may be drawn again for another one.
    event_id: Uuid,
    /// The previous owner.
    previous: Option<i64>,
    /// Its calls have not begun, and never will here: it goes back. Whether they are repeated ones.
    returning: Option<bool>,
}

impl Claim {
    /// Whether it is this claim.
    fn is_of(&self, key: ClaimKey) -> bool {
        self.claimed == key.epoch && self.event_id == key.event_id
    }
}

/// The rows in hand, by id.
#[derive(Default)]
pub(super) struct InHand {
    rows: RefCell<HashMap<i64, Claim>>,
    /// The claiming loop has claimed its last, and given back what had not begun. Never unset.
    closed: Cell<bool>,
    /// Rung when that is so, for the finishing loop.
    closing: Notify,
}

impl InHand {
    /// Rows were claimed. True: there were none before.
    pub(super) fn enter(&self, claimed: &[Claimed]) -> bool {
        let mut rows = self.rows.borrow_mut();
        let was_empty = rows.is_empty();
        rows.extend(claimed.iter().map(|row| {
            let (claimed, event_id, previous) = (row.epoch, row.event.event_id, row.previous);
            (row.id, Claim { claimed, epoch: claimed, event_id, previous, returning: None })
        }));
        was_empty
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rows.borrow().len()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.borrow().is_empty()
    }

    /// The epoch that a row is claimed by, as far as this process knows. None when its claim is lost, whether or not this
    /// process has claimed the row again since.
    pub(super) fn epoch_of(&self, row: &Finished) -> Option<i64> {
        let rows = self.rows.borrow();
        rows.get(&row.id).filter(|claim| claim.is_of(row.key())).map(|claim| claim.epoch)
    }

    /// A claim is over: its row is recorded, or another instance's. A later claim of the same id stays.
    pub(super) fn over(&self, claim: ClaimKey) {
        let mut rows = self.rows.borrow_mut();
        if rows.get(&claim.id).is_some_and(|current| current.is_of(claim)) {
            rows.remove(&claim.id);
        }
    }

    /// Rows whose calls have not begun go back, each with whether its calls are repeated ones.
    pub(super) fn give_back(&self, unstarted: impl IntoIterator<Item = (ClaimKey, bool)>) {
        let mut rows = self.rows.borrow_mut();
        for (key, repeated) in unstarted {
            if let Some(claim) = rows.get_mut(&key.id).filter(|claim| claim.is_of(key)) {
                claim.returning = Some(repeated);
            }
        }
    }

    /// The ids of the rows that go back, and of those of them whose calls are repeated ones. Those of a try whose session was
    /// lost are among them.
    pub(super) fn returning(&self) -> (Vec<i64>, Vec<i64>) {
        let rows = self.rows.borrow();
        let returning =
            || rows.iter().filter_map(|(id, claim)| claim.returning.map(|repeated| (*id, repeated)));
        let repeated = returning().filter(|(_, repeated)| *repeated);
        (returning().map(|(id, _)| id).collect(), repeated.map(|(id, _)| id).collect())
    }

    /// These rows went back.
    pub(super) fn returned(&self, ids: &[i64]) {
        let mut rows = self.rows.borrow_mut();
        ids.iter().for_each(|id| _ = rows.remove(id));
    }

    /// How many rows have begun.
    pub(super) fn begun(&self) -> usize {
        self.rows.borrow().values().filter(|claim| claim.returning.is_none()).count()
    }

    /// The claims of all rows.
    pub(super) fn owned(&self) -> Vec<Owned> {
        let owned = |(id, claim): (&i64, &Claim)| {
            let Claim { claimed, event_id, previous, .. } = *claim;
            Owned { id: *id, claimed, event_id, previous }
        };
        self.rows.borrow().iter().map(owned).collect()
    }

    /// Of the rows that were `asked` for, `adopted` are claimed by `epoch` now; the others are lost and taken out. Returns
    /// the lost ones.
    pub(super) fn adopted(&self, asked: &[Owned], adopted: &[i64], epoch: i64) -> HashSet<ClaimKey> {
        let adopted: HashSet<i64> = adopted.iter().copied().collect();
        let lost = asked.iter().filter(|claim| !adopted.contains(&claim.id)).map(Owned::key).collect();
        let mut rows = self.rows.borrow_mut();
        rows.retain(|id, _| adopted.contains(id));
        rows.values_mut().for_each(|claim| claim.epoch = epoch);
        lost
    }

    /// No more rows come.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.closing.notify_one();
    }

    /// Whether no more rows come, and all are recorded.
    pub(super) fn is_drained(&self) -> bool {
        self.closed.get() && self.is_empty()
    }

    /// Resolves when [`InHand::close`] was called since the last time. Cancel-safe. For one loop.
    pub(super) async fn closed(&self) {
        self.closing.notified().await;
    }
}
