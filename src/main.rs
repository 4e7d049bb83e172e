//! The program: parses, dispatches, picks the exit code.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use promptpal_relay::cli::{Cli, Command};
use promptpal_relay::command::{calls, check, demo, migrate, replay, run, send_test, status};
use promptpal_relay::error::{Error, Result, one_line};
use promptpal_relay::logging;

fn main() -> ExitCode {
    match parse().and_then(|cli| cli.map_or(Ok(()), |cli| dispatch(&cli))) {
        Ok(()) => ExitCode::SUCCESS,
        // As `head` does it: who does not want to read on is not told so.
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            let priority = if logging::is_journal() { "<3>" } else { "" };
            eprintln!("{priority}promptpal-relay: {}", one_line(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

/// What the user typed; none when help was asked for and given.
fn parse() -> Result<Option<Cli>> {
    let error = match Cli::try_parse() {
        Ok(cli) => return Ok(Some(cli)),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            error.print().map_err(Error::io("writing to standard output"))?;
            Ok(None)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Err(Error::Usage("a command is missing, such as run, check or status; see --help".into()))
        }
        _ => Err(Error::Usage(usage(&error.to_string()))),
    }
}

/// A message of clap's on one line, without the summary of the flags.
fn usage(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let told: Vec<&str> = lines
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(|line| line.strip_prefix("error: ").unwrap_or(line))
        .collect();
    format!("{}; see --help", told.join(" ").replace(" tip: ", "; "))
}

fn dispatch(cli: &Cli) -> Result<()> {
    // The lines that are left are written when this is dropped.
    let (files, _flush) = logging::install(&cli.global)?;
    // One thread for all that is asynchronous; the calls have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("starting the runtime"))?;
    runtime.block_on(async {
        match &cli.command {
            Command::Run(flags) => run::run(&cli.global, flags, files).await,
            Command::Migrate { print: true } => migrate::print(),
            Command::Migrate { print: false } => migrate::run(&cli.global).await,
            Command::Check(flags) => check::run(&cli.global, flags).await,
            Command::Status { json } => status::run(&cli.global, *json).await,
            Command::Calls(flags) => calls::run(&cli.global, flags).await,
            Command::Replay(flags) => replay::run(&cli.global, flags).await,
            Command::SendTest { webhook, wait, json } => {
                send_test::run(&cli.global, *webhook, *wait, *json).await
            }
            Command::Demo { keep } => demo::run(*keep).await,
        }
    })
}
