//! File descriptors, shared out before they run out: each socket of a call and each lookup of a name takes its part
//! first. So a low limit makes calls wait, and what else the process needs (Postgres, log files) still finds one.
//!
//! The limit belongs to the process, and so does the count; it is kept in a static. Opens nothing itself.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit};

/// Left for the rest of the process: standard streams, the runtime, sessions, log files. About 20 are in use.
const RESERVED: usize = 64;

// Written by whoever takes and returns.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Some descriptors, returned on drop.
#[derive(Debug)]
pub struct Share(usize);

/// Takes so many; none when they are not to be had.
pub fn take(count: usize) -> Option<Share> {
    let fits = |taken: usize| taken.checked_add(count).filter(|sum| *sum <= most());
    TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok().map(|_| Share(count))
}

impl Drop for Share {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// How many are shared out: the limit without the reserve, which is half of a small limit.
fn most() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((limit, _)) => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            limit - RESERVED.min(limit / 2)
        }
        // Then running out is noticed when it happens.
        Err(_) => usize::MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_comes_back() {
        assert!(take(usize::MAX).is_none());
        let before = TAKEN.load(Ordering::Relaxed);
        drop(take(3).expect("the limit of a test run is far away"));
        assert!(TAKEN.load(Ordering::Relaxed) <= before);
    }
}
