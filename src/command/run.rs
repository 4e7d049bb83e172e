//! `run`: the daemon.

use crate::cli::{Global, Run};
use crate::config::Config;
use crate::error::Result;
use crate::logging::Files;
use crate::relay;
use crate::stop::Stop;

/// Runs until drained after a signal.
pub async fn run(global: &Global, run: &Run, files: Files) -> Result<()> {
    let config = Config::new(global, run)?;
    let stop = Stop::install(move || files.reopen())?;
    relay::run(&config, stop).await
}
