//! The claiming loop: claims what can start soon and hands it to the threads.
//!
//! Waits for capacity of the threads. While it leaves rows to a senior instance, it waits for its next look at the head of the
//! queue, or for a slot for a parked row. When it found nothing more, it waits for a moment while rows come briskly. Otherwise it waits
//! for a notification, the poll interval or a rescan that is due. It also wakes when the monitor finds that a peer is dead or
//! has left. Owns the session that claims, the cursor and the sleep lock. Records nothing.

use std::time::{Duration, Instant};

use crate::cli::AfterCrash;
use crate::config::Config;
use crate::daemon::activity::Activity;
use crate::daemon::backoff::Backoff;
use crate::daemon::batch::Batches;
use crate::daemon::deference::{self, Deference};
use crate::daemon::in_hand::InHand;
use crate::daemon::membership::Membership;
use crate::daemon::processor;
use crate::daemon::sessions::SessionSet;
use crate::daemon::signals::Stop;
use crate::daemon::sleeper::Sleeper;
use crate::daemon::wakeup::Cause;
use crate::dispatch::pool::Pool;
use crate::dispatch::scheduler::ClaimBudget;
use crate::error::{Error, Result};
use crate::model::call::ErrorKind;
use crate::model::row::Claimed;
use crate::telemetry::health::{Health, Source};
use crate::telemetry::metrics::Metrics;

/// How often this instance wakes its peers while there is more than it can do. A peer that sleeps learns of it within a second
/// that way, however long its poll interval is. A notification a second costs nothing beside the claims.
const WAKE_PEERS: Duration = Duration::from_secs(1);
/// How often it wakes them while it has anything in hand, so that none takes its own quiet for that of all. It is half of the
/// time after which a peer looks at the others only once a second.
pub(super) const STIR_PEERS: Duration = Duration::from_secs(5);
/// What a call's log says with `--after-crash record`.
const INTERRUPTED: &str =
    "the instance that had this call in hand died: the request may have been sent, or not";

/// The claiming loop.
pub(super) struct Claimer<'a> {
    pub config: &'a Config,
    pub stop: &'a Stop,
    pub pool: &'a Pool,
    pub in_hand: &'a InHand,
    pub membership: &'a Membership,
    pub activity: &'a Activity,
    pub health: &'a Health,
    pub metrics: &'a Metrics,
}

/// What came of a claim of pending rows and one of parked rows.
struct Found {
    rows: usize,
    /// There may be more.
    more: bool,
    /// There are pending rows that were left to a senior instance of this host.
    left: bool,
}

