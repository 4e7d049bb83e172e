//! What both sides of the program share about TLS: the side of the endpoints and the side of Postgres.
//!
//! [`handshake`] says why a handshake failed. Each side decides for itself what it demands of a certificate.

pub mod handshake;
