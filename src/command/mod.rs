//! The commands, one file each. Each returns what went wrong; `main` prints it and picks the exit code.

pub mod check;
pub mod demo;
pub mod migrate;
pub mod run;
