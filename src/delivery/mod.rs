//! One POST, from start to end, blocking: a failure is a value. Knows no queue and no Postgres.
//!
//! [`client`] puts the steps together: a [`target`], a [`request`] with its [`signature`], and the [`response`], over
//! [`transport`]. [`failure`] says why a call failed, and [`broken`] how its connection broke. [`body`] and [`headers`] are what the log keeps of an answer. [`egress`]
//! decides which addresses may be called, by [`networks`] and what the kernel says of this [`machine`]. [`resolver`] looks names
//! up, [`tls`] says which servers are trusted, and [`fd_budget`] keeps a low limit of file descriptors from being hit: a [`bulkhead`] for the process.
//! [`way_out`] knows the addresses that calls leave from ([`sources`]) and the [`proxy`], and what is wrong with them. [`refusals`]
//! says whom the proxy refuses.

pub(crate) mod body;
pub(crate) mod broken;
pub(crate) mod bulkhead;
pub(crate) mod client;
pub(crate) mod egress;
pub(crate) mod failure;
pub mod fd_budget;
pub(crate) mod headers;
pub(crate) mod machine;
pub(crate) mod networks;
pub(crate) mod proxy;
pub(crate) mod refusals;
pub(crate) mod request;
pub(crate) mod resolver;
pub(crate) mod response;
pub(crate) mod signature;
pub(crate) mod sources;
pub(crate) mod target;
pub(crate) mod tls;
pub(crate) mod transport;
pub(crate) mod way_out;
