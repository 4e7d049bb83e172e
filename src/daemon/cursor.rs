//! Where to look for rows: the cursor, the rescans, the slow lane.
//!
//! The cost of a claim is not the backlog but the dead index entries before the first live row. So a claim begins at a
//! cursor; but ids are drawn before commit, and a lower one can appear later: now and then it begins anew, at the
//! [`floor`](crate::daemon::low_water) where the whole queue would cost too much. What is claimed is not handed out here, and when to
//! look is not decided here.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::daemon::low_water::Floor;
use crate::daemon::membership::Peers;
use crate::dispatch::pool::Pool;
use crate::error::Result;
use crate::model::row::Claimed;
use crate::outbox::{Claim, Store};
use crate::telemetry::metrics::Metrics;

/// Most rows in one claim: a few milliseconds of a transaction.
const CLAIM_MAX: usize = 500;
/// A rescan takes at most this share of the time: it is not repeated before its cost times this. Its cost is
/// the dead index entries before the first live row, and somebody's report can keep many. What a claim above the cursor
/// takes is not counted: that one would be made instead.
const RESCAN_SHARE: u32 = 20;
/// A rescan of the whole queue that takes longer than this is costly: then most begin at the floor.
const WHOLE_CHEAP: Duration = Duration::from_millis(1);
/// And the whole ones take at most this share of the time.
const WHOLE_SHARE: u32 = 1000;
/// Nor before this, while there is other work.
const RESCAN_MIN: Duration = Duration::from_millis(20);
/// But after this at the latest: what took long may have been a server that stood still.
const RESCAN_MAX: Duration = Duration::from_secs(10);
/// How often we learn which projects have parked rows while there is work: a peer may have parked them. When one is
/// gone we learn it at once.
const LEARN_PARKED: Duration = Duration::from_secs(5);
/// Projects with parked rows that are read at once.
const PARKED_PROJECTS_MAX: i64 = 10_000;

/// What a look found.
pub struct Found {
    /// Ours now; to be handed out.
    pub rows: Vec<Claimed>,
    /// There may be more.
    pub more: bool,
}

/// A walk from the oldest row, or from the floor, to where the cursor was.
struct Rescan {
    until: i64,
    taken: Duration,
    whole: bool,
}

/// Where to look for rows, on the session that claims.
pub struct Look<'a> {
    claim: &'a Store,
    epoch: i64,
    pool: &'a Pool,
    peers: &'a RefCell<Peers>,
    takeover: &'a Notify,
    metrics: &'a Metrics,
    /// Only rows above it are looked at.
    cursor: i64,
    /// Not before this the next rescan, because of what the last one cost.
    rescan_at: Instant,
    /// The rescan that is going on.
    rescan: Option<Rescan>,
    /// A rescan is wanted as soon as it may be.
    wanted: bool,
    /// And it shall be of the whole queue.
    whole: bool,
    /// Where the others begin.
    floor: Floor,
    /// What the last one of the whole queue took.
    whole_took: Duration,
    /// What the last claim above the cursor took that found nothing.
    empty_took: Duration,
    /// Not before this the next one of the whole queue, unless there is a reason for it.
    whole_at: Instant,
    /// The last one began at the floor: what it cannot have seen is still to be looked for.
    owes_whole: bool,
    /// But the next look is above the cursor.
    above_first: bool,
    /// Not before this we learn anew which projects have parked rows.
    learn_parked_at: Instant,
    /// Epochs whose rows may be taken over, at the last look.
    dead: Vec<i64>,
    /// Other instances at the last look.
    peers_alive: usize,
}

