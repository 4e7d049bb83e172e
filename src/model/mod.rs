//! Plain data that both sides share: the [`event`](mod@event), the [`call`] that came of it, and the [`memory`] that both take.

pub mod call;
pub mod event;
pub mod memory;
