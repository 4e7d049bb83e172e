//! An outbox relay for Postgres: takes rows that an application inserted in its own transactions, makes one HTTP
//! POST for each enabled webhook of the row's project, and records each call in the transaction that marks the row
//! done.
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

pub mod cli;
pub mod command;
pub mod config;
pub mod daemon;
pub mod delivery;
pub mod dispatch;
pub mod error;
pub mod model;
pub mod outbox;
pub mod postgres;
pub mod process;
pub mod telemetry;
pub mod tls;
