//! Writes the manual page and the shells' completions, from the definition of the command line, into a folder:
//! `cargo run --example manual -- target/manual`. Made for packages.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use clap::CommandFactory;
use clap_complete::Shell;
use promptpal_relay::inside::cli::Cli;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::args().nth(1).ok_or("give the folder to write into")?);
    fs::create_dir_all(&folder)?;
    let command = Cli::command();
    // One page for each command, and promptpal-relay(1) for all of them.
    clap_mangen::generate_to(command.clone(), &folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command.clone(), "promptpal-relay", &folder)?;
    }
    Ok(())
}
