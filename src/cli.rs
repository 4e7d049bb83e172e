//! What the user typed: commands, flags and their environment variables. `config` decides what it means.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};
use ipnet::IpNet;

/// Deliver PromptPal's webhooks from an outbox in Postgres, and record every call.
#[derive(Debug, Parser)]
#[command(name = "promptpal-relay", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    /// Flags of all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What the arguments and the environment say. An empty variable counts as one that is not set, as with those of
    /// the database.
    ///
    /// # Errors
    ///
    /// Help and the version, too; see [`one_line`] for what cannot be meant.
    pub fn from_environment() -> Result<Cli, clap::Error> {
        let mut command = without_empty_variables(Cli::command());
        let matches = command.try_get_matches_from_mut(std::env::args_os())?;
        let mut cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        cli.global.is_database_url_typed =
            matches.value_source("database_url") == Some(ValueSource::CommandLine);
        if let (Command::Run(run) | Command::Check(run), Some((_, flags))) =
            (&mut cli.command, matches.subcommand())
        {
            run.is_proxy_typed = flags.value_source("proxy") == Some(ValueSource::CommandLine);
        }
        Ok(cli)
    }
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(
            |flag| if flag.get_env().is_some_and(is_empty) { flag.env(None::<&'static str>) } else { flag },
        )
        .mut_subcommands(without_empty_variables)
}

/// What is wrong with the arguments: clap's first paragraph, without the usage that it adds in further ones.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error:");
    format!("{}; see --help", first.split_whitespace().collect::<Vec<_>>().join(" "))
}

const EXIT_CODES: &str = "Exit codes: 0 finished, or drained after a signal; 1 failed, a restart may help; 2 usage; \
                          78 configuration, schema or rights, a restart will not help.";

/// The heading of the flags that every command has, in help and manual.
const GLOBAL_HEADING: &str = "Connection and logging";

