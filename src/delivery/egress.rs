//! The egress policy: which addresses a call may go to.
//!
//! Puts together what the single rules say: the networks that are not globally reachable ([`networks`]), this machine's own
//! addresses ([`machine`](crate::delivery::machine)), the database and the metrics. Asks the resolver for the database's
//! names only, and dials nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;

use crate::delivery::machine::Machine;
use crate::delivery::networks;
use crate::delivery::resolver::{Answer, Resolver};
use crate::model::database_addresses::Reached;

/// All that a customer reads of a name whose address is refused. The address itself, or its kind, would tell the customer
/// what the names of our network stand for.
pub(crate) const NAME_REFUSED: &str = "the name stands for a private address, or for one of the relay's own";
/// Why a call may not go to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    /// The kind of address, for the customer who typed it.
    pub kind: &'static str,
    /// For the operator.
    pub detail: String,
}

impl Denial {
    fn own(detail: impl Into<String>) -> Denial {
        Denial { kind: "the relay's own", detail: detail.into() }
    }

    /// In words, for the customer who typed the address.
    pub(crate) fn message(&self, address: SocketAddr) -> String {
        format!("{} may not be called: {}", address.ip(), self.kind)
    }

    /// What the customer reads of it, when the URL has this host.
    pub(crate) fn for_customer(&self, host: &str, address: SocketAddr) -> String {
        let typed = bare(host).parse::<IpAddr>().is_ok() || is_localhost(host);
        if typed { self.message(address) } else { NAME_REFUSED.into() }
    }
}

/// The rules of one process.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Networks that may be called although they are not globally reachable.
    pub allow: Vec<IpNet>,
    /// Hosts and ports of our Postgres, which no call may reach. A name is looked up when a call goes to its port, because
    /// it may stand for another address by then.
    pub database: Vec<(String, u16)>,
    /// Addresses at which our Postgres was reached. No call may reach these either.
    pub reached: Reached,
    /// The port of our metrics. No call may reach it at any of this machine's addresses.
    pub metrics_port: Option<u16>,
    /// Knows this machine's addresses. A call reaches them only where the operator allows it.
    pub machine: Machine,
    /// Looks names up.
    pub names: Resolver,
}

impl Policy {
    /// Why a call may not go to an address, but for the rule of [`Policy::own`]; none when it may. Blocks until `deadline` at
    /// most, to look up a name of our own Postgres. While such a name has no answer, any address at its port may be the
    /// database, and is refused.
    pub(crate) fn denial(&self, address: SocketAddr, deadline: Instant) -> Option<Denial> {
        if let Some(kind) = networks::denial_reason(address.ip(), &self.allow) {
            return Some(Denial { kind, detail: kind.into() });
        }
        // What the kernel does not tell counts as this machine's.
        let is_own = |ip: IpAddr| self.is_own(ip).unwrap_or(true);
        if self.metrics_port == Some(address.port()) && is_own(address.ip()) {
            return Some(Denial::own("the relay's metrics"));
        }
        let mut addresses_of_it = self.reached.at(address.port());
        for (host, _) in self.database.iter().filter(|(_, port)| *port == address.port()) {
            match host.parse().map_or_else(|_| self.names.addresses(host, deadline), Answer::of) {
                Answer::Addresses(addresses) => addresses_of_it.extend(addresses),
                _ => return Some(Denial::own(format!("it may be the database: {host} is not resolved now"))),
            }
        }
        let ip = networks::plain(address.ip());
        let is_it = |known: IpAddr| known == ip || (is_own(known) && is_own(ip));
        let refused = addresses_of_it.into_iter().map(networks::plain).any(is_it);
        refused.then(|| Denial::own("the database"))
    }

    /// Why no connection may be made to an address now: it is one of this machine's, and the operator has not allowed it.
    /// The kernel routes such an address over loopback, past the firewall.
    ///
    /// # Errors
    ///
    /// When the kernel cannot tell, for a lack of memory.
    pub(crate) fn own(&self, address: SocketAddr) -> io::Result<Option<Denial>> {
        let allowed = networks::is_allowed(address.ip(), &self.allow);
        let own = !allowed && self.is_own(address.ip())?;
        Ok(own.then(|| Denial::own("an address of this machine's; --allow-net allows it")))
    }

