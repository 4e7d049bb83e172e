//! What people read: the journal ([`logging`], [`failure_log`], with the colours of [`terminal`]), the [`metrics`] and the
//! [`health`], and the [`http`] server that answers for both. No loop decides by it.
//!
//! [`exposition`] has the formats of the metrics, [`process`] and [`recent_calls`] a part of them each.

pub(crate) mod exposition;
pub(crate) mod failure_log;
pub(crate) mod health;
pub(crate) mod http;
pub mod logging;
pub(crate) mod metrics;
pub(crate) mod process;
pub(crate) mod recent_calls;
pub(crate) mod terminal;
