//! The monitor: watches the sessions, the other instances, the threads, and tells systemd.
//!
//! Waits until it is time to check the other instances: 50 ms while something goes on, 1 s while all is quiet, 100 ms while
//! one is suspect. It is also 1 s while there is none and the calls in hand hang, and 250 ms for the third instance of a host that has
//! nothing in hand. Also waits for a call that the end of the lease holds up, for the end of the quiet, for a lost session,
//! and for the watchdog. Owns the session that listens, with its liveness lock, and the lease until which calls may start.
//! Claims and records nothing.

use std::time::{Duration, Instant};

use crate::daemon::activity::Activity;
use crate::daemon::claimer::STIR_PEERS;
use crate::daemon::in_hand::InHand;
use crate::daemon::membership::Membership;
use crate::daemon::peers::DEAD_AFTER;
use crate::daemon::sessions::{SILENCE, SessionSet, SilenceLimit, in_time};
use crate::daemon::signals::Stop;
use crate::daemon::stall::{self, Stall};
use crate::daemon::status::{Facts, StatusLine};
use crate::daemon::watchdog::Watchdog;
use crate::delivery::client::Caller;
use crate::dispatch::pool::Pool;
use crate::error::{Error, Result};
use crate::telemetry::failure_log::Failures;
use crate::telemetry::health::{Health, Source};
use crate::telemetry::metrics::Metrics;

/// How often the other instances are looked at while this one has rows in hand, or something goes on: with [`DEAD_AFTER`],
/// the time to a takeover.
const WATCH: Duration = Duration::from_millis(50);
/// How often the third and each further instance of a host looks while it has nothing in hand. The first two look for all.
const WATCH_THIRD: Duration = Duration::from_millis(250);
/// How often they are looked at while all is quiet; also while there is none and the calls in hand hang.
const WATCH_QUIET: Duration = Duration::from_secs(1);
/// How long calls may still start after the liveness locks should have been read again. An instance that was frozen longer
/// asks first whether its rows are still its own.
const LEASE_GRACE: Duration = Duration::from_millis(250);
/// How often the journal says that the way out is lacking.
const LACK_AGAIN: Duration = Duration::from_secs(60);
/// How often the server is asked whether it works for the sessions that claim and finish.
const ASK: Duration = Duration::from_secs(1);

/// What decides when the next look at the other instances is due.
#[derive(Clone, Copy, Debug)]
struct Scene {
    /// Another instance's lock is free.
    any_suspect: bool,
    /// Others that live.
    alive: usize,
    /// Those of them that are senior, on this host.
    seniors: usize,
    /// Nothing is in hand.
    is_empty: bool,
    is_quiet: bool,
    is_still: bool,
}

impl Scene {
    /// How long after one look the next one is due, and how long after it calls may start.
    fn pace(self) -> (Duration, Duration) {
        let (pause, lease) = if self.any_suspect {
            (DEAD_AFTER, DEAD_AFTER)
        } else if self.is_empty && self.is_quiet {
            (WATCH_QUIET, WATCH_QUIET)
        } else if self.is_empty && self.seniors >= 2 {
            (WATCH_THIRD, WATCH_THIRD)
        } else if !self.is_empty && self.is_still && self.alive == 0 {
            // No other instance can die but one that has come since the last look. The next call that wants to start asks for a
            // look.
            (WATCH_QUIET, WATCH)
        } else {
            (WATCH, WATCH)
        };
        (pause, lease + LEASE_GRACE)
    }
}

/// The monitor.
pub(super) struct Monitor<'a> {
    pub stop: &'a Stop,
    pub pool: &'a Pool,
    pub caller: &'a Caller,
    pub in_hand: &'a InHand,
    pub membership: &'a Membership,
    pub activity: &'a Activity,
    pub failures: &'a Failures,
    pub health: &'a Health,
    pub metrics: &'a Metrics,
    pub watchdog: Watchdog<'a>,
    /// How long the other sessions may wait for Postgres. It outlives a lost session.
    pub silence_limit: SilenceLimit,
}