/// Flags that every command has. They stand after the command's own, under a heading.
#[derive(Args, Debug)]
#[command(next_help_heading = GLOBAL_HEADING, next_display_order = 1000)]
pub struct Global {
    /// Connect to this Postgres: a URL, or key=value pairs
    ///
    /// DATABASE_URL is read, too. What neither says comes from the PG* variables, then from the local socket. Give a URL with
    /// a password in the environment or in a file: other users see these arguments in the process list.
    #[arg(
        long,
        value_name = "URL",
        env = "PROMPTPAL_RELAY_DATABASE_URL",
        hide_env_values = true,
        global = true
    )]
    pub database_url: Option<String>,
    /// Whether `--database-url` was typed, and stands in the process list.
    #[arg(skip)]
    pub is_database_url_typed: bool,
    /// Read the URL of Postgres from this file, anew for each connection
    ///
    /// Without a URL and without this flag, the file $CREDENTIALS_DIRECTORY/database-url is read where it exists: a credential
    /// of systemd.
    #[arg(
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        env = "PROMPTPAL_RELAY_DATABASE_URL_FILE",
        conflicts_with = "database_url",
        global = true
    )]
    pub database_url_file: Option<PathBuf>,
    /// Write log lines in this format
    #[arg(
        long,
        value_name = "FORMAT",
        env = "PROMPTPAL_RELAY_LOG_FORMAT",
        default_value = "text",
        global = true
    )]
    pub log_format: LogFormat,
    /// Log this level and the more important ones
    #[arg(
        long,
        value_name = "LEVEL",
        env = "PROMPTPAL_RELAY_LOG_LEVEL",
        default_value = "info",
        global = true
    )]
    pub log_level: LogLevel,
    /// Keep this number of daily files in --log-dir
    #[arg(
        long,
        value_name = "N",
        env = "PROMPTPAL_RELAY_LOG_DAYS",
        default_value = "14",
        value_parser = clap::value_parser!(u32).range(1..=3650),
        global = true
    )]
    pub log_days: u32,
    /// Log into daily files in this folder, not to standard error; SIGHUP opens them anew
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, env = "PROMPTPAL_RELAY_LOG_DIR", global = true)]
    pub log_dir: Option<PathBuf>,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people and the journal.
    Text,
    /// One object a line, for collectors.
    Json,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Something needs an operator.
    Error,
    /// Something went wrong and is being dealt with.
    Warn,
    /// Start, stop, failed calls.
    Info,
    /// What the program does.
    Debug,
    /// Everything.
    Trace,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: claim rows, make the calls, record them
    Run(Box<Run>),
    /// Create or upgrade the schema; accept a copy; name the site
    ///
    /// On a copy of another database the command changes nothing and exits with 78. Then --accept-copy says what becomes of the
    /// rows that were pending when the copy was made.
    Migrate(Migrate),
    /// Check configuration, connection, schema, privileges and webhooks, one line for each
    ///
    /// Takes the flags of run, and checks them, too.
    Check(Box<Run>),
    /// Show the instances, the backlog, and the webhooks that failed in the last five minutes
    ///
    /// Exits with 1 when no instance runs. A standby (target_session_attrs=any) cannot tell, and says so.
    Status(Status),
    /// Show the call log, newest first
    Calls(Calls),
    /// Show one call whole: request, answer, timing, what it repeats and what repeated it
    Call {
        /// Show the call with this id, the column CALL of `calls`
        #[arg(value_name = "N")]
        id: i64,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show a live screen: rate, failures, what waits, the webhooks by load, the last failures
    ///
    /// Up, down and Tab choose a line, and Enter opens a call. Left and right choose the column of the order, and o reverses it. The
    /// key f shows failed webhooks only, and / filters by text. After asking, r repeats a call and p pauses a webhook; q quits.
    /// Exits with 2 without a terminal.
    Top,
    /// Repeat calls: insert new outbox rows
    Replay(Replay),
    /// Stop calling a webhook, or all webhooks of a project; log their calls as paused
    ///
    /// A pause holds for every row that is claimed from then on. A webhook that is paused already gets the new reason and end.
    Pause(Pause),
    /// Call a webhook, or all webhooks of a project, again
    Resume(Resume),
    /// Send one test event to one webhook, wait for the result and print it
    ///
    /// Exits with 1 when the call failed, or was not made in time.
    SendTest {
        /// Send to the webhook with this id; it must be enabled
        #[arg(long, value_name = "N")]
        webhook: i64,
        /// Wait this long for the result
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
        wait: Duration,
        /// Print the call as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show everything on this machine with a private, throw-away Postgres
    Demo {
        /// Keep it running until Ctrl-C, and print how to connect
        #[arg(long)]
        keep: bool,
    },
}

impl Command {
    /// The group roles whose privileges the command needs in the database; none where these do not suffice.
    pub fn roles(&self) -> Option<&'static str> {
        match self {
            Command::Run(_) | Command::Check(_) => Some("relay_daemon"),
            Command::Status(_) | Command::Calls(_) | Command::Call { .. } | Command::Top => {
                Some("relay_reader")
            }
            Command::Replay(Replay { call: Some(_), wait: None, .. })
            | Command::Pause(_)
            | Command::Resume(_) => Some("relay_app"),
            Command::Replay(_) | Command::SendTest { .. } => Some("relay_reader and of relay_app"),
            Command::Migrate(_) | Command::Demo { .. } => None,
        }
    }
}

/// Flags of `migrate`.
#[derive(Args, Debug)]
pub struct Migrate {
    /// Write the SQL to standard output, for a DBA to run, instead of running it
    #[arg(long)]
    pub print: bool,
    /// Accept this copy of another database, and let daemons run on it
    #[arg(long, value_name = "WHAT")]
    pub accept_copy: Option<AcceptCopy>,
    /// Name the site of this database; a changed one needs --accept-copy
    ///
    /// Only daemons with the same --site run on this database.
    #[arg(long, value_name = "NAME", value_parser = site)]
    pub site: Option<String>,
}

/// `--accept-copy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AcceptCopy {
    /// Mark the pending rows done, and make no call for them.
    Skip,
    /// Deliver the pending rows.
    Deliver,
}

