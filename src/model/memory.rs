//! How much memory the rows in hand take, and how much they may take (`--memory`).
//!
//! A count of bytes, kept by those who hold them: what is [`Held`] is given back when it is dropped. It never waits.
//! Whoever may be told to wait asks first ([`Memory::try_hold`]); what is there already is counted without asking
//! ([`Memory::hold`]). Allocates nothing itself, and knows neither rows nor calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What an answer may keep in any case, headers included.
const ANSWER_MIN: usize = 1024;

/// So many rows have what is sure at the same time.
const ROWS: usize = 64;

/// The count.
#[derive(Debug)]
pub struct Memory {
    max: usize,
    // Written by all threads. It orders nothing but itself.
    used: AtomicUsize,
}

impl Memory {
    /// Nothing is held of `max` bytes.
    pub fn new(max: usize) -> Arc<Memory> {
        Arc::new(Memory { max, used: AtomicUsize::new(0) })
    }

    /// The bytes that may be held.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The bytes that are held: more than [`Memory::max`] when a single row needs more.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The bytes that may still be held.
    pub fn free(&self) -> usize {
        self.max.saturating_sub(self.used())
    }

    /// Holds so many bytes, whether or not there is room for them.
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Held {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Held { memory: self.clone(), bytes }
    }

    /// Holds so many bytes if there is room for them.
    pub fn try_hold(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        self.try_add(bytes).then(|| Held { memory: self.clone(), bytes })
    }

    fn try_add(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// Bytes that somebody holds.
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

    /// Holds so many from now on, whether or not there is room for them.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.memory.used.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else if bytes < self.bytes {
            self.memory.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// Holds so many from now on if there is room for them; holds at least what it held.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let granted = more == 0 || self.memory.try_add(more);
        if granted {
            self.bytes += more;
        }
        granted
    }

    /// Takes a part of it away, to be held apart; all of it when it is not so much.
    pub fn split(&mut self, bytes: usize) -> Held {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Held { memory: self.memory.clone(), bytes }
    }

    /// Adds what another holds.
    pub fn absorb(&mut self, mut other: Held) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Takes all of it away.
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
pub struct Share {
    /// Bytes that each answer may keep in any case. They are held from the row's admission on.
    pub sure: usize,
    /// Bytes that each answer may keep while there is room for them.
    pub most: usize,
}

impl Share {
    /// Of a row with so many webhooks. An answer keeps at most `answer_max` bytes of its body. Together the answers to one row
    /// keep at most a quarter of the memory: a record is there up to four times while it is written to Postgres. What
    /// is sure is such that `workers` calls have it out of half of the memory, and that many rows have it, however many
    /// webhooks each of them has: they may wait for long.
    pub fn of_row(webhooks: usize, answer_max: usize, memory: usize, workers: usize) -> Share {
        let webhooks = webhooks.max(1);
        let most = answer_max.min(memory / 4 / webhooks).max(ANSWER_MIN);
        Share { sure: most.min(memory / 2 / workers.max(1)).min(memory / ROWS / webhooks), most }
    }
}

/// The room that one answer has; it grows with it.
#[derive(Debug)]
pub struct Room {
    held: Held,
    most: usize,
}

impl Room {
    /// What is held is sure; `most` is the end of it.
    pub fn new(held: Held, most: usize) -> Room {
        Room { held, most }
    }

    /// As much as anybody wants: for a call outside of a daemon.
    pub fn without_end() -> Room {
        Room::new(Memory::new(usize::MAX).hold(0), usize::MAX)
    }

    /// How many bytes the answer may have that would like to have so many. Never waits.
    pub fn allow(&mut self, bytes: usize) -> usize {
        let bytes = bytes.min(self.most);
        if self.held.try_grow(bytes) { bytes } else { self.held.bytes() }
    }

    /// The most that it may ever be.
    pub fn most(&self) -> usize {
        self.most
    }

    /// From now on no more is sure than this. For an answer that has not begun.
    pub fn shrink(&mut self, sure: usize) {
        self.held.set(self.held.bytes().min(sure));
        self.most = self.most.min(sure.max(ANSWER_MIN));
    }

    /// The answer has ended, and keeps so many bytes.
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
