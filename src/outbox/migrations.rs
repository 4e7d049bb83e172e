//! The schema's versions: the numbered files under `sql/migrations`, and whether a database has them. Never applies
//! one: the command `migrate` does.

use std::collections::BTreeMap;
use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::outbox::Store;
use crate::postgres::OLDEST_SERVER;

/// One file under `sql/migrations`.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Its number.
    pub version: i32,
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub sql: &'static str,
}

/// All of them, in order. A released one never changes; what comes later gets a new number.
pub const MIGRATIONS: &[Migration] = &[
    migration(1, "outbox", include_str!("../../sql/migrations/0001_outbox.sql")),
    migration(2, "webhooks", include_str!("../../sql/migrations/0002_webhooks.sql")),
    migration(3, "call_log", include_str!("../../sql/migrations/0003_call_log.sql")),
    migration(4, "instances", include_str!("../../sql/migrations/0004_instances.sql")),
    migration(5, "retention", include_str!("../../sql/migrations/0005_retention.sql")),
    migration(6, "partitions", include_str!("../../sql/migrations/0006_partitions.sql")),
    migration(7, "wake_up", include_str!("../../sql/migrations/0007_wake_up.sql")),
    migration(8, "foreign_code", include_str!("../../sql/migrations/0008_foreign_code.sql")),
    migration(9, "replay", include_str!("../../sql/migrations/0009_replay.sql")),
    migration(10, "url_problem", include_str!("../../sql/migrations/0010_url_problem.sql")),
    migration(11, "views", include_str!("../../sql/migrations/0011_views.sql")),
    migration(12, "installation", include_str!("../../sql/migrations/0012_installation.sql")),
    migration(13, "pauses", include_str!("../../sql/migrations/0013_pauses.sql")),
];

const fn migration(version: i32, name: &'static str, sql: &'static str) -> Migration {
    Migration { version, name, sql }
}

/// Makes the table in which migrations are written down. Run before the migrations, each time.
pub(crate) const BOOKKEEPING: &str = include_str!("../../sql/bookkeeping.sql");

/// Makes the group roles and grants their privileges. Run after the migrations, each time.
pub(crate) const ROLES: &str = include_str!("../../sql/roles.sql");

/// Accepts a copy and names the site. Run last, when it was asked for, outside a transaction.
pub(crate) const ACCEPT_COPY: &str = include_str!("../../sql/accept_copy.sql");

impl Migration {
    /// SHA-256 of the text, in hexadecimal.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql).iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
            hex
        })
    }
}

/// How the schema of a database compares with this program's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Exactly this program's.
    Current,
    /// The database lacks these migrations; all of them when there is no schema.
    Behind(Vec<i32>),
    /// It has a version that this program does not know.
    Newer(i32),
    /// This applied migration differs from the file of that number.
    Changed(i32),
}

/// Compares what was applied with [`MIGRATIONS`].
pub(crate) fn compare(applied: &[(i32, String, String)]) -> State {
    let applied: BTreeMap<i32, &str> =
        applied.iter().map(|(version, _, checksum)| (*version, checksum.as_str())).collect();
    let known = |version: i32| MIGRATIONS.iter().any(|m| m.version == version);
    if let Some(version) = applied.keys().copied().rfind(|version| !known(*version)) {
        return State::Newer(version);
    }
    if let Some(changed) =
        MIGRATIONS.iter().find(|m| applied.get(&m.version).is_some_and(|sum| *sum != m.checksum()))
    {
        return State::Changed(changed.version);
    }
    let missing: Vec<i32> =
        MIGRATIONS.iter().map(|m| m.version).filter(|version| !applied.contains_key(version)).collect();
    if missing.is_empty() { State::Current } else { State::Behind(missing) }
}

impl State {
    /// The error for an operator, unless the schema is this program's.
    pub(crate) fn problem(&self) -> Option<Error> {
        let text = match self {
            State::Current => return None,
            State::Behind(missing) if missing.len() == MIGRATIONS.len() => {
                "the schema relay is missing in this database: run promptpal-relay migrate".into()
            }
            State::Behind(missing) => {
                format!(
                    "the schema is older than this program (migration {} is missing): run promptpal-relay migrate",
                    missing[0]
                )
            }
            State::Newer(version) => format!(
                "the schema is newer than this program (it has migration {version}): install a newer promptpal-relay"
            ),
            State::Changed(version) => format!(
                "migration {version} in the database differs from this program's: relay.migrations has another \
                 checksum; use the program that made the schema, or a fresh database"
            ),
        };
        Some(Error::Schema(text))
    }
}

/// What the server says of itself.
#[derive(Clone, Debug)]
pub struct Server {
    /// As `server_version_num`: 150018.
    pub version: i32,
    /// Encoding of the database.
    pub encoding: String,
    /// Whether `relay.migrations` exists.
    pub has_migrations: bool,
}

