//! The program against a real Postgres and scripted receivers, through its public face: the binary, SQL and HTTP.
//!
//! It is one test binary, so that one private Postgres serves all tests of a run. Each test has a database of its own.

#![allow(missing_docs, reason = "tests are named by sentences")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chaos;
mod claiming;
mod commands;
mod containers;
mod copies;
mod credentials;
mod dba_questions;
mod delivery;
mod drain;
mod hostile;
mod hosts;
mod identity;
mod locks;
mod logging;
mod lost_sessions;
mod memory;
mod monitoring;
mod operators;
mod outbox_constraints;
mod pages;
mod pauses;
mod plans;
mod pooler;
mod prometheus;
mod promptpal;
mod recording;
mod retention;
mod rights;
mod rooms;
mod scenes;
mod schema;
mod server_restart;
mod service_unit;
mod several;
mod shipped_files;
mod standby;
mod support;
mod takeover;
mod terminal;
mod top;
mod unmet;
mod upgrade;
mod way_out;
