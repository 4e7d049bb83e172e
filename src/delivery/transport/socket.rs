//! One TCP connection of a call. No read and no write outlasts its deadline, however little the endpoint moves: each wait is
//! for the time that is left.
//!
//! Knows neither HTTP nor TLS, and not which addresses may be called.

use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, recv, send,
    setsockopt, socket,
};
use nix::{getsockopt_impl, libc, sockopt_impl};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, LazyBuffers, NextTimeout, ShutdownHandle, Transport,
};

use crate::delivery::bulkhead::Permit;
use crate::delivery::transport::deadline::{Deadline, WAIT_MAX, in_milliseconds};

/// How long the first read of an answer waits in the kernel: one system call for most answers, not two.
const READ_WAITS: Duration = Duration::from_millis(100);

/// Space for encrypted bytes: twice what rustls takes at a time.
const ENCRYPTED_BYTES: usize = 8 * 1024;

/// Where the round trip is in the kernel's `tcp_info`, which has words of four bytes as far as there.
const ROUND_TRIP_AT: usize = offset_of!(libc::tcp_info, tcpi_rtt) / size_of::<u32>();

sockopt_impl!(
    /// What the kernel knows of a connection, as far as its round trip in microseconds. Later kernels know more, which is not
    /// asked for: so the length is the same with all of them.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    [u32; ROUND_TRIP_AT + 1]
);

/// A connection.
#[derive(Debug)]
pub(crate) struct Socket {
    // The handle that interrupts the call has it, too, as a weak reference.
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
    /// The sizes of the buffers, when a connection that rests gives them back.
    gives_back: Option<(usize, usize)>,
    /// The endpoint takes no more of the request, and has answered already.
    deaf: bool,
    /// A request has gone out since the last read: its answer is not there yet, so the read waits.
    asked: bool,
    /// An answer was read, and ureq has not asked since then whether the connection is open.
    answered: bool,
    /// For its file descriptor.
    _descriptor: Permit,
}

impl Socket {
    /// Takes a connection that was made.
    ///
    /// # Errors
    ///
    /// An error of the system's, or that no call may begin any more.
    pub(crate) fn connected(details: &ConnectionDetails, made: Attempt) -> Result<Socket, Error> {
        made.stream.set_nonblocking(false)?;
        let (input, output) = (details.config.input_buffer_size(), details.config.output_buffer_size());
        // Under TLS these buffers are a second pair. What is decrypted has the large one, so a piece at a time will do. Without
        // TLS a call is so cheap that new ones for each call would be felt.
        let sizes = if details.needs_tls() { (input.min(ENCRYPTED_BYTES), output) } else { (input, output) };
        let mut socket = Socket::over(made.stream, LazyBuffers::new(sizes.0, sizes.1), made.descriptor)?;
        socket.gives_back = details.needs_tls().then_some(sizes);
        (details.register_shutdown)(Arc::downgrade(&socket.stream) as Weak<dyn ShutdownHandle>)?;
        Ok(socket)
    }