impl Store {
    /// What the server says of itself. Works without our schema.
    pub async fn server(&self) -> Result<Server> {
        let row = self
            .one("asking for the version", include_str!("../../sql/queries/migrations/server.sql"), &[])
            .await?;
        Ok(Server { version: row.get(0), encoding: row.get(1), has_migrations: row.get(2) })
    }

    /// What `migrate` has applied: version, name, checksum.
    pub async fn migrations(&self) -> Result<Vec<(i32, String, String)>> {
        let sql = include_str!("../../sql/queries/migrations/applied.sql");
        let rows = self.rows("reading relay.migrations", sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
    }

    /// Writes down a migration. The caller runs it in the migration's transaction.
    pub async fn record_migration(&self, version: i32, name: &str, checksum: &str) -> Result<()> {
        let sql = include_str!("../../sql/queries/migrations/record.sql");
        self.rows("recording the migration", sql, &[&version, &name, &checksum]).await?;
        Ok(())
    }

    /// Takes the lock of `migrate` for this session. Returns whether no other migrate has it.
    pub async fn try_migrate(&self) -> Result<bool> {
        let sql = include_str!("../../sql/queries/migrations/try_lock.sql");
        Ok(self.one("taking the lock of migrate", sql, &[]).await?.get(0))
    }
}

/// Whether this server and database can carry the schema at all.
///
/// # Errors
///
/// [`Error::Config`] for a server that is too old, or an encoding other than UTF8. Postgres may be unable to convert
/// a text of another encoding, and one such row would hold up all others.
pub(crate) fn check_server(server: &Server) -> Result<()> {
    if i64::from(server.version) < i64::from(OLDEST_SERVER) * 10_000 {
        return Err(Error::Config(format!(
            "this is PostgreSQL {}; promptpal-relay needs {OLDEST_SERVER} or newer",
            server.version / 10_000
        )));
    }
    if server.encoding != "UTF8" {
        return Err(Error::Config(format!(
            "the database's encoding is {}; promptpal-relay needs UTF8 (CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0)",
            server.encoding
        )));
    }
    Ok(())
}

/// How the schema of this database compares.
pub(crate) async fn state(store: &Store) -> Result<State> {
    let server = store.server().await?;
    check_server(&server)?;
    if !server.has_migrations {
        return Ok(compare(&[]));
    }
    require_visible(store).await?;
    Ok(compare(&store.migrations().await?))
}

/// Succeeds when no row of the relay's tables is hidden from it.
///
/// # Errors
///
/// [`Error::Rights`], with the table and the statement that helps.
pub(crate) async fn require_visible(store: &Store) -> Result<()> {
    match store.row_security().await?.first() {
        None => Ok(()),
        Some((table, reader)) => Err(Error::Rights(format!(
            "row level security is on for {table}, and {reader} may not see all rows: run ALTER TABLE {table} DISABLE ROW \
             LEVEL SECURITY (or, as a superuser, ALTER ROLE {reader} BYPASSRLS)"
        ))),
    }
}

/// Succeeds when no code of others runs in our sessions.
///
/// # Errors
///
/// [`Error::Rights`], with what it is and how to go on.
pub(crate) async fn require_own_code(store: &Store) -> Result<()> {
    match store.foreign_code().await?.first() {
        None => Ok(()),
        Some(problem) => Err(Error::Rights(format!(
            "code of others would run with the relay's rights: {problem}; give it to relay_owner (ALTER … OWNER TO \
             relay_owner), or take it out of the relay's tables and views"
        ))),
    }
}

/// Succeeds when the schema is exactly this program's.
///
/// # Errors
///
/// [`Error::Schema`] or [`Error::Config`], saying what to do.
pub(crate) async fn require_current(store: &Store) -> Result<()> {
    state(store).await?.problem().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied() -> Vec<(i32, String, String)> {
        MIGRATIONS.iter().map(|m| (m.version, m.name.to_owned(), m.checksum())).collect()
    }

    #[test]
    fn versions_count_up_from_one() {
        for (migration, version) in MIGRATIONS.iter().zip(1..) {
            assert_eq!(migration.version, version);
        }
    }

    #[test]
    fn a_schema_is_current_behind_newer_or_changed() {
        assert_eq!(compare(&applied()), State::Current);
        assert_eq!(compare(&[]), State::Behind(MIGRATIONS.iter().map(|m| m.version).collect()));
        let mut newer = applied();
        newer.push((9999, "future".into(), String::new()));
        assert_eq!(compare(&newer), State::Newer(9999));
        let mut changed = applied();
        changed[0].2 = "0".into();
        assert_eq!(compare(&changed), State::Changed(1));
        for state in [State::Behind(vec![1]), State::Newer(9999), State::Changed(1)] {
            assert_eq!(state.problem().map(|error| error.exit_code()), Some(78));
        }
    }
}
