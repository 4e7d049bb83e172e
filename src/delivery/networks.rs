//! Which networks may be called: pure rules, no I/O.
//!
//! The daemon runs on the database's host and calls URLs that customers typed. So only globally reachable addresses
//! are called, by IANA's registries of special-purpose addresses (RFC 6890 and its updates), unless the operator
//! allows a network. An IPv6 address that embeds an IPv4 address counts as what it embeds, too. Which addresses are this
//! machine's own is not known here, see [`machine`](crate::delivery::machine).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// IPv4 networks that are not globally reachable, each with the word for the message. IANA's exceptions within
/// 192.0.0.0/24 (anycast of PCP and TURN) serve no HTTP, so the list keeps the whole network. Two clouds use public addresses
/// that only their own machines reach: Azure's wire server (certificates, DNS), IBM's private endpoints (mirrors; databases).
/// The metadata addresses of other clouds are in networks that are private anyway.
const V4: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared by a carrier"),
    ("127.0.0.0/8", "loopback"),
    ("161.26.0.0/16", "internal to a cloud"),
    ("166.8.0.0/14", "internal to a cloud"),
    ("168.63.129.16/32", "internal to a cloud"),
    ("169.254.0.0/16", "link-local, metadata"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relays"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
];

/// IPv6 networks within 2000::/3 that are not globally reachable. All outside of 2000::/3 is refused, see [`denial_reason`].
const V6: &[(&str, &str)] = &[
    ("2001::/23", "protocol assignments, Teredo"),
    ("2001:db8::/32", "documentation"),
    ("3fff::/20", "documentation"),
];

/// The part of IPv6 for global use.
const V6_GLOBAL: &str = "2000::/3";

/// IPv6 networks whose addresses carry an IPv4 address, each with the byte where it begins.
const EMBEDDING: &[(&str, usize)] =
    &[("::ffff:0:0/96", 12), ("::ffff:0:0:0/96", 12), ("64:ff9b::/96", 12), ("2002::/16", 2)];

/// Ports that are not called, whatever the address is: they belong to servers of other protocols, which may take a part of a
/// request for theirs. They are Redis' port and the bad ports of the WHATWG fetch standard (section "Port blocking", 2026),
/// which browsers refuse, too.
const BAD_PORTS: &[u16] = &[
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103,
    104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514,
    515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723,
    2049, 3659, 4045, 4190, 5060, 5061, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

/// The address that packets to this one reach in the end: what it embeds, or itself.
pub(crate) fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => embedded(v6).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// Whether the operator has allowed an address. An address that embeds another one is allowed exactly when the embedded one is.
/// An operator who allows a network of IPv6 does not mean the IPv4 addresses that can be written into it.
pub(crate) fn is_allowed(address: IpAddr, allow: &[IpNet]) -> bool {
    let address = plain(address);
    allow.iter().any(|net| net.contains(&address))
}

/// Why an address may not be called; none when it may. `allow` names networks that may be called although they are
/// not globally reachable.
pub fn denial_reason(address: IpAddr, allow: &[IpNet]) -> Option<&'static str> {
    if is_allowed(address, allow) {
        return None;
    }
    match plain(address) {
        IpAddr::V4(v4) => denial_reason_v4(v4),
        IpAddr::V6(v6) => denial_reason_v6(v6),
    }
}

/// Whether a port is not called, whatever the address is.
pub(crate) fn is_bad_port(port: u16) -> bool {
    BAD_PORTS.contains(&port)
}

fn denial_reason_v4(address: Ipv4Addr) -> Option<&'static str> {
    V4.iter().find(|(net, _)| net_v4(net).contains(&address)).map(|(_, why)| *why)
}

fn denial_reason_v6(address: Ipv6Addr) -> Option<&'static str> {
    if !net_v6(V6_GLOBAL).contains(&address) {
        return Some(match address {
            Ipv6Addr::LOCALHOST => "loopback",
            _ if address.is_multicast() => "multicast",
            _ if address.is_unicast_link_local() => "link-local",
            _ if address.is_unique_local() => "private",
            _ => "not for global use",
        });
    }
    V6.iter().find(|(net, _)| net_v6(net).contains(&address)).map(|(_, why)| *why)
}

/// The IPv4 address within an IPv6 address.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (_, at) = EMBEDDING.iter().find(|(net, _)| net_v6(net).contains(&address))?;
    let bytes = address.octets();
    Some(Ipv4Addr::new(bytes[*at], bytes[at + 1], bytes[at + 2], bytes[at + 3]))
}

fn net_v4(text: &str) -> Ipv4Net {
    text.parse().expect("a constant of this module")
}

fn net_v6(text: &str) -> Ipv6Net {
    text.parse().expect("a constant of this module")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(address: &str, allow: &[&str]) -> bool {
        let allow: Vec<IpNet> = allow.iter().map(|net| net.parse().expect("a network")).collect();
        denial_reason(address.parse().expect("an address"), &allow).is_none()
    }

    #[test]
    fn public_addresses_may_be_called() {
        for address in
            ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "2a00::1"]
        {
            assert!(may(address, &[]), "{address}");
        }
    }

    #[test]
    fn others_may_not() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.255",
            "161.26.0.10",
            "166.11.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "100::1",
            "5f00::1",
        ] {
            assert!(!may(address, &[]), "{address}");
        }
    }

    #[test]
    fn an_embedded_address_counts() {
        for (inside, outside) in [
            ("::ffff:127.0.0.1", "::ffff:8.8.8.8"),
            ("64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8"),
            ("2002:7f00:1::", "2002:808:808::"),
        ] {
            assert!(!may(inside, &[]), "{inside}");
            assert!(may(outside, &[]), "{outside}");
        }
        // Old ways that nothing should use are closed as a whole.
        assert!(!may("::127.0.0.1", &[]) && !may("64:ff9b:1::8.8.8.8", &[]));
    }

    #[test]
    fn the_operator_may_allow_a_network() {
        assert!(may("10.1.2.3", &["10.0.0.0/8"]) && may("11.0.0.1", &["10.0.0.0/8"]));
        assert!(!may("192.168.0.1", &["10.0.0.0/8"]));
        assert!(may("::ffff:10.1.2.3", &["10.0.0.0/8"]), "as what it embeds");
        for embedding in ["::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "2002:a01:203::1"] {
            assert!(!may(embedding, &["::/0"]) && may(embedding, &["10.1.2.3/32"]), "{embedding}");
        }
        assert!(may("::1", &["::1/128"]) && !may("127.0.0.1", &["::1/128"]));
    }
}
