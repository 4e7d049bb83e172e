//! What the flags mean: checked once, never changed afterwards, shared by `run` and `check`.

use std::cell::RefCell;
use std::env::VarError;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::cli::{AfterCrash, Global, Run};
use crate::delivery::client;
use crate::delivery::proxy::Proxy;
use crate::delivery::sources::Sources;
use crate::dispatch::limits::Limits;
use crate::error::{Error, Result, one_line};
use crate::postgres;

/// Longest `--retain-calls`: thirteen months. A query of a person's without a span, or whose span is no constant (`now()`),
/// locks each partition and its four indexes until its transaction ends. The figures are computed. There are 409 partitions:
/// 400 days, today, a week ahead, and the default one. Such a query takes 5 locks for each, and one for the whole table: 2,046.
/// A server with default settings counts on 6,400 locks: 64 for each of 100 connections. So three such queries fit beside each
/// other; more fit only where memory is left over. With ten years of partitions a query takes more than 18,000 locks. The
/// relay's own queries name their span; one for a month takes about 200 (`SLICE` in `outbox/call_log.rs`).
const RETAIN_CALLS_MAX: Duration = Duration::from_secs(400 * 86400);

/// The configuration of the daemon.
pub struct Config {
    /// Where Postgres is.
    pub database: postgres::Settings,
    /// How calls are made.
    pub endpoint: client::Settings,
    /// How many calls are made at once.
    pub limits: Limits,
    /// Bytes that rows in hand may take, with their payloads and answers.
    pub memory_bytes_max: usize,
    /// How often the daemon looks for rows without a notification.
    pub poll_interval: Duration,
    /// What becomes of the rows of dead instances.
    pub after_crash: AfterCrash,
    /// How long call logs are kept.
    pub retain_calls: Duration,
    /// How long done rows are kept.
    pub retain_outbox: Duration,
    /// How long all calls of a webhook must have failed before the daemon pauses it; none: it pauses nothing.
    pub pause_failing: Option<Duration>,
    /// The site that the database must have.
    pub site: Option<String>,
    /// Where metrics are served.
    pub metrics_listen: Option<SocketAddr>,
}

/// Longest URL in a file.
const URL_FILE_BYTES_MAX: u64 = 64 * 1024;
/// The bit of a file's mode that lets all users read it.
const OTHERS_READ: u32 = 0o004;
/// The name that a unit's LoadCredential= must give to the URL.
const CREDENTIAL: &str = "database-url";

/// Where Postgres is: `--database-url`, `--database-url-file`, `DATABASE_URL`, systemd's credential `database-url`, the
/// `PG*` variables, the local socket, in this order.
///
/// # Errors
///
/// [`Error::Config`] when it cannot be meant.
pub fn database(global: &Global) -> Result<postgres::Settings> {
    // The last variable that was asked for and is not UTF-8: it has a value, and its meaning is unclear.
    let unreadable = RefCell::new(None);
    let variable = |name: &str| match std::env::var(name) {
        Ok(value) => Some(value).filter(|value| !value.is_empty()),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(_)) => {
            unreadable.replace(Some(name.to_owned()));
            None
        }
    };
    let (url, path) = match (&global.database_url, &global.database_url_file) {
        (Some(url), _) if !url.is_empty() => {
            if global.is_database_url_typed && postgres::has_password(url) {
                tracing::warn!(
                    "--database-url has a password, which every user of this machine sees in the process list; give the URL \
                     by --database-url-file or DATABASE_URL, or the password by PGPASSWORD or ~/.pgpass"
                );
            }
            (Some(url.clone()), None)
        }
        (_, Some(path)) => (None, Some(path.clone())),
        _ => match (variable("DATABASE_URL"), variable("CREDENTIALS_DIRECTORY")) {
            (Some(url), _) => (Some(url), None),
            (None, Some(folder)) => {
                (None, Some(Path::new(&folder).join(CREDENTIAL)).filter(|path| path.exists()))
            }
            (None, None) => (None, None),
        },
    };
    let settings = match path {
        None => postgres::Settings::parse(url.as_deref(), &variable),
        Some(path) => {
            let url = read_url(&path)?;
            if url.is_open && postgres::has_password(&url.text) {
                let path = path.display();
                tracing::warn!(
                    "{path} has a password, and every user of this machine may read it; chmod o-r it"
                );
            }
            postgres::Settings::parse(Some(&url.text), &variable).map(|settings| {
                settings.renewed_by(move || {
                    postgres::Settings::parse(Some(&read_url(&path)?.text), &|name| std::env::var(name).ok())
                })
            })
        }
    };
    match unreadable.take() {
        Some(name) => {
            Err(Error::Config(format!("the variable {name} is not UTF-8; set it again, or unset it")))
        }
        None => settings,
    }
}