    fn over(stream: TcpStream, buffers: LazyBuffers, descriptor: Permit) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_WAITS))?;
        Ok(Socket {
            stream: Arc::new(stream),
            buffers,
            gives_back: None,
            deaf: false,
            asked: false,
            answered: false,
            _descriptor: descriptor,
        })
    }

    /// Whether bytes from the endpoint are waiting.
    fn has_input(&self) -> bool {
        self.receive(&mut [0], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK).is_ok_and(|length| length > 0)
    }

    fn receive(&self, input: &mut [u8], flags: MsgFlags) -> nix::Result<usize> {
        recv(self.stream.as_raw_fd(), input, flags)
    }
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let deadline = Deadline::of(timeout)?;
        self.asked = true;
        let mut sent = 0;
        while sent < amount && !self.deaf {
            let rest = &self.buffers.output()[sent..amount];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.stream.as_raw_fd(), rest, flags) {
                Ok(length) => sent += length,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => deadline.wait(&self.stream, PollFlags::POLLOUT)?,
                // An endpoint may answer before it has read all (413), and close: then the answer counts.
                Err(_) if self.has_input() => self.deaf = true,
                Err(error) => return Err(Error::Io(error.into())),
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let deadline = Deadline::of(timeout)?;
        let waits = std::mem::take(&mut self.asked) && deadline.left() > READ_WAITS;
        let mut flags = if waits { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        let input = self.buffers.input_append_buf();
        let length = loop {
            match recv(self.stream.as_raw_fd(), input, flags) {
                Ok(length) => break length,
                // It may have waited for its time already.
                Err(Errno::EINTR) => flags = MsgFlags::MSG_DONTWAIT,
                Err(Errno::EAGAIN) => {
                    deadline.wait(&self.stream, PollFlags::POLLIN)?;
                    flags = MsgFlags::MSG_DONTWAIT;
                }
                Err(error) => return Err(Error::Io(error.into())),
            }
        };
        self.buffers.input_appended(length);
        self.answered = length > 0;
        Ok(length > 0)
    }

    /// Whether there is nothing to read between an answer and the next request, neither an end nor a byte. ureq asks twice: when
    /// it puts a connection away, a moment after the answer was read, and when it takes it again. Only then this looks.
    fn is_open(&mut self) -> bool {
        let put_away = std::mem::take(&mut self.answered);
        if let Some((input, output)) = self.gives_back.filter(|_| put_away && self.buffers.input().is_empty())
        {
            self.buffers = LazyBuffers::new(input, output);
        }
        let quiet = || self.receive(&mut [0], MsgFlags::MSG_DONTWAIT) == Err(Errno::EAGAIN);
        !self.deaf && (put_away || quiet())
    }
}

/// Why no attempt was begun.
#[derive(Debug)]
pub(crate) enum Unbegun {
    /// No connection can leave from this address.
    Source(IpAddr, Errno),
    /// There is no socket, or no way to the address.
    Connection(Errno),
}

impl From<Errno> for Unbegun {
    fn from(error: Errno) -> Unbegun {
        Unbegun::Connection(error)
    }
}

/// A connection that is being made. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// The address.
    pub address: SocketAddr,
    /// When it began.
    pub since: Instant,
    stream: TcpStream,
    descriptor: Permit,
    /// One of the attempts that may be made at once.
    _turn: Permit,
}

impl Attempt {
    /// Begins to connect, from this address of the host's if it is given, and does not wait.
    ///
    /// # Errors
    ///
    /// An error that the system gives at once.
    pub(crate) fn begin(
        address: SocketAddr,
        source: Option<IpAddr>,
        descriptor: Permit,
        turn: Permit,
    ) -> Result<Attempt, Unbegun> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let stream = TcpStream::from(socket(family, SockType::Stream, flags, None)?);
        if let Some(source) = source {
            // The port is chosen when it connects: each endpoint has all of them.
            setsockopt(&stream, IpBindAddressNoPort, &true)?;
            let local = SockaddrStorage::from(SocketAddr::new(source, 0));
            bind(stream.as_raw_fd(), &local).map_err(|error| Unbegun::Source(source, error))?;
        }
        match connect(stream.as_raw_fd(), &SockaddrStorage::from(address)) {
            // An interrupted one goes on as well.
            Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => {}
            Err(error) => return Err(Unbegun::Connection(error)),
        }
        Ok(Attempt { address, since: Instant::now(), stream, descriptor, _turn: turn })
    }

    /// The connection, which does not block.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The round trip of the handshake, when the connection is made. The kernel measures it, so a busy process does not lengthen
    /// it. A later one may have the time for which an endpoint puts off its acknowledgements. Where the kernel does not say,
    /// it is the time since the attempt began, which is longer.
    pub(crate) fn round_trip(&self) -> Duration {
        let measured = getsockopt(&self.stream, TcpInfo).map_or(0, |info| info[ROUND_TRIP_AT]);
        if measured > 0 { Duration::from_micros(measured.into()) } else { self.since.elapsed() }
    }
}

