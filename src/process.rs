//! This process among the others of its machine.

use nix::sys::prctl;

use crate::error::{Error, Result};

/// Keeps other processes of the same user from what this one has in its environment and memory, the database's password
/// above all: no core dump, no debugger, no `/proc/PID/environ` but root's. The arguments stay readable for everybody.
///
/// # Errors
///
/// [`Error::Failed`] when the system does not do it.
pub fn keep_private() -> Result<()> {
    prctl::set_dumpable(false)
        .map_err(|error| Error::Failed(format!("keeping this process's memory private (prctl): {error}")))
}
