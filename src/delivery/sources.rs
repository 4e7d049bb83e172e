//! The addresses of this host that calls leave from, where the operator names them.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use crate::error::{Error, Result};

/// One address of each family at most. Without any the kernel chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

/// Where a connection leaves from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The kernel chooses.
    Any,
    /// This address.
    Own(IpAddr),
    /// Nowhere: the operator has named an address of the other family only. A call from an address that the operator did not
    /// name may be refused by the networks on its way.
    Nowhere,
}

impl Sources {
    /// The addresses that the operator named.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for two of a family.
    pub fn new(addresses: &[IpAddr]) -> Result<Sources> {
        let mut sources = Sources::default();
        for address in addresses {
            let before = match address {
                IpAddr::V4(v4) => sources.v4.replace(*v4).map(IpAddr::from),
                IpAddr::V6(v6) => sources.v6.replace(*v6).map(IpAddr::from),
            };
            if let Some(before) = before {
                return Err(Error::Usage(format!(
                    "--bind-address has {before} and {address}; give one IPv4 and one IPv6 address at most"
                )));
            }
        }
        Ok(sources)
    }

    /// The addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::from).into_iter().chain(self.v6.map(IpAddr::from))
    }

    /// Where a connection to this address leaves from.
    pub(crate) fn towards(&self, remote: IpAddr) -> Source {
        let own = match remote {
            IpAddr::V4(_) => self.v4.map(IpAddr::from),
            // The kernel sends IPv4 to such an address.
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => self.v4.map(|v4| v4.to_ipv6_mapped().into()),
            IpAddr::V6(_) => self.v6.map(IpAddr::from),
        };
        match own {
            Some(own) => Source::Own(own),
            None if *self == Sources::default() => Source::Any,
            None => Source::Nowhere,
        }
    }

    /// Requires that this host has the addresses.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] for one that it does not have yet, as after a boot or while it is another host's: a restart may help.
    /// [`Error::Config`] for one that it can never have.
    pub(crate) fn require_own(&self) -> Result<()> {
        for address in self.addresses() {
            UdpSocket::bind((address, 0)).map_err(|error| {
                let text = format!(
                    "no call can leave from {address}, which --bind-address names: {error}; name an address that this host \
                     has (ip address shows them)"
                );
                if error.kind() == ErrorKind::AddrNotAvailable { Error::Failed(text) } else { Error::Config(text) }
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips<const N: usize>(texts: [&str; N]) -> [IpAddr; N] {
        texts.map(|text| text.parse().expect("an address"))
    }

    #[test]
    fn a_family_without_an_address_is_not_dialled_when_the_other_has_one() {
        let remotes = ips(["192.0.2.9", "2001:db8::9", "::ffff:192.0.2.9"]);
        let [v4, v6, mapped] = ips(["198.51.100.1", "2001:db8::1", "::ffff:198.51.100.1"]);
        for (named, expected) in [
            (&[][..], [Source::Any; 3]),
            (&[v4], [Source::Own(v4), Source::Nowhere, Source::Own(mapped)]),
            (&[v6], [Source::Nowhere, Source::Own(v6), Source::Nowhere]),
            (&[v6, v4], [Source::Own(v4), Source::Own(v6), Source::Own(mapped)]),
        ] {
            let sources = Sources::new(named).expect("one of each");
            assert_eq!(remotes.map(|remote| sources.towards(remote)), expected, "{named:?}");
        }
        assert_eq!(Sources::new(&[v4, v4]).expect_err("two").exit_code(), 2);
    }

    #[test]
    fn an_address_that_is_not_this_hosts_may_be_it_after_a_restart() {
        let [own, other] = ips(["127.0.0.2", "192.0.2.1"]);
        assert!(Sources::new(&[own]).expect("one").require_own().is_ok());
        let error = Sources::new(&[other]).expect("one").require_own().expect_err("documentation's");
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("192.0.2.1"), "{error}");
    }
}
