//! What both sides of the program share about TLS: the side of the endpoints and the side of Postgres.
//!
//! [`verifier`] has the proof that the server holds its key, and the store of trusted authorities; what else is demanded of a
//! certificate is a policy of each side. [`handshake`] says why a handshake failed.

pub(crate) mod handshake;
pub(crate) mod verifier;
