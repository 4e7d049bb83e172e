//! Signals: when to stop, when to stop at once, when to open the log files anew.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use crate::error::{Error, Result};

/// Exit code of the second SIGTERM or SIGINT: not drained.
const AT_ONCE: i32 = 1;

/// Whether we are to stop; cheap to clone.
#[derive(Clone)]
pub(crate) struct Stop {
    // Written by the signal task only.
    asked: watch::Receiver<bool>,
}

impl Stop {
    /// Installs the handlers: the first SIGTERM or SIGINT asks to stop, a second one ends the process at once with
    /// exit code 1; SIGHUP calls `reopen`. To be called once, inside the runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system refuses a handler.
    pub(crate) fn install(reopen: impl Fn() + Send + 'static) -> Result<Stop> {
        let (sender, asked) = watch::channel(false);
        install(sender, reopen).map_err(Error::io("installing signal handlers"))?;
        Ok(Stop { asked })
    }

    /// Whether we were asked to stop.
    pub(crate) fn asked(&self) -> bool {
        *self.asked.borrow()
    }

    /// Resolves when we are asked to stop, at once if we were. Cancel-safe.
    pub(crate) async fn wait(&self) {
        let mut asked = self.asked.clone();
        if asked.wait_for(|asked| *asked).await.is_err() {
            // The signal task is gone with the runtime; no signal is heard any more.
            std::future::pending::<()>().await;
        }
    }
}

fn install(sender: watch::Sender<bool>, reopen: impl Fn() + Send + 'static) -> io::Result<()> {
    let flagged = Arc::new(AtomicBool::new(false));
    let (mut bell, bell_end) = pair()?;
    for signal in [SIGTERM, SIGINT] {
        // In this order: the handler that ends the process sees the flag of an earlier signal only.
        flag::register_conditional_shutdown(signal, AT_ONCE, flagged.clone())?;
        flag::register(signal, flagged.clone())?;
        low_level::pipe::register(signal, bell_end.try_clone()?)?;
    }
    low_level::pipe::register(SIGHUP, bell_end)?;
    tokio::spawn(async move {
        let mut rings = [0; 16];
        // An error here would mean that our own socket pair is gone.
        while bell.read(&mut rings).await.is_ok_and(|n| n > 0) {
            if flagged.load(Ordering::Relaxed) {
                sender.send_replace(true);
            } else {
                reopen();
            }
        }
    });
    Ok(())
}

/// A bell that a signal handler can ring: writing to a socket is one of the few things it may do.
fn pair() -> io::Result<(tokio::net::UnixStream, UnixStream)> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(read)?, write))
}
