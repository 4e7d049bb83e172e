//! How many calls may run at a time: to one webhook, to a class of webhooks, and in all.
//!
//! Pure rules over plain state. They have no clock: a caller that knows the time gives it as durations. They know no
//! queue, no job and no thread.
//!
//! Threads are the scarce thing. A webhook has at most `per_webhook` calls running. It is *fast* when its calls have
//! lately ended within [`SLOW`], *slow* when they have not, and *unproven* when it was not called lately: then one call
//! finds out. A call that has been running for [`SLOW`] counts as slow, whatever its webhook was. The slow webhooks have
//! together at most half of the threads, the unproven ones a quarter. Where some unproven ones turn out to be slow, both
//! have at most seven eighths. So a hundred dead endpoints leave room for the fast webhooks, and for unproven ones.

use std::time::Duration;

/// A webhook whose calls take longer is slow.
pub(crate) const SLOW: Duration = Duration::from_secs(1);
/// The daemon claims rows ahead of free threads for as much work as a fast webhook does in this time. A claim takes less,
/// and little is in hand when the daemon is killed.
const AHEAD: Duration = Duration::from_millis(20);
/// Most rows claimed ahead: two claims of the largest size.
pub(super) const AHEAD_MAX: usize = 1000;
/// Most calls running while the pool stops, where the operator's limit is lower. Rows that have begun make the rest of their
/// calls at once, so that the stop takes the time of one call.
const STOPPING_MAX: usize = 1024;

/// The limits, as the operator set them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most calls running, in all.
    pub workers: usize,
    /// Most calls running to one webhook.
    pub per_webhook: usize,
}

impl Limits {
    /// Most calls running to slow webhooks.
    fn slow(&self) -> usize {
        (self.workers / 2).max(1)
    }

    /// Most calls running to unproven webhooks.
    fn unproven(&self) -> usize {
        (self.workers / 4).max(1)
    }

    /// Most calls running to both: some unproven webhooks turn out to be slow, and the others need a slot still.
    fn not_fast(&self) -> usize {
        self.workers - self.workers / 8
    }

    /// Most calls running to one webhook of a class. One call finds out about an unproven webhook.
    pub(super) fn of_webhook(&self, class: Class) -> usize {
        match class {
            Class::Unproven => 1,
            Class::Fast | Class::Slow => self.per_webhook,
        }
    }
}

/// What is known of a webhook, or of a running call. The later one is the worse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// It has lately answered in time.
    Fast,
    /// It was not called lately.
    Unproven,
    /// It has lately not answered in time, or keeps a call waiting for too long now.
    Slow,
}

impl Class {
    /// Each of them, in the order of their numbers.
    pub(super) const ALL: [Class; 3] = [Class::Fast, Class::Unproven, Class::Slow];
}

/// How fast a webhook has answered lately. `oldest` is everywhere the age of its oldest call that runs, if one runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Moving average of the calls' durations; none before the first call has ended.
    average: Option<Duration>,
}

impl Pace {
    /// A call has ended that took so long.
    pub(super) fn learn(&mut self, took: Duration) {
        // Three quarters old, one quarter new: a few calls change the class, one does not.
        self.average = Some(self.average.map_or(took, |old| (old * 3 + took) / 4));
    }

    /// How long a call takes, as far as it is known.
    pub(super) fn estimate(self, oldest: Option<Duration>) -> Duration {
        self.average.unwrap_or_default().max(oldest.unwrap_or_default())
    }

    /// The class of the webhook.
    pub(super) fn class(self, oldest: Option<Duration>) -> Class {
        if self.estimate(oldest) > SLOW {
            Class::Slow
        } else if self.average.is_some() {
            Class::Fast
        } else {
            Class::Unproven
        }
    }

    /// How many rows the daemon claims ahead for the webhook; none unless it is fast.
    pub(super) fn ahead(self, oldest: Option<Duration>, limits: &Limits) -> usize {
        if self.class(oldest) != Class::Fast {
            return 0;
        }
        let estimate = self.estimate(oldest).as_micros().max(1);
        let ahead = limits.per_webhook as u128 * AHEAD.as_micros() / estimate;
        usize::try_from(ahead).unwrap_or(AHEAD_MAX).min(AHEAD_MAX)
    }
}

/// The slots that running calls take, by class.
#[derive(Debug)]
pub(super) struct Slots {
    limits: Limits,
    running: [usize; 3],
    /// The limits no longer count: the pool stops, and the rest of the rows that have begun starts at once.
    unlimited: bool,
}

impl Slots {
    /// All slots are free.
    pub(super) fn new(limits: Limits) -> Slots {
        Slots { limits, running: [0; 3], unlimited: false }
    }

    /// Calls running.
    pub(super) fn running(&self) -> usize {
        self.running.iter().sum()
    }

    /// Most calls running, in all.
    pub(super) fn running_max(&self) -> usize {
        if self.unlimited { self.limits.workers.max(STOPPING_MAX) } else { self.limits.workers }
    }

    /// Most calls running to one webhook of this class.
    pub(super) fn of_webhook(&self, class: Class) -> usize {
        if self.unlimited { usize::MAX } else { self.limits.of_webhook(class) }
    }

    /// Whether a call of this class may start.
    pub(super) fn has_free(&self, class: Class) -> bool {
        let [_, unproven, slow] = self.running;
        let share = match class {
            Class::Fast => true,
            Class::Unproven => unproven < self.limits.unproven() && unproven + slow < self.limits.not_fast(),
            Class::Slow => slow < self.limits.slow(),
        };
        self.running() < self.running_max() && (share || self.unlimited)
    }

