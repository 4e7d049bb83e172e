//! Which addresses are this machine's own: those that the kernel routes to itself.
//!
//! A packet to such an address stays on the machine, and a firewall that lets loopback through does not see it. The interfaces
//! do not have all of these addresses: the kernel also takes whole networks for its own (`ip route add local`), and addresses
//! come and go. So this file asks the kernel for the route to the very address, over a netlink socket (RFC 3549, rtnetlink(7)).
//! The own address of a datagram socket would not tell: towards the second address of a network it is the first one.
//!
//! Sends nothing to the address, and does not decide whether it may be called.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::error::{Error, Result};

/// Bytes of the header of a message, and of a route in it.
const HEADER_BYTES: usize = 16;
const ROUTE_BYTES: usize = 12;
/// Where a route says of which type it is.
const TYPE_AT: usize = HEADER_BYTES + 7;
/// Room for an answer: one route has about 150 bytes.
const ANSWER_BYTES: usize = 4096;
/// Old answers that may come before the answer to a question. There are none, unless a question was interrupted.
const ANSWERS_MAX: usize = 8;

/// Knows this machine's own addresses. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Machine(Arc<Mutex<Routes>>);

#[derive(Debug)]
struct Routes {
    socket: OwnedFd,
    /// The number of the last question.
    sequence: u32,
}

impl Machine {
    /// Opens the socket, and tries it.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where the kernel cannot be asked.
    pub fn open() -> Result<Machine> {
        let open = || {
            let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkRoute);
            let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            let mut routes = Routes { socket, sequence: 0 };
            routes.ask([127, 0, 0, 1].into())?;
            Ok(Machine(Arc::new(Mutex::new(routes))))
        };
        open().map_err(|error: io::Error| {
            Error::Config(format!(
                "cannot ask the kernel which addresses are this machine's own: {error}; allow netlink sockets (in a \
                 systemd unit: RestrictAddressFamilies=AF_NETLINK, besides the others)"
            ))
        })
    }

    /// Whether packets to this address stay on this machine.
    ///
    /// # Errors
    ///
    /// When the kernel cannot tell for a lack of memory.
    pub fn has(&self, address: IpAddr) -> io::Result<bool> {
        // A packet to an unspecified address goes over loopback. Both are known without a question, even where loopback is
        // down.
        Ok(address.is_loopback() || address.is_unspecified() || self.routes().ask(address)?)
    }

    fn routes(&self) -> std::sync::MutexGuard<'_, Routes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Routes {
    /// Asks for the route to an address: two system calls. The kernel answers within the first.
    fn ask(&mut self, address: IpAddr) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let question = question(self.sequence, address);
        while let Err(error) = send(self.socket.as_raw_fd(), &question, MsgFlags::empty()) {
            if error != Errno::EINTR {
                return Err(error.into());
            }
        }
        let mut answer = [0; ANSWER_BYTES];
        for _ in 0..ANSWERS_MAX {
            let length = match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => continue,
                length => length?,
            };
            if let Some(own) = read(self.sequence, &answer[..length])? {
                return Ok(own);
            }
        }
        Err(io::Error::other("the kernel does not answer"))
    }
}

/// The question for the route to an address.
fn question(sequence: u32, address: IpAddr) -> Vec<u8> {
    let (family, octets) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let short = |number: usize| u16::try_from(number).expect("some bytes").to_ne_bytes();
    let byte = |number: usize| u8::try_from(number).expect("at most 128");
    let attribute_bytes = 4 + octets.len();
    let length = u32::try_from(HEADER_BYTES + ROUTE_BYTES + attribute_bytes).expect("some bytes");
    let mut message = Vec::with_capacity(64);
    // The header: length, type, flags, sequence, and the sender, which the kernel fills in.
    message.extend(length.to_ne_bytes());
    message.extend(libc::RTM_GETROUTE.to_ne_bytes());
    message.extend(short(usize::try_from(libc::NLM_F_REQUEST).expect("a flag")));
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    // The route: family and bits of the destination; the rest is zero, which demands nothing.
    message.extend([byte(usize::try_from(family).expect("a small number")), byte(8 * octets.len())]);
    message.extend([0; ROUTE_BYTES - 2]);
    // Its attribute: the destination.
    message.extend(short(attribute_bytes));
    message.extend(libc::RTA_DST.to_ne_bytes());
    message.extend(octets);
    message
}

/// Whether the answer to the question of that number is a route to this machine; none when it answers another one.
fn read(sequence: u32, answer: &[u8]) -> io::Result<Option<bool>> {
    let four = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    if four(8).map(u32::from_ne_bytes) != Some(sequence) {
        return Ok(None);
    }
    if kind == Some(libc::RTM_NEWROUTE) {
        let kind = answer.get(TYPE_AT).ok_or_else(|| io::Error::other("the kernel's answer is no route"))?;
        return Ok(Some([libc::RTN_LOCAL, libc::RTN_ANYCAST].contains(kind)));
    }
    // Otherwise it is an error. Except for a lack of memory, an error says that there is no route: no call gets there.
    match four(HEADER_BYTES).map(|code| Errno::from_raw(-i32::from_ne_bytes(code))) {
        Some(lack @ (Errno::ENOMEM | Errno::ENOBUFS | Errno::EAGAIN)) => Err(lack.into()),
        Some(_) => Ok(Some(false)),
        None => Err(io::Error::other("the kernel's answer is no route")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machines_and_addresses_without_a_route_are_not() {
        let machine = Machine::open().expect("netlink");
        for (address, own) in [
            ("127.0.0.1", true),
            ("127.255.0.1", true),
            ("::1", true),
            ("0.0.0.0", true),
            ("::", true),
            ("240.0.0.1", false),
            ("2001:db8::1", false),
        ] {
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(machine.has(address).expect("an answer"), own, "{address}");
        }
        // Also asked, not known without.
        assert!(machine.routes().ask([127, 0, 0, 1].into()).expect("an answer"));
    }

    #[test]
    fn answers_to_other_questions_are_passed_over_and_a_lack_is_no_answer() {
        let message = |kind: u16, sequence: u32, rest: &[u8]| {
            let mut message = Vec::new();
            message.extend(0u32.to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend([0; 2]);
            message.extend(sequence.to_ne_bytes());
            message.extend([0; 4]);
            message.extend(rest);
            message
        };
        let error = |errno: Errno| {
            message(u16::try_from(libc::NLMSG_ERROR).expect("2"), 7, &(-(errno as i32)).to_ne_bytes())
        };
        let route = |kind: u8| message(libc::RTM_NEWROUTE, 7, &[0, 0, 0, 0, 0, 0, 0, kind, 0, 0, 0, 0]);
        assert_eq!(read(8, &route(libc::RTN_LOCAL)).expect("an answer"), None);
        assert_eq!(read(7, &route(libc::RTN_LOCAL)).expect("an answer"), Some(true));
        assert_eq!(read(7, &route(libc::RTN_UNICAST)).expect("an answer"), Some(false));
        assert_eq!(read(7, &error(Errno::ENETUNREACH)).expect("an answer"), Some(false));
        assert!(read(7, &error(Errno::ENOBUFS)).is_err());
        assert!(read(7, &message(libc::RTM_NEWROUTE, 7, &[])).is_err());
    }
}
