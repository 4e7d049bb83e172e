//! Which servers to try: hosts, addresses and ports, paired as libpq pairs them.
//!
//! Resolves no name; looks only whether a local socket is there.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::postgres::conninfo::{Params, SPACES};
use crate::postgres::keywords::bad;

const DEFAULT_PORT: u16 = 5432;

/// Where packages put the socket: Debian's and Red Hat's place, then the one Postgres itself is built with.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// One server to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub place: Place,
    pub port: u16,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The name is what the certificate must be for; the address, where given, is what is dialled instead of it.
    Tcp { name: String, address: Option<IpAddr> },
    /// The folder of the socket.
    Socket(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Place::Tcp { name, .. } => write!(f, "{name}:{}", self.port),
            Place::Socket(folder) => write!(f, "{}:{}", folder.display(), self.port),
        }
    }
}

/// Pairs hosts, addresses and ports as libpq does: addresses, where given, decide how many there are; one port is
/// for all.
pub(super) fn hosts(params: &Params) -> Result<Vec<Host>> {
    let list =
        |key: &str| params.get(key).map_or_else(Vec::new, |value| value.split(',').collect::<Vec<&str>>());
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return bad("hostaddr", format_args!("{} addresses for {} hosts", addresses.len(), names.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return bad("port", format_args!("{} ports for {count} hosts", ports.len()));
    }
    let at = |list: &[&str], i: usize| list.get(i).copied().unwrap_or_default().to_owned();
    (0..count)
        .map(|i| {
            let port =
                port(if ports.len() == 1 { ports[0] } else { ports.get(i).copied().unwrap_or_default() })?;
            Ok(Host { place: place(at(&names, i), &at(&addresses, i), port)?, port })
        })
        .collect()
}

fn port(text: &str) -> Result<u16> {
    // As libpq does with numbers.
    match (text, text.trim_matches(SPACES).parse()) {
        ("", _) => Ok(DEFAULT_PORT),
        (_, Ok(port)) if port > 0 => Ok(port),
        // The text is not repeated: in a URL it may be the piece of a password (see `conninfo`).
        _ => bad("port", "not a number from 1 to 65535"),
    }
}

fn place(name: String, address: &str, port: u16) -> Result<Place> {
    if name.starts_with('@') {
        return bad("host", "sockets in the abstract namespace are not supported");
    }
    if name.starts_with('/') && !address.is_empty() {
        return bad("hostaddr", "given for a host that is a socket's folder; leave one of them out");
    }
    if name.starts_with('/') {
        return Ok(Place::Socket(name.into()));
    }
    let address = match (address, address.parse()) {
        ("", _) => None,
        (_, Ok(address)) => Some(address),
        (_, Err(_)) => return bad("hostaddr", format_args!("`{address}` is not an IP address")),
    };
    Ok(match (name.is_empty(), address) {
        (false, _) => Place::Tcp { name, address },
        (true, Some(_)) => Place::Tcp { name: address.map(|a| a.to_string()).unwrap_or_default(), address },
        (true, None) => default_place(port),
    })
}

/// The local socket where there is one, else `localhost`.
fn default_place(port: u16) -> Place {
    let socket = format!(".s.PGSQL.{port}");
    match SOCKET_FOLDERS.iter().map(Path::new).find(|folder| folder.join(&socket).exists()) {
        Some(folder) => Place::Socket(folder.to_owned()),
        None => Place::Tcp { name: "localhost".to_owned(), address: None },
    }
}

/// Whether a socket in this folder counts as `localhost` in the password file.
pub(super) fn is_default_folder(folder: &Path) -> bool {
    SOCKET_FOLDERS.iter().any(|known| Path::new(known) == folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_addresses_and_ports_are_paired_as_in_libpq() {
        for (host, hostaddr, port, expected) in [
            ("a", "", "", "a:5432"),
            ("a", "", "1", "a:1"),
            ("a,b", "", "1", "a:1 b:1"),
            ("a,b", "", "1,", "a:1 b:5432"),
            ("a,b", "", ",", "a:5432 b:5432"),
            ("::1,/run/pg", "", "1,2", "[::1]:1 /run/pg:2"),
            ("", "10.0.0.1,::1", "1,2", "10.0.0.1:1=10.0.0.1 [::1]:2=::1"),
            ("a,b", "10.0.0.1,", "1", "a:1=10.0.0.1 b:1"),
            ("a,b", "10.0.0.1", "", "database URL: hostaddr (or PGHOSTADDR): 1 addresses for 2 hosts"),
            ("a,b,c", "", "1,2", "database URL: port (or PGPORT): 2 ports for 3 hosts"),
            ("a", "", "70000", "database URL: port (or PGPORT): not a number from 1 to 65535"),
            ("a", "", "0", "database URL: port (or PGPORT): not a number from 1 to 65535"),
            ("a", "db1", "", "database URL: hostaddr (or PGHOSTADDR): `db1` is not an IP address"),
            (
                "@pg",
                "",
                "",
                "database URL: host (or PGHOST): sockets in the abstract namespace are not supported",
            ),
        ] {
            let params = [("host", host), ("hostaddr", hostaddr), ("port", port)]
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            let shown = |host: Host| match &host.place {
                Place::Tcp { address: Some(address), .. } => format!("{host}={address}"),
                _ => host.to_string(),
            };
            let found = match hosts(&params) {
                Ok(found) => found.into_iter().map(shown).collect::<Vec<_>>().join(" "),
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{params:?}");
        }
    }

    #[test]
    fn without_a_host_and_a_socket_it_is_localhost() {
        // No server has port 1, least of all Postgres.
        let place = place(String::new(), "", 1).expect("a place");
        assert_eq!(place, Place::Tcp { name: "localhost".into(), address: None });
    }
}
