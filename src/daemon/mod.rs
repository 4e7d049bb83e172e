//! The daemon: claim, hand out, finish.
//!
//! Its loops run on one thread, each with a session of its own. The `claimer` claims rows and hands them to the worker
//! threads. The `finisher` commits what comes back, and the `monitor` watches the sessions and the other instances. The
//! [`retention`] throws away what is old, `queue_age` measures the age of the queue, and the `pauser` pauses webhooks that
//! fail. When a session of the first three is lost, the `reconnect` loop makes theirs anew; the worker threads go on
//! meanwhile, and their results wait.
//!
//! What the loops share has one owner each: the rows `in_hand`, the `membership` among the instances, the `activity`.
//! Their rules are pure: [`cursor`], `deference`, [`low_water`], [`wakeup`], `pace`, [`peers`], `stall`, `outage`, [`failing`].

mod activity;
mod backoff;
mod batch;
mod claimer;
pub(crate) mod cursor;
mod deference;
mod drain;
pub(crate) mod failing;
mod finisher;
mod in_hand;
mod inbox;
mod instance;
pub(crate) mod low_water;
mod membership;
mod monitor;
mod origin;
mod outage;
mod pace;
mod pauser;
pub(crate) mod peers;
mod processor;
mod queue_age;
mod reconnect;
mod record;
pub(crate) mod retention;
mod sessions;
pub(crate) mod signals;
mod sleeper;
mod stall;
mod status;
mod systemd;
pub(crate) mod wakeup;
mod watchdog;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::config::Config;
use crate::daemon::activity::Activity;
use crate::daemon::backoff::{RETRY_MAX, with_advice};
use crate::daemon::claimer::Claimer;
use crate::daemon::drain::Drain;
use crate::daemon::finisher::{Commits, Finisher};
use crate::daemon::in_hand::InHand;
use crate::daemon::inbox::Inbox;
use crate::daemon::membership::Membership;
use crate::daemon::monitor::Monitor;
use crate::daemon::origin::Origin;
use crate::daemon::pauser::{FailingWebhooks, Pauser};
use crate::daemon::queue_age::QueueAge;
use crate::daemon::reconnect::Reconnect;
use crate::daemon::retention::Retention;
use crate::daemon::sessions::{OldSessions, SessionSet, SilenceLimit};
use crate::daemon::signals::Stop;
use crate::daemon::watchdog::Watchdog;
use crate::delivery::client::Caller;
use crate::dispatch::pool::Pool;
use crate::error::{Error, Result, one_line};
use crate::model::memory::Memory;
use crate::model::row::{ClaimKey, Finished, Owned};
use crate::outbox::migrations;
use crate::telemetry::failure_log::Failures;
use crate::telemetry::health::{Health, Source};
use crate::telemetry::http::Server;
use crate::telemetry::metrics::Metrics;

/// Rows that are named when their calls cannot be recorded; the rest is counted.
const NAMED_MAX: usize = 20;

/// The daemon, until it is told to stop or cannot go on.
///
/// # Errors
///
/// What keeps it from starting. Once it runs, a lost session is no error: it reconnects for as long as it takes.
pub(crate) async fn run(config: &Config, stop: Stop) -> Result<()> {
    let server = match config.metrics_listen {
        Some(address) => Some(Server::bind(address).await?),
        None => None,
    };
    let mut endpoint = config.endpoint.clone();
    // The very port, also where any free one was asked for.
    endpoint.metrics_port = server.as_ref().map(Server::port).transpose()?;
    let caller = Arc::new(Caller::new(endpoint)?);
    let (to_results, results) = mpsc::unbounded_channel();
    let post = Box::new({
        let caller = caller.clone();
        move |webhook: &_, message: &_, room: &mut _| caller.call(webhook, message, room)
    });
    let memory = Memory::new(config.memory_bytes_max);
    let pool = Pool::new(config.limits, memory, config.endpoint.response_body_bytes_max, post, to_results);
    let daemon = Daemon {
        config,
        stop,
        pool,
        caller,
        in_hand: InHand::default(),
        origin: Origin::new(config.site.clone()),
        membership: Membership::new(Instant::now()),
        activity: Activity::new(Instant::now()),
        commits: Commits::default(),
        failures: Failures::default(),
        failing: FailingWebhooks::new(config.pause_failing),
        health: Health::starting(),
        metrics: Metrics::default(),
    };
    let drain = daemon.drain();
    tokio::select! {
        result = daemon.live(results) => result,
        never = daemon.tell(server) => match never {},
        error = drain.overdue() => Err(error),
    }
}

