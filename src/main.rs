//! The program: parses, dispatches, picks the exit code.

use std::process::ExitCode;

use clap::error::ErrorKind;
use promptpal_relay::program::{
    Cli, Command, Error, Result, call, calls, check, demo, escaped, keep_private, logging, migrate, one_line,
    pause, replay, run, send_test, status, top, usage_line,
};

fn main() -> ExitCode {
    // Before anything is read.
    if let Err(error) = keep_private() {
        fails(&one_line(&error));
        return ExitCode::from(error.exit_code());
    }
    let cli = match Cli::from_environment() {
        Ok(cli) => cli,
        Err(error) => return told(&error),
    };
    match dispatch(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        // As `head` does it: who does not want to read on is not told so.
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            let roles = cli.command.roles().filter(|_| error.is_privilege());
            let hint = roles.map(|roles| format!("; this needs a member of {roles}")).unwrap_or_default();
            fails(&format!("{}{hint}", one_line(&error)));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Help and the version as clap prints them; what cannot be meant as one line, like every error.
fn told(error: &clap::Error) -> ExitCode {
    let told = match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.print(),
        _ => {
            fails(&usage_line(error));
            Ok(())
        }
    };
    match told {
        Ok(()) => ExitCode::from(u8::try_from(error.exit_code()).expect("clap has 0 and 2")),
        Err(_) => ExitCode::FAILURE,
    }
}

/// The last line; in the journal it is an error.
fn fails(why: &str) {
    let priority = if logging::is_journal() { logging::ERROR } else { "" };
    eprintln!("{priority}promptpal-relay: {}", escaped(why));
}

fn dispatch(cli: &Cli) -> Result<()> {
    // The lines that are left are written when this is dropped.
    let (files, _flush) = logging::install(&cli.global)?;
    // One thread for all that is asynchronous; the calls have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("starting the runtime"))?;
    let result = runtime.block_on(async {
        match &cli.command {
            Command::Run(flags) => run::run(&cli.global, flags, files).await,
            Command::Migrate(flags) if flags.print => migrate::print(flags),
            Command::Migrate(flags) => migrate::run(&cli.global, flags).await,
            Command::Check(flags) => check::run(&cli.global, flags).await,
            Command::Status(flags) => status::run(&cli.global, flags).await,
            Command::Calls(flags) => calls::run(&cli.global, flags).await,
            Command::Call { id, json } => call::run(&cli.global, *id, *json).await,
            Command::Top => top::run(&cli.global).await,
            Command::Replay(flags) => replay::run(&cli.global, flags).await,
            Command::Pause(flags) => pause::pause(&cli.global, flags).await,
            Command::Resume(flags) => pause::resume(&cli.global, flags).await,
            Command::SendTest { webhook, wait, json } => {
                send_test::run(&cli.global, *webhook, *wait, *json).await
            }
            Command::Demo { keep } => demo::run(*keep).await,
        }
    });
    // A name of Postgres' host that is being looked up cannot be given up, and is not waited for.
    runtime.shutdown_background();
    result
}
