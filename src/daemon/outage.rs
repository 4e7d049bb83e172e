//! A Postgres that refuses the running daemon: how loud that is told, and what the operator can do.
//!
//! Pure: given the error, since when and now. Decides by SQLSTATE and variant, never by text. Logs nothing, and does not say
//! when the next try is due.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;

use crate::error::Error;

/// A refusal is a warning for this time: an operator may be in the middle of changing roles or tables.
const PATIENCE: Duration = Duration::from_secs(120);
/// Afterwards it is told as an error, so often.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// How loud a failed try is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// It was told as an error a moment ago.
    Debug,
    /// It may pass.
    Warn,
    /// It needs an operator.
    Error,
}

/// What one loop of the daemon has been refused, for as long as it tries again. A new one begins after each success.
#[derive(Default)]
pub(super) struct Outage {
    since: Option<Instant>,
    told: Option<Instant>,
}

impl Outage {
    /// Another try has failed, with this error. A Postgres that is merely away counts for nothing: it comes back by itself.
    pub(super) fn failed(&mut self, error: &Error, now: Instant) -> Level {
        if refusal(error).is_none() {
            *self = Outage::default();
            return Level::Warn;
        }
        if now - *self.since.get_or_insert(now) < PATIENCE {
            return Level::Warn;
        }
        if self.told.is_some_and(|told| now - told < TELL_AGAIN) {
            return Level::Debug;
        }
        self.told = Some(now);
        Level::Error
    }
}

/// What keeps Postgres from serving the daemon, where an operator has to change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Login,
    Settings,
    Database,
    Rights,
    RowSecurity,
    Privilege,
    Missing,
    Changed,
    ReadOnly,
    Crowded,
    Disk,
    Memory,
    Cancelled,
    Locked,
    Other,
}

/// None: Postgres is away, stops or starts.
fn refusal(error: &Error) -> Option<Refusal> {
    if matches!(error, Error::Config(_)) {
        return Some(Refusal::Settings);
    }
    if matches!(error, Error::Rights(_)) {
        return Some(Refusal::Rights);
    }
    if error.is_row_security() {
        return Some(Refusal::RowSecurity);
    }
    if error.is_crowded() {
        return Some(Refusal::Crowded);
    }
    refusal_of(error.sqlstate()?)
}

fn refusal_of(code: &SqlState) -> Option<Refusal> {
    Some(match *code {
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => Refusal::Login,
        SqlState::INVALID_CATALOG_NAME => Refusal::Database,
        SqlState::INSUFFICIENT_PRIVILEGE => Refusal::Privilege,
        SqlState::UNDEFINED_TABLE
        | SqlState::UNDEFINED_COLUMN
        | SqlState::UNDEFINED_FUNCTION
        | SqlState::UNDEFINED_OBJECT
        | SqlState::INVALID_SCHEMA_NAME => Refusal::Missing,
        SqlState::DATATYPE_MISMATCH | SqlState::CANNOT_COERCE | SqlState::WRONG_OBJECT_TYPE => {
            Refusal::Changed
        }
        SqlState::READ_ONLY_SQL_TRANSACTION => Refusal::ReadOnly,
        SqlState::DISK_FULL => Refusal::Disk,
        SqlState::OUT_OF_MEMORY => Refusal::Memory,
        SqlState::QUERY_CANCELED => Refusal::Cancelled,
        SqlState::LOCK_NOT_AVAILABLE => Refusal::Locked,
        _ if is_passing(code) => return None,
        _ => Refusal::Other,
    })
}

/// The server stops, starts or has crashed (class 57P), the connection is gone (08), or transactions were in each other's
/// way (40).
fn is_passing(code: &SqlState) -> bool {
    let code = code.code();
    ["08", "40", "57P"].iter().any(|class| code.starts_with(class))
}

