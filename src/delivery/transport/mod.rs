//! What lies between the HTTP client and the socket: connecting, deadlines, what an answer really was.
//!
//! The only user of ureq's unversioned traits. [`dial`] races the addresses of a name, [`socket`] reads and writes against
//! one deadline, [`recorder`] watches what passes, and [`head`] and [`chunks`] mend what the client would refuse.

pub mod chunks;
pub mod dial;
pub mod head;
pub mod recorder;
pub mod socket;