impl AcceptCopy {
    /// As it is typed, and as relay.accepted_copies has it.
    pub fn name(self) -> &'static str {
        match self {
            AcceptCopy::Skip => "skip",
            AcceptCopy::Deliver => "deliver",
        }
    }
}

/// Flags of `status`.
#[derive(Args, Debug)]
pub struct Status {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Print colours: on a terminal unless NO_COLOR is set, always (for watch -c), or never
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// `--color`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal that has them, unless `NO_COLOR` is set.
    Auto,
    /// Whatever standard output is.
    Always,
    /// Nowhere.
    Never,
}

/// Flags of `calls`.
#[derive(Args, Debug)]
pub struct Calls {
    /// Show the calls of this webhook only
    #[arg(long, value_name = "N")]
    pub webhook: Option<i64>,
    /// Show failed calls only
    #[arg(long)]
    pub failed: bool,
    /// Show calls that started within this time, or since that time (2024-01-15, 2024-01-15T10:30:00Z)
    ///
    /// The database's clock counts.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = past)]
    pub since: Past,
    /// Show at most N calls
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
    /// Show new calls as they are recorded, whenever they started, until Ctrl-C
    #[arg(long)]
    pub follow: bool,
    /// Print one JSON object a line, with all columns
    #[arg(long)]
    pub json: bool,
    /// Print whole times, project, trace and URL too, however wide the terminal is
    #[arg(long, conflicts_with = "json")]
    pub wide: bool,
}

/// Flags of `replay`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["call", "webhook"]))]
pub struct Replay {
    /// Repeat the call with this id
    #[arg(long, value_name = "N", conflicts_with_all = ["since", "until", "failed"])]
    pub call: Option<i64>,
    /// Repeat the calls of this webhook
    #[arg(long, value_name = "N", requires = "since")]
    pub webhook: Option<i64>,
    /// Repeat calls that started within this time, or since that time (1d, 2024-01-15, 2024-01-15T10:30:00Z)
    #[arg(long, value_name = "TIME", value_parser = past)]
    pub since: Option<Past>,
    /// Repeat calls that started before that time, or longer ago than this
    #[arg(long, value_name = "TIME", value_parser = past)]
    pub until: Option<Past>,
    /// Repeat open failures only, so that the command can be run again
    ///
    /// A failed call is open while no later call was made for its event and webhook, and no pending row repeats it.
    #[arg(long)]
    pub failed: bool,
    /// Tell how many calls would be repeated, and insert nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Repeat several calls without asking
    #[arg(long)]
    pub yes: bool,
    /// Wait for what comes of the calls, at most so long (1h), and tell how many succeeded. Exits with 1 when one failed
    #[arg(
        long,
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1h",
        value_parser = duration,
        conflicts_with = "dry_run"
    )]
    pub wait: Option<Duration>,
    /// Insert at most N rows a second
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
}

/// Whom `pause` and `resume` are about.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["webhook", "project"]))]
pub struct Which {
    /// Choose the webhook with this id
    #[arg(long, value_name = "N")]
    pub webhook: Option<i64>,
    /// Choose all webhooks of this project, those to come included
    #[arg(long, value_name = "N")]
    pub project: Option<i64>,
}

/// Flags of `pause`.
#[derive(Args, Debug)]
pub struct Pause {
    /// Whom to pause.
    #[command(flatten)]
    pub which: Which,
    /// Say why, for people: the reason stands in the log of each call that is not made
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// End the pause by itself: after this time (1h, 30d), or at a time to come (2030-01-15, 2030-01-15T10:30:00Z)
    ///
    /// The database's clock counts. Without this flag the pause lasts until promptpal-relay resume ends it.
    #[arg(long, value_name = "TIME", value_parser = future)]
    pub until: Option<Future>,
}

/// Flags of `resume`.
#[derive(Args, Debug)]
pub struct Resume {
    /// Whom to resume.
    #[command(flatten)]
    pub which: Which,
    /// Repeat the calls that were held back: insert new outbox rows
    ///
    /// The command can be run again; it repeats no call twice.
    #[arg(long)]
    pub replay: bool,
}

