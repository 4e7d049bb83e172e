//! An outbox relay for Postgres. It takes rows that an application inserted in its own transactions, and makes one HTTP POST
//! for each enabled webhook of the row's project. It records each call in the transaction that marks the row done.
//!
//! # How a row travels
//!
//! ```text
//! app: INSERT, COMMIT ──(statement trigger: wakes only a sleeping relay)──▶ wake ◀── poll
//!                                                                             │
//!  claim   short transaction, FOR UPDATE SKIP LOCKED,              daemon ◀───┘
//!          stamps claimed_by; finds the enabled webhooks              │ rows
//!  post    worker threads, one blocking POST for each webhook,     dispatch ──▶ delivery ──▶ receivers
//!          no transaction anywhere                                    │ rows whose calls have ended
//!  finish  one transaction for many rows: call logs and done_at,   daemon
//!          guarded by claimed_by
//! ```
//!
//! # Where things are
//!
//! A room imports only what stands below it; a test keeps it so.
//!
//! ```text
//! 6  command                               one file a command
//! 5  daemon                                the loops, and what they share
//! 4  config, outbox                        what the flags mean; the schema `relay`, a function for each query file
//! 3  dispatch, delivery, postgres, telemetry
//!                                          threads; one POST; a session; what people read
//! 2  cli, process, tls                     what the user typed; this process's memory; what all TLS shares
//! 1  model, error                          plain data; the exit codes
//! ```
//!
//! - [`daemon`] claims, hands out, finishes, and watches over its sessions and the other instances.
//! - [`outbox`] knows the schema. It knows no HTTP, no thread and no policy.
//! - [`dispatch`] has the threads: asynchronous meets blocking there, and nowhere else. It knows no Postgres and no HTTP.
//! - [`delivery`] makes one POST, blocking. It knows no queue and no Postgres.
//! - [`postgres`] has a session by libpq's rules. It knows no table.
//! - [`telemetry`] is read by people; no loop decides by it.
//! - [`model`] is plain data that travels: the event, its webhooks, the calls.

// `pub` is what leaves the crate: by the lists below, and by nothing else.
#![warn(unreachable_pub)]

mod cli;
mod command;
mod config;
mod daemon;
mod delivery;
mod dispatch;
mod error;
mod model;
mod outbox;
mod postgres;
mod process;
mod telemetry;
mod tls;

/// What `main.rs` stands on. No other program uses this library, so nothing else is public.
pub mod program {
    pub use crate::cli::{Cli, Command, one_line as usage_line};
    pub use crate::command::{call, calls, check, demo, migrate, pause, replay, run, send_test, status, top};
    pub use crate::error::{Error, Result, one_line};
    pub use crate::process::keep_private;
    pub use crate::telemetry::logging;
    pub use crate::telemetry::terminal::escaped;
}

/// What the tests, the benchmark and the examples may use, by room.
#[doc(hidden)]
pub mod inside {
    pub mod cli {
        pub use crate::cli::{Cli, Command, Run};
    }
    pub mod daemon {
        pub use crate::daemon::peers::{DEAD_AFTER, DEAD_AFTER_LOSS, Peers};
        pub use crate::daemon::retention::{Outcome, Retention};
        pub use crate::daemon::wakeup::{State, Tried};
    }
    pub mod config {
        pub use crate::config::database;
    }
    pub mod delivery {
        pub use crate::delivery::client::{Caller, Settings};
        pub use crate::delivery::fd_budget;
        pub use crate::delivery::machine::Machine;
        pub use crate::delivery::networks::denial_reason;
        pub use crate::delivery::proxy::Proxy;
        pub use crate::delivery::resolver::{Answer, Resolver};
        pub use crate::delivery::signature::sign;
        pub use crate::delivery::sources::Sources;
    }
    pub mod demo {
        pub use crate::command::demo::postgres::{Cluster, Stop};
    }
    pub mod error {
        pub use crate::error::{Error, one_line};
    }
    pub mod model {
        pub use crate::model::call::{Call, ErrorKind, Outcome};
        pub use crate::model::database_addresses::Reached;
        pub use crate::model::event::{Secret, Webhook};
        pub use crate::model::memory::Room;
        pub use crate::model::message::Message;
        pub use crate::model::redact::without_credentials;
        pub use crate::model::text::storable;
        pub use crate::model::trace_context::TraceParent;
    }
    pub mod outbox {
        pub use crate::outbox::migrations::{MIGRATIONS, Migration};
        pub use crate::outbox::{Liveness, Peer, Role, Sleep, Store, Target};
    }
    pub mod top {
        pub use crate::command::top::Screen;
    }
    pub mod postgres {
        pub use crate::postgres::{Session, Settings};
    }
}