/// Says that another program has upgraded the schema, and that this daemon goes on.
fn tell_newer(sessions: &SessionSet) {
    if let Some(migration) = sessions.newer_schema {
        tracing::warn!(migration, "the schema has {}", migrations::describe_newer(migration));
    }
}

/// What outlives a lost session.
struct Daemon<'a> {
    config: &'a Config,
    stop: Stop,
    pool: Pool,
    caller: Arc<Caller>,
    in_hand: InHand,
    origin: Origin,
    membership: Membership,
    activity: Activity,
    commits: Commits,
    failures: Failures,
    failing: FailingWebhooks,
    health: Health,
    metrics: Metrics,
}

/// The loops. Each has what it owns, and refers to what it shares.
struct Loops<'a> {
    claimer: Claimer<'a>,
    finisher: Finisher<'a>,
    monitor: Monitor<'a>,
    retention: Retention,
    queue_age: QueueAge<'a>,
    pauser: Pauser<'a>,
    config: &'a Config,
}

impl Loops<'_> {
    /// Works until drained (Ok) or until a session is lost (Err).
    async fn run(&mut self, sessions: &SessionSet) -> Result<()> {
        let work = async {
            // The claimer returns when told to stop, the finisher when all that was in hand by then is recorded.
            tokio::try_join!(self.claimer.run(sessions), self.finisher.run(sessions))?;
            Ok(())
        };
        tokio::select! {
            result = work => result,
            error = self.monitor.run(sessions) => Err(error),
            never = self.retention.run(self.config) => match never {},
            never = self.queue_age.run() => match never {},
            never = self.pauser.run() => match never {},
        }
    }
}