/// Flags of `run`; `check` takes them too, to check them.
#[derive(Args, Debug)]
pub struct Run {
    /// Make at most N calls at a time, one thread each, started when needed
    #[arg(long, value_name = "N", env = "PROMPTPAL_RELAY_WORKERS", default_value = "256", value_parser = count(4096))]
    pub workers: u32,
    /// Make at most N calls to one webhook at a time
    #[arg(long, value_name = "N", env = "PROMPTPAL_RELAY_PER_WEBHOOK", default_value = "32", value_parser = count(4096))]
    pub per_webhook: u32,
    /// End a call after this wall time, from the lookup of the name to the last byte read
    #[arg(long, value_name = "TIME", env = "PROMPTPAL_RELAY_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// Claim this often when no notification comes
    #[arg(long, value_name = "TIME", env = "PROMPTPAL_RELAY_POLL_INTERVAL", default_value = "1s", value_parser = duration)]
    pub poll_interval: Duration,
    /// Read and keep at most this much of an answer's body
    #[arg(long, value_name = "SIZE", env = "PROMPTPAL_RELAY_MAX_RESPONSE_BODY", default_value = "64KiB", value_parser = size)]
    pub max_response_body: usize,
    /// Use at most this memory for rows in hand, their payloads and answers; beyond it, claims wait
    #[arg(long, value_name = "SIZE", env = "PROMPTPAL_RELAY_MEMORY", default_value = "64MiB", value_parser = memory)]
    pub memory: usize,
    /// Allow calls to this network, although it is not globally reachable or has addresses of this machine
    ///
    /// The flag can be repeated. In the variable the networks are separated by commas.
    #[arg(long, value_name = "CIDR", env = "PROMPTPAL_RELAY_ALLOW_NET", value_delimiter = ',', value_parser = network)]
    pub allow_net: Vec<IpNet>,
    /// Refuse webhooks with http: URLs
    #[arg(long, env = "PROMPTPAL_RELAY_HTTPS_ONLY")]
    pub https_only: bool,
    /// Let calls leave from this address of this host: one IPv4 and one IPv6 address at most (repeatable; in the variable
    /// separated by commas). With one of them no call leaves over the other family
    #[arg(long, value_name = "IP", env = "PROMPTPAL_RELAY_BIND_ADDRESS", value_delimiter = ',', value_parser = source)]
    pub bind_address: Vec<IpAddr>,
    /// Make all calls through this HTTP proxy (CONNECT): http://host:port, or http://user:password@host:port. With a
    /// password better in the environment than here, where other users see it in the process list
    #[arg(long, value_name = "URL", env = "PROMPTPAL_RELAY_PROXY", hide_env_values = true)]
    pub proxy: Option<String>,
    /// Whether `--proxy` was typed, and stands in the process list.
    #[arg(skip)]
    pub is_proxy_typed: bool,
    /// Trust the certificates in this PEM file, besides those of the system
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, env = "PROMPTPAL_RELAY_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// Choose what becomes of rows that an instance had in hand when it died
    ///
    /// With record, a request that meets the end of a kept connection is not sent again either.
    #[arg(long, value_name = "WHAT", env = "PROMPTPAL_RELAY_AFTER_CRASH", default_value = "resend")]
    pub after_crash: AfterCrash,
    /// Keep call logs for this time (whole days, 400 at most)
    #[arg(long, value_name = "TIME", env = "PROMPTPAL_RELAY_RETAIN_CALLS", default_value = "30d", value_parser = duration)]
    pub retain_calls: Duration,
    /// Keep done outbox rows for this time
    #[arg(long, value_name = "TIME", env = "PROMPTPAL_RELAY_RETAIN_OUTBOX", default_value = "1d", value_parser = duration)]
    pub retain_outbox: Duration,
    /// Run only where the database has this site (migrate --site)
    ///
    /// Without this flag the daemon runs only where the database has no site. The site tells a physical copy (snapshot, base
    /// backup) from its original.
    #[arg(long, value_name = "NAME", env = "PROMPTPAL_RELAY_SITE", value_parser = site)]
    pub site: Option<String>,
    /// Pause a webhook when all its calls have failed for this time, at least 20 of them; one that answers 410, at once
    ///
    /// Without this flag the daemon pauses no webhook.
    #[arg(long, value_name = "TIME", env = "PROMPTPAL_RELAY_PAUSE_FAILING", value_parser = duration)]
    pub pause_failing: Option<Duration>,
    /// Serve /metrics (Prometheus) and /healthz here: an address and port, or a port of 127.0.0.1
    #[arg(long, value_name = "ADDR", env = "PROMPTPAL_RELAY_METRICS_LISTEN", value_parser = listen)]
    pub metrics_listen: Option<SocketAddr>,
    /// Send this version in the header User-Agent: PromptPal-Webhook@VERSION
    #[arg(long, value_name = "VERSION", env = "PROMPTPAL_RELAY_USER_AGENT_VERSION", default_value = env!("CARGO_PKG_VERSION"), value_parser = header_text)]
    pub user_agent_version: String,
}