/// Waits until one of the attempts has ended, and returns which and how; none when the limit has passed before, or a signal has
/// come.
///
/// # Errors
///
/// When the system cannot wait.
pub(crate) fn first_ended(
    attempts: &[Attempt],
    limit: Duration,
) -> io::Result<Option<(usize, io::Result<()>)>> {
    let mut waiting: Vec<_> =
        attempts.iter().map(|attempt| PollFd::new(attempt.stream.as_fd(), PollFlags::POLLOUT)).collect();
    match poll(&mut waiting, in_milliseconds(limit.min(WAIT_MAX))) {
        Ok(0) | Err(Errno::EINTR) => return Ok(None),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(at) = waiting.iter().position(|waiting| waiting.any() != Some(false)) else { return Ok(None) };
    let broken =
        waiting[at].revents().unwrap_or(PollFlags::POLLERR) & (PollFlags::POLLERR | PollFlags::POLLHUP);
    let ended = match attempts[at].stream.take_error()? {
        Some(error) => Err(error),
        None if broken.is_empty() => Ok(()),
        None => Err(io::Error::other("the connection broke")),
    };
    Ok(Some((at, ended)))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread;

    use socket2::SockRef;
    use ureq::Timeout;
    use ureq::unversioned::transport::time;

    use super::*;
    use crate::delivery::fd_budget;

    #[test]
    fn the_round_trip_is_the_kernels_and_not_the_time_that_this_process_took() {
        const LATE: Duration = Duration::from_millis(200);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let permit = || fd_budget::take(1).expect("the limit of a test run is far away");
        let address = listener.local_addr().expect("bound");
        let attempt = Attempt::begin(address, None, permit(), permit()).expect("a socket");
        let made = first_ended(std::slice::from_ref(&attempt), Duration::from_secs(30)).expect("a wait");
        assert!(matches!(made, Some((0, Ok(())))), "{made:?}");
        thread::sleep(LATE);
        assert!(attempt.round_trip() > Duration::ZERO);
        assert!(attempt.round_trip() < LATE / 2, "{:?}", attempt.round_trip());
    }

    #[test]
    fn a_write_that_moves_a_little_now_and_then_ends_at_its_deadline() {
        const LIMIT: Duration = Duration::from_millis(600);
        const AMOUNT: usize = 2 * 1024 * 1024;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        SockRef::from(&listener).set_recv_buffer_size(16 * 1024).expect("inherited by its connections");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        SockRef::from(&stream).set_send_buffer_size(16 * 1024).expect("small, so that each read makes room");
        let (mut other, _) = listener.accept().expect("a connection");
        let reads = thread::spawn(move || {
            let mut sip = vec![0; 16 * 1024];
            while other.read(&mut sip).is_ok_and(|length| length > 0) {
                thread::sleep(LIMIT / 10);
            }
        });
        let buffers = LazyBuffers::new(1024, AMOUNT);
        let permit = fd_budget::take(1).expect("the limit of a test run is far away");
        let mut socket = Socket::over(stream, buffers, permit).expect("options of a socket");
        let (reason, start) = (Timeout::Global, Instant::now());
        let timeout = NextTimeout { after: time::Duration::Exact(LIMIT), reason, ..NextTimeout::default() };
        socket.buffers().output();
        let result = socket.transmit_output(AMOUNT, timeout);
        assert!(matches!(result, Err(Error::Timeout(Timeout::Global))), "{result:?}");
        // A second for a busy machine; each of the reads would give it the whole limit again.
        assert!(start.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", start.elapsed());
        drop(socket);
        reads.join().expect("ends with the connection");
    }
}
