//! Where the next claim begins: the cursor, and when it goes back to the oldest rows.
//!
//! Pure: given what the claims found and took, and the time. Claims nothing itself; `batch` does.
//!
//! The cost of a claim is not the backlog but the dead index entries before the first live row. So a claim begins at a
//! cursor. Ids are drawn before commit, so a row with a lower id can appear later. Now and then the cursor goes back, to the
//! [low-water mark](super::low_water) where the whole queue would cost too much. That is a rescan.

use std::time::{Duration, Instant};

use crate::daemon::low_water::LowWater;
use crate::model::snapshot::Snapshot;

/// Rescans take one part in so many of the time: the next one waits for the cost of the last one times this, but for no longer
/// than [`RESCAN_MAX`]. So one that takes more than half a second takes a larger part. The cost is the dead index entries before
/// the first live row, and a report that runs can keep many. What a claim above the cursor takes is not counted: that claim
/// would be made instead.
const RESCAN_SHARE: u32 = 20;
/// A rescan of the whole queue that takes longer than this is costly: then most begin at the low-water mark.
const WHOLE_CHEAP: Duration = Duration::from_millis(1);
/// Where a rescan of the whole queue costs no more than this, a notification is answered by one instead of a claim above the
/// cursor and a rescan after it.
const WHOLE_FREE: Duration = Duration::from_micros(200);
/// Rows that a rescan claims would be claimed anyway. So many of them are counted as a claim each: where there are more, each costs
/// less.
const ROWS_COUNTED: usize = 4;
/// Rescans of the whole queue that nothing asks for take one part in so many of the time, with the same limit. One that
/// takes more than 10 ms takes a larger part.
const WHOLE_SHARE: u32 = 1000;
/// Minimum interval between rescans while there is other work.
const RESCAN_MIN: Duration = Duration::from_millis(20);
/// Maximum interval between rescans: what took long may have been a server that stood still.
const RESCAN_MAX: Duration = Duration::from_secs(10);

/// A walk from the oldest row, or from the low-water mark, to where the cursor was.
#[derive(Clone, Copy, Debug)]
struct Rescan {
    until: i64,
    taken: Duration,
    rows: usize,
    whole: bool,
}

/// What one claim found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claimed {
    /// The highest id of its rows, if there were any.
    pub last_id: Option<i64>,
    /// How many they are.
    pub rows: usize,
    /// There may be more above it.
    pub more: bool,
    /// How long it took.
    pub took: Duration,
}

/// Where the next claim begins.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    id: i64,
    /// No rescan begins before this, because of what the last one cost.
    rescan_at: Instant,
    /// The rescan that is going on.
    rescan: Option<Rescan>,
    /// A rescan is wanted as soon as it may be.
    wanted: bool,
    /// The next rescan is of the whole queue.
    whole: bool,
    /// Where the other rescans begin.
    low_water: LowWater,
    /// What the last rescan of the whole queue took.
    whole_took: Duration,
    /// What such a rescan cost more than a claim above the cursor.
    whole_cost: Duration,
    /// What the last claim above the cursor took that found a row at most.
    single_took: Duration,
    /// No rescan of the whole queue begins before this, unless there is a reason for it.
    whole_at: Instant,
    /// The last rescan began at the low-water mark: what it cannot have seen is still to be looked for.
    owes_whole: bool,
    /// The next claim is above the cursor, whatever is wanted.
    above_first: bool,
}

impl Cursor {
    /// Nothing was claimed yet: a rescan of the whole queue comes first.
    pub(crate) fn new(now: Instant) -> Cursor {
        Cursor {
            id: 0,
            rescan_at: now,
            rescan: None,
            wanted: true,
            whole: true,
            low_water: LowWater::default(),
            whole_took: Duration::ZERO,
            whole_cost: Duration::ZERO,
            single_took: Duration::ZERO,
            whole_at: now,
            owes_whole: false,
            above_first: false,
        }
    }

    /// Only rows above this id are to be claimed.
    pub(crate) fn id(&self) -> i64 {
        self.id
    }

    /// Asks for a rescan: ids are drawn before commit, so a row with a lower id can appear later.
    pub(crate) fn want_rescan(&mut self) {
        self.wanted = true;
    }

