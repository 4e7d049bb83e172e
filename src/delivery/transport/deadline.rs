//! Deadlines of a call's steps: how much of the time is left, and waiting for a socket no longer than that.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ureq::unversioned::transport::{ConnectionDetails, NextTimeout, time};
use ureq::{Error, Timeout};

/// Longest single wait: poll(2) counts milliseconds in an int.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(3600);
/// What is left of the time for making a connection.
pub(crate) fn left(details: &ConnectionDetails) -> Duration {
    let spent = match details.now {
        time::Instant::Exact(then) => then.elapsed(),
        time::Instant::AlreadyHappened | time::Instant::NotHappening => Duration::ZERO,
    };
    details.timeout.after.saturating_sub(spent)
}

/// What is left of a time-out that began at `start`.
pub(crate) fn rest(timeout: NextTimeout, start: Instant) -> NextTimeout {
    NextTimeout { after: timeout.after.saturating_sub(start.elapsed()).into(), ..timeout }
}

/// A limit for poll(2), rounded up: a wait of 0 ms would be a busy one.
pub(crate) fn in_milliseconds(limit: Duration) -> PollTimeout {
    PollTimeout::try_from(limit + Duration::from_micros(999)).expect("an hour fits")
}

/// Waits until the socket is ready; false when the time is over.
pub(crate) fn ready(stream: &TcpStream, what: PollFlags, until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now()).min(WAIT_MAX);
        if left.is_zero() {
            return Ok(false);
        }
        match poll(&mut [PollFd::new(stream.as_fd(), what)], in_milliseconds(left)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// When to give up, and which time-out to name then.
pub(crate) struct Deadline {
    at: Instant,
    reason: Timeout,
}

impl Deadline {
    /// The deadline of a step of ureq's. Fails when it has passed already, even where the step need not wait.
    pub(crate) fn of(timeout: NextTimeout) -> Result<Deadline, Error> {
        // Calls always have a limit. Without one, a day is long enough.
        let left = (*timeout.after).min(WAIT_MAX * 24);
        if left.is_zero() {
            return Err(Error::Timeout(timeout.reason));
        }
        Ok(Deadline { at: Instant::now() + left, reason: timeout.reason })
    }

    /// What is left until then.
    pub(crate) fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Waits until the socket is ready.
    pub(crate) fn wait(&self, stream: &TcpStream, what: PollFlags) -> Result<(), Error> {
        if ready(stream, what, self.at)? { Ok(()) } else { Err(Error::Timeout(self.reason)) }
    }
}
