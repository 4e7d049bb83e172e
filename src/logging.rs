//! The journal: tracing, as text for people or JSON for collectors, to standard error or to daily files.
//!
//! Lines are written by a thread of their own, from a queue with a bound: a pipe that nobody reads, or a disk that is
//! full, loses lines and holds nothing else up.
//!
//! What is never logged: bodies, header values, secrets, a URL's user, password and query.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::{Global, LogFormat, LogLevel};
use crate::error::{Error, Result};

/// Lines that wait to be written; more are lost.
const LINES_MAX: usize = 10_000;

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

/// Writes what still waits when it is dropped, within a second.
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
    // Written by whoever logs, replaced on SIGHUP.
    appender: Arc<Mutex<RollingFileAppender>>,
}

impl Files {
    /// Opens the current file anew, after something moved it away.
    pub fn reopen(&self) {
        let Some(file) = &self.0 else { return };
        match open(&file.dir, file.days) {
            Ok(appender) => *file.appender.lock().unwrap_or_else(PoisonError::into_inner) = appender,
            Err(error) => {
                tracing::error!(error = %crate::error::one_line(&error), "cannot reopen the log file")
            }
        }
    }
}

impl Write for File {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.appender.lock().unwrap_or_else(PoisonError::into_inner).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.appender.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

fn open(dir: &Path, days: usize) -> Result<RollingFileAppender> {
    let refused = |error: &dyn std::fmt::Display| {
        Error::Config(format!("cannot write log files into {} (--log-dir): {error}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(|error| refused(&error))?;
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("promptpal-relay")
        .filename_suffix("log")
        .max_log_files(days)
        .build(dir)
        .map_err(|error| refused(&error))
}

/// Sets logging up, once for the process. What waits is written when the [`Flush`] is dropped.
///
/// # Errors
///
/// [`Error::Config`] when the log folder cannot be written.
pub fn install(global: &Global) -> Result<(Files, Flush)> {
    let level: LevelFilter = global.log_level.into();
    let days = usize::try_from(global.log_days).expect("at most 3650");
    let file = match &global.log_dir {
        Some(dir) => Some(File { dir: dir.clone(), days, appender: Arc::new(Mutex::new(open(dir, days)?)) }),
        None => None,
    };
    let lines = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).thread_name("log");
    let (writer, guard) = match file.clone() {
        Some(file) => lines.finish(file),
        None => lines.finish(io::stderr()),
    };
    let to_terminal = file.is_none() && io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(to_terminal)
        .with_writer(writer);
    match global.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text if file.is_none() && is_journal() => {
            // journald stamps each line itself.
            let format = Format::default().with_target(false).with_ansi(false).without_time();
            builder.event_format(Prioritised(format)).init();
        }
        LogFormat::Text => builder.init(),
    }
    Ok((Files(file), Flush { _guard: guard }))
}

/// Whether standard error is the journal's: `JOURNAL_STREAM` names its device and inode, and may be left over from
/// whoever started us (systemd.exec(5)).
pub fn is_journal() -> bool {
    let stderr = nix::sys::stat::fstat(io::stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    stderr.is_ok_and(|stderr| std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == stderr))
}

/// Lines with the priority in front that sd-daemon(3) defines.
struct Prioritised<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
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
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}