    /// How many slots the share of a class has for calls that are not in hand yet, when so many of it wait. The fast
    /// webhooks have no share: only their own limits count.
    pub(super) fn left(&self, class: Class, waiting: usize) -> usize {
        let share = match class {
            Class::Fast => return usize::MAX,
            Class::Unproven => self.limits.unproven(),
            Class::Slow => self.limits.slow(),
        };
        let taken = self.running[class as usize] + waiting;
        if self.has_free(class) { share.saturating_sub(taken) } else { 0 }
    }

    /// Whether unproven webhooks have no slot, and get none in a moment. So it is when the slow webhooks have all slots, or
    /// when none of those that are tried is quick. Then `long` of their calls have been running for longer than a quick one
    /// takes.
    pub(super) fn unproven_wait(&self, long: usize) -> bool {
        let slow = self.running[Class::Slow as usize];
        long >= self.limits.unproven() || long + slow >= self.limits.not_fast()
    }

    /// A call of this class starts.
    pub(super) fn take(&mut self, class: Class) {
        self.running[class as usize] += 1;
    }

    /// A call of this class has ended.
    pub(super) fn free(&mut self, class: Class) {
        self.running[class as usize] -= 1;
    }

    /// Lifts the limits, for stopping.
    pub(super) fn lift(&mut self) {
        self.unlimited = true;
    }

    #[cfg(test)]
    pub(super) fn by_class(&self) -> [usize; 3] {
        self.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { workers: 8, per_webhook: 3 };

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Takes as many slots of the class as it may have.
    fn fill(slots: &mut Slots, class: Class) -> usize {
        let before = slots.running();
        while slots.has_free(class) {
            slots.take(class);
        }
        slots.running() - before
    }

    #[test]
    fn each_class_has_its_share_and_the_fast_have_the_rest() {
        let mut slots = Slots::new(LIMITS);
        assert_eq!((slots.left(Class::Unproven, 1), slots.left(Class::Slow, 1)), (1, 3));
        assert_eq!(fill(&mut slots, Class::Slow), 4, "half of 8");
        assert_eq!(fill(&mut slots, Class::Unproven), 2, "a quarter of 8");
        assert_eq!((slots.left(Class::Unproven, 0), slots.left(Class::Slow, 0)), (0, 0));
        assert_eq!(slots.left(Class::Fast, 0), usize::MAX);
        assert_eq!(fill(&mut slots, Class::Fast), 2, "the rest");
        slots.free(Class::Fast);
        assert_eq!(fill(&mut slots, Class::Fast), 1);
    }

    #[test]
    fn unproven_webhooks_that_turn_out_to_be_slow_leave_an_eighth() {
        let mut slots = Slots::new(LIMITS);
        fill(&mut slots, Class::Slow);
        fill(&mut slots, Class::Unproven);
        slots.free(Class::Unproven);
        slots.take(Class::Slow);
        assert!(!slots.has_free(Class::Slow), "more than half of 8");
        assert_eq!(fill(&mut slots, Class::Unproven), 1, "seven eighths of 8");
        slots.free(Class::Unproven);
        slots.take(Class::Slow);
        assert_eq!(fill(&mut slots, Class::Unproven), 0);
        assert_eq!(fill(&mut slots, Class::Fast), 1);
    }

    #[test]
    fn unproven_webhooks_wait_when_those_that_are_tried_take_long_or_the_slow_have_all() {
        let mut slots = Slots::new(LIMITS);
        assert!(!slots.unproven_wait(1) && slots.unproven_wait(2), "a quarter of 8 is tried");
        for _ in 0..6 {
            slots.take(Class::Slow);
        }
        assert!(!slots.unproven_wait(0) && slots.unproven_wait(1), "seven eighths of 8");
    }

    #[test]
    fn while_the_pool_stops_no_share_counts() {
        let mut slots = Slots::new(LIMITS);
        slots.lift();
        assert_eq!(fill(&mut slots, Class::Slow), STOPPING_MAX);
        assert_eq!(slots.of_webhook(Class::Unproven), usize::MAX);
    }

    #[test]
    fn a_few_calls_change_the_class_and_one_does_not() {
        let mut pace = Pace::default();
        assert_eq!(pace.class(None), Class::Unproven);
        assert_eq!(pace.class(Some(SLOW)), Class::Unproven);
        assert_eq!(pace.class(Some(SLOW + ms(1))), Class::Slow, "a call that runs for long is slow");
        pace.learn(ms(4));
        assert_eq!((pace.class(None), pace.estimate(None)), (Class::Fast, ms(4)));
        pace.learn(2 * SLOW);
        assert_eq!(pace.class(None), Class::Fast);
        pace.learn(2 * SLOW);
        pace.learn(2 * SLOW);
        assert_eq!(pace.class(None), Class::Slow);
    }

    #[test]
    fn rows_are_claimed_ahead_for_fast_webhooks_only() {
        let mut pace = Pace::default();
        assert_eq!(pace.ahead(None, &LIMITS), 0);
        pace.learn(ms(1));
        assert_eq!(pace.ahead(None, &LIMITS), 60, "3 slots, 20 ms, 1 ms a call");
        assert_eq!(pace.ahead(Some(ms(20)), &LIMITS), 3);
        assert_eq!(pace.ahead(Some(2 * SLOW), &LIMITS), 0);
        pace.average = Some(Duration::ZERO);
        assert_eq!(pace.ahead(None, &LIMITS), AHEAD_MAX);
    }
}
