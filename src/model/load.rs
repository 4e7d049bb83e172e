//! What the threads are doing at a moment.

use std::time::Duration;

/// Webhooks that are named in a [`Load`]: each is a time series of the metrics, and a person looks for the few that hang.
pub(crate) const BUSIEST: usize = 20;

/// What the threads are doing.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Calls running.
    pub running: usize,
    /// How long the call has been running that runs for longest.
    pub longest_running: Duration,
    /// Calls that wait for a slot, or for memory.
    pub waiting: usize,
    /// Rows that have gone out and are not committed, set aside or given up yet.
    pub ended: usize,
    /// Calls that have started so far, also those that were requeued.
    pub started: u64,
    /// Grows with each call that ends and is not requeued, and with each row that is committed.
    pub progress: u64,
    /// Threads, busy or not.
    pub threads: usize,
    /// Memory of the rows in hand, in bytes.
    pub memory_bytes: usize,
    /// Pauses for a shortage of ours, since the start.
    pub shortages: u64,
    /// The webhooks with most calls running, at most [`BUSIEST`], each with how many.
    pub busiest: Vec<(i64, usize)>,
}
