//! How a connection broke, in words of ours: a customer reads them, who knows neither the HTTP client nor the system's numbers.
//!
//! Pure. Decides by variant, and passes on no text of a library.

use std::io;

use crate::tls::handshake;

/// What became of a connection whose reading or writing failed.
pub(crate) fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => of_system(error),
        ureq::Error::Rustls(error) => handshake::message(error),
        ureq::Error::Protocol(_) => "what the endpoint sends is not HTTP/1.1".into(),
        ureq::Error::Timeout(_) => "the time was over".into(),
        _ => UNKNOWN.into(),
    }
}

const UNKNOWN: &str = "the connection broke, and the reason is not known";

/// As [`reason`], for an error of the system, which may have an error of TLS inside.
pub(crate) fn of_system(error: &io::Error) -> String {
    use io::ErrorKind as Kind;
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return handshake::message(tls);
    }
    match error.kind() {
        Kind::UnexpectedEof => "the endpoint closed the connection",
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe | Kind::NotConnected => {
            "the endpoint reset the connection"
        }
        Kind::ConnectionRefused => {
            "the endpoint's host refused the connection: no server listens on this port"
        }
        Kind::TimedOut => "the endpoint's host stopped answering",
        Kind::HostUnreachable => "the endpoint's host cannot be reached",
        Kind::NetworkUnreachable => "the endpoint's network cannot be reached from this machine",
        Kind::AddrNotAvailable => "this machine has no address of its own to call from (no IPv6, perhaps)",
        Kind::PermissionDenied => "a rule of this machine's forbids the connection",
        _ => UNKNOWN,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reason_has_a_number_of_the_system_or_a_text_of_a_library() {
        for number in 1..=133 {
            let error = io::Error::from_raw_os_error(number);
            let told = of_system(&error);
            assert!(!told.contains("os error") && !told.contains(&error.to_string()), "{number}: {told}");
        }
        let hidden = "text of a library";
        for error in [
            ureq::Error::Io(io::Error::other(hidden)),
            ureq::Error::Io(io::Error::new(
                io::ErrorKind::InvalidData,
                rustls::Error::General(hidden.into()),
            )),
            ureq::Error::Rustls(rustls::Error::General(hidden.into())),
            ureq::Error::Tls(hidden),
            ureq::Error::BadUri(hidden.into()),
        ] {
            assert!(!reason(&error).contains(hidden), "{error:?}");
        }
    }

    #[test]
    fn each_way_in_which_a_connection_ends_has_its_sentence() {
        for (number, said) in [
            (libc::ECONNREFUSED, "refused"),
            (libc::ECONNRESET, "reset"),
            (libc::EPIPE, "reset"),
            (libc::ETIMEDOUT, "stopped answering"),
            (libc::EHOSTUNREACH, "host cannot be reached"),
            (libc::ENETUNREACH, "network cannot be reached"),
            (libc::EADDRNOTAVAIL, "no address of its own"),
            (libc::EPERM, "forbids"),
        ] {
            let told = of_system(&io::Error::from_raw_os_error(number));
            assert!(told.contains(said), "{number}: {told}");
        }
    }
}
