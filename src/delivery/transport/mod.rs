//! What lies between the HTTP client and the socket: connecting, deadlines, what an answer really was.
//!
//! The only user of ureq's unversioned traits. [`agents`] has ureq's agents, each with a chain of our links. [`dial`] connects
//! to an address of a name by a [`race`], or has a proxy do so through a [`tunnel`]. [`tls`] encrypts, and [`resumption`] keeps its
//! [`tls_sessions`]. [`recorder`] records what passes in the [`exchange`]. [`names`] asks the resolver for ureq. [`socket`] reads and writes against one [`deadline`]. [`head`] and [`chunks`] mend what the client would refuse, by
//! the [`status_line`], the [`framing`] and the [`repair`] of a head.

pub(crate) mod agents;
pub(crate) mod chunks;
pub(crate) mod deadline;
pub(crate) mod dial;
pub(crate) mod exchange;
pub(crate) mod framing;
pub(crate) mod head;
pub(crate) mod names;
pub(crate) mod race;
pub(crate) mod recorder;
pub(crate) mod repair;
pub(crate) mod resumption;
pub(crate) mod socket;
pub(crate) mod status_line;
pub(crate) mod tls;
pub(crate) mod tls_sessions;
pub(crate) mod tunnel;
