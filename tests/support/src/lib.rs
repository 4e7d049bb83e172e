//! What more than one test binary stands on: the reader of HTTP messages, and servers with wrong certificates.

pub mod http;
pub mod openssl;
