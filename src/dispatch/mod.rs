//! Which call is next, and on which thread. Asynchronous meets blocking here, and nowhere else.
//!
//! Knows no Postgres and no HTTP: a call is a function that the [`pool`] was given. The daemon talks to the [`pool`], whose
//! threads live as `worker` says. What can be decided with pen and paper stands in files without clock, lock, thread or
//! channel: [`scheduler`] decides which call is next, [`limits`] how many may run, [`admission`] which row begins, `gate`
//! whether any call may start, and `state` what each event changes.

pub mod admission;
mod gate;
pub mod limits;
pub mod pool;
mod row;
pub mod scheduler;
mod state;
mod worker;
