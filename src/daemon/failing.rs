//! Which webhook fails for so long that it is to be paused (`--pause-failing`).
//!
//! A pure rule over plain state: the caller tells what came of each recorded call, and when. Knows neither Postgres nor the
//! journal. An instance knows its own calls only, so the log has the last word: see `relay.pause_failing_webhook`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::model::call::Call;

/// A webhook with fewer calls is not paused: a few failures far from each other say little.
pub(crate) const CALLS_MIN: u64 = 20;
/// Most failing webhooks that are counted. When one more fails, those that failed longest ago are forgotten.
const WEBHOOKS_MAX: usize = 10_000;
/// Number of webhooks whose failures count as a fault of this host's network: they fail at the same time, while no endpoint
/// at all answers.
const SUSPECT: usize = 3;
/// The status of an endpoint that is gone for good (RFC 9110, 15.5.11).
const GONE: u16 = 410;

/// What a call says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The endpoint took the event.
    Success,
    /// The call failed.
    Failure {
        /// Whether the endpoint answered with a status.
        answered: bool,
    },
    /// The endpoint says that it is gone.
    Gone,
}

impl Event {
    /// What a recorded call says; none when it says nothing: it was not made, or failed for a reason of ours.
    pub(crate) fn of(call: &Call) -> Option<Event> {
        match call.error_kind {
            None => Some(Event::Success),
            Some(kind) if !kind.is_of_the_endpoint() => None,
            Some(_) if call.status_code == Some(GONE) => Some(Event::Gone),
            Some(_) => Some(Event::Failure { answered: call.status_code.is_some() }),
        }
    }
}

/// Why a webhook is to be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has said that it is gone.
    Gone,
    /// All of its calls have failed.
    Failing {
        /// How many.
        calls: u64,
        /// For how long.
        lasting: Duration,
    },
}

/// Failures of a webhook without a success between them.
#[derive(Clone, Copy)]
struct Streak {
    since: Instant,
    last: Instant,
    calls: u64,
}

/// The failing webhooks.
pub(crate) struct Failing {
    after: Duration,
    streaks: HashMap<i64, Streak>,
    /// When an endpoint last answered, whichever and whatever.
    answered: Option<Instant>,
}

impl Failing {
    /// Nothing has failed. A webhook that fails for `after` is to be paused.
    pub(crate) fn new(after: Duration) -> Failing {
        Failing { after, streaks: HashMap::new(), answered: None }
    }

    /// A call was recorded. Returns why its webhook is to be paused, if it is.
    pub(crate) fn note(&mut self, webhook_id: i64, event: Event, now: Instant) -> Option<Verdict> {
        if event != (Event::Failure { answered: false }) {
            self.answered = Some(now);
        }
        match event {
            Event::Success => {
                self.streaks.remove(&webhook_id);
                None
            }
            Event::Gone => {
                self.streaks.remove(&webhook_id);
                Some(Verdict::Gone)
            }
            Event::Failure { .. } => {
                let streak = self.count(webhook_id, now);
                let lasting = now.saturating_duration_since(streak.since);
                if streak.calls < CALLS_MIN || lasting < self.after {
                    return None;
                }
                // In both cases the count begins anew: an outage of ours is not held against the endpoint either.
                let is_suspect = self.is_network_suspect(streak.since);
                self.streaks.remove(&webhook_id);
                (!is_suspect).then_some(Verdict::Failing { calls: streak.calls, lasting })
            }
        }
    }

    fn count(&mut self, webhook_id: i64, now: Instant) -> Streak {
        if self.streaks.len() >= WEBHOOKS_MAX && !self.streaks.contains_key(&webhook_id) {
            self.forget_half();
        }
        let streak = self.streaks.entry(webhook_id).or_insert(Streak { since: now, last: now, calls: 0 });
        streak.calls += 1;
        streak.last = now;
        *streak
    }

    /// Forgets the half that failed longest ago: half at once, so that a failure costs little on average.
    fn forget_half(&mut self) {
        let mut last: Vec<Instant> = self.streaks.values().map(|streak| streak.last).collect();
        let middle = last.len() / 2;
        let (_, middle, _) = last.select_nth_unstable(middle);
        let middle = *middle;
        self.streaks.retain(|_, streak| streak.last > middle);
    }

