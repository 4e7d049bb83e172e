//! Which transactions were running.

/// Which transactions were running at a moment, as `snapshot.sql` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below it had ended.
    pub xmin: i64,
    /// No transaction from it on had begun.
    pub xmax: i64,
}
