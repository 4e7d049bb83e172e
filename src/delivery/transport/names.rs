//! Names to addresses, for ureq: the resolver's answer, looked at by the egress policy.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Error, Timeout, config::Config};

use crate::delivery::egress::{Policy, bare, is_localhost};
use crate::delivery::resolver::Answer;
use crate::delivery::transport::exchange::{note, note_denial};

/// A name as it is looked up, with the dot that ends it. So the resolver puts no domain of this machine's search list behind
/// it, and finds it in no line of the hosts file.
fn absolute(name: &str) -> String {
    if name.ends_with('.') { name.to_owned() } else { format!("{name}.") }
}

/// Names to addresses, for ureq.
#[derive(Debug)]
pub(crate) struct Names {
    /// Has the resolver, and decides on each answer. [`Dial`](crate::delivery::transport::dial::Dial) asks it again for the
    /// address that it dials.
    pub policy: Arc<Policy>,
}

impl UreqResolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().unwrap_or_default();
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port);
        let deadline = Instant::now() + *timeout.after;
        let addresses = match bare(host).parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) if is_localhost(host) => self.policy.loopback(),
            Err(_) => match self.policy.names.addresses(&absolute(host), deadline) {
                Answer::Addresses(addresses) => addresses,
                Answer::Late => return Err(Error::Timeout(Timeout::Resolve)),
                Answer::ResolverBusy => {
                    note(|exchange| exchange.resolver_busy = true);
                    return Err(Error::HostNotFound);
                }
                Answer::ResourceExhausted(reason) => {
                    note(|exchange| exchange.exhausted = Some(reason));
                    return Err(Error::HostNotFound);
                }
                Answer::Failed(reason) => {
                    note(|exchange| exchange.unresolved = Some(reason));
                    return Err(Error::HostNotFound);
                }
            },
        };
        let addresses = alternate(addresses).into_iter().map(|address| SocketAddr::new(address, port));
        // One forbidden address among a name's answers refuses the call, so that the owner of the name cannot play with which
        // of them is tried.
        let denied = |address| Some((address, self.policy.denial(address, deadline)?));
        if let Some((address, denial)) = addresses.clone().find_map(denied) {
            note_denial(&denial, host, address);
            return Err(Error::HostNotFound);
        }
        let mut resolved = self.empty();
        for address in addresses {
            if resolved.try_push(address).is_err() {
                // The name has more addresses than ureq takes; those that it has will do.
                break;
            }
        }
        Ok(resolved)
    }
}

/// Lets the two families alternate; the first address stays the first (RFC 8305, section 4).
fn alternate(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let first_is_v4 = addresses.first().is_some_and(IpAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == first_is_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let pairs = std::iter::from_fn(|| match (first.next(), second.next()) {
        (None, None) => None,
        pair => Some([pair.0, pair.1]),
    });
    pairs.flatten().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate_and_the_first_stays() {
        let ips = |text: &str| -> Vec<IpAddr> {
            text.split(' ').map(|ip| ip.parse().expect("an address")).collect()
        };
        for (given, expected) in [
            ("::1 ::2 ::3 1.0.0.1 1.0.0.2", "::1 1.0.0.1 ::2 1.0.0.2 ::3"),
            ("1.0.0.1 ::1 ::2 ::3", "1.0.0.1 ::1 ::2 ::3"),
            ("1.0.0.1 1.0.0.2 ::1", "1.0.0.1 ::1 1.0.0.2"),
            ("1.0.0.2 1.0.0.1", "1.0.0.2 1.0.0.1"),
            ("::1", "::1"),
        ] {
            assert_eq!(alternate(ips(given)), ips(expected), "{given}");
        }
        assert!(alternate(Vec::new()).is_empty());
    }
}
