//! `promptpal-relay`: an outbox relay for Postgres.

pub mod call;
pub mod db;
pub mod error;
pub mod event;
