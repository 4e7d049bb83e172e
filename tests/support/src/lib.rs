//! What more than one test binary stands on: the reader of HTTP messages, a proxy, and servers with wrong certificates.

pub mod http;
pub mod openssl;
pub mod proxy;
