//! What each session is for, and how Postgres plans its statements.
//!
//! Knows no query: the settings hold for all statements of a session.

/// What a session is for: its name in `pg_stat_activity` and how its statements are planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Claims and gives back; holds the sleep lock. Its commits need not reach the disk: a server crash ends the
    /// session, and with it the claims.
    Claim,
    /// Finishes: what it committed is on disk.
    Finish,
    /// LISTEN and the liveness lock. Never in a transaction.
    Listen,
    /// Retention.
    Retention,
    /// Asks how old the queue is, for the metrics.
    Metrics,
    /// A command for people.
    Command,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Claim => "claim",
            Role::Finish => "finish",
            Role::Listen => "listen",
            Role::Retention => "retention",
            Role::Metrics => "metrics",
            Role::Command => "command",
        }
    }

    /// The tables of a queue are empty in one moment and full in the next, so statistics mislead: each session is
    /// told the one shape that its statements have. Claims go from few rows to an index; a finish joins two lists of
    /// the same length, which a nested loop would do in their product. Generic plans: planning would cost more than
    /// running.
    pub(super) fn settings(self) -> &'static str {
        match self {
            Role::Claim => {
                "SET synchronous_commit = off; SET plan_cache_mode = force_generic_plan; \
                 SET enable_seqscan = off; SET enable_bitmapscan = off; \
                 SET enable_hashjoin = off; SET enable_mergejoin = off"
            }
            Role::Finish => {
                "SET synchronous_commit = on; SET plan_cache_mode = force_generic_plan; \
                 SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_nestloop = off"
            }
            // A few locks that others never hold for long; what waits longer is tried again later.
            Role::Retention => {
                "SET lock_timeout = '200ms'; SET enable_seqscan = off; SET enable_bitmapscan = off"
            }
            // Values differ much in what they select, and planning is nothing beside a person's patience. A person, and a
            // migration, waits for locks no longer than the site wants.
            Role::Command => "RESET lock_timeout; SET plan_cache_mode = force_custom_plan",
            Role::Metrics => {
                "SET statement_timeout = '5s'; SET enable_seqscan = off; SET enable_bitmapscan = off"
            }
            Role::Listen => "",
        }
    }
}
