//! Endpoints and addresses that mean harm: the caller against receivers that are scripted by bytes and delays, and
//! against names that resolve to what the test says. The tests need no Postgres, and use loopback only.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod address;
mod answer;
mod dial;
mod head;
mod keepalive;
mod messages;
mod network;
mod property;
mod proxied;
mod reader;
mod resumption;
mod signing;
mod sources;
mod support;
mod timeout;
mod tls;
