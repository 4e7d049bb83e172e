//! The program against a real Postgres and scripted receivers, through its public face: the binary, SQL and HTTP.
//!
//! One test binary, so that one private Postgres serves all tests of a run; a database for each test.

#![allow(missing_docs, reason = "tests are named by sentences")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chaos;
mod commands;
mod delivery;
mod hostile;
mod house;
mod input;
mod locks;
mod logging;
mod memory;
mod monitoring;
mod operators;
mod plans;
mod pooler;
mod promptpal;
mod questions;
mod recovery;
mod retention;
mod rights;
mod rooms;
mod schema;
mod standby;
mod support;
mod terminal;
mod unit;
