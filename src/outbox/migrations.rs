//! The schema's versions: the numbered files under `sql/migrations`, and whether a database has them. Never applies
//! one: the command `migrate` does.

use std::collections::BTreeMap;
use std::fmt::Write;

use sha2::{Digest, Sha256};
use tokio_postgres::Row;

use crate::error::{Error, Result};
use crate::outbox::Store;
use crate::postgres::OLDEST_SERVER;

/// What begins the line of a migration's head that marks it compatible.
const OLDEST_DAEMON: &str = "-- Oldest daemon: ";

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

/// Tells whether a daemon runs. The printed SQL asks, too.
pub(crate) const DAEMON_RUNS: &str = include_str!("../../sql/queries/migrations/daemon_runs.sql");

impl Migration {
    /// SHA-256 of the text, in hexadecimal.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql).iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
            hex
        })
    }

    /// The oldest daemon that works with the schema once this migration is applied, named by its newest migration: the line
    /// `-- Oldest daemon: N` in the head of the file. None: only a daemon that knows the migration works with it.
    pub fn oldest_daemon(&self) -> Option<i32> {
        let head = self.sql.lines().take_while(|line| line.starts_with("--"));
        head.filter_map(|line| line.strip_prefix(OLDEST_DAEMON)).find_map(|number| number.trim().parse().ok())
    }
}

/// The first of the `missing` migrations with which the daemons of a schema do not work that has those up to `applied`.
pub(crate) fn first_incompatible(missing: &[i32], applied: i32) -> Option<&'static Migration> {
    let is_missing = |m: &&Migration| missing.contains(&m.version);
    MIGRATIONS.iter().filter(is_missing).find(|m| m.oldest_daemon().is_none_or(|oldest| oldest > applied))
}

/// The newest migration of this program.
pub(crate) fn newest() -> i32 {
    MIGRATIONS.last().expect("there are migrations").version
}

/// A migration as relay.migrations has it.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Its number.
    pub version: i32,
    /// SHA-256 of its text, in hexadecimal.
    pub checksum: String,
    /// What [`Migration::oldest_daemon`] was.
    pub oldest_daemon: Option<i32>,
}

/// How the schema of a database compares with this program's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Exactly this program's.
    Current,
    /// This program's, and migrations after them that are marked as working with this program; the newest of them.
    Compatible(i32),
    /// The database lacks these migrations; all of them when there is no schema.
    Behind(Vec<i32>),
    /// It has this migration, which this program does not know, and which is not marked as working with it.
    Newer(i32),
    /// This applied migration differs from the file of that number.
    Changed(i32),
}

/// Compares what was applied with [`MIGRATIONS`]. The mark of each unknown migration counts, not that of the newest one alone.
pub(crate) fn compare(applied: &[Applied]) -> State {
    let applied: BTreeMap<i32, &Applied> = applied.iter().map(|a| (a.version, a)).collect();
    let is_known = |version: i32| MIGRATIONS.iter().any(|m| m.version == version);
    let unknown: Vec<&Applied> = applied.values().copied().filter(|a| !is_known(a.version)).collect();
    let works_with_us = |a: &Applied| a.oldest_daemon.is_some_and(|oldest| oldest <= newest());
    if let Some(refused) = unknown.iter().rfind(|a| !works_with_us(a)) {
        return State::Newer(refused.version);
    }
    if let Some(changed) =
        MIGRATIONS.iter().find(|m| applied.get(&m.version).is_some_and(|a| a.checksum != m.checksum()))
    {
        return State::Changed(changed.version);
    }
    let missing: Vec<i32> =
        MIGRATIONS.iter().map(|m| m.version).filter(|version| !applied.contains_key(version)).collect();
    match unknown.last() {
        _ if !missing.is_empty() => State::Behind(missing),
        Some(newest) => State::Compatible(newest.version),
        None => State::Current,
    }
}

