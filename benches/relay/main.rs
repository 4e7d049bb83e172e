//! The budgets, measured end to end: the real daemon, a private Postgres with fsync on, and a receiver on loopback,
//! all on this machine.
//!
//! `cargo bench` prints a table; `cargo bench -- --json` one object a line; `-- --full` adds what takes long; a word
//! selects the rows whose name contains it. `-- --peers` measures the drain in turns with other queues; it builds them first.
//! What is compared is measured in the same run, in turns.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]
#![allow(missing_docs, reason = "not a library")]

mod https;
mod measure;
mod nginx;
mod peers;
mod receiver;
mod rows;
mod several;
mod slow;
mod soak;
mod world;

use std::env;

use measure::Table;

fn main() {
    // Cargo adds --bench.
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let (full, json, peers) = (has("--full"), has("--json"), has("--peers"));
    let words: Vec<&str> =
        arguments.iter().filter(|argument| !argument.starts_with("--")).map(String::as_str).collect();
    let mut table = Table::new(json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(rows::all(full, peers, &words, &mut table));
    table.print();
    if table.missed() {
        std::process::exit(1);
    }
}