    /// Asks for a rescan. A row above the cursor does not wait for a costly one: then a claim above the cursor comes first.
    pub(crate) fn want_rescan_after_new(&mut self) {
        self.wanted = true;
        self.above_first = self.whole_cost > WHOLE_FREE;
    }

    /// Asks for a rescan of the whole queue: rows below the low-water mark may be free again.
    pub(crate) fn want_whole_rescan(&mut self) {
        self.wanted = true;
        self.whole = true;
    }

    /// To be called before each claim. True: a rescan is due, and is to be begun.
    pub(crate) fn is_rescan_due(&mut self, now: Instant) -> bool {
        self.wanted |= self.owes_whole && now >= self.whole_at;
        let is_due = !std::mem::take(&mut self.above_first)
            && now >= self.rescan_at
            && (self.wanted || now >= self.rescan_at + RESCAN_MIN);
        is_due && self.rescan.is_none()
    }

    /// Whether a rescan that is due needs to know which transactions are running.
    pub(crate) fn needs_snapshot(&self) -> bool {
        self.whole_took >= WHOLE_CHEAP
    }

    /// Sets the cursor back: to the low-water mark, or to zero when that is cheap, due, or asked for. `snapshot` was taken
    /// after the last claim, if [`Cursor::needs_snapshot`].
    pub(crate) fn begin_rescan(&mut self, snapshot: Option<Snapshot>, now: Instant) {
        if let Some(snapshot) = snapshot {
            self.low_water.rescan(self.id, snapshot, now);
        }
        let is_cheap = snapshot.is_none();
        let whole = is_cheap || self.whole || now >= self.whole_at || self.low_water.id() == 0;
        self.rescan = Some(Rescan { until: self.id, taken: Duration::ZERO, rows: 0, whole });
        self.id = if whole { 0 } else { self.low_water.id() };
        (self.wanted, self.whole) = (false, false);
    }

    /// A claim from the cursor on has ended `now`: moves the cursor, and ends the rescan that is going on when it is through.
    pub(crate) fn claimed(&mut self, claimed: Claimed, now: Instant) {
        let Claimed { last_id, rows, more, took } = claimed;
        self.id = last_id.unwrap_or(self.id);
        let Some(rescan) = &mut self.rescan else {
            if rows <= 1 {
                // A claim that was held up says nothing.
                self.single_took = took.min(WHOLE_CHEAP);
            }
            return;
        };
        rescan.taken += took;
        rescan.rows += rows;
        if more && self.id < rescan.until {
            return;
        }
        let Rescan { until, taken, rows, whole } = *rescan;
        self.rescan = None;
        self.id = self.id.max(until);
        self.low_water.rescanned();
        self.owes_whole = !whole;
        let cost = taken.saturating_sub(self.single_took * claims(rows));
        if whole {
            (self.whole_took, self.whole_cost) = (taken, cost);
            self.whole_at = now + (taken * WHOLE_SHARE).min(RESCAN_MAX);
        }
        // What a costly one of the whole queue took says nothing of the next one, which begins at the low-water mark.
        let next_is_another = whole && taken >= WHOLE_CHEAP && self.low_water.id() > 0;
        self.rescan_at = if next_is_another { now } else { now + (cost * RESCAN_SHARE).min(RESCAN_MAX) };
    }

    /// When a claim is due for a rescan that had to wait; none: no rescan waits.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        let wanted = self.wanted.then_some(self.rescan_at);
        let whole = self.owes_whole.then(|| self.whole_at.max(self.rescan_at));
        wanted.into_iter().chain(whole).min()
    }
}

