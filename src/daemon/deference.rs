//! Whether this instance leaves pending rows to a senior one on its own host.
//!
//! Instances on one host share its processors. When these are busy, a row that a second instance claims is not called earlier.
//! The calls of both take longer, and there are more and smaller claims and finishes for the same rows. So a
//! junior instance defers while its host has no processor to spare. It looks at the head of the queue now and then. When the
//! head hardly moves, the seniors are full, slow, frozen or dead, and the junior claims.
//!
//! Pure: given the seniors, the processor's times, the head, and the time. Claims nothing and reads nothing.

use std::time::{Duration, Instant};

/// How long an instance that defers waits between two looks at the head of the queue, once for each senior: as it is patient once
/// for each.
const LOOK: Duration = Duration::from_millis(100);
/// The name of such a wait in the metrics.
pub(super) const CAUSE: &str = "deferred";
/// When the head has moved by less than [`PROGRESS`] in this time, once for each senior, the instance claims. A busy senior claims each
/// 20 ms, and a slow disk may hold it up for longer.
const PATIENCE: Duration = Duration::from_millis(200);
/// Ids by which the head moves at least where the seniors are held up by nothing but the processors. One that waits for slow
/// endpoints moves it by less, and there another instance's threads help.
const PROGRESS: i64 = 500;
/// Seniors that count, for the waits: the last of many instances waits no longer than the one behind these.
const SENIORS_MAX: usize = 4;
/// How long the instance claims from then on before it defers again. A pause of all, as a disk makes, should cost no more.
const DISTRUST: Duration = Duration::from_millis(250);
/// Each time that the head has hardly moved again, it claims twice as long, up to this: a row waits for a frozen senior once in it.
const DISTRUST_MAX: Duration = Duration::from_secs(2);
/// The least time between two readings of the processor's times. Over a shorter one a single wait decides.
pub(super) const READ: Duration = Duration::from_millis(50);
/// Readings in a row that must say that there is a processor to spare. An instance that defers hardly runs: some of its readings
/// come out wrong by chance.
const SPARE: u32 = 3;
/// A reading that is older than this says nothing beside the next one: the instance slept, or claimed for itself.
const STALE: Duration = Duration::from_secs(1);

/// What a thread has had of a processor since it started, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Processor {
    /// It ran for so long.
    pub ran: u64,
    /// It could have run for so long, and waited for a processor.
    pub waited: u64,
}

impl Processor {
    /// Whether there was none to spare `since` then: the thread waited for longer than it ran.
    fn is_short(self, since: Processor) -> bool {
        self.waited.saturating_sub(since.waited) > self.ran.saturating_sub(since.ran)
    }
}

/// How long an instance that defers to so many seniors waits before its next look.
pub(super) fn look(seniors: usize) -> Duration {
    times(LOOK, seniors)
}

/// Such a wait, once for each senior.
fn times(wait: Duration, seniors: usize) -> Duration {
    wait * u32::try_from(seniors.min(SENIORS_MAX)).expect("a few")
}

/// Whether this instance defers, and why.
#[derive(Debug, Default)]
pub(super) struct Deference {
    /// The last reading.
    processor: Option<(Processor, Instant)>,
    is_short: bool,
    /// Readings in a row that said that there is a processor to spare.
    spare: u32,
    /// The head of the queue at a moment.
    head: Option<(i64, Instant)>,
    /// The seniors let the head stand: until then this instance claims.
    distrusts_until: Option<Instant>,
    /// How long that was, the last time in a row.
    distrust: Option<Duration>,
}

impl Deference {
    /// Whether the processor's times are to be read again.
    pub(super) fn wants_reading(&self, now: Instant) -> bool {
        self.processor.is_none_or(|(_, read)| now - read >= READ)
    }

    /// Takes in a reading. None: it cannot be read, and so nothing is known to be short.
    pub(super) fn read(&mut self, processor: Option<Processor>, now: Instant) {
        self.spare = match (processor, self.processor) {
            (Some(processor), Some((before, _))) if processor.is_short(before) => 0,
            (Some(_), Some((_, read))) if now - read <= STALE => self.spare.saturating_add(1),
            _ => SPARE,
        };
        self.is_short = self.spare == 0 || (self.is_short && self.spare < SPARE);
        self.processor = processor.map(|processor| (processor, now));
    }

    /// To be called before each claim, with the number of seniors on this host. True: the head of the queue is to be looked
    /// at instead.
    pub(super) fn defers(&mut self, seniors: usize, now: Instant) -> bool {
        let defers = seniors > 0 && self.is_short && self.distrusts_until.is_none_or(|until| now >= until);
        if !defers {
            self.head = None;
        }
        if seniors == 0 || !self.is_short {
            self.distrust = None;
        }
        defers
    }

