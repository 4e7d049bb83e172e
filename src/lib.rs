//! An outbox relay for Postgres: takes rows that an application inserted in its own transactions, makes one HTTP
//! POST for each enabled webhook of the row's project, and records each call in the transaction that marks the row
//! done.
//!
//! # How a row travels
//!
//! ```text
//! app: INSERT, COMMIT ──(statement trigger: wakes only a sleeping relay)──▶ wake ◀── poll
//!                                                                             │ "look"
//!  claim   short transaction, FOR UPDATE SKIP LOCKED,               relay ◀───┘
//!          stamps claimed_by; joins the enabled webhooks              │ rows
//!  post    worker threads, one blocking POST for each webhook,      pool ──▶ endpoint ──▶ receivers
//!          no transaction anywhere                                    │ rows whose calls have ended
//!  finish  one transaction for many rows: call logs and done_at,    relay
//!          guarded by claimed_by
//! ```
//!
//! # Where things are
//!
//! - The daemon: [`relay`] claims, hands out and finishes; [`wake`] says when to look, [`look`] and [`floor`] where;
//!   [`link`] has its sessions, [`instance`] knows who is alive, [`outage`] what an operator must do about a Postgres that
//!   refuses them; [`retention`] throws away; [`stall`] says when nothing moves;
//!   [`stop`], [`systemd`] and [`process`] are the world outside.
//! - The queue's side: [`store`] has a function for each SQL file, [`db`] the sessions, [`schema`] the migrations.
//!   It knows no HTTP.
//! - The endpoints' side: [`endpoint`] makes one POST, with [`wire`], [`trust`], [`dial`], [`socket`] and [`resolver`]
//!   beneath it; [`address`] and [`machine`] say what may be called, [`signature`] signs, [`descriptors`] keeps a low limit from being hit;
//!   [`head`] and [`chunks`] mend answers, [`body`] keeps as much of them as it may. It blocks, and knows no Postgres.
//! - Between them: [`pool`], the threads, where asynchronous meets blocking and nowhere else; [`places`] decides
//!   which call is next, [`admission`] which row begins, [`memory`] counts what they take.
//! - Data that both sides share: [`event`] and [`call`]. [`handshake`] says for both why a TLS handshake failed.
//! - What the user typed is [`cli`], what it means [`config`]; [`command`] has the commands, [`error`] the exit codes,
//!   [`logging`] the journal, [`failures`] the failed calls in it, [`terminal`] its colours; [`metrics`] what is
//!   counted.

pub mod address;
pub mod admission;
pub mod body;
pub mod call;
pub mod chunks;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod config;
pub mod db;
pub mod descriptors;
pub mod dial;
pub mod endpoint;
pub mod error;
pub mod event;
pub mod failures;
pub mod floor;
pub mod handshake;
pub mod head;
pub mod instance;
pub mod link;
pub mod logging;
pub mod look;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod outage;
pub mod places;
pub mod pool;
pub mod process;
pub mod relay;
pub mod resolver;
pub mod retention;
pub mod schema;
pub mod signature;
pub mod socket;
pub mod stall;
pub mod stop;
pub mod store;
pub mod systemd;
pub mod terminal;
pub mod trust;
pub mod wake;
pub mod wire;
