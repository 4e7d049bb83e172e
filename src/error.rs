//! The one error type, grouped by what the operator must do about it.
//!
//! Owns the exit codes. Decides by variant or by SQLSTATE, never by the text of an error. A failed *call* is no error: it is a
//! value (`Call`) that goes into the call log.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use tokio_postgres::error::SqlState;

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, sorted by what helps.
#[derive(Debug)]
pub enum Error {
    /// What the user typed cannot be meant. Exit code 2.
    Usage(String),
    /// The configuration cannot work; a restart will not help. Exit code 78.
    Config(String),
    /// The schema is missing, older, newer or changed; a restart will not help. Exit code 78.
    Schema(String),
    /// The database is a copy that no operator has accepted, of another site, or not the one that the daemon began with. Nothing
    /// is sent from it; a restart will not help. Exit code 78.
    Installation(String),
    /// The rights in the database are not as they must be: rows are hidden from the relay, or code of another role would run
    /// with the relay's rights. A restart neither helps nor is needed: a running daemon goes on when the rights are mended.
    /// Exit code 78.
    Rights(String),
    /// A pooler in front of Postgres gives the relay's sessions to other clients; a restart will not help. Exit code 78.
    Pooled {
        /// What was being done.
        doing: String,
    },
    /// Postgres said no, or went away. Exit code by SQLSTATE, see [`Error::exit_code`].
    Postgres {
        /// What was being done: "claiming rows", "connecting to Postgres (user relay at db1:5432, database app)".
        doing: Cow<'static, str>,
        /// What tokio-postgres says.
        source: tokio_postgres::Error,
    },
    /// The operating system said no. Exit code 1.
    Io {
        /// What was being done, with the path where there is one.
        doing: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Anything else that ended the command; a restart may help. Exit code 1.
    Failed(String),
    /// Each of several servers was tried in turn, and none serves us; another try may help. Exit code 1.
    Servers(Vec<Error>),
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.
const CONFIG: u8 = 78;

impl Error {
    /// For `map_err`: wraps an error of tokio-postgres with what was being done. When the server does not know a statement that
    /// this session has prepared, or has it from another session, a pooler has given the session another backend.
    pub fn postgres(doing: impl Into<Cow<'static, str>>) -> impl FnOnce(tokio_postgres::Error) -> Error {
        let doing = doing.into();
        move |source| match source.code() {
            Some(&SqlState::INVALID_SQL_STATEMENT_NAME | &SqlState::DUPLICATE_PSTATEMENT) => {
                Error::Pooled { doing: doing.into() }
            }
            _ => Error::Postgres { doing, source },
        }
    }

    /// For `map_err`: wraps an I/O error with what was being done.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Io { doing, source }
    }

    /// The process's exit code: 1 when a restart may help, 2 for usage, 78 when it will not. A Postgres that refuses
    /// *us* (password, role, database, privilege, missing object) is configuration; one that is away, full or
    /// starting is not.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => USAGE,
            Error::Config(_)
            | Error::Schema(_)
            | Error::Installation(_)
            | Error::Rights(_)
            | Error::Pooled { .. } => CONFIG,
            Error::Postgres { source, .. } => match source.code() {
                Some(code) if refused_for_good(code) => CONFIG,
                _ => FAILED,
            },
            Error::Io { .. } | Error::Failed(_) | Error::Servers(_) => FAILED,
        }
    }

    /// Whether the same attempt may succeed later, with nothing changed by the operator: the exit code 1.
    pub fn may_pass(&self) -> bool {
        self.exit_code() == FAILED
    }

    /// Whether the reader of our standard output is gone.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// The SQLSTATE, when Postgres answered with one.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            Error::Postgres { source, .. } => source.code(),
            Error::Servers(errors) => errors.iter().find_map(Error::sqlstate),
            _ => None,
        }
    }

    /// Whether Postgres has no room for one more session: of the role, of the database or of the server. Poolers say so by
    /// `protocol_violation`.
    pub fn is_crowded(&self) -> bool {
        let crowded = |code| matches!(code, &SqlState::TOO_MANY_CONNECTIONS | &SqlState::PROTOCOL_VIOLATION);
        match self {
            Error::Servers(errors) => errors.iter().any(Error::is_crowded),
            error => error.sqlstate().is_some_and(crowded),
        }
    }

    /// Whether a statement has waited for a lock for as long as the session's `lock_timeout` lets it.
    pub fn is_lock_timeout(&self) -> bool {
        self.sqlstate() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether two sessions have waited for each other, and Postgres has ended this one's transaction.
    pub fn is_deadlock(&self) -> bool {
        self.sqlstate() == Some(&SqlState::T_R_DEADLOCK_DETECTED)
    }

    /// Whether Postgres refused a statement because we may not make it.
    pub fn is_privilege(&self) -> bool {
        self.sqlstate() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) && !self.is_row_security()
    }

    /// Whether Postgres refused a statement because row level security would have hidden rows from it. That has the same
    /// SQLSTATE as a privilege that is missing; the place in the server's source tells them apart, not the text, which is
    /// translated.
    pub fn is_row_security(&self) -> bool {
        let Error::Postgres { source, .. } = self else { return false };
        source.as_db_error().and_then(|error| error.routine()) == Some("check_enable_rls")
    }

    /// Whether the *data* of a statement is what was refused: the same statement fails again, with other data it
    /// succeeds. Postgres refuses data with SQLSTATE classes 21, 22, 23, 54 (too large, too many) and P0 (a trigger of a DBA's
    /// raises it). A row without a partition, or whose partition was made a moment ago, is no such case: it has the code of a
    /// violated constraint, and no constraint's name. The client refuses data that it cannot send: then the session is as good
    /// as before.
    pub fn is_data(&self) -> bool {
        let Error::Postgres { source, .. } = self else { return false };
        let Some(error) = source.as_db_error() else {
            let is_network = StdError::source(source).is_some_and(|cause| cause.is::<std::io::Error>());
            return !source.is_closed() && !is_network;
        };
        let about_partitions = *error.code() == SqlState::CHECK_VIOLATION && error.constraint().is_none();
        matches!(&error.code().code()[..2], "21" | "22" | "23" | "54" | "P0") && !about_partitions
    }
}

