//! File descriptors, shared out before they run out: each socket of a call and each lookup of a name takes fd permits first.
//! So a low limit makes calls wait, and the rest of the process (Postgres, log files) still finds a descriptor.
//!
//! The limit belongs to the process, so the bulkhead is a static. Opens nothing itself.

use std::sync::LazyLock;

use nix::sys::resource::{Resource, getrlimit};

use crate::delivery::bulkhead::{Bulkhead, Permit};

/// Descriptors for the rest of the process: standard streams, the runtime, sessions, log files. About 20 are in use.
const RESERVED: usize = 64;

static BUDGET: LazyLock<Bulkhead> = LazyLock::new(|| Bulkhead::new(most()));

/// Permits for so many descriptors; none when fewer are left.
pub fn take(count: usize) -> Option<Permit> {
    BUDGET.take(count)
}

/// How many are shared out: the limit without the reserve, which is half of a small limit.
fn most() -> usize {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((limit, _)) => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            limit - RESERVED.min(limit / 2)
        }
        // Then the process notices that it has none left when it opens one.
        Err(_) => usize::MAX,
    }
}