/// `--after-crash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AfterCrash {
    /// Post them again: at least once.
    Resend,
    /// Record them as interrupted: at most once.
    Record,
}

/// A time that is past, as it was typed. The database's clock says when "an hour ago" is: this machine's clock may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// A span before now.
    Ago(Duration),
    /// A point in time.
    At(SystemTime),
}

impl Past {
    /// The point in time, if the time is `now`.
    pub fn at(self, now: SystemTime) -> SystemTime {
        match self {
            Past::Ago(ago) => now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH),
            Past::At(time) => time,
        }
    }
}

/// A time to come, as it was typed; by the database's clock, as [`Past`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Future {
    /// A span from now on.
    In(Duration),
    /// A point in time.
    At(SystemTime),
}

impl Future {
    /// The point in time, if the time is `now`.
    pub fn at(self, now: SystemTime) -> SystemTime {
        match self {
            Future::In(span) => now + span,
            Future::At(time) => time,
        }
    }
}

fn count(max: i64) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=max)
}

/// A duration: `10s`, `1h 30m`, `30d`. Zero is refused: no flag has a use for it.
fn duration(text: &str) -> Result<Duration, String> {
    /// Longer is a slip of the keyboard, and would overflow what Postgres and the timers can hold.
    const MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("must be more than zero".into()),
        Ok(duration) if duration > MAX => Err("must be less than 100 years".into()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("write a duration such as 500ms, 10s, 5m, 1h or 30d".into()),
    }
}

/// A time that is past: so long ago, a day (UTC), or an RFC 3339 time.
fn past(text: &str) -> Result<Past, String> {
    let day = || humantime::parse_rfc3339(&format!("{text}T00:00:00Z"));
    let ago = || duration(text).ok().map(Past::Ago);
    humantime::parse_rfc3339(text).or_else(|_| day()).ok().map(Past::At).or_else(ago).ok_or_else(|| {
        "write how long ago (1h, 30d), a day (2024-01-15) or a time (2024-01-15T10:30:00Z)".into()
    })
}

/// A time to come: in so long, a day (UTC), or an RFC 3339 time. The database says whether it is past.
fn future(text: &str) -> Result<Future, String> {
    match past(text) {
        Ok(Past::Ago(span)) => Ok(Future::In(span)),
        Ok(Past::At(time)) => Ok(Future::At(time)),
        Err(_) => {
            Err("write in how long (1h, 30d), a day (2030-01-15) or a time (2030-01-15T10:30:00Z)".into())
        }
    }
}

/// A size: `65536`, `64KiB`, `1MB`, at most 16 MiB, because a record is one message to Postgres.
fn size(text: &str) -> Result<usize, String> {
    sized(text, 0, 16, "must be at most 16MiB")
}

/// A size for `--memory`. With less than 16 MiB many answers would be cut.
fn memory(text: &str) -> Result<usize, String> {
    sized(text, 16, 1024 * 1024, "must be at least 16MiB, and at most 1TiB")
}

