//! Which row begins next: the one whose share of the memory is free.
//!
//! A pure rule over plain state: it has no thread and no clock. The count of the memory is a value that the caller gives.
//!
//! A row is admitted as a whole. Once it is admitted, nothing that waits for its end holds up its calls. A call asks for
//! memory only for a longer answer, and when there is none, keeps a shorter one. So the admitted rows end, however much
//! they need, and what they held is free for the rows that wait. A row that needs more memory than there is begins when it
//! is alone.
//!
//! While half of the memory is taken, the rows of one project have at most a quarter of it, unless a single row needs more.
//! The project's endpoints may hang, and then they hold up only rows of their own project.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::memory::{Held, Memory};

/// How long smaller rows may overtake one that does not fit. Most rows in hand end within a second, and make room for it.
const OVERTAKE: Duration = Duration::from_secs(1);
/// The rows of one project may have this part of the memory, so that one project whose endpoints hang leaves most of it.
const PROJECT_SHARE: usize = 4;

struct Waiting<R> {
    row: R,
    project_id: i64,
    bytes: usize,
    // What it needs, and what it has already.
    project_bytes: usize,
    since: Instant,
}

/// What the admitted rows of a project have.
#[derive(Clone, Copy, Default)]
struct Has {
    rows: usize,
    bytes: usize,
    // Rows of this project have waited for long for others of it. True until all of those others have ended.
    late: bool,
}

impl Has {
    /// How many more rows may begin, if they need as much as those that have begun.
    fn room(self, memory: &Memory) -> usize {
        let left = (memory.max() / PROJECT_SHARE).saturating_sub(self.bytes);
        left * self.rows / self.bytes.max(1)
    }
}

/// Rows that wait for their share of the memory, and the count of those that have it.
pub(crate) struct Admission<R> {
    waiting: VecDeque<Waiting<R>>,
    admitted: usize,
    projects: HashMap<i64, Has>,
}

impl<R> Default for Admission<R> {
    /// No rows.
    fn default() -> Self {
        Admission { waiting: VecDeque::new(), admitted: 0, projects: HashMap::new() }
    }
}

impl<R> Admission<R> {
    /// Adds a row of a project. It needs so many bytes, besides those that it `has` already.
    pub(crate) fn push(&mut self, row: R, project_id: i64, bytes: usize, has: usize, now: Instant) {
        let project_bytes = bytes + has;
        self.waiting.push_back(Waiting { row, project_id, bytes, project_bytes, since: now });
    }

    /// Takes the next row that may begin, with the memory that it needs. When a row was added, or memory has become free, the
    /// caller asks until there is none.
    pub(crate) fn admit(&mut self, memory: &Arc<Memory>, now: Instant) -> Option<(R, Held)> {
        for at in 0..self.waiting.len() {
            if self.waits_for_its_own(&self.waiting[at], memory) {
                continue;
            }
            let Waiting { bytes, project_bytes, since, project_id, .. } = self.waiting[at];
            let held = match self.admitted {
                0 => Some(memory.hold(bytes)),
                _ => memory.try_hold(bytes),
            };
            if let Some(held) = held {
                self.admitted += 1;
                let has = self.projects.entry(project_id).or_default();
                has.rows += 1;
                has.bytes += project_bytes;
                return self.waiting.remove(at).map(|waiting| (waiting.row, held));
            }
            if now.saturating_duration_since(since) > OVERTAKE {
                return None;
            }
        }
        None
    }

    fn waits_for_its_own(&self, waiting: &Waiting<R>, memory: &Memory) -> bool {
        let has = self.projects.get(&waiting.project_id);
        memory.used() > memory.max() / 2
            && has.is_some_and(|has| has.bytes + waiting.project_bytes > memory.max() / PROJECT_SHARE)
    }

    /// Whether a row waits for memory, and not only for others of its own project.
    pub(crate) fn lacks_memory(&self, memory: &Memory) -> bool {
        self.waiting.iter().any(|waiting| !self.waits_for_its_own(waiting, memory))
    }

    /// Counts rows that need no calls: they are in hand, too.
    pub(crate) fn count(&mut self, rows: usize) {
        self.admitted += rows;
    }

    /// All calls of a row have ended. It was admitted with so many bytes, including those that it had already.
    pub(crate) fn calls_ended(&mut self, project_id: i64, bytes: usize) {
        if let Some(has) = self.projects.get_mut(&project_id) {
            has.rows = has.rows.saturating_sub(1);
            has.bytes = has.bytes.saturating_sub(bytes);
            if has.rows == 0 {
                self.projects.remove(&project_id);
            }
        }
    }

    /// Notes that so many admitted rows are not in hand any more.
    pub(crate) fn ended(&mut self, rows: usize) {
        self.admitted = self.admitted.saturating_sub(rows);
    }