impl<'a> Look<'a> {
    /// Has seen nothing yet. Claims under `epoch`; `takeover` is rung when there are dead to be taken over from.
    pub fn new(
        claim: &'a Store,
        epoch: i64,
        pool: &'a Pool,
        peers: &'a RefCell<Peers>,
        takeover: &'a Notify,
        metrics: &'a Metrics,
    ) -> Look<'a> {
        Look {
            claim,
            epoch,
            pool,
            peers,
            takeover,
            metrics,
            cursor: 0,
            rescan_at: Instant::now(),
            rescan: None,
            wanted: true,
            whole: true,
            floor: Floor::default(),
            whole_took: Duration::ZERO,
            empty_took: Duration::ZERO,
            whole_at: Instant::now(),
            owes_whole: false,
            above_first: false,
            learn_parked_at: Instant::now(),
            dead: Vec::new(),
            peers_alive: 0,
        }
    }

    /// Asks for a look from the oldest row on: ids are drawn before commit, so a lower one can appear later.
    pub fn want_the_oldest(&mut self) {
        self.wanted = true;
    }

    /// The same, but the next look is above the cursor: a row there shall not wait for a rescan.
    pub fn want_the_oldest_after_the_new(&mut self) {
        self.want_the_oldest();
        self.above_first = true;
    }

    /// Asks for a look at the whole queue, and for parked rows that we do not know of.
    fn want_all(&mut self) {
        self.want_the_oldest();
        self.whole = true;
        self.learn_parked_at = Instant::now();
    }

    /// Resolves when there is a reason of our own to look: a place for a parked row, dead rows, a rescan that had to
    /// wait. Cancel-safe.
    pub fn reason(&self) -> impl Future<Output = ()> + use<'a> {
        let (pool, takeover, wanted, rescan_at) = (self.pool, self.takeover, self.wanted, self.rescan_at);
        let (owes_whole, whole_at) = (self.owes_whole, self.whole_at.max(rescan_at));
        async move {
            tokio::select! {
                () = pool.capacity_freed() => {}
                () = takeover.notified() => {}
                () = tokio::time::sleep_until(rescan_at.into()), if wanted => {}
                () = tokio::time::sleep_until(whole_at.into()), if owes_whole => {}
            }
        }
    }

    /// Claims up to `limit` pending rows, and parks those of the projects in `park`.
    pub async fn pending(&mut self, limit: usize, park: &[i64]) -> Result<Found> {
        let (dead, alive) = (self.peers.borrow().dead().to_vec(), self.peers.borrow().alive());
        let one_less = alive < std::mem::replace(&mut self.peers_alive, alive);
        if one_less || dead != self.dead {
            self.dead = dead;
            self.want_all();
        }
        let start = Instant::now();
        self.wanted |= self.owes_whole && start >= self.whole_at;
        let due = !std::mem::take(&mut self.above_first)
            && start >= self.rescan_at
            && (self.wanted || start >= self.rescan_at + RESCAN_MIN);
        if due && self.rescan.is_none() {
            self.begin_rescan(start).await?;
        }
        let limit = limit.min(CLAIM_MAX);
        let bytes = self.pool.text_bytes();
        let Claim { rows, more } =
            self.claim.claim(self.cursor, &self.dead, limit, self.epoch, park, bytes).await?;
        let more = more || rows.len() == limit;
        self.cursor = rows.last().map_or(self.cursor, |row| row.id);
        let took = start.elapsed();
        if rows.is_empty() && self.rescan.is_none() {
            self.empty_took = took;
        }
        self.go_on_with_rescan(took, more);
        self.metrics.claims.inc();
        let (parked, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.parked);
        self.metrics.parked.inc_by(parked.len() as u64);
        if !parked.is_empty() {
            self.note_parked(parked.iter().map(|row| row.event.project_id));
        }
        Ok(Found { rows, more })
    }

    /// Sets the cursor back: to the floor, or to zero when that is cheap, due, or asked for.
    async fn begin_rescan(&mut self, now: Instant) -> Result<()> {
        let is_cheap = self.whole_took < WHOLE_CHEAP;
        if !is_cheap {
            self.floor.rescan(self.cursor, self.claim.snapshot().await?, now);
        }
        let whole = is_cheap || self.whole || now >= self.whole_at || self.floor.id() == 0;
        self.rescan = Some(Rescan { until: self.cursor, taken: Duration::ZERO, whole });
        self.cursor = if whole { 0 } else { self.floor.id() };
        (self.wanted, self.whole) = (false, false);
        Ok(())
    }

    /// Notes what a claim took, and whether there may be more; ends the rescan that is going on when it is through.
    fn go_on_with_rescan(&mut self, took: Duration, more: bool) {
        let Some(rescan) = &mut self.rescan else { return };
        rescan.taken += took;
        if more && self.cursor < rescan.until {
            return;
        }
        let Rescan { until, taken, whole } = *rescan;
        self.rescan = None;
        self.cursor = self.cursor.max(until);
        self.floor.rescanned();
        self.owes_whole = !whole;
        let now = Instant::now();
        if whole {
            self.whole_took = taken;
            self.whole_at = now + (taken * WHOLE_SHARE).min(RESCAN_MAX);
        }
        // What a costly one of the whole queue took says nothing of the next one, which begins at the floor.
        let cost = taken.saturating_sub(self.empty_took);
        let next_is_another = whole && taken >= WHOLE_CHEAP && self.floor.id() > 0;
        self.rescan_at = if next_is_another { now } else { now + (cost * RESCAN_SHARE).min(RESCAN_MAX) };
    }

    /// Rows of these projects were parked.
    pub fn note_parked(&mut self, projects: impl Iterator<Item = i64>) {
        self.pool.note_parked(&projects.collect::<Vec<_>>());
    }

    /// Claims parked rows of projects that have room.
    pub async fn parked(&mut self) -> Result<Found> {
        if Instant::now() >= self.learn_parked_at {
            self.learn_parked().await?;
        }
        let rooms = self.pool.parked_room(CLAIM_MAX);
        if rooms.is_empty() {
            return Ok(Found { rows: Vec::new(), more: false });
        }
        let (projects, places): (Vec<i64>, Vec<i64>) = rooms.into_iter().unzip();
        let bytes = self.pool.text_bytes();
        let Claim { rows, more: too_much } =
            self.claim.claim_parked(&projects, &places, &self.dead, self.epoch, bytes).await?;
        let mut got: HashMap<i64, i64> = HashMap::new();
        for row in &rows {
            *got.entry(row.event.project_id).or_default() += 1;
        }
        // A project that gave less than it has room for has no more, unless the texts were too much.
        let mut more = too_much;
        for (project, room) in projects.iter().zip(places) {
            if got.get(project).copied().unwrap_or_default() < room && !too_much {
                self.pool.forget_parked(*project);
            } else {
                more = true;
            }
        }
        Ok(Found { rows, more })
    }

    /// Learns which projects have parked rows: after a start, and those that a peer parked.
    async fn learn_parked(&mut self) -> Result<()> {
        let start = Instant::now();
        self.pool.note_parked(&self.claim.parked_projects(PARKED_PROJECTS_MAX).await?);
        self.learn_parked_at = Instant::now() + LEARN_PARKED.max(start.elapsed() * RESCAN_SHARE);
        Ok(())
    }
}