/// What the operator can do about it; `user` is the daemon's role. None: nothing but to see to it that Postgres runs.
pub(super) fn advice(error: &Error, user: &str) -> Option<String> {
    Some(match refusal(error)? {
        Refusal::Login => format!(
            "the role {user} is gone, may not log in, or has another password: CREATE ROLE {user} LOGIN IN ROLE \
             relay_daemon, ALTER ROLE {user} PASSWORD, or a rule in pg_hba.conf. A file with the new password is read at \
             the next try; a variable needs a restart"
        ),
        Refusal::Settings => {
            "correct the connection settings and restart: promptpal-relay check tells more".into()
        }
        Refusal::Database => {
            "the database is gone or has another name: correct the connection settings and restart".into()
        }
        Refusal::Rights => "the daemon goes on by itself when that is done".into(),
        Refusal::RowSecurity => {
            "row level security hides rows of that table from the daemon: ALTER TABLE … DISABLE ROW \
                                 LEVEL SECURITY; promptpal-relay check names it"
                .into()
        }
        Refusal::Privilege => {
            format!("GRANT relay_daemon TO {user}; where it is granted, run promptpal-relay migrate")
        }
        Refusal::Missing => {
            "something of the schema relay is gone: put it back; promptpal-relay check tells what".into()
        }
        Refusal::Changed => {
            "something of the schema relay has another type: put it back; promptpal-relay check tells what"
                .into()
        }
        Refusal::ReadOnly => format!(
            "the database is read-only: name the primary in the connection settings, or ALTER ROLE {user} RESET \
             default_transaction_read_only"
        ),
        Refusal::Crowded => format!(
            "no room for a session: raise ALTER ROLE {user} CONNECTION LIMIT, that of the database, or max_connections; \
             the daemon has up to eight at a time"
        ),
        Refusal::Disk => "make room on the server's disk".into(),
        Refusal::Memory => "the server has no memory: see its log".into(),
        Refusal::Cancelled => "something cancels the daemon's statements: see the server's log".into(),
        Refusal::Locked => {
            format!(
                "another session has a table locked: end that session, or ALTER ROLE {user} RESET lock_timeout"
            )
        }
        Refusal::Other => "see the server's log; promptpal-relay check tells what is not in place".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Error {
        Error::Config("permission denied for database".into())
    }

    #[test]
    fn a_refusal_is_a_warning_for_minutes_and_then_an_error_once_a_minute() {
        let start = Instant::now();
        let mut outage = Outage::default();
        let mut levels = |seconds| outage.failed(&refused(), start + Duration::from_secs(seconds));
        assert_eq!([levels(0), levels(60), levels(119)], [Level::Warn; 3]);
        assert_eq!(levels(120), Level::Error);
        assert_eq!([levels(123), levels(179)], [Level::Debug; 2]);
        assert_eq!(levels(180), Level::Error);
        let told = (181..780).filter(|at| levels(*at) == Level::Error).count();
        assert_eq!(told, 9, "in ten minutes, at a try a second");
    }

    #[test]
    fn a_server_that_is_away_comes_back_by_itself() {
        let start = Instant::now();
        let mut outage = Outage::default();
        let late = start + 10 * PATIENCE;
        let away = Error::Io { doing: String::new(), source: std::io::ErrorKind::ConnectionRefused.into() };
        assert_eq!(outage.failed(&refused(), start), Level::Warn);
        assert_eq!(outage.failed(&away, late), Level::Warn);
        assert_eq!(advice(&away, "relay_run"), None);
        assert_eq!(outage.failed(&refused(), late), Level::Warn, "the refusal begins anew");
        assert_eq!(outage.failed(&refused(), late + PATIENCE), Level::Error);
    }

    #[test]
    fn what_passes_is_told_from_what_does_not_by_sqlstate() {
        for code in [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::CONNECTION_FAILURE,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ] {
            assert_eq!(refusal_of(&code), None, "{}", code.code());
        }
        for (code, refusal) in [
            (SqlState::INVALID_PASSWORD, Refusal::Login),
            (SqlState::INSUFFICIENT_PRIVILEGE, Refusal::Privilege),
            (SqlState::UNDEFINED_TABLE, Refusal::Missing),
            (SqlState::READ_ONLY_SQL_TRANSACTION, Refusal::ReadOnly),
            (SqlState::DISK_FULL, Refusal::Disk),
            (SqlState::DIVISION_BY_ZERO, Refusal::Other),
        ] {
            assert_eq!(refusal_of(&code), Some(refusal), "{}", code.code());
        }
    }
}