/// SQLSTATEs that say "not with this configuration": no restart changes the answer.
fn refused_for_good(code: &SqlState) -> bool {
    [
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        SqlState::INVALID_CATALOG_NAME,
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::UNDEFINED_FUNCTION,
        // A view in the place of relay.webhooks whose columns cannot be what ours are.
        SqlState::DATATYPE_MISMATCH,
        SqlState::CANNOT_COERCE,
        SqlState::INVALID_SCHEMA_NAME,
    ]
    .contains(code)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(text)
            | Error::Config(text)
            | Error::Schema(text)
            | Error::Installation(text)
            | Error::Rights(text)
            | Error::Failed(text) => f.write_str(text),
            Error::Pooled { doing } => write!(
                f,
                "{doing}: a pooler gives the session to other clients between two transactions (pool_mode = transaction or \
                 statement); connect to Postgres itself, or to a pool in session mode"
            ),
            Error::Postgres { doing, .. } => f.write_str(doing),
            Error::Io { doing, .. } => f.write_str(doing),
            Error::Servers(errors) => {
                f.write_str(&errors.iter().map(|error| one_line(error)).collect::<Vec<_>>().join("; then "))
            }
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Postgres { source, .. } => Some(source),
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// An error and its causes on one line, `a: b: c`, for stderr and the journal.
///
/// A Postgres error is given with its severity's text, detail and hint; line breaks become spaces.
pub fn one_line(error: &(dyn StdError + 'static)) -> String {
    let mut line = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = match error.downcast_ref::<tokio_postgres::error::DbError>() {
            Some(db) => [Some(db.message()), db.detail().filter(|_| !shows_a_row(db)), db.hint()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("; "),
            None => without_number(error.to_string()),
        };
        // tokio-postgres says "db error" and then has the story as its source; some errors repeat their source.
        if text != "db error" && !line.ends_with(&text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
        next = error.source();
    }
    line.replace(['\r', '\n'], " ")
}

/// Whether the detail of an error is a whole row: a CHECK constraint or a null that may not be.
fn shows_a_row(error: &tokio_postgres::error::DbError) -> bool {
    [SqlState::CHECK_VIOLATION, SqlState::NOT_NULL_VIOLATION].contains(error.code())
}

/// An error of the system without its number, which the standard library puts behind it: `Connection refused (os error 111)`.
fn without_number(mut text: String) -> String {
    if let Some(at) = text.rfind(" (os error ").filter(|_| text.ends_with(')')) {
        text.truncate(at);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_has_its_exit_code() {
        assert_eq!(Error::Usage(String::new()).exit_code(), 2);
        assert_eq!(Error::Config(String::new()).exit_code(), 78);
        assert_eq!(Error::Schema(String::new()).exit_code(), 78);
        assert_eq!(Error::Installation(String::new()).exit_code(), 78);
        assert_eq!(Error::Rights(String::new()).exit_code(), 78);
        assert_eq!(Error::Failed(String::new()).exit_code(), 1);
    }

    #[test]
    fn causes_are_told_on_one_line() {
        let cause = std::io::Error::other("no\nspace");
        assert_eq!(one_line(&Error::io("writing the log")(cause)), "writing the log: no space");
        let refused = std::io::Error::from_raw_os_error(111);
        assert_eq!(one_line(&refused), "Connection refused");
    }
}
