//! What lies between the HTTP client and the socket: connecting, deadlines, what an answer really was.
//!
//! The only user of ureq's unversioned traits. [`agents`] has ureq's agents, each with a chain of our links: [`dial`] races the
//! addresses of a name, [`tls`] encrypts, [`recorder`] records what passes in the [`exchange`]. [`names`] asks the resolver for
//! ureq. [`socket`] reads and writes against one [`deadline`]. [`head`] and [`chunks`] mend what the client would refuse, by
//! the [`status_line`], the [`framing`] and the [`repair`] of a head.

pub mod agents;
pub mod chunks;
pub mod deadline;
pub mod dial;
pub mod exchange;
pub mod framing;
pub mod head;
pub mod names;
pub mod recorder;
pub mod repair;
pub mod socket;
pub mod status_line;
pub mod tls;
