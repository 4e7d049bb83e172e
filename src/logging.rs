//! The journal: tracing, as text for people or JSON for collectors, to standard error or to daily files.
//!
//! What is never logged: bodies, header values, secrets, a URL's user, password and query.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::{Global, LogFormat, LogLevel};
use crate::error::{Error, Result};

/// Daily files kept in `--log-dir`; older ones are deleted.
const FILES_MAX: usize = 14;

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

/// The log files, when there are any; cheap to clone.
#[derive(Clone)]
pub struct Files(Option<File>);

#[derive(Clone)]
struct File {
    dir: PathBuf,
    // Written by whoever logs, replaced on SIGHUP.
    appender: Arc<Mutex<RollingFileAppender>>,
}

impl Files {
    /// Opens the current file anew, after something moved it away.
    pub fn reopen(&self) {
        let Some(file) = &self.0 else { return };
        match open(&file.dir) {
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

impl<'a> MakeWriter<'a> for File {
    type Writer = File;

    fn make_writer(&'a self) -> File {
        self.clone()
    }
}

fn open(dir: &Path) -> Result<RollingFileAppender> {
    let refused = |error: &dyn std::fmt::Display| {
        Error::Config(format!("cannot write log files into {} (--log-dir): {error}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(|error| refused(&error))?;
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("promptpal-relay")
        .filename_suffix("log")
        .max_log_files(FILES_MAX)
        .build(dir)
        .map_err(|error| refused(&error))
}

/// Sets logging up, once for the process.
///
/// # Errors
///
/// [`Error::Config`] when the log folder cannot be written.
pub fn install(global: &Global) -> Result<Files> {
    let level: LevelFilter = global.log_level.into();
    let builder = tracing_subscriber::fmt().with_max_level(level).with_target(false);
    let files = match &global.log_dir {
        Some(dir) => Some(File { dir: dir.clone(), appender: Arc::new(Mutex::new(open(dir)?)) }),
        None => None,
    };
    match (global.log_format, files.clone()) {
        (LogFormat::Text, None) => {
            let builder = builder.with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
            // journald stamps each line itself.
            if std::env::var_os("JOURNAL_STREAM").is_some() {
                builder.without_time().init();
            } else {
                builder.init();
            }
        }
        (LogFormat::Text, Some(file)) => builder.with_writer(file).with_ansi(false).init(),
        (LogFormat::Json, None) => builder.with_writer(io::stderr).json().flatten_event(true).init(),
        (LogFormat::Json, Some(file)) => builder.with_writer(file).json().flatten_event(true).init(),
    }
    Ok(Files(files))
}
