//! Writes the manual pages and the shells' completions, from the definition of the command line, into a folder:
//! `cargo run --example manual -- target/manual`. Made for packages. Its tests run with `cargo test --example manual`.

mod completions;
mod pages;

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use clap::CommandFactory;
use promptpal_relay::inside::cli::Cli;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::args().nth(1).ok_or("give the folder to write into")?);
    fs::create_dir_all(&folder)?;
    pages::write(Cli::command(), &folder)?;
    completions::write(&mut Cli::command(), &folder)
}
