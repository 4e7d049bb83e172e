//! Claims batches of rows: above the cursor, from the oldest on, and parked ones.
//!
//! The rules of [`cursor`](super::cursor) on the session that claims. Does not hand out what it claims, and does not decide
//! when to claim.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::daemon::cursor::{Claimed, Cursor};
use crate::daemon::membership::Membership;
use crate::dispatch::pool::Pool;
use crate::error::Result;
use crate::model::row;
use crate::outbox::{Claim, Store};
use crate::telemetry::metrics::Metrics;

/// Most rows in one claim: a few milliseconds of a transaction.
const CLAIM_MAX: usize = 500;
/// How often the daemon learns which projects have parked rows while there is work: a peer may have parked them. When a peer
/// is gone, it learns at once.
const LEARN_PARKED: Duration = Duration::from_secs(5);
/// Time between two such questions, as a multiple of what the last one took.
const LEARN_PARKED_SHARE: u32 = 20;
/// Projects with parked rows that are read at once.
const PARKED_PROJECTS_MAX: i64 = 10_000;

/// What a claim found.
pub(super) struct Batch {
    /// Claimed by this instance now; to be handed out.
    pub rows: Vec<row::Claimed>,
    /// There may be more.
    pub more: bool,
}

/// The claims of one registration.
pub(super) struct Batches<'a> {
    claim: &'a Store,
    epoch: i64,
    pool: &'a Pool,
    membership: &'a Membership,
    metrics: &'a Metrics,
    cursor: Cursor,
    /// Before this the daemon does not ask again which projects have parked rows.
    learn_parked_at: Instant,
    /// Epochs whose rows may be taken over, at the last claim.
    dead: Vec<i64>,
    /// Other instances at the last claim.
    peers_alive: usize,
}

impl<'a> Batches<'a> {
    /// Has claimed nothing yet. Claims under `epoch`.
    pub(super) fn new(
        claim: &'a Store,
        epoch: i64,
        pool: &'a Pool,
        membership: &'a Membership,
        metrics: &'a Metrics,
    ) -> Batches<'a> {
        let now = Instant::now();
        Batches {
            claim,
            epoch,
            pool,
            membership,
            metrics,
            cursor: Cursor::new(now),
            learn_parked_at: now,
            dead: Vec::new(),
            peers_alive: 0,
        }
    }

    /// As [`Cursor::want_rescan`].
    pub(super) fn want_rescan(&mut self) {
        self.cursor.want_rescan();
    }

    /// As [`Cursor::want_rescan_after_new`].
    pub(super) fn want_rescan_after_new(&mut self) {
        self.cursor.want_rescan_after_new();
    }

    /// Resolves when there is a reason of our own to claim: a slot for a parked row, a dead peer, a rescan that had to
    /// wait. Cancel-safe.
    pub(super) fn reason(&self) -> impl Future<Output = ()> + use<'a> {
        let (pool, membership, due_at) = (self.pool, self.membership, self.cursor.due_at());
        async move {
            let due = async {
                match due_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = pool.capacity_freed() => {}
                () = membership.changed() => {}
                () = due => {}
            }
        }
    }

    /// Claims up to `limit` pending rows, and parks those of the projects in `park`.
    ///
    /// # Errors
    ///
    /// When Postgres refuses the claim, or the session is lost.
    pub(super) async fn pending(&mut self, limit: usize, park: &[i64]) -> Result<Batch> {
        let start = self.begin().await?;
        let limit = limit.min(CLAIM_MAX);
        let bytes = self.pool.text_bytes();
        let Claim { rows, more } =
            self.claim.claim(self.cursor.id(), &self.dead, limit, self.epoch, park, bytes).await?;
        let more = more || rows.len() == limit;
        let last_id = rows.last().map(|row| row.id);
        let claimed = Claimed { last_id, rows: rows.len(), more, took: start.elapsed() };
        self.cursor.claimed(claimed, Instant::now());
        self.metrics.claims.inc();
        let (parked, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.parked);
        self.metrics.parked.inc_by(parked.len() as u64);
        if !parked.is_empty() {
            let projects: Vec<i64> = parked.iter().map(|row| row.event.project_id).collect();
            self.pool.note_parked(&projects);
        }
        Ok(Batch { rows, more })
    }

    /// Looks at the head of the queue instead of claiming it, and moves the cursor there: the rows before it are taken. None:
    /// a claim would find nothing.
    ///
    /// # Errors
    ///
    /// When Postgres refuses the statement, or the session is lost.
    pub(super) async fn head(&mut self) -> Result<Option<i64>> {
        let start = self.begin().await?;
        let head = self.claim.head(self.cursor.id(), &self.dead).await?;
        let (last_id, more) = (head.map(|id| id - 1), head.is_some());
        let passed = Claimed { last_id, rows: 0, more, took: start.elapsed() };
        self.cursor.claimed(passed, Instant::now());
        Ok(head)
    }

    /// Learns what has become of the peers, and begins a rescan when one is due. Returns when the claim begins: the question for
    /// the snapshot is not counted, because it costs the same however long the queue is.
    async fn begin(&mut self) -> Result<Instant> {
        self.note_peers();
        let now = Instant::now();
        if self.cursor.is_rescan_due(now) {
            let snapshot = match self.cursor.needs_snapshot() {
                true => Some(self.claim.snapshot().await?),
                false => None,
            };
            self.cursor.begin_rescan(snapshot, now);
        }
        Ok(Instant::now())
    }

    /// When a peer died or left, its rows may be anywhere in the queue, and no other instance may know of its parked rows.
    fn note_peers(&mut self) {
        let (dead, alive) = (self.membership.dead(), self.membership.alive());
        let one_less = alive < std::mem::replace(&mut self.peers_alive, alive);
        if one_less || dead != self.dead {
            self.dead = dead;
            self.cursor.want_whole_rescan();
            self.learn_parked_at = Instant::now();
        }
    }

    /// Claims parked rows of projects that have room.
    ///
    /// # Errors
    ///
    /// When Postgres refuses the claim, or the session is lost.
    pub(super) async fn parked(&mut self) -> Result<Batch> {
        if Instant::now() >= self.learn_parked_at {
            self.learn_parked().await?;
        }
        let rooms = self.pool.parked_room(CLAIM_MAX);
        if rooms.is_empty() {
            return Ok(Batch { rows: Vec::new(), more: false });
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
        Ok(Batch { rows, more })
    }

    /// Learns which projects have parked rows: after a start, and those that a peer parked.
    async fn learn_parked(&mut self) -> Result<()> {
        let start = Instant::now();
        let projects = self.claim.parked_projects(PARKED_PROJECTS_MAX).await?;
        self.learn_parked_at = Instant::now() + LEARN_PARKED.max(start.elapsed() * LEARN_PARKED_SHARE);
        self.pool.note_parked(&projects);
        Ok(())
    }
}
