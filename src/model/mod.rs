//! Plain data that travels between the rooms, and the count of the memory that it takes. Imports nothing of ours.

pub mod call;
pub mod database_addresses;
pub mod event;
pub mod load;
pub mod memory;
pub mod message;
pub mod redact;
pub mod row;
pub mod snapshot;
pub mod text;
pub mod trace_context;
