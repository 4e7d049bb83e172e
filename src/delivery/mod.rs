//! One POST, from start to end, blocking: a failure is a value. Knows no queue and no Postgres.
//!
//! [`client`] makes it, over [`transport`]. [`networks`] says which addresses may be called, [`resolver`] looks names up,
//! [`tls`] has what is trusted, [`signature`] signs, [`body`] keeps as much of an answer as it may, and [`fd_budget`] keeps
//! a low limit of file descriptors from being hit.

pub mod body;
pub mod client;
pub mod fd_budget;
pub mod machine;
pub mod networks;
pub mod resolver;
pub mod signature;
pub mod tls;
pub mod transport;