    /// Whether several webhooks fail and no endpoint has answered anybody since then: then this host's network may be what
    /// fails, and to pause all of them would make it worse.
    fn is_network_suspect(&self, since: Instant) -> bool {
        self.streaks.len() >= SUSPECT && self.answered.is_none_or(|at| at < since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::call::ErrorKind;
    use crate::model::event::Webhook;

    const AFTER: Duration = Duration::from_secs(3600);
    const REFUSED: Event = Event::Failure { answered: false };
    const STATUS: Event = Event::Failure { answered: true };

    /// Notes `calls` events of a webhook, a minute apart; the verdicts.
    fn note(failing: &mut Failing, webhook: i64, event: Event, calls: u32, start: Instant) -> Vec<Verdict> {
        (0..calls).filter_map(|n| failing.note(webhook, event, start + Duration::from_secs(60) * n)).collect()
    }

    #[test]
    fn a_webhook_is_paused_when_all_of_enough_calls_have_failed_for_long_enough() {
        let (now, mut failing) = (Instant::now(), Failing::new(AFTER));
        assert_eq!(note(&mut failing, 1, REFUSED, 60, now), [], "59 minutes");
        let verdict = failing.note(1, REFUSED, now + AFTER);
        assert_eq!(verdict, Some(Verdict::Failing { calls: 61, lasting: AFTER }));
        assert_eq!(note(&mut failing, 1, REFUSED, 60, now + AFTER), [], "it begins anew");
        let rare = |n: u32| now + AFTER * n;
        let verdicts: Vec<_> = (0..20).filter_map(|n| failing.note(2, STATUS, rare(n))).collect();
        assert_eq!(verdicts, [Verdict::Failing { calls: 20, lasting: 19 * AFTER }], "not with fewer calls");
    }

    #[test]
    fn one_that_flaps_is_never_paused() {
        let (now, mut failing) = (Instant::now(), Failing::new(AFTER));
        for hour in 0..100 {
            let start = now + AFTER * hour;
            assert_eq!(note(&mut failing, 1, STATUS, 59, start), []);
            assert_eq!(failing.note(1, Event::Success, start + Duration::from_secs(59 * 60)), None);
        }
    }

    #[test]
    fn one_that_says_that_it_is_gone_is_paused_at_once() {
        let (now, mut failing) = (Instant::now(), Failing::new(AFTER));
        assert_eq!(failing.note(1, Event::Gone, now), Some(Verdict::Gone));
        assert_eq!(failing.note(1, Event::Success, now), None);
    }

    #[test]
    fn when_all_fail_and_nobody_answers_the_network_of_the_host_is_suspect() {
        let (now, mut failing) = (Instant::now(), Failing::new(AFTER));
        for webhook in 1..=3 {
            assert_eq!(note(&mut failing, webhook, REFUSED, 60, now), []);
        }
        assert_eq!(failing.note(1, REFUSED, now + AFTER), None);
        // One endpoint answers, if only with an error: the network works.
        failing.note(9, STATUS, now + AFTER);
        assert_eq!(failing.note(1, REFUSED, now + AFTER), None, "it has begun anew");
        assert!(failing.note(2, REFUSED, now + AFTER).is_some());
        assert_eq!(note(&mut failing, 1, REFUSED, 60, now + AFTER), []);
        assert!(failing.note(1, REFUSED, now + AFTER * 2).is_some());
    }

    #[test]
    fn failing_webhooks_are_counted_up_to_a_bound_and_those_that_fail_now_are_kept() {
        let (now, mut failing) = (Instant::now(), Failing::new(AFTER));
        for webhook in 0..2 * WEBHOOKS_MAX {
            let at = now + Duration::from_millis(webhook as u64);
            failing.note(webhook as i64, STATUS, at);
            failing.note(-1, STATUS, at);
            assert!(failing.streaks.len() <= WEBHOOKS_MAX);
        }
        assert_eq!(failing.streaks[&-1].calls, 2 * WEBHOOKS_MAX as u64);
    }

    #[test]
    fn what_is_ours_says_nothing_about_the_endpoint() {
        let webhook = Webhook { id: 1, url: "http://a/".into(), signing_secret: None };
        let of = |kind, status_code| {
            let mut call = Call::unanswered(&webhook, &"".into(), kind, "");
            call.status_code = status_code;
            Event::of(&call)
        };
        for kind in [ErrorKind::Paused, ErrorKind::Interrupted, ErrorKind::Internal] {
            assert_eq!(of(kind, None), None);
        }
        assert_eq!(of(ErrorKind::Timeout, None), Some(REFUSED));
        assert_eq!(of(ErrorKind::HttpStatus, Some(500)), Some(STATUS));
        assert_eq!(of(ErrorKind::HttpStatus, Some(410)), Some(Event::Gone));
    }
}
