//! The commands, one file each. Each returns what went wrong; `main` prints it and picks the exit code.

pub mod call;
pub mod calls;
pub mod check;
pub mod demo;
pub(crate) mod locks;
pub mod migrate;
pub(crate) mod outcomes;
pub mod pause;
pub(crate) mod progress;
pub mod replay;
pub mod run;
pub mod send_test;
pub mod status;
pub(crate) mod table;
pub mod top;
pub(crate) mod whole;
