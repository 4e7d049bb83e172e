//! Connections to some addresses race, and the first that is made is taken.
//!
//! When one has not answered for a moment the next is tried beside it (RFC 8305). So a dead address, or a dead family of them,
//! costs that moment and not a share of the call's time. All of it happens on the thread of the call. Does not decide which
//! addresses may be called, nor how an attempt begins.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::delivery::bulkhead::{Bulkhead, Permit};
use crate::delivery::egress::Denial;
use crate::delivery::transport::socket::{Attempt, Unbegun, first_ended};

/// How long an address has before the next is tried beside it (RFC 8305, section 8), or its share of the time where that is
/// less.
const NEXT_AFTER: Duration = Duration::from_millis(250);
/// Addresses that are tried at once: each takes a file descriptor. Beyond it the oldest attempt gives way when it has had its
/// share of the time. Four are two addresses of each family, which alternate.
const ATTEMPTS_MAX: usize = 4;

/// Why an attempt was not begun, or failed.
pub(super) enum Hurdle {
    /// This process lacks something, with the reason.
    Exhausted(String),
    /// The system says that there is no connection.
    Failed(io::Error),
    /// This host does not have the address any more that calls leave from.
    NoSource(IpAddr, io::Error),
    /// No address of this family is named for calls to leave from.
    Nowhere(IpAddr),
    /// The egress policy refuses the address.
    Refused(SocketAddr, Denial),
}

/// Why there is no connection.
pub(super) enum Lost {
    /// The time is over.
    Late,
    /// The attempts failed; the last of them, or the first that ended the race, for this.
    Hurdle(Hurdle),
}

impl Hurdle {
    /// Why an attempt was not begun.
    pub(super) fn unbegun(unbegun: Unbegun, address: SocketAddr) -> Hurdle {
        match unbegun {
            Unbegun::Source(source, Errno::EADDRNOTAVAIL) => {
                Hurdle::NoSource(source, Errno::EADDRNOTAVAIL.into())
            }
            Unbegun::Source(_, error) | Unbegun::Connection(error) => Hurdle::of(error.into(), address),
        }
    }

    /// An error of the system's when connecting.
    pub(super) fn of(error: io::Error, address: SocketAddr) -> Hurdle {
        if is_exhaustion(&error, address) {
            Hurdle::Exhausted(error.to_string())
        } else {
            Hurdle::Failed(error)
        }
    }
}

/// Makes connections to these addresses, one after the other or beside each other, and takes the first that is made. `begin`
/// begins one, with the permit for it, and does not wait. Blocks until `deadline` at most.
pub(super) fn race(
    addresses: &[SocketAddr],
    deadline: Instant,
    begin: impl Fn(SocketAddr, Permit) -> Result<Attempt, Hurdle>,
) -> Result<Attempt, Lost> {
    let start = Instant::now();
    let limit = deadline.saturating_duration_since(start);
    let share = limit / u32::try_from(addresses.len().max(1)).expect("at most 16");
    let pause = share.min(NEXT_AFTER);
    let mut waiting: VecDeque<_> = addresses.iter().copied().collect();
    let attempts = Bulkhead::new(ATTEMPTS_MAX);
    let mut running: Vec<Attempt> = Vec::new();
    let mut failure = Hurdle::Failed(io::Error::new(io::ErrorKind::NotFound, "there is no address"));
    let mut next = start;
    let begin = |address| {
        let turn = attempts.take(1).ok_or_else(|| Hurdle::Exhausted("too many attempts".into()))?;
        begin(address, turn)
    };
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Err(Lost::Late);
        }
        let mut hurdle = None;
        match waiting.front() {
            Some(address) if running.is_empty() || now >= next => match begin(*address) {
                Ok(attempt) => {
                    waiting.pop_front();
                    running.push(attempt);
                    next = now + pause;
                }
                Err(Hurdle::Exhausted(_))
                    if running.first().is_some_and(|oldest| now >= oldest.since + share) =>
                {
                    running.remove(0);
                }
                Err(Hurdle::Exhausted(_)) if !running.is_empty() => next = now + pause,
                Err(failed) => {
                    waiting.pop_front();
                    hurdle = Some(failed);
                }
            },
            None if running.is_empty() => return Err(Lost::Hurdle(failure)),
            more => {
                let until = if more.is_some() { next.min(deadline) } else { deadline };
                let ended = first_ended(&running, until - now);
                match ended.map_err(|error| Lost::Hurdle(Hurdle::Failed(error)))? {
                    None => {}
                    Some((at, Ok(()))) => return Ok(running.swap_remove(at)),
                    Some((at, Err(error))) => {
                        hurdle = Some(Hurdle::of(error, running.remove(at).address));
                        next = now;
                    }
                }
            }
        }
        match hurdle {
            None => {}
            // Another address may do. If none does, a lack of ours goes before what an endpoint did.
            Some(Hurdle::Failed(_) | Hurdle::Nowhere(_)) if matches!(failure, Hurdle::NoSource(..)) => {}
            Some(other @ (Hurdle::Failed(_) | Hurdle::Nowhere(_) | Hurdle::NoSource(..))) => failure = other,
            Some(hurdle) => return Err(Lost::Hurdle(hurdle)),
        }
    }
}

/// Whether an error of the system's when connecting says that this process lacks something, and is not the endpoint's doing:
/// file descriptors, memory, buffers, local ports.
fn is_exhaustion(error: &io::Error, address: SocketAddr) -> bool {
    const OURS: [Errno; 5] = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::EAGAIN];
    let code = error.raw_os_error().map(Errno::from_raw);
    // The system says so when local ports have run out, and also where there is no address to call from (no IPv6 here),
    // which waiting does not mend. Datagrams have ports of their own.
    let ports = || code == Some(Errno::EADDRNOTAVAIL) && has_source(address);
    code.is_some_and(|code| OURS.contains(&code)) || ports()
}

fn has_source(address: SocketAddr) -> bool {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect(address).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_run_short_of_is_ours_and_a_missing_source_address_is_not() {
        let local = SocketAddr::from(([127, 0, 0, 1], 9));
        let error = |errno: Errno| io::Error::from_raw_os_error(errno as i32);
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EADDRNOTAVAIL] {
            assert!(is_exhaustion(&error(errno), local), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::ETIMEDOUT] {
            assert!(!is_exhaustion(&error(errno), local), "{errno}");
        }
        // Nothing can be sent to this address, as to an IPv6 address from a machine without IPv6.
        let nowhere = SocketAddr::from(([255, 255, 255, 255], 9));
        assert!(!is_exhaustion(&error(Errno::EADDRNOTAVAIL), nowhere));
        assert!(!is_exhaustion(&io::Error::other("no code"), local));
    }
}
