//! What the flags mean: checked once, never changed afterwards, shared by `run` and `check`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::cli::{AfterCrash, Global, Run};
use crate::db;
use crate::endpoint;
use crate::error::{Error, Result};
use crate::places::Limits;

/// Memory that the results of ended calls may take while they wait to be committed; more calls are not started then.
/// A quarter of the memory budget: 256 threads can add as much again.
pub const RESULT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The configuration of the daemon.
pub struct Config {
    /// Where Postgres is.
    pub database: db::Settings,
    /// How calls are made.
    pub endpoint: endpoint::Settings,
    /// How many at once.
    pub limits: Limits,
    /// How often to look when nobody notifies us.
    pub poll_interval: Duration,
    /// What becomes of the rows of the dead.
    pub after_crash: AfterCrash,
    /// How long call logs are kept.
    pub retain_calls: Duration,
    /// How long done rows are kept.
    pub retain_outbox: Duration,
    /// Where metrics are served.
    pub metrics_listen: Option<SocketAddr>,
}

/// Where Postgres is: `--database-url`, `DATABASE_URL`, the `PG*` variables, the local socket, in this order.
///
/// # Errors
///
/// [`Error::Config`] when it cannot be meant.
pub fn database(global: &Global) -> Result<db::Settings> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let url = global.database_url.clone().filter(|url| !url.is_empty()).or_else(|| variable("DATABASE_URL"));
    db::Settings::parse(url.as_deref(), &variable)
}

impl Config {
    /// Gives what was typed its meaning.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] when it cannot work.
    pub fn new(global: &Global, run: &Run) -> Result<Config> {
        let database = database(global)?;
        if run.retain_calls < Duration::from_secs(24 * 3600) {
            return Err(Error::Config(
                "--retain-calls is less than a day; call logs are dropped by whole days, so give 1d or more"
                    .into(),
            ));
        }
        let endpoint = endpoint::Settings {
            timeout: run.timeout,
            response_body_bytes_max: run.max_response_body,
            allow_net: run.allow_net.clone(),
            https_only: run.https_only,
            ca_file: run.ca_file.clone(),
            user_agent_version: run.user_agent_version.clone(),
            refused: database.tcp_hosts(),
        };
        Ok(Config {
            database,
            endpoint,
            limits: Limits {
                workers: usize::try_from(run.workers).expect("at most 4096"),
                per_webhook: usize::try_from(run.per_webhook).expect("at most 4096"),
            },
            poll_interval: run.poll_interval,
            after_crash: run.after_crash,
            retain_calls: run.retain_calls,
            retain_outbox: run.retain_outbox,
            metrics_listen: run.metrics_listen,
        })
    }
}
