//! The proxy that the operator names: where it is, and what it is told. Connects to nothing.

use std::fmt;

use url::{Host, Url};

use crate::delivery::target;

/// What an operator reads who typed something else. The text itself may have a password in it, and is not repeated.
const WANTED: &str =
    "write http://host:port, or http://user:password@host:port; user and password percent-encoded";

/// A proxy that takes CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its name or address; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The value of `Proxy-Authorization`. A secret: no log and no error has it.
    authorization: Option<String>,
    /// Host and port, as they may be shown.
    shown: String,
}

impl Proxy {
    /// What the operator typed.
    ///
    /// # Errors
    ///
    /// What is to be typed instead, without the text.
    pub fn parse(text: &str) -> Result<Proxy, String> {
        let url = Url::parse(text).map_err(|_| WANTED.to_owned())?;
        if url.scheme() != "http" {
            return Err(format!("the scheme is not http; {WANTED}"));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(format!("it has a path, a query or a fragment; {WANTED}"));
        }
        let port = url.port_or_known_default().filter(|port| *port > 0).ok_or(WANTED)?;
        let (host, shown) = match url.host().ok_or(WANTED)? {
            Host::Domain(name) => (name.to_owned(), format!("{name}:{port}")),
            Host::Ipv4(address) => (address.to_string(), format!("{address}:{port}")),
            Host::Ipv6(address) => (address.to_string(), format!("[{address}]:{port}")),
        };
        Ok(Proxy { host, port, authorization: target::authorization(&url), shown })
    }

    /// Whether it is told a user or a password.
    pub fn has_credentials(&self) -> bool {
        self.authorization.is_some()
    }

    /// The request for a tunnel to this authority.
    pub(crate) fn connect(&self, authority: &str) -> String {
        self.request("CONNECT", authority, authority, "")
    }

    /// A request that a proxy answers by itself, without any endpoint (RFC 9110, section 7.6.2).
    pub(crate) fn sign_of_life(&self) -> String {
        self.request("OPTIONS", "*", &self.shown, "Max-Forwards: 0\r\nConnection: close\r\n")
    }

    fn request(&self, method: &str, target: &str, host: &str, more: &str) -> String {
        let authorization = self.authorization.as_ref();
        let authorization =
            authorization.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{authorization}{more}\r\n")
    }
}

/// Host and port, never user and password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_an_http_url_with_a_host_and_a_port() {
        for (text, shown) in [
            ("http://proxy.example:3128", "proxy.example:3128"),
            ("http://proxy.example:3128/", "proxy.example:3128"),
            ("http://proxy", "proxy:80"),
            ("http://10.0.0.5:8080", "10.0.0.5:8080"),
            ("http://[fd00::5]:8080", "[fd00::5]:8080"),
            ("http://us3r:s3cret@proxy.example:3128", "proxy.example:3128"),
        ] {
            assert_eq!(Proxy::parse(text).map(|proxy| proxy.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for text in [
            "",
            "proxy.example:3128",
            "https://us3r:s3cret@proxy.example:3128",
            "socks5://proxy.example:1080",
            "http://us3r:s3cret@",
            "http://proxy.example:0",
            "http://proxy.example:70000",
            "http://us3r:s3cret@proxy.example:3128/path",
            "http://proxy.example:3128?query",
            "http://us3r:s3cret@pro xy:3128",
            "us3r:s3cret@proxy:3128",
        ] {
            let refused = Proxy::parse(text).expect_err(text);
            assert!(!refused.contains("us3r") && !refused.contains("s3cret"), "{refused}");
        }
    }

    #[test]
    fn it_is_told_the_decoded_user_and_password_and_nothing_else_tells_them() {
        let proxy = Proxy::parse("http://us%40er:s3%3Acret@[fd00::5]:8080").expect("a proxy");
        let head = "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\
                    Proxy-Authorization: Basic dXNAZXI6czM6Y3JldA==\r\n\r\n";
        assert_eq!(proxy.connect("[2001:db8::1]:443"), head);
        assert!(proxy.sign_of_life().starts_with("OPTIONS * HTTP/1.1\r\nHost: [fd00::5]:8080\r\nProxy-Auth"));
        let shown = format!("{proxy} {proxy:?}");
        assert!(!shown.contains("er") && !shown.contains("cret") && !shown.contains("Basic"), "{shown}");
        let open = Proxy::parse("http://proxy:3128").expect("a proxy").connect("192.0.2.1:80");
        assert_eq!(open, "CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n");
    }
}
