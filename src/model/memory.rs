//! How much memory the rows in hand take, and how much they may take (`--memory`).
//!
//! A count of bytes. A holder has them as [`Held`], and gives them back when it drops that. The count never waits. A caller
//! that can wait asks first ([`Memory::try_hold`]); bytes that are there already are counted without a question
//! ([`Memory::hold`]). The count allocates nothing, and knows neither rows nor calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The limit of an answer is at least so many bytes, headers included: enough to see what an endpoint said.
const ANSWER_MIN: usize = 1024;

/// Number of rows that can have their sure bytes at the same time: enough to keep the threads busy while some rows wait for
/// slow calls.
const ROWS: usize = 64;

/// The count.
#[derive(Debug)]
pub(crate) struct Memory {
    max: usize,
    // Written by all threads. It orders no other memory, so relaxed access is enough.
    used: AtomicUsize,
}

impl Memory {
    /// Nothing is held of `max` bytes.
    pub(crate) fn new(max: usize) -> Arc<Memory> {
        Arc::new(Memory { max, used: AtomicUsize::new(0) })
    }

    /// The bytes that may be held.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// The bytes that are held: more than [`Memory::max`] when a single row needs more, or when [`Memory::hold`] counts bytes
    /// that are there already.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The bytes that may still be held.
    pub(crate) fn free(&self) -> usize {
        self.max.saturating_sub(self.used())
    }

    /// Holds so many bytes, whether or not there is room for them.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Held {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Held { memory: self.clone(), bytes }
    }

    /// Holds so many bytes if there is room for them.
    pub(crate) fn try_hold(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        self.try_add(bytes).then(|| Held { memory: self.clone(), bytes })
    }

    fn try_add(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// Bytes that one holder has.
#[derive(Debug)]
pub struct Held {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Held {
    /// How many.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds so many bytes from now on, whether or not there is room for them.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.memory.used.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else if bytes < self.bytes {
            self.memory.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// Holds so many bytes from now on if there is room for them. It never holds less than before.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let granted = more == 0 || self.memory.try_add(more);
        if granted {
            self.bytes += more;
        }
        granted
    }

    /// Splits a part off, to be held apart: all of it when there is less.
    pub fn split(&mut self, bytes: usize) -> Held {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Held { memory: self.memory.clone(), bytes }
    }

    /// Adds the bytes of another holder.
    pub fn absorb(&mut self, mut other: Held) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Splits all of it off; nothing is left here.
    pub fn take(&mut self) -> Held {
        self.split(usize::MAX)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What the answers to one row may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Bytes that each answer may keep in any case. They are held from the row's admission on.
    pub sure: usize,
    /// Bytes that each answer may keep while there is room for them.
    pub most: usize,
}

impl Share {
    /// The share of a row with so many webhooks. An answer keeps at most `answer_max` bytes of its body. Together the answers
    /// to one row keep at most a quarter of the memory: a record is there up to four times while it is written to Postgres.
    /// They may keep more where a quarter is less than 1 KiB for each: with 64 MiB, beyond 16,384 webhooks.
    ///
    /// Half of the memory is enough for the sure bytes of `workers` calls. All of it is enough for those of 64 rows, however
    /// many webhooks each of them has: rows may wait for long.
    pub(crate) fn of_row(webhooks: usize, answer_max: usize, memory: usize, workers: usize) -> Share {
        let webhooks = webhooks.max(1);
        let most = answer_max.min(memory / 4 / webhooks).max(ANSWER_MIN);
        Share { sure: most.min(memory / 2 / workers.max(1)).min(memory / ROWS / webhooks), most }
    }
}

/// The room that one answer has. It grows with the answer.
#[derive(Debug)]
pub struct Room {
    held: Held,
    most: usize,
}

impl Room {
    /// The bytes that are held are sure. The answer never has more than `most`.
    pub fn new(held: Held, most: usize) -> Room {
        Room { held, most }
    }

    /// Room without a limit, for a call outside of a daemon.
    pub fn without_end() -> Room {
        Room::new(Memory::new(usize::MAX).hold(0), usize::MAX)
    }

    /// The answer would like to have so many bytes. Returns how many it may have. Never waits.
    pub fn allow(&mut self, bytes: usize) -> usize {
        let bytes = bytes.min(self.most);
        if self.held.try_grow(bytes) { bytes } else { self.held.bytes() }
    }

    /// Most bytes that the answer may ever have.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Leaves no more than so many bytes sure, for an answer that has not begun.
    pub fn shrink(&mut self, sure: usize) {
        self.held.set(self.held.bytes().min(sure));
        self.most = self.most.min(sure.max(ANSWER_MIN));
    }

    /// Ends the answer, which keeps so many bytes.
    pub fn ended(mut self, bytes: usize) -> Held {
        self.held.set(bytes);
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_until_it_is_dropped() {
        let memory = Memory::new(100);
        let mut held = memory.hold(60);
        assert!(memory.try_hold(41).is_none());
        let other = memory.try_hold(40).expect("it fits");
        assert!(!held.try_grow(61) && held.try_grow(60) && held.try_grow(10));
        drop(other);
        assert!(held.try_grow(61) && held.bytes() == 61);
        let part = held.split(31);
        assert_eq!((held.bytes(), part.bytes(), memory.used()), (30, 31, 61));
        held.absorb(part);
        held.set(200);
        assert_eq!((memory.used(), memory.free()), (200, 0), "counted without asking");
        held.set(1);
        assert_eq!(memory.used(), 1);
        drop(held.take());
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn an_answer_grows_while_there_is_room_and_keeps_what_is_sure() {
        let memory = Memory::new(100_000);
        let mut room = Room::new(memory.hold(2000), 50_000);
        assert_eq!(room.allow(1000), 1000);
        assert_eq!(room.allow(60_000), 50_000, "no more than the most");
        let other = memory.hold(50_000);
        let mut second = Room::new(memory.hold(2000), 50_000);
        assert_eq!(second.allow(3000), 2000, "what is sure");
        drop(other);
        assert_eq!(second.allow(3000), 3000);
        assert_eq!(room.ended(10).bytes(), 10);
        second.shrink(500);
        assert_eq!((second.allow(9000), memory.used()), (ANSWER_MIN, ANSWER_MIN));
    }

    #[test]
    fn with_the_defaults_every_answer_is_kept_whole_unless_its_row_has_too_many() {
        const KIB: usize = 1024;
        const MIB: usize = 1024 * KIB;
        let share = |webhooks, answer| Share::of_row(webhooks, answer, 64 * MIB, 256);
        assert_eq!(share(1, 64 * KIB), Share { sure: 64 * KIB, most: 64 * KIB });
        assert_eq!(share(16, 64 * KIB), Share { sure: 64 * KIB, most: 64 * KIB });
        assert_eq!(share(256, 64 * KIB), Share { sure: 4 * KIB, most: 64 * KIB });
        assert_eq!(share(1024, 64 * KIB).most, 16 * KIB);
        assert_eq!(share(1, 16 * MIB), Share { sure: 128 * KIB, most: 16 * MIB });
        assert_eq!(share(24, 16 * MIB).most, 16 * MIB / 24);
        assert_eq!(share(1_000_000, 64 * KIB).most, ANSWER_MIN);
        assert_eq!(share(0, 0).most, ANSWER_MIN);
    }
}