/// How many claims above the cursor would have been made for so many rows.
fn claims(rows: usize) -> u32 {
    u32::try_from(rows.clamp(1, ROWS_COUNTED)).expect("a few")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Duration = Duration::from_micros(100);

    fn found(last_id: Option<i64>, more: bool, took: Duration) -> Claimed {
        Claimed { last_id, rows: usize::from(last_id.is_some()), more, took }
    }

    /// A cursor at 100 whose first rescan is through.
    fn at_100(start: Instant) -> Cursor {
        let mut cursor = Cursor::new(start);
        assert!(cursor.is_rescan_due(start), "the first thing that it does");
        cursor.begin_rescan(None, start);
        cursor.claimed(found(Some(100), false, CHEAP), start);
        cursor
    }

    #[test]
    fn it_moves_with_what_is_claimed_and_comes_back_to_where_it_was() {
        let start = Instant::now();
        let mut cursor = at_100(start);
        assert_eq!((cursor.id(), cursor.due_at()), (100, None));
        cursor.want_rescan();
        let later = cursor.due_at().expect("it is wanted");
        assert_eq!(later, start + CHEAP * RESCAN_SHARE, "not before it has paid for the last one");
        assert!(!cursor.is_rescan_due(start) && cursor.is_rescan_due(later));
        cursor.begin_rescan(None, later);
        assert_eq!(cursor.id(), 0);
        cursor.claimed(found(Some(7), true, CHEAP), later);
        assert_eq!(cursor.id(), 7, "it is not through");
        assert!(!cursor.is_rescan_due(later + RESCAN_MAX), "one at a time");
        cursor.claimed(found(None, false, CHEAP), later);
        assert_eq!(cursor.id(), 100);
    }

    #[test]
    fn a_notification_is_for_a_row_above_it_first_where_a_rescan_costs() {
        let start = Instant::now();
        let mut cursor = at_100(start);
        cursor.want_rescan_after_new();
        let later = start + RESCAN_MAX;
        assert!(cursor.is_rescan_due(later), "one claim finds both");
        cursor.begin_rescan(None, later);
        cursor.claimed(found(Some(101), false, 2 * WHOLE_FREE), later);
        cursor.want_rescan_after_new();
        let later = later + RESCAN_MAX;
        assert!(!cursor.is_rescan_due(later));
        assert!(cursor.is_rescan_due(later), "and then below it");
    }

    #[test]
    fn what_a_claim_above_it_would_have_cost_is_not_counted() {
        let start = Instant::now();
        let mut cursor = at_100(start);
        cursor.claimed(found(None, false, CHEAP), start);
        cursor.begin_rescan(None, start);
        cursor.claimed(found(None, false, CHEAP), start);
        cursor.want_rescan();
        assert_eq!(cursor.due_at(), Some(start));
        // Nor are the rows that it claims.
        cursor.begin_rescan(None, start);
        let rows = Claimed { rows: 3, ..found(Some(103), false, 3 * CHEAP) };
        cursor.claimed(rows, start);
        cursor.want_rescan();
        assert_eq!(cursor.due_at(), Some(start));
    }

    #[test]
    fn rescans_of_a_queue_that_is_costly_to_walk_begin_at_the_low_water_mark() {
        let costly = Duration::from_millis(100);
        let snapshot = |xid| Some(Snapshot { xmin: xid, xmax: xid });
        let mut now = Instant::now();
        let mut cursor = at_100(now);
        cursor.want_whole_rescan();
        now += RESCAN_MAX;
        assert!(cursor.is_rescan_due(now));
        assert!(!cursor.needs_snapshot());
        cursor.begin_rescan(None, now);
        cursor.claimed(found(None, false, costly), now);
        assert!(cursor.needs_snapshot());
        // Transactions come and go until the mark has risen.
        for xid in 1..4 {
            cursor.want_rescan();
            now += RESCAN_MAX;
            assert!(cursor.is_rescan_due(now));
            cursor.begin_rescan(snapshot(xid), now);
            cursor.claimed(found(None, false, costly), now);
        }
        cursor.want_rescan();
        assert!(
            cursor.is_rescan_due(now),
            "the next one is another: what the whole one took is not waited for"
        );
        cursor.begin_rescan(snapshot(5), now);
        assert_eq!(cursor.id(), 100, "the low-water mark");
        cursor.claimed(found(None, false, CHEAP), now);
        let whole = cursor.due_at().expect("it owes one of the whole queue");
        assert_eq!(whole, now + (costly * WHOLE_SHARE).min(RESCAN_MAX));
        assert!(cursor.is_rescan_due(whole));
        cursor.begin_rescan(snapshot(6), whole);
        assert_eq!(cursor.id(), 0);
    }

    #[test]
    fn while_there_is_work_it_goes_back_now_and_then_without_being_asked() {
        let start = Instant::now();
        let mut cursor = at_100(start);
        let free = start + CHEAP * RESCAN_SHARE;
        assert!(!cursor.is_rescan_due(free));
        assert!(cursor.is_rescan_due(free + RESCAN_MIN));
    }
}
