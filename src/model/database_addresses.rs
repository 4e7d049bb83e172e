//! The addresses at which our Postgres was reached.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

/// Addresses of our Postgres that are remembered; beyond it the oldest goes.
const REACHED_MAX: usize = 64;

/// The very addresses at which our Postgres was reached, whatever its names stand for by now. Cheap to clone; all clones are
/// one. The room `postgres` writes them when it opens a session; the egress policy of the calls reads them.
#[derive(Clone, Debug, Default)]
pub struct Reached(Arc<Mutex<Vec<SocketAddr>>>);

impl Reached {
    /// Notes that a session was opened at this address and port.
    pub fn add(&self, ip: IpAddr, port: u16) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let address = SocketAddr::new(ip, port);
        if !known.contains(&address) {
            let surplus = (known.len() + 1).saturating_sub(REACHED_MAX);
            known.drain(..surplus);
            known.push(address);
        }
    }

    /// The addresses at which Postgres was reached with this port.
    pub fn at(&self, port: u16) -> Vec<IpAddr> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter(|address| address.port() == port).map(SocketAddr::ip).collect()
    }
}