impl Claimer<'_> {
    /// Claims until told to stop; then gives back what has not begun, and returns.
    ///
    /// # Errors
    ///
    /// When a session is lost.
    pub(super) async fn run(&self, sessions: &SessionSet) -> Result<()> {
        let (claim, instance) = (&sessions.claim, &sessions.instance);
        let mut sleeper = Sleeper::new(claim, instance.session(), self.config.poll_interval);
        let mut batches = Batches::new(claim, instance.epoch(), self.pool, self.membership, self.metrics);
        let mut backoff = Backoff::new(self.config.database.user());
        let mut deference = Deference::default();
        while !self.stop.asked() {
            self.park_late(sessions).await?;
            if self.membership.is_recovering() {
                // After a crash of the server a claim may be lost that a peer still acts upon (claims are not
                // flushed). The peer adopts its rows when it comes back; until then no instance claims.
                tokio::select! {
                    () = self.membership.changed() => continue,
                    () = self.stop.wait() => break,
                }
            }
            let Some(budget) = self.pool.claim_budget() else {
                // A notification would be for nothing now. Peers that slept because this instance slept have to be told.
                sleeper.release().await?;
                if self.membership.owes_wake(sleeper.released()) {
                    self.membership.wake_peers(claim, Duration::ZERO).await?;
                }
                tokio::select! {
                    () = self.pool.wait_for_capacity() => continue,
                    () = self.stop.wait() => break,
                }
            };
            let found = match self.claim(&mut batches, &mut deference, instance.epoch(), &budget).await {
                Ok(found) => found,
                // Trying again helps against neither a lost session nor a pooler.
                Err(error) if claim.is_closed() || matches!(error, Error::Pooled { .. }) => {
                    return Err(error);
                }
                Err(error) => {
                    let why = backoff.failed("rows cannot be claimed", &error);
                    self.health.set(Source::Claim, Some(why));
                    tokio::select! {
                        () = backoff.wait() => continue,
                        () = self.stop.wait() => break,
                    }
                }
            };
            if backoff.succeeded() {
                self.health.set(Source::Claim, None);
            }
            sleeper.claimed(found.rows);
            if found.rows > 0 {
                self.activity.note(Instant::now());
                sleeper.release().await?;
                let pause = match found.more {
                    true if self.membership.owes_wake(sleeper.released()) => Duration::ZERO,
                    true => WAKE_PEERS,
                    false => STIR_PEERS,
                };
                self.membership.wake_peers(claim, pause).await?;
            }
            if found.more {
                continue;
            }
            if found.left {
                // A senior may die: the monitor goes on looking at the others.
                self.activity.note(Instant::now());
                // This instance is awake: no insert notifies it. Peers that slept because it slept have to be told.
                sleeper.release().await?;
                if self.membership.owes_wake(sleeper.released()) {
                    self.membership.wake_peers(claim, Duration::ZERO).await?;
                }
                tokio::select! {
                    () = tokio::time::sleep(deference::look(self.membership.seniors(instance.epoch()))) => {}
                    // A slot for a parked row: those are claimed all the same.
                    () = self.pool.capacity_freed() => {}
                    () = self.membership.changed() => {}
                    () = self.stop.wait() => break,
                }
                self.metrics.wakeup(deference::CAUSE);
                continue;
            }
            let cause = tokio::select! {
                cause = sleeper.wait(batches.reason()) => cause?,
                () = self.stop.wait() => break,
            };
            self.metrics.wakeup(cause.name());
            match cause {
                Cause::LastLook | Cause::Poll | Cause::Lingered => batches.want_rescan(),
                Cause::Notified => {
                    // An inserter may have drawn its ids long ago, but that is not what it notifies of as a rule.
                    self.activity.note(Instant::now());
                    batches.want_rescan_after_new();
                }
                Cause::BackedOff | Cause::Other => {}
            }
        }
        self.stop_claiming(sessions).await
    }

    /// Claims pending rows and parked ones, and hands out what is found. Leaves the pending ones to a senior instance while
    /// [`Deference`] says so.
    async fn claim(
        &self,
        batches: &mut Batches<'_>,
        deference: &mut Deference,
        epoch: i64,
        budget: &ClaimBudget,
    ) -> Result<Found> {
        let mut found = Found { rows: 0, more: false, left: false };
        if self.leaves(batches, deference, epoch).await? {
            found.left = true;
        } else {
            let pending = batches.pending(budget.limit, &budget.park).await?;
            (found.rows, found.more) = (pending.rows.len(), pending.more);
            self.hand_out(pending.rows);
        }
        let parked = batches.parked().await?;
        found.rows += parked.rows.len();
        found.more |= parked.more;
        self.hand_out(parked.rows);
        Ok(found)
    }

    /// Whether there are pending rows that are left to a senior instance of this host.
    async fn leaves(&self, batches: &mut Batches<'_>, deference: &mut Deference, epoch: i64) -> Result<bool> {
        let seniors = self.membership.seniors(epoch);
        let now = Instant::now();
        // The first instance of a host reads nothing.
        if seniors > 0 && deference.wants_reading(now) {
            deference.read(processor::read(), now);
        }
        if !deference.defers(seniors, now) {
            return Ok(false);
        }
        let head = batches.head().await?;
        Ok(head.is_some_and(|head| deference.leaves(head, seniors, Instant::now())))
    }

    /// Hands claimed rows to the threads. With `--after-crash record` rows that a dead instance had in hand are
    /// recorded as interrupted instead.
    fn hand_out(&self, rows: Vec<Claimed>) {
        if rows.is_empty() {
            return;
        }
        if self.in_hand.enter(&rows) {
            self.activity.rows_came();
        }
        self.metrics.claimed.inc_by(rows.len() as u64);
        for row in &rows {
            if let Some(why) = row.unmet {
                let project_id = row.event.project_id;
                tracing::debug!(outbox_id = row.id, project_id, %why, "the row meets no webhook: it is done without a call");
            }
        }
        let record = self.config.after_crash == AfterCrash::Record;
        let (interrupted, rows): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| record && row.repeated());
        self.pool.hand_in(rows);
        if !interrupted.is_empty() {
            self.pool.skip(interrupted, ErrorKind::Interrupted, INTERRUPTED);
        }
    }

    /// Gives rows back that wait for others of their own project, and parks them: there they cost nothing.
    async fn park_late(&self, sessions: &SessionSet) -> Result<()> {
        let late = self.pool.take_late();
        self.in_hand.give_back(late.iter().map(|(id, _, repeated)| (*id, *repeated)));
        let parked = self.give_back(sessions, true).await?;
        if parked > 0 {
            self.metrics.parked.inc_by(parked as u64);
            let projects: Vec<i64> = late.iter().map(|(_, project_id, _)| *project_id).collect();
            self.pool.note_parked(&projects);
        }
        Ok(())
    }

    /// What has not begun goes back, for a peer or the next start.
    async fn stop_claiming(&self, sessions: &SessionSet) -> Result<()> {
        self.health.set(Source::Stop, Some("stopping".into()));
        self.in_hand.give_back(self.pool.stop());
        let given_back = self.give_back(sessions, false).await?;
        let running = self.pool.running();
        tracing::info!(given_back, running, "stopping: calls in flight are finished");
        self.in_hand.close();
        Ok(())
    }

    /// Gives back what has not begun; how many rows. With those of a try whose session was lost.
    async fn give_back(&self, sessions: &SessionSet, park: bool) -> Result<usize> {
        let (ids, repeated) = self.in_hand.returning();
        if !ids.is_empty() {
            sessions.claim.give_back(sessions.instance.epoch(), &ids, &repeated, park).await?;
            self.in_hand.returned(&ids);
        }
        Ok(ids.len())
    }
}