/// A URL from a file.
struct FileUrl {
    text: String,
    /// All users may read the file.
    is_open: bool,
}

/// Reads a file's one line.
fn read_url(path: &Path) -> Result<FileUrl> {
    let refused =
        |why: &str| Error::Config(format!("cannot read the database URL from {}: {why}", path.display()));
    let mut text = String::new();
    let file = File::open(path).map_err(|error| refused(&one_line(&error)))?;
    let mode = file.metadata().map_err(|error| refused(&one_line(&error)))?.mode();
    file.take(URL_FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| refused(&one_line(&error)))?;
    // Not more than the end of the line: white space may belong to the URL.
    let url = text.trim_end_matches(['\r', '\n']);
    if url.trim().is_empty() {
        return Err(refused("the file is empty"));
    }
    if url.contains('\n') {
        return Err(refused("it has more than one line"));
    }
    Ok(FileUrl { text: url.to_owned(), is_open: mode & OTHERS_READ != 0 })
}

/// The proxy of `--proxy`; `is_typed` says that it stands in the process list.
fn proxy(text: &str, is_typed: bool) -> Result<Proxy> {
    let proxy = Proxy::parse(text).map_err(|why| Error::Usage(format!("--proxy cannot be meant: {why}")))?;
    if is_typed && proxy.has_credentials() {
        tracing::warn!(
            "--proxy has a user or password, which every user of this machine sees in the process list; give it by \
             PROMPTPAL_RELAY_PROXY"
        );
    }
    Ok(proxy)
}

impl Config {
    /// Gives what was typed its meaning.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when a flag cannot be meant, [`Error::Config`] when it cannot work.
    pub fn new(global: &Global, run: &Run) -> Result<Config> {
        let sources = Sources::new(&run.bind_address)?;
        let proxy = run.proxy.as_deref().map(|text| proxy(text, run.is_proxy_typed)).transpose()?;
        let database = database(global)?;
        if run.retain_calls < Duration::from_secs(24 * 3600) {
            return Err(Error::Config(
                "--retain-calls is less than a day; call logs are dropped by whole days, so give 1d or more"
                    .into(),
            ));
        }
        if run.retain_calls > RETAIN_CALLS_MAX {
            return Err(Error::Config(format!(
                "--retain-calls is more than {} days: a query on the call log locks each daily partition, and Postgres has no \
                 room for more locks; keep older logs elsewhere",
                RETAIN_CALLS_MAX.as_secs() / 86400
            )));
        }
        let endpoint = client::Settings {
            timeout: run.timeout,
            response_body_bytes_max: run.max_response_body,
            allow_net: run.allow_net.clone(),
            https_only: run.https_only,
            ca_file: run.ca_file.clone(),
            sources,
            proxy,
            user_agent_version: run.user_agent_version.clone(),
            refused: database.tcp_hosts(),
            reached: database.reached.clone(),
            metrics_port: run.metrics_listen.map(|address| address.port()),
            second_chance: run.after_crash == AfterCrash::Resend,
        };
        Ok(Config {
            database,
            endpoint,
            limits: Limits {
                workers: usize::try_from(run.workers).expect("at most 4096"),
                per_webhook: usize::try_from(run.per_webhook).expect("at most 4096"),
            },
            memory_bytes_max: run.memory,
            poll_interval: run.poll_interval,
            after_crash: run.after_crash,
            retain_calls: run.retain_calls,
            retain_outbox: run.retain_outbox,
            pause_failing: run.pause_failing,
            site: run.site.clone(),
            metrics_listen: run.metrics_listen,
        })
    }
}
