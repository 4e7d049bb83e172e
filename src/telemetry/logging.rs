//! The journal: tracing, as text for people or JSON for collectors, to standard error or to daily files.
//!
//! A thread of its own writes the lines, from a queue with a bound. A pipe without a reader, or a full disk, loses lines and
//! holds nothing else up.
//!
//! Never logs bodies, header values, secrets, nor a URL's user, password and query.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::{Global, LogFormat, LogLevel};
use crate::error::{Error, Result};
use crate::telemetry::terminal::{self, escaped};

/// Most lines that wait to be written. Further lines are lost.
const LINES_MAX: usize = 10_000;
/// The daily files are `promptpal-relay.2024-01-15.log` (UTC).
const PREFIX: &str = "promptpal-relay";
const SUFFIX: &str = "log";

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> LevelFilter {
        match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

/// When it is dropped, it writes the lines that still wait, within a second.
pub struct Flush {
    _guard: WorkerGuard,
}

/// The log files, when there are any; cheap to clone.
#[derive(Clone)]
pub struct Files(Option<File>);

#[derive(Clone)]
struct File {
    dir: PathBuf,
    days: usize,
    // The thread that writes the log uses it; SIGHUP replaces it.
    open: Arc<Mutex<Open>>,
}

struct Open {
    appender: RollingFileAppender,
    // Old files were thrown away on this day, counted from 1970.
    pruned: u64,
}

impl Files {
    /// Opens the current file anew, after something moved it away.
    pub fn reopen(&self) {
        let Some(file) = &self.0 else { return };
        match open(&file.dir) {
            Ok(open) => *file.open.lock().unwrap_or_else(PoisonError::into_inner) = open,
            Err(error) => {
                tracing::error!(error = %crate::error::one_line(&error), "cannot reopen the log file")
            }
        }
    }
}

impl Write for File {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let written = open.appender.write(line)?;
        let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86400;
        if open.pruned != today {
            open.pruned = today;
            if let Err(error) = prune(&self.dir, self.days) {
                // Not a line of the log: this is the thread that writes them.
                let error = error.to_string();
                eprintln!("promptpal-relay: throwing old log files away: {}", escaped(&error));
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).appender.flush()
    }
}

/// Keeps the newest files, of those with exactly the appender's names: others begin and end as ours do.
fn prune(dir: &Path, days: usize) -> io::Result<()> {
    let is_ours = |name: &String| {
        let day = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.'));
        let day = day.and_then(|rest| rest.strip_suffix(SUFFIX)).and_then(|rest| rest.strip_suffix('.'));
        day.is_some_and(|day| humantime::parse_rfc3339(&format!("{day}T00:00:00Z")).is_ok())
    };
    let names = std::fs::read_dir(dir)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(is_ours).collect();
    // In the order of the days, too.
    names.sort();
    names.iter().rev().skip(days).try_for_each(|name| std::fs::remove_file(dir.join(name)))
}

fn open(dir: &Path) -> Result<Open> {
    let refused = |error: &dyn std::fmt::Display| {
        Error::Config(format!("cannot write log files into {} (--log-dir): {error}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(|error| refused(&error))?;
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(PREFIX)
        .filename_suffix(SUFFIX)
        .build(dir)
        .map_err(|error| refused(&error))?;
    Ok(Open { appender, pruned: 0 })
}

/// Sets logging up, once for the process. The lines that still wait are written when the [`Flush`] is dropped.
///
/// # Errors
///
/// [`Error::Config`] when the log folder cannot be written.
pub fn install(global: &Global) -> Result<(Files, Flush)> {
    let level: LevelFilter = global.log_level.into();
    let days = usize::try_from(global.log_days).expect("at most 3650");
    let file = match &global.log_dir {
        Some(dir) => Some(File { dir: dir.clone(), days, open: Arc::new(Mutex::new(open(dir)?)) }),
        None => None,
    };
    let lines = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).thread_name("log");
    let (writer, guard) = match file.clone() {
        Some(file) => lines.finish(file),
        None => lines.finish(io::stderr()),
    };
    let has_colours = file.is_none() && terminal::has_colours(&io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(has_colours)
        .with_writer(writer);
    let to_journal = file.is_none() && is_journal();
    match global.log_format {
        LogFormat::Json => {
            builder.json().flatten_event(true).map_event_format(|format| Lines { format, to_journal }).init();
        }
        // journald stamps each line itself.
        LogFormat::Text if to_journal => {
            builder.without_time().map_event_format(|format| Lines { format, to_journal }).init();
        }
        LogFormat::Text => builder.map_event_format(|format| Lines { format, to_journal }).init(),
    }
    Ok((Files(file), Flush { _guard: guard }))
}

/// Whether standard error is the journal's: `JOURNAL_STREAM` names its device and inode, and may be left over from
/// the process that started this one (systemd.exec(5)).
pub fn is_journal() -> bool {
    let stderr = nix::sys::stat::fstat(io::stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    stderr.is_ok_and(|stderr| std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == stderr))
}

/// The priority of an error, as sd-daemon(3) has it in front of a line.
pub const ERROR: &str = "<3>";

/// Each event on one line that is [`escaped`] as a whole, wherever a foreign text stands in it. A line break would begin
/// a line of its own in the journal, with a priority of the text's choice.
struct Lines<F> {
    format: F,
    /// The priority stands in front.
    to_journal: bool,
}

impl<S, N, F> FormatEvent<S, N> for Lines<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let line = escaped(line.trim_end_matches('\n'));
        let (priority, colour) = match *event.metadata().level() {
            Level::ERROR => (ERROR, "\x1b[31m"),
            Level::WARN => ("<4>", "\x1b[33m"),
            Level::INFO => ("<6>", ""),
            Level::DEBUG | Level::TRACE => ("<7>", "\x1b[2m"),
        };
        match (self.to_journal, writer.has_ansi_escapes()) {
            (true, _) => writeln!(writer, "{priority}{line}"),
            (false, true) => writeln!(writer, "{colour}{line}\x1b[0m"),
            (false, false) => writeln!(writer, "{line}"),
        }
    }
}
