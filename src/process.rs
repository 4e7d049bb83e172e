//! This process among the others of its machine: keeps its memory from them.

use nix::sys::prctl;

use crate::error::{Error, Result};

/// Keeps other processes of the same user from reading this process's environment and memory, the database's password above
/// all. There is no core dump, no debugger, and `/proc/PID/environ` is root's. All users can still read the arguments.
///
/// # Errors
///
/// [`Error::Failed`] when the system refuses.
pub fn keep_private() -> Result<()> {
    prctl::set_dumpable(false)
        .map_err(|error| Error::Failed(format!("keeping this process's memory private (prctl): {error}")))
}
