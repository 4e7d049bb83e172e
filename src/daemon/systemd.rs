//! What systemd is told: ready, status, watchdog, stopping. Without systemd (no `NOTIFY_SOCKET`) nothing happens.
//!
//! The protocol of sd_notify(3): datagrams of text to a Unix socket. Never waits: a receiver that does not read must
//! not hold up the relay, and a line it has no room for is lost.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::telemetry::terminal::escaped;

fn tell(text: &str) {
    if let Err(error) = try_tell(text) {
        tracing::debug!(%error, text, "cannot tell systemd");
    }
}

fn try_tell(text: &str) -> io::Result<()> {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}

/// Whether there is anybody to tell.
pub(super) fn listens() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

/// The schema is right and we listen.
pub(super) fn ready() {
    tell("READY=1");
}

/// What we are doing, one line for `systemctl status`. [`escaped`]: a line break would begin another assignment.
pub(super) fn status(text: &str) {
    tell(&format!("STATUS={}", escaped(text)));
}

/// We were told to stop and finish what is in hand, which takes so long at most: the unit's own limit may be shorter.
pub(super) fn stopping(limit: Duration) {
    tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", limit.as_micros()));
}

/// We make progress.
pub(super) fn watchdog() {
    tell("WATCHDOG=1");
}

/// How often [`watchdog`] is to be called, when the unit wants it: half of its limit, as systemd advises.
pub(super) fn watchdog_interval() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let limit = number("WATCHDOG_USEC").filter(|limit| *limit > 0)?;
    // Meant for another process, which passed its environment on.
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    ours.then(|| Duration::from_micros(limit) / 2)
}
