//! Which row begins next: the one whose share of the memory is free.
//!
//! A pure rule over plain state, no threads, no clock of its own. A row is admitted as a whole, and once it is, nothing
//! that waits for its end holds up its calls: they ask for no more than room for a longer answer, and get none rather
//! than wait. So whatever the rows need, those that are admitted end, and what they held is free for those that wait.
//! One that needs more than there is begins when it is alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::memory::{Held, Memory};

/// How long smaller rows may overtake one that does not fit.
const OVERTAKE: Duration = Duration::from_secs(1);

struct Waiting<R> {
    row: R,
    bytes: usize,
    since: Instant,
}

/// Rows that wait for their share of the memory, and the count of those that have it.
pub struct Admission<R> {
    waiting: VecDeque<Waiting<R>>,
    admitted: usize,
}

impl<R> Default for Admission<R> {
    /// No rows.
    fn default() -> Self {
        Admission { waiting: VecDeque::new(), admitted: 0 }
    }
}

impl<R> Admission<R> {
    /// Adds a row that needs so many bytes.
    pub fn push(&mut self, row: R, bytes: usize, now: Instant) {
        self.waiting.push_back(Waiting { row, bytes, since: now });
    }

    /// Takes the next row that may begin, with what it needs. To be called until there is none: when a row is added,
    /// and when memory has become free.
    pub fn admit(&mut self, memory: &Arc<Memory>, now: Instant) -> Option<(R, Held)> {
        let first = self.waiting.front()?;
        let only_first = now.saturating_duration_since(first.since) > OVERTAKE;
        let candidates = if only_first { 1 } else { self.waiting.len() };
        let (at, held) = match self.admitted {
            0 => (0, memory.hold(first.bytes)),
            _ => (0..candidates).find_map(|at| Some((at, memory.try_hold(self.waiting[at].bytes)?)))?,
        };
        self.admitted += 1;
        self.waiting.remove(at).map(|waiting| (waiting.row, held))
    }

    /// A row that needs no calls is in hand, too.
    pub fn count(&mut self) {
        self.admitted += 1;
    }

    /// So many rows that were admitted are not in hand any more.
    pub fn ended(&mut self, rows: usize) {
        self.admitted = self.admitted.saturating_sub(rows);
    }

    /// Rows that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &R> {
        self.waiting.iter().map(|waiting| &waiting.row)
    }

    /// How many rows wait.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// Takes those out that wait and are not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&R) -> bool) {
        self.waiting.retain(|waiting| keep(&waiting.row));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(admission: &mut Admission<char>, memory: &Arc<Memory>, now: Instant) -> Vec<(char, Held)> {
        std::iter::from_fn(|| admission.admit(memory, now)).collect()
    }

    fn names(rows: &[(char, Held)]) -> String {
        rows.iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn rows_begin_in_order_as_their_share_becomes_free() {
        let (now, memory, mut admission) = (Instant::now(), Memory::new(100), Admission::default());
        for (name, bytes) in [('a', 60), ('b', 40), ('c', 50), ('d', 50)] {
            admission.push(name, bytes, now);
        }
        let first = all(&mut admission, &memory, now);
        assert_eq!((names(&first).as_str(), memory.used(), admission.waiting_count()), ("ab", 100, 2));
        drop(first);
        admission.ended(2);
        assert_eq!(names(&all(&mut admission, &memory, now)), "cd");
    }

    #[test]
    fn one_that_needs_more_than_there_is_begins_alone() {
        let (now, memory, mut admission) = (Instant::now(), Memory::new(100), Admission::default());
        admission.push('a', 10, now);
        let first = all(&mut admission, &memory, now);
        admission.push('b', 1000, now);
        assert!(admission.admit(&memory, now).is_none());
        admission.push('c', 10, now);
        assert_eq!(names(&all(&mut admission, &memory, now)), "c", "what is smaller overtakes it");
        let later = now + OVERTAKE + Duration::from_millis(1);
        admission.push('d', 10, later);
        assert!(admission.admit(&memory, later).is_none(), "but not for ever");
        drop(first);
        admission.ended(2);
        let alone = all(&mut admission, &memory, later);
        assert_eq!((names(&alone).as_str(), memory.used()), ("b", 1000));
        drop(alone);
        admission.ended(1);
        assert_eq!(names(&all(&mut admission, &memory, later)), "d");
    }

    #[test]
    fn rows_that_are_in_hand_without_calls_count() {
        let (now, memory, mut admission) = (Instant::now(), Memory::new(100), Admission::default());
        admission.count();
        admission.push('a', 101, now);
        assert!(admission.admit(&memory, now).is_none());
        admission.ended(1);
        assert!(admission.admit(&memory, now).is_some());
        assert_eq!(admission.waiting().count(), 0);
    }
}