    /// The head of the queue is this row `now`. True: it is left to the seniors.
    pub(super) fn leaves(&mut self, head: i64, seniors: usize, now: Instant) -> bool {
        match self.head {
            Some((_, since)) if now - since < times(PATIENCE, seniors) => true,
            Some((before, _)) if head.saturating_sub(before) < PROGRESS => {
                let distrust = self.distrust.map_or(DISTRUST, |last| DISTRUST_MAX.min(2 * last));
                (self.head, self.distrusts_until, self.distrust) =
                    (None, Some(now + distrust), Some(distrust));
                false
            }
            before => {
                // The first look says nothing about the seniors yet.
                if before.is_some() {
                    self.distrust = None;
                }
                self.head = Some((head, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Processor = Processor { ran: 1, waited: 2 };

    /// One whose host has no processor to spare.
    fn short(now: Instant) -> Deference {
        let mut deference = Deference::default();
        deference.read(Some(Processor::default()), now);
        deference.read(Some(BUSY), now);
        deference
    }

    #[test]
    fn it_defers_to_a_senior_while_the_processors_are_short() {
        let now = Instant::now();
        assert!(short(now).defers(1, now));
        assert!(!short(now).defers(0, now), "the first of its host");
        let mut spare = short(now);
        for (reading, defers) in [(1, true), (2, true), (3, false), (4, false)] {
            spare.read(Some(Processor { ran: 1 + 10 * reading, waited: 2 + reading }), now);
            assert_eq!(spare.defers(1, now), defers, "reading {reading}");
        }
    }

    #[test]
    fn a_single_reading_that_says_otherwise_changes_nothing() {
        let (now, mut deference) = (Instant::now(), short(Instant::now()));
        let mut times = BUSY;
        for reading in 0..20 {
            let (ran, waited) = if reading % 3 == 0 { (1, 2) } else { (2, 1) };
            times = Processor { ran: times.ran + ran, waited: times.waited + waited };
            deference.read(Some(times), now);
            assert!(deference.defers(1, now), "reading {reading}");
        }
    }

    #[test]
    fn after_a_pause_one_reading_is_enough() {
        let (now, mut deference) = (Instant::now(), short(Instant::now()));
        deference.read(Some(Processor { ran: 11, waited: 3 }), now + 2 * STALE);
        assert!(!deference.defers(1, now + 2 * STALE));
    }

    #[test]
    fn what_cannot_be_read_is_not_short() {
        let now = Instant::now();
        let mut deference = short(now);
        deference.read(None, now);
        assert!(!deference.defers(1, now) && deference.wants_reading(now));
        deference.read(Some(BUSY), now);
        assert!(!deference.defers(1, now), "one reading says nothing");
        assert!(!deference.wants_reading(now) && deference.wants_reading(now + READ));
    }

    #[test]
    fn a_head_that_hardly_moves_is_claimed_and_the_next_ones_do_not_wait() {
        let start = Instant::now();
        let mut deference = short(start);
        assert!(deference.leaves(7, 1, start));
        assert!(deference.leaves(7, 1, start + PATIENCE / 2));
        assert!(deference.leaves(7 + PROGRESS, 1, start + PATIENCE), "a senior claims");
        assert!(!deference.leaves(8 + PROGRESS, 1, start + 2 * PATIENCE), "too few for its threads");
        let end = start + 2 * PATIENCE + DISTRUST;
        assert!(!deference.defers(1, end - LOOK) && deference.defers(1, end));
    }

    #[test]
    fn who_lets_the_head_stand_again_is_distrusted_for_longer_and_who_moves_it_is_trusted() {
        let (mut now, mut deference) = (Instant::now(), short(Instant::now()));
        let mut distrusted = |head, deference: &mut Deference| {
            assert!(deference.leaves(head, 1, now));
            now += PATIENCE;
            assert!(!deference.leaves(head, 1, now));
            let since = now;
            while !deference.defers(1, now) {
                now += Duration::from_millis(1);
            }
            now - since
        };
        for times in [1, 2, 4, 8, 8] {
            assert_eq!(distrusted(7, &mut deference), times * DISTRUST);
        }
        assert_eq!(8 * DISTRUST, DISTRUST_MAX);
        let moved = Instant::now() + Duration::from_secs(60);
        assert!(deference.leaves(7, 1, moved) && deference.leaves(7 + PROGRESS, 1, moved + PATIENCE));
        assert!(!deference.leaves(7 + PROGRESS, 1, moved + 2 * PATIENCE));
        let until = moved + 2 * PATIENCE + DISTRUST;
        assert!(!deference.defers(1, until - LOOK) && deference.defers(1, until));
    }

    #[test]
    fn the_instances_of_a_host_come_one_after_the_other() {
        let start = Instant::now();
        let (mut second, mut third) = (short(start), short(start));
        assert!(second.leaves(7, 1, start) && third.leaves(7, 2, start));
        assert!(!second.leaves(7, 1, start + PATIENCE));
        assert!(third.leaves(7, 2, start + PATIENCE));
        assert!(!third.leaves(7, 2, start + 2 * PATIENCE));
    }
}
