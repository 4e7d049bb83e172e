//! Which call is next, and on which thread. Asynchronous meets blocking here, and nowhere else.
//!
//! Knows no Postgres and no HTTP: a call is a function that [`pool`] was given. [`scheduler`] decides which call is next,
//! [`admission`] which row begins.

pub mod admission;
pub mod limits;
pub mod pool;
pub mod scheduler;