impl State {
    /// The error for an operator, unless this program works with the schema.
    pub(crate) fn problem(&self) -> Option<Error> {
        let text = match self {
            State::Current | State::Compatible(_) => return None,
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
                "the schema is newer than this program (it has migration {version}, which does not work with a program of \
                 migration {}): install a newer promptpal-relay",
                newest()
            ),
            State::Changed(version) => format!(
                "migration {version} in the database differs from this program's: relay.migrations has another \
                 checksum; use the program that made the schema, or a fresh database"
            ),
        };
        Some(Error::Schema(text))
    }

    /// The newest migration of a schema that is newer than this program and works with it.
    fn newer(&self) -> Option<i32> {
        match self {
            State::Compatible(version) => Some(*version),
            _ => None,
        }
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

    /// What `migrate` has applied, in order.
    pub async fn migrations(&self) -> Result<Vec<Applied>> {
        let sql = include_str!("../../sql/queries/migrations/applied.sql");
        let rows = self.rows("reading relay.migrations", sql, &[]).await?;
        let applied =
            |row: &Row| Applied { version: row.get(0), checksum: row.get(1), oldest_daemon: row.get(2) };
        Ok(rows.iter().map(applied).collect())
    }

    /// Writes down a migration. The caller runs it in the migration's transaction.
    pub async fn record_migration(&self, migration: &Migration) -> Result<()> {
        let sql = include_str!("../../sql/queries/migrations/record.sql");
        let (checksum, oldest_daemon) = (migration.checksum(), migration.oldest_daemon());
        self.rows(
            "recording the migration",
            sql,
            &[&migration.version, &migration.name, &checksum, &oldest_daemon],
        )
        .await?;
        Ok(())
    }

    /// Whether a daemon runs on this database. Needs relay.installation, and all that came before it.
    pub async fn daemon_runs(&self) -> Result<bool> {
        Ok(self.one("finding daemons", DAEMON_RUNS, &[]).await?.get(0))
    }

    /// The session that has held a lock on a table of ours for longest, in words; none when no other session holds one.
    pub async fn oldest_holder(&self) -> Result<Option<String>> {
        let sql = include_str!("../../sql/queries/migrations/holder.sql");
        let rows = self.rows("finding the holder of a lock", sql, &[]).await?;
        Ok(rows.first().map(|row| {
            let (pid, login, kind): (i32, Option<String>, Option<String>) =
                (row.get(0), row.get(1), row.get(2));
            let who = login.or(kind).unwrap_or_default();
            let since = row.get::<_, Option<f64>>(3).map(|s| format!(", in a transaction for {s:.0} s"));
            format!("session {pid} ({who}{})", since.unwrap_or_default())
        }))
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

/// Succeeds when this program works with the schema. Returns the newest migration of a schema that is newer than this program.
///
/// # Errors
///
/// [`Error::Schema`] or [`Error::Config`], saying what to do.
pub(crate) async fn require_usable(store: &Store) -> Result<Option<i32>> {
    let state = state(store).await?;
    match state.problem() {
        Some(error) => Err(error),
        None => Ok(state.newer()),
    }
}

/// What an operator is told of a schema that is newer than this program, which works with it.
pub(crate) fn describe_newer(migration: i32) -> String {
    format!(
        "migration {migration}, newer than this program's {}, which works with it: install the newer promptpal-relay here, too",
        newest()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied() -> Vec<Applied> {
        MIGRATIONS.iter().map(|m| applied_as(m.version, m.checksum(), m.oldest_daemon())).collect()
    }

    fn applied_as(version: i32, checksum: String, oldest_daemon: Option<i32>) -> Applied {
        Applied { version, checksum, oldest_daemon }
    }

    /// This program's schema with migrations after it, each with its mark.
    fn newer(marks: &[Option<i32>]) -> State {
        let mut applied = applied();
        applied.extend((newest() + 1..).zip(marks).map(|(v, mark)| applied_as(v, String::new(), *mark)));
        compare(&applied)
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
        assert_eq!(newer(&[None]), State::Newer(newest() + 1));
        let mut changed = applied();
        changed[0].checksum = "0".into();
        assert_eq!(compare(&changed), State::Changed(1));
        for state in [State::Behind(vec![1]), State::Newer(9999), State::Changed(1)] {
            assert_eq!(state.problem().map(|error| error.exit_code()), Some(78));
        }
    }

    #[test]
    fn a_newer_schema_is_usable_when_each_migration_after_this_programs_says_so() {
        let here = newest();
        assert_eq!(newer(&[Some(here)]), State::Compatible(here + 1));
        assert_eq!(newer(&[Some(here - 1)]), State::Compatible(here + 1));
        assert_eq!(newer(&[Some(here), Some(here)]), State::Compatible(here + 2));
        // The second one works with the first one's daemon, and not with this.
        assert_eq!(newer(&[Some(here), Some(here + 1)]), State::Newer(here + 2));
        assert_eq!(newer(&[None, Some(here)]), State::Newer(here + 1));
        assert_eq!(newer(&[Some(here), None]), State::Newer(here + 2));
        assert!(State::Compatible(here + 1).problem().is_none());
    }

    #[test]
    fn a_newer_schema_that_lacks_a_migration_or_has_another_one_is_refused_though_it_is_marked() {
        let later = applied_as(newest() + 1, String::new(), Some(newest()));
        let mut lacking = applied();
        lacking[2] = later.clone();
        assert_eq!(compare(&lacking), State::Behind(vec![3]));
        let mut changed = applied();
        changed[2].checksum = "0".into();
        changed.push(later);
        assert_eq!(compare(&changed), State::Changed(3));
    }

    #[test]
    fn the_mark_stands_in_the_head_of_a_migration() {
        let mark = |sql| migration(14, "next", sql).oldest_daemon();
        assert_eq!(mark("-- Something new.\n--\n-- Oldest daemon: 13\n\nSELECT 1;"), Some(13));
        assert_eq!(mark("-- Something new.\n\nSELECT 1;\n-- Oldest daemon: 13\n"), None);
        assert_eq!(mark("-- Oldest daemon: the last\n\nSELECT 1;"), None);
    }

    /// A mark with a slip of the pen would be none.
    #[test]
    fn each_mark_is_understood_and_names_an_older_daemon() {
        for migration in MIGRATIONS {
            let is_meant = migration.sql.to_lowercase().contains("oldest daemon");
            assert_eq!(is_meant, migration.oldest_daemon().is_some(), "{}", migration.name);
            let is_older = |oldest| (1..migration.version).contains(&oldest);
            assert!(migration.oldest_daemon().is_none_or(is_older), "{}", migration.name);
        }
    }
}