fn sized(text: &str, min_mib: u64, max_mib: u64, refused: &str) -> Result<usize, String> {
    let size: bytesize::ByteSize =
        text.parse().map_err(|_| String::from("write a size such as 65536, 64KiB or 1MB"))?;
    if !(min_mib << 20..=max_mib << 20).contains(&size.as_u64()) {
        return Err(refused.into());
    }
    usize::try_from(size.as_u64()).map_err(|error| error.to_string())
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "write a network such as 10.0.0.0/8 or fd00::/8, or an address".into())
}

/// An address of this host.
fn source(text: &str) -> Result<IpAddr, String> {
    let is_one_hosts = |address: &IpAddr| {
        let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        let is_mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        !(address.is_unspecified() || address.is_multicast() || is_broadcast || is_mapped)
    };
    text.parse::<IpAddr>().ok().filter(is_one_hosts).ok_or_else(|| {
        "write an address of this host such as 192.0.2.10 or 2001:db8::10, without a port".into()
    })
}

/// An address to listen on: `9464`, `127.0.0.1:9464`, `[::1]:9464`.
fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse::<u16>()
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .or_else(|_| text.parse())
        .map_err(|_| "write an address and a port such as 127.0.0.1:9464, or a port".into())
}

/// The name of a site. relay.installation has the same rule.
fn site(text: &str) -> Result<String, String> {
    if (1..=63).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
        Ok(text.into())
    } else {
        Err("write 1 to 63 characters without control characters".into())
    }
}

/// A text that a header can carry unharmed.
fn header_text(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.len() <= 100 && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text.into())
    } else {
        Err("write 1 to 100 visible ASCII characters without spaces".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_and_sizes_are_written_as_people_write_them() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86400)));
        assert!(duration("0s").is_err() && duration("10").is_err() && duration("9999999y").is_err());
        let after = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(past("1970-01-02"), Ok(Past::At(after(86400))));
        assert_eq!(past("1970-01-01T00:00:07Z"), Ok(Past::At(after(7))));
        assert_eq!(past("1h"), Ok(Past::Ago(Duration::from_secs(3600))));
        assert_eq!(past("1h").map(|past| past.at(after(3607))), Ok(after(7)));
        assert_eq!(past("1970-01-02").map(|past| past.at(after(7))), Ok(after(86400)));
        assert_eq!(future("1h").map(|future| future.at(after(7))), Ok(after(3607)));
        assert_eq!(future("1970-01-02"), Ok(Future::At(after(86400))));
        assert!(future("tomorrow").is_err());
        assert!(past("yesterday").is_err() && past("2024-13-01").is_err());
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("65536"), Ok(65536));
        assert!(size("64 apples").is_err() && size("17MiB").is_err() && size("1TB").is_err());
        assert_eq!(memory("64MiB"), Ok(64 << 20));
        assert!(memory("15MiB").is_err() && memory("2TiB").is_err());
        assert_eq!(network("10.1.2.3/8").map(|n| n.trunc().to_string()), Ok("10.0.0.0/8".into()));
        assert_eq!(network("::1").map(|n| n.to_string()), Ok("::1/128".into()));
        assert!(network("10.0.0.0/33").is_err());
        assert_eq!(listen("9464").map(|address| address.to_string()), Ok("127.0.0.1:9464".into()));
        assert_eq!(listen("[::1]:9464").map(|address| address.to_string()), Ok("[::1]:9464".into()));
        assert!(listen("localhost").is_err() && listen("70000").is_err());
        assert_eq!(source("127.0.0.2").map(|address| address.to_string()), Ok("127.0.0.2".into()));
        assert!(source("2001:db8::1").is_ok());
        for text in [
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "::ffff:127.0.0.1",
            "[::1]",
            "eth0",
            "127.0.0.1:80",
        ] {
            assert!(source(text).is_err(), "{text}");
        }
        assert!(header_text("1.0\r\nX: y").is_err());
        assert!(site("Berlin 2").is_ok() && site(&"ü".repeat(63)).is_ok());
        assert!(site("").is_err() && site("a\nb").is_err() && site(&"a".repeat(64)).is_err());
    }
}
