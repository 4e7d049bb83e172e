//! One POST, from start to end, blocking: a failure is a value. Knows no queue and no Postgres.
//!
//! [`client`] puts the steps together: a [`target`], a [`request`] with its [`signature`], and the [`response`], over
//! [`transport`]. [`failure`] says why a call failed. [`body`] and [`headers`] are what the log keeps of an answer. [`egress`]
//! decides which addresses may be called, by [`networks`] and what the kernel says of this [`machine`]. [`resolver`] looks names
//! up, [`tls`] says which servers are trusted, and [`fd_budget`] keeps a low limit of file descriptors from being hit: a [`bulkhead`] for the process.

pub mod body;
pub mod bulkhead;
pub mod client;
pub mod egress;
pub mod failure;
pub mod fd_budget;
pub mod headers;
pub mod machine;
pub mod networks;
pub mod request;
pub mod resolver;
pub mod response;
pub mod signature;
pub mod target;
pub mod tls;
pub mod transport;
