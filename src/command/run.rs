//! `run`: the daemon.

use crate::cli::{Global, Run};
use crate::config::Config;
use crate::daemon;
use crate::daemon::signals::Stop;
use crate::error::Result;
use crate::telemetry::logging::Files;

/// Runs until drained after a signal.
pub async fn run(global: &Global, run: &Run, files: Files) -> Result<()> {
    let config = Config::new(global, run)?;
    let stop = Stop::install(move || files.reopen())?;
    daemon::run(&config, stop).await
}
