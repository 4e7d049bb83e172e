//! Endpoints and addresses that mean harm: the caller against receivers that are scripted by bytes and delays, and
//! against names that resolve to whatever a test says. No Postgres; loopback only.

#[path = "hostile/support.rs"]
mod support;

#[path = "hostile/answer.rs"]
mod answer;
#[path = "hostile/timeout.rs"]
mod timeout;
#[path = "hostile/keepalive.rs"]
mod keepalive;
