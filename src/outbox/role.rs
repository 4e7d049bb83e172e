//! The role of a session: its name, and how Postgres plans its statements. Never knows a query: the settings hold for
//! all statements of the session.

/// What a session is for: its name in `pg_stat_activity`, and how Postgres plans its statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Claims and gives back; holds the sleep lock. Its commits need not reach the disk: a crash of the server ends
    /// the session, and with it the claims.
    Claim,
    /// Finishes. What it has committed is on disk.
    Finish,
    /// Listens, looks at the other instances, and adopts rows. The key of its liveness lock is the epoch. Never leaves a
    /// transaction open.
    Listen,
    /// Makes partitions and throws old rows away.
    Retention,
    /// Pauses webhooks whose endpoints fail.
    Pause,
    /// Asks for the age of the queue, for the metrics.
    Metrics,
    /// Serves a command for people.
    Command,
    /// Serves the live screen.
    Top,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Claim => "claim",
            Role::Finish => "finish",
            Role::Listen => "listen",
            Role::Retention => "retention",
            Role::Pause => "pause",
            Role::Metrics => "metrics",
            Role::Command => "command",
            Role::Top => "top",
        }
    }

    /// What the session sets. The tables of a queue are empty in one moment and full in the next, so statistics
    /// mislead. Each role tells the planner the one shape that its statements have. A claim goes from few rows to an
    /// index, and sorts these few: a hash table takes longer to set up. A finish joins two lists of the same length; a nested loop would take the product of both. Plans of these two
    /// are generic, because planning would cost more than running.
    pub(super) fn settings(self) -> &'static str {
        match self {
            Role::Claim => {
                "SET synchronous_commit = off; SET plan_cache_mode = force_generic_plan; \
                 SET enable_seqscan = off; SET enable_bitmapscan = off; \
                 SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_hashagg = off"
            }
            Role::Finish => {
                "SET synchronous_commit = on; SET plan_cache_mode = force_generic_plan; \
                 SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_nestloop = off"
            }
            // The retention needs a few locks that others rarely hold for long. When one takes longer, it tries again
            // later.
            Role::Retention => {
                "SET lock_timeout = '200ms'; SET enable_seqscan = off; SET enable_bitmapscan = off"
            }
            // What the values select differs much, and a person does not notice the time of planning. A command
            // waits for locks no longer than the site wants; `migrate` sets a limit of its own.
            Role::Command => "RESET lock_timeout; SET plan_cache_mode = force_custom_plan",
            // A refresh goes from the ends of indexes to few rows, and sorts none of a table. It knows the ids and times that it
            // wants, so it is planned for them. A person waits for a lock, or for a slow server, no longer than this.
            Role::Top => {
                "SET lock_timeout = '1s'; SET statement_timeout = '5s'; SET plan_cache_mode = force_custom_plan; \
                 SET enable_seqscan = off; SET enable_sort = off"
            }
            // Another session may have the pause of the same webhook open; the daemon tries again later.
            Role::Pause => "SET lock_timeout = '1s'; SET statement_timeout = '10s'",
            Role::Metrics => {
                "SET statement_timeout = '5s'; SET enable_seqscan = off; SET enable_bitmapscan = off"
            }
            // What it writes must not wait for a standby: while one is away, the instance would take its own session for lost,
            // and could not register anew. A standby that has a claim has the registration before it, too.
            Role::Listen => "SET synchronous_commit = local",
        }
    }
}
