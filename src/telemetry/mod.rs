//! What people read: the journal ([`logging`], [`failure_log`], with the colours of [`terminal`]) and the [`metrics`]. No loop
//! decides by it.

pub mod failure_log;
pub mod logging;
pub mod metrics;
pub mod terminal;
