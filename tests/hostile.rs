//! Endpoints and addresses that mean harm: the caller against receivers that are scripted by bytes and delays, and
//! against names that resolve to whatever a test says. No Postgres; loopback only.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "hostile/address.rs"]
mod address;
#[path = "hostile/answer.rs"]
mod answer;
#[path = "hostile/dial.rs"]
mod dial;
#[path = "hostile/head.rs"]
mod head;
#[path = "hostile/keepalive.rs"]
mod keepalive;
#[path = "hostile/network.rs"]
mod network;
#[path = "hostile/openssl.rs"]
mod openssl;
#[path = "hostile/property.rs"]
mod property;
#[path = "hostile/signing.rs"]
mod signing;
#[path = "hostile/support.rs"]
mod support;
#[path = "hostile/timeout.rs"]
mod timeout;
#[path = "hostile/tls.rs"]
mod tls;
