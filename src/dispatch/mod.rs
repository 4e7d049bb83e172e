//! Which call is next, and on which thread. Asynchronous meets blocking here, and nowhere else.
//!
//! The room knows no Postgres and no HTTP: a call is a function that the [`pool`] was given. The daemon talks to the pool
//! only; `worker` is the life of one of its threads, `row` is what they have in hand.
//!
//! What can be decided with pen and paper stands in files without clock, lock, thread or channel:
//!
//! - [`scheduler`] decides which call is next, and how much to claim.
//! - [`limits`] decides how many calls may run.
//! - [`admission`] decides which row begins.
//! - `gate` decides whether any call may start.
//! - `state` has all of them, and says what each event changes.

pub(crate) mod admission;
mod gate;
pub(crate) mod limits;
pub(crate) mod pool;
mod row;
pub(crate) mod scheduler;
mod state;
mod worker;