impl Daemon<'_> {
    /// From the first connection to the last commit.
    async fn live(&self, results: UnboundedReceiver<Finished>) -> Result<()> {
        let Some(mut sessions) = self.connect().await? else { return Ok(()) };
        self.health.set(Source::Sessions, None);
        systemd::ready();
        tracing::info!(epoch = sessions.instance.epoch(), database = %self.config.database.describe(), "relaying");
        tell_newer(&sessions);
        let mut loops = self.loops(results);
        while let Err(error) = loops.run(&sessions).await {
            // Our sessions are not ours (a pooler): nothing that is done on them can be relied on.
            if matches!(error, Error::Pooled { .. }) {
                return Err(error);
            }
            self.note_lost(&error);
            loops.queue_age.unknown();
            // A session that ends says why a moment before it is closed. If none ends, a statement failed for another
            // reason: do not turn that into a storm of connections.
            let refused = matches!(error, Error::Postgres { .. });
            if refused && tokio::time::timeout(RETRY_MAX, sessions.lost()).await.is_err() {
                tracing::debug!("all sessions are still open");
            }
            // The sessions that are left keep our epoch alive until our rows in hand are the new one's.
            let old = sessions.into_old(self.membership.epochs());
            let again = self.reconnect().run(old).await.map_err(|error| self.name_unrecorded(error))?;
            let Some(again) = again else { return Ok(()) };
            sessions = again;
            self.metrics.reconnects.inc();
            self.health.set(Source::Sessions, None);
            tracing::info!(epoch = sessions.instance.epoch(), "found Postgres again");
            tell_newer(&sessions);
        }
        tracing::info!("drained");
        if let Err(error) = sessions.instance.retire().await {
            // Nothing is in hand; a peer or the next start finds that out.
            tracing::warn!(error = %one_line(&error), "the daemon ends without being marked dead in relay.instances; a peer or the next start does it");
        }
        Ok(())
    }

    /// The first connection; none when told to stop meanwhile.
    async fn connect(&self) -> Result<Option<SessionSet>> {
        let mut old = OldSessions::default();
        let sessions = tokio::select! {
            sessions = SessionSet::connect(&self.config.database, &self.origin, &self.membership, &mut old, async |_| Ok(())) => sessions?,
            () = self.stop.wait() => return Ok(None),
        };
        self.membership.only_epoch(sessions.instance.epoch());
        Ok(Some(sessions))
    }

    /// Another database is where this daemon's was, or it has become a copy or another site's. What is in hand cannot be
    /// recorded there: the error names it.
    fn name_unrecorded(&self, error: Error) -> Error {
        let Error::Installation(why) = error else { return error };
        let rows: HashSet<ClaimKey> = self.in_hand.owned().iter().map(Owned::key).collect();
        let not_begun = self.pool.abandon(&rows);
        let mut begun: Vec<i64> = rows.difference(&not_begun).map(|claim| claim.id).collect();
        if begun.is_empty() {
            return Error::Installation(why);
        }
        begun.sort_unstable();
        let named: Vec<String> = begun.iter().take(NAMED_MAX).map(i64::to_string).collect();
        let more = match begun.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let database = if self.origin.is_the_first() { "this database" } else { "the database before" };
        Error::Installation(format!(
            "{why}; calls were made for {} rows of {database}, and are not recorded: outbox id {}{more}",
            begun.len(),
            named.join(", ")
        ))
    }

    /// A session is lost: no call starts, and what was wrong with the old sessions is not known of the new ones.
    fn note_lost(&self, error: &Error) {
        self.pool.lease_until(Instant::now());
        self.commits.session_lost();
        self.health.set(Source::Claim, None);
        self.health.set(Source::Finish, None);
        let why = with_advice("lost Postgres", error, self.config.database.user());
        self.health.set(Source::Sessions, Some(why));
        tracing::warn!(error = %one_line(error), "lost Postgres, reconnecting; calls in flight go on");
    }

    /// Answers scrapes, if metrics are wanted.
    async fn tell(&self, server: Option<Server>) -> std::convert::Infallible {
        match server {
            Some(server) => {
                server.serve(&self.metrics, &self.health, || (self.pool.load(), self.in_hand.len())).await
            }
            None => std::future::pending().await,
        }
    }

    fn loops(&self, results: UnboundedReceiver<Finished>) -> Loops<'_> {
        Loops {
            claimer: Claimer {
                config: self.config,
                stop: &self.stop,
                pool: &self.pool,
                in_hand: &self.in_hand,
                membership: &self.membership,
                activity: &self.activity,
                health: &self.health,
                metrics: &self.metrics,
            },
            finisher: Finisher {
                config: self.config,
                pool: &self.pool,
                in_hand: &self.in_hand,
                commits: &self.commits,
                failures: &self.failures,
                failing: &self.failing,
                health: &self.health,
                metrics: &self.metrics,
                inbox: Inbox::new(results),
            },
            monitor: Monitor {
                stop: &self.stop,
                pool: &self.pool,
                caller: &self.caller,
                in_hand: &self.in_hand,
                membership: &self.membership,
                activity: &self.activity,
                failures: &self.failures,
                health: &self.health,
                metrics: &self.metrics,
                watchdog: self.watchdog(),
                silence_limit: SilenceLimit::default(),
            },
            retention: Retention::default(),
            queue_age: QueueAge { config: self.config, metrics: &self.metrics },
            pauser: Pauser { config: self.config, failing: &self.failing, metrics: &self.metrics },
            config: self.config,
        }
    }

    fn reconnect(&self) -> Reconnect<'_> {
        Reconnect {
            config: self.config,
            stop: &self.stop,
            pool: &self.pool,
            in_hand: &self.in_hand,
            origin: &self.origin,
            membership: &self.membership,
            health: &self.health,
            watchdog: self.watchdog(),
        }
    }

    fn watchdog(&self) -> Watchdog<'_> {
        Watchdog { pool: &self.pool, health: &self.health, timeout: self.config.endpoint.timeout }
    }

    fn drain(&self) -> Drain<'_> {
        Drain {
            stop: &self.stop,
            timeout: self.config.endpoint.timeout,
            in_hand: &self.in_hand,
            commits: &self.commits,
            pool: &self.pool,
            caller: &self.caller,
        }
    }
}
