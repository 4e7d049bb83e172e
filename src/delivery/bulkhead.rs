//! Bulkheads: a limit on how much of something is in use at once, so that one need does not take what others need.
//!
//! Who finds no permit is told at once; a bulkhead never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// At most so many permits are out at once. Clones share the count.
#[derive(Clone, Debug)]
pub(crate) struct Bulkhead {
    most: usize,
    // Written by those who take and drop permits.
    taken: Arc<AtomicUsize>,
}

/// Some of a bulkhead's permits. They return when it is dropped.
#[derive(Debug)]
pub struct Permit {
    count: usize,
    taken: Arc<AtomicUsize>,
}

impl Bulkhead {
    /// A bulkhead with this many permits.
    pub(crate) fn new(most: usize) -> Bulkhead {
        Bulkhead { most, taken: Arc::default() }
    }

    /// Takes so many permits at once; none when fewer are left.
    pub(crate) fn take(&self, count: usize) -> Option<Permit> {
        let fits = |taken: usize| taken.checked_add(count).filter(|sum| *sum <= self.most);
        // Relaxed: the count guards no other memory.
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Permit { count, taken: self.taken.clone() })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn no_more_than_the_limit_is_out_and_what_was_taken_comes_back() {
        let bulkhead = Bulkhead::new(3);
        let two = bulkhead.take(2).expect("three are left");
        assert!(bulkhead.take(2).is_none(), "not in part");
        let one = bulkhead.clone().take(1).expect("one is left");
        assert!(bulkhead.take(1).is_none());
        drop(two);
        assert!(bulkhead.take(2).is_some());
        drop(one);
        assert!(bulkhead.take(3).is_some());
        assert!(bulkhead.take(usize::MAX).is_none() && bulkhead.take(4).is_none());
        assert!(Bulkhead::new(0).take(1).is_none());
    }

    #[test]
    fn threads_together_get_no_more_than_the_limit() {
        let bulkhead = Bulkhead::new(50);
        let got: usize = thread::scope(|scope| {
            // Each keeps its permits until all have asked.
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..100).filter_map(|_| bulkhead.take(1)).collect::<Vec<_>>()))
                .collect();
            let kept: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
            kept.iter().map(Vec::len).sum()
        });
        assert_eq!(got, 50);
        assert!(bulkhead.take(50).is_some(), "all came back");
    }
}