impl Monitor<'_> {
    /// Watches until a session is lost.
    pub(super) async fn run(&mut self, sessions: &SessionSet) -> Error {
        match self.watch(sessions).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn watch(&mut self, sessions: &SessionSet) -> Result<std::convert::Infallible> {
        let mut watchdog = self.watchdog.interval();
        // A look proves that the sessions were there when it began, and so were the liveness lock and our claims.
        let mut looked = Instant::now();
        let mut asked = looked;
        let mut stall = Stall::default();
        let mut lack_told = None;
        let mut status = StatusLine::new(self.metrics.calls(), looked);
        loop {
            let (pause, lease) = self.scene(&stall, sessions.instance.epoch(), Instant::now()).pace();
            self.pool.lease_until(looked + lease);
            // In this order: a slow Postgres makes looks overdue all the time, and the watchdog is to be told all the same.
            tokio::select! {
                biased;
                error = sessions.lost() => return Err(error),
                _ = watchdog.tick() => {
                    self.watchdog.tell(&stall);
                    continue;
                }
                () = self.activity.stirred() => continue,
                () = self.pool.lease_wanted() => {}
                () = tokio::time::sleep_until((looked + pause).into()) => {}
            }
            self.pool.tick();
            self.caller.close_resting();
            self.failures.flush();
            self.tell_status(&mut status);
            self.look_for_lack(&mut lack_told);
            self.look_for_stall(&mut stall);
            let start = Instant::now();
            in_time(SILENCE, self.look_around(sessions, start)).await?;
            looked = start;
            if asked.elapsed() >= ASK {
                asked = start;
                in_time(SILENCE, sessions.require_responsive(&mut self.silence_limit)).await?;
            }
        }
    }

    /// What decides when the next look is due.
    fn scene(&self, stall: &Stall, epoch: i64, now: Instant) -> Scene {
        Scene {
            any_suspect: self.membership.any_suspect(),
            alive: self.membership.alive(),
            seniors: self.membership.seniors(epoch),
            is_empty: self.in_hand.is_empty(),
            is_quiet: self.activity.is_quiet(now),
            is_still: stall.is_still(now),
        }
    }

    /// Looks at the other instances; while this one has anything in hand, sees to it that they look at it.
    async fn look_around(&self, sessions: &SessionSet, now: Instant) -> Result<()> {
        if !self.in_hand.is_empty() {
            self.membership.wake_peers(sessions.instance.session(), STIR_PEERS).await?;
        }
        sessions.instance.look_around(self.membership, now).await?;
        // With those that a connection has declared dead.
        self.metrics.takeovers.inc_by(self.membership.declared_dead() - self.metrics.takeovers.get());
        Ok(())
    }

    /// Says when the way out is lacking, at once and then now and then, and when it is there again. `told` is when it was last
    /// said.
    fn look_for_lack(&self, told: &mut Option<Instant>) {
        let lack = self.caller.lack();
        match (&lack, *told) {
            (Some(why), last) if last.is_none_or(|last| last.elapsed() >= LACK_AGAIN) => {
                *told = Some(Instant::now());
                tracing::error!("{why}; calls wait, and none fails for it");
            }
            (None, Some(_)) => {
                *told = None;
                tracing::info!("the way out is open again, calls go on");
            }
            _ => {}
        }
        self.health.set(Source::WayOut, lack.map(|why| format!("{why}; calls wait")));
    }

    /// Says when nothing moves although there is something to do, and nothing else says why.
    fn look_for_stall(&self, stall: &mut Stall) {
        let load = self.pool.load();
        let before = stall.is_stalled();
        stall.look(&load, self.caller.lack().is_some(), Instant::now());
        if stall.is_stalled() == before {
            return;
        }
        let why = stall.is_stalled().then(|| {
            format!(
                "{} calls wait, and none has ended or been recorded for {} s",
                load.waiting,
                stall::LIMIT.as_secs()
            )
        });
        match &why {
            Some(why) => tracing::error!(
                rows = self.in_hand.len(),
                memory_bytes = load.memory_bytes,
                shortages = load.shortages,
                "{why}; if this does not pass, restart the daemon"
            ),
            None => tracing::info!("calls go on"),
        }
        self.health.set(Source::Stall, why);
    }

    fn tell_status(&self, status: &mut StatusLine) {
        let now = Instant::now();
        if !status.is_due(now) {
            return;
        }
        let facts = Facts {
            stopping: self.stop.asked().then(|| self.pool.running()),
            why: self.health.why(),
            in_hand: self.in_hand.len(),
            oldest_s: self.metrics.oldest_age().filter(|age| *age > 0.0),
        };
        status.tell(facts, self.metrics.calls(), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_often_it_looks_depends_on_who_could_need_it() {
        // Alone, with calls that hang.
        let hanging = Scene {
            any_suspect: false,
            alive: 0,
            seniors: 0,
            is_empty: false,
            is_quiet: true,
            is_still: true,
        };
        // The third of a host, without rows.
        let third = Scene { alive: 2, seniors: 2, is_empty: true, is_quiet: false, ..hanging };
        let cases = [
            (hanging, WATCH_QUIET, WATCH),
            (Scene { alive: 1, ..hanging }, WATCH, WATCH),
            (Scene { is_still: false, ..hanging }, WATCH, WATCH),
            // A moment ago there were rows: the next one's call is not to wait for a look.
            (Scene { is_empty: true, is_quiet: false, ..hanging }, WATCH, WATCH),
            (Scene { is_empty: true, ..hanging }, WATCH_QUIET, WATCH_QUIET),
            (third, WATCH_THIRD, WATCH_THIRD),
            (Scene { seniors: 1, ..third }, WATCH, WATCH),
            (Scene { is_empty: false, ..third }, WATCH, WATCH),
            (Scene { is_quiet: true, ..third }, WATCH_QUIET, WATCH_QUIET),
            (Scene { any_suspect: true, ..third }, DEAD_AFTER, DEAD_AFTER),
            (Scene { any_suspect: true, ..hanging }, DEAD_AFTER, DEAD_AFTER),
        ];
        for (scene, pause, lease) in cases {
            assert_eq!(scene.pace(), (pause, lease + LEASE_GRACE), "{scene:?}");
        }
    }
}
