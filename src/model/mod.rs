//! Plain data that travels between the rooms, and the count of the memory that it takes. Imports nothing of ours.

pub(crate) mod call;
pub(crate) mod database_addresses;
pub(crate) mod event;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod message;
pub(crate) mod redact;
pub(crate) mod row;
pub(crate) mod snapshot;
pub(crate) mod text;
pub(crate) mod trace_context;