    /// How many more rows of a project may begin. Only a project whose rows have waited for long has a limit.
    pub(crate) fn room(&self, project_id: i64, memory: &Memory) -> usize {
        self.projects.get(&project_id).filter(|has| has.late).map_or(usize::MAX, |has| has.room(memory))
    }

    /// Projects whose rows have waited for long and of which no more may begin.
    pub(crate) fn full(&self, memory: &Memory) -> impl Iterator<Item = i64> {
        let full = |has: &Has| has.late && has.room(memory) == 0;
        self.projects.iter().filter(move |(_, has)| full(has)).map(|(project_id, _)| *project_id)
    }

    /// The rows that wait.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &R> {
        self.waiting.iter().map(|waiting| &waiting.row)
    }

    /// How many rows wait.
    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// Takes out the rows that have waited for long for others of their own project.
    pub(crate) fn take_late(&mut self, memory: &Memory, now: Instant) -> Vec<R> {
        let is_late = |waiting: &Waiting<R>| now.saturating_duration_since(waiting.since) > OVERTAKE;
        if !self.waiting.iter().any(is_late) {
            return Vec::new();
        }
        let all: Vec<Waiting<R>> = self.waiting.drain(..).collect();
        let (late, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|waiting| is_late(waiting) && self.waits_for_its_own(waiting, memory));
        self.waiting.extend(others);
        for waiting in &late {
            if let Some(has) = self.projects.get_mut(&waiting.project_id) {
                has.late = true;
            }
        }
        late.into_iter().map(|waiting| waiting.row).collect()
    }

    /// Takes out the waiting rows that are not to be kept.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&R) -> bool) {
        self.waiting.retain(|waiting| keep(&waiting.row));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(admission: &mut Admission<char>, memory: &Arc<Memory>, now: Instant) -> Vec<(char, Held)> {
        std::iter::from_fn(|| admission.admit(memory, now)).collect()
    }

    /// Each row is of a project of its own.
    fn project(row: char) -> i64 {
        i64::from(u32::from(row))
    }

    fn names(rows: &[(char, Held)]) -> String {
        rows.iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn rows_begin_in_order_as_their_share_becomes_free() {
        let (now, memory, mut admission) = (Instant::now(), Memory::new(100), Admission::default());
        for (name, bytes) in [('a', 60), ('b', 40), ('c', 50), ('d', 50)] {
            admission.push(name, project(name), bytes, 0, now);
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
        admission.push('a', project('a'), 10, 0, now);
        let first = all(&mut admission, &memory, now);
        admission.push('b', project('b'), 1000, 0, now);
        assert!(admission.admit(&memory, now).is_none());
        admission.push('c', project('c'), 10, 0, now);
        assert_eq!(names(&all(&mut admission, &memory, now)), "c", "what is smaller overtakes it");
        let later = now + OVERTAKE + Duration::from_millis(1);
        admission.push('d', project('d'), 10, 0, later);
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
        admission.count(1);
        admission.push('a', project('a'), 101, 0, now);
        assert!(admission.admit(&memory, now).is_none());
        admission.ended(1);
        assert!(admission.admit(&memory, now).is_some());
        assert_eq!(admission.waiting().count(), 0);
    }

    #[test]
    fn a_project_has_a_quarter_or_a_single_row_and_its_rows_hold_up_no_others() {
        let (now, memory, mut admission) = (Instant::now(), Memory::new(100), Admission::default());
        admission.push('a', 1, 10, 2, now);
        admission.push('b', 1, 20, 0, now);
        let first = all(&mut admission, &memory, now);
        assert_eq!(names(&first), "ab", "more than a quarter, while half is free");
        let other = memory.hold(30);
        admission.push('c', 1, 1, 0, now);
        assert!(!admission.lacks_memory(&memory), "it waits for its own");
        admission.push('d', 2, 30, 0, now);
        assert!(admission.lacks_memory(&memory));
        assert_eq!(
            names(&all(&mut admission, &memory, now)),
            "d",
            "more than a quarter, and alone of its project"
        );
        let other = (other, memory.hold(30));
        assert!(admission.take_late(&memory, now).is_empty());
        assert_eq!((admission.room(1, &memory), admission.full(&memory).count()), (usize::MAX, 0));
        let later = now + OVERTAKE + Duration::from_millis(1);
        admission.push('e', 3, 5, 0, later);
        assert_eq!(names(&all(&mut admission, &memory, later)), "e", "the one before it waits for its own");
        assert_eq!(admission.take_late(&memory, later), ['c']);
        assert_eq!((admission.room(1, &memory), admission.full(&memory).collect::<Vec<_>>()), (0, vec![1]));
        admission.calls_ended(1, 20);
        assert_eq!((admission.room(1, &memory), admission.full(&memory).count()), (1, 0));
        admission.calls_ended(1, 12);
        assert_eq!(admission.room(1, &memory), usize::MAX);
        drop(other);
    }
}