    /// Why a proxy with these addresses may not be asked for an endpoint. The endpoint is the proxy itself, or another port of its
    /// host that the operator has not allowed. The proxy's host takes such a connection for one of its own.
    pub(crate) fn proxy(&self, endpoint: SocketAddr, proxies: &[SocketAddr]) -> Option<Denial> {
        let is_host = |proxy: &SocketAddr| networks::plain(proxy.ip()) == networks::plain(endpoint.ip());
        let mut hosts = proxies.iter().filter(|proxy| is_host(proxy));
        let allowed = networks::is_allowed(endpoint.ip(), &self.allow);
        let refused = hosts.any(|proxy| !allowed || proxy.port() == endpoint.port());
        refused.then(|| Denial::own("the proxy's host; --allow-net allows it, but for the proxy's port"))
    }

    /// Whether packets to an address stay on this machine, also those to an address that it embeds.
    fn is_own(&self, ip: IpAddr) -> io::Result<bool> {
        let plain = networks::plain(ip);
        Ok(self.machine.has(ip)? || (plain != ip && self.machine.has(plain)?))
    }

    /// What `localhost` stands for: loopback, as far as the operator has allowed it.
    pub(crate) fn loopback(&self) -> Vec<IpAddr> {
        let both: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let allowed: Vec<_> =
            both.into_iter().filter(|address| networks::is_allowed(*address, &self.allow)).collect();
        if allowed.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { allowed }
    }
}

/// Whether a name is loopback everywhere (RFC 6761). The resolver is not asked for it.
pub(crate) fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

/// A host without the brackets of an IPv6 address.
pub(crate) fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    /// A policy for which every name is 127.0.0.1.
    pub(crate) fn policy(allow: &[&str]) -> Policy {
        let allow = allow.iter().map(|net| net.parse().expect("a network")).collect();
        let names = Resolver::new(Box::new(|_| Ok(vec![Ipv4Addr::LOCALHOST.into()])));
        let machine = Machine::open().expect("netlink");
        Policy {
            allow,
            database: Vec::new(),
            reached: Reached::default(),
            metrics_port: None,
            machine,
            names,
        }
    }

    #[test]
    fn the_database_is_refused_in_every_spelling_of_an_address_at_which_it_was_reached() {
        let (policy, soon) = (policy(&["0.0.0.0/0", "::/0"]), Instant::now() + Duration::from_secs(20));
        for (reached, same, others) in [
            (
                "192.0.2.1",
                &[
                    "192.0.2.1",
                    "::ffff:192.0.2.1",
                    "::ffff:0:192.0.2.1",
                    "64:ff9b::192.0.2.1",
                    "2002:c000:201::1",
                ][..],
                &["192.0.2.2", "64:ff9b::192.0.2.2", "2002:c000:202::1", "2001:db8::c000:201"][..],
            ),
            ("64:ff9b::198.51.100.7", &["198.51.100.7", "64:ff9b::198.51.100.7"], &["198.51.100.8"]),
            ("2001:db8::7", &["2001:db8::7"], &["2001:db8::8"]),
            ("127.0.0.1", &["127.9.9.9", "::1", "64:ff9b::127.0.0.1", "2002:7f00:1::"], &["192.0.2.9"]),
        ] {
            policy.reached.add(reached.parse().expect("an address"), 5499);
            let denial =
                |ip: &str, port| policy.denial(SocketAddr::new(ip.parse().expect("an address"), port), soon);
            for ip in same {
                assert!(
                    denial(ip, 5499).is_some_and(|denial| denial.detail == "the database"),
                    "{ip} is {reached}"
                );
                assert_eq!(denial(ip, 5498), None, "{ip}: the port is another one's");
            }
            for ip in others {
                assert_eq!(denial(ip, 5499), None, "{ip} is not {reached}");
            }
        }
    }
}
