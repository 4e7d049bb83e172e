//! `migrate`: creates or upgrades the schema, or prints the SQL that does.
//!
//! Each migration is one transaction, in which it is written down; so an interrupted migrate is simply run again.

use std::io::Write;
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::cli::Global;
use crate::config;
use crate::error::{Error, Result};
use crate::outbox::lock_class;
use crate::outbox::migrations::{self, BOOKKEEPING, MIGRATIONS, Migration, ROLES, State};
use crate::outbox::{Role, Store};

/// How often to try for the lock while another migrate has it.
const LOCK_RETRY: Duration = Duration::from_millis(100);
/// How often progress is told of a statement that takes longer than this.
const PROGRESS: Duration = Duration::from_secs(2);
/// How long to wait for another migrate.
const LOCK_PATIENCE: Duration = Duration::from_secs(300);

/// Applies what is missing.
pub async fn run(global: &Global) -> Result<()> {
    let settings = config::database(global)?;
    let store = Store::connect(&settings, Role::Command).await?;
    migrations::check_server(&store.server().await?)?;
    lock(&store).await?;
    apply(&store, BOOKKEEPING, "preparing relay.migrations").await?;
    let applied = told("reading relay.migrations", store.migrations()).await?;
    match migrations::compare(&applied) {
        State::Current => tracing::info!("the schema is current"),
        State::Behind(missing) => {
            for migration in MIGRATIONS.iter().filter(|m| missing.contains(&m.version)) {
                apply_one(&store, migration).await?;
                tracing::info!(version = migration.version, name = migration.name, "migrated");
            }
        }
        other => return other.problem().map_or(Ok(()), Err),
    }
    apply(&store, ROLES, "creating the group roles").await
}

/// One migrate at a time; tries, so as not to be a session that waits inside Postgres.
async fn lock(store: &Store) -> Result<()> {
    let start = Instant::now();
    let mut told = false;
    while !store.try_migrate().await? {
        if start.elapsed() > LOCK_PATIENCE {
            return Err(Error::Failed(format!(
                "another migrate has been running on this database for minutes; look in pg_locks who holds the advisory lock ({}, 0), then try again",
                lock_class::MIGRATE.class
            )));
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!("another migrate is running on this database, waiting for it");
        }
        tokio::time::sleep(LOCK_RETRY).await;
    }
    Ok(())
}

async fn apply(store: &Store, sql: &str, doing: &str) -> Result<()> {
    told(doing, store.batch_execute(sql)).await.map_err(Error::postgres(doing.to_owned()))
}

/// Waits for a statement, and says so now and then: the statement may wait for a lock of another session.
async fn told<T>(doing: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let start = Instant::now();
    loop {
        match tokio::time::timeout(PROGRESS, &mut work).await {
            Ok(done) => return done,
            Err(_) => tracing::info!(
                "{doing}: not done after {} s; pg_blocking_pids() tells whether somebody holds it up",
                start.elapsed().as_secs()
            ),
        }
    }
}

/// The migration and its record in one transaction: a failure takes back both.
async fn apply_one(store: &Store, migration: &Migration) -> Result<()> {
    let doing = format!("applying migration {} ({})", migration.version, migration.name);
    apply(store, "BEGIN", &doing).await?;
    apply(store, migration.sql, &doing).await?;
    let checksum = migration.checksum();
    told(&doing, store.record_migration(migration.version, migration.name, &checksum)).await?;
    apply(store, "COMMIT", &doing).await
}

/// Writes SQL to standard output that does what [`run`] does, when psql or any other client runs it. Needs no
/// database. It can be run again: what is applied already is skipped.
pub fn print() -> Result<()> {
    std::io::stdout().lock().write_all(script().as_bytes()).map_err(Error::io("writing to standard output"))
}

fn script() -> String {
    let mut script = format!(
        "-- The schema of promptpal-relay {}. Run it in the database that is to have it, with \"stop at the first error\"\n\
         -- (psql -v ON_ERROR_STOP=1 -f FILE). It can be run again: what is applied already is skipped.\n\n\
         BEGIN;\n-- A backslash is one, whatever is set here. Functions are Postgres' own, and no row is hidden.\n\
         SET LOCAL standard_conforming_strings = on;\nSET LOCAL search_path = pg_catalog, pg_temp;\n\
         SET LOCAL row_security = off;\n\
         {BOOKKEEPING}\n-- One at a time.\nLOCK TABLE relay.migrations IN SHARE ROW EXCLUSIVE MODE;\n\n",
        env!("CARGO_PKG_VERSION")
    );
    // The script refuses a newer schema, as run() does.
    let newest = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or_default();
    script.push_str(&format!(
        "DO $promptpal_relay_guard$\nBEGIN\nIF EXISTS (SELECT FROM relay.migrations WHERE version > {newest}) THEN\n\
         RAISE EXCEPTION 'the schema is newer than this script: install a newer promptpal-relay';\n\
         END IF;\nEND\n$promptpal_relay_guard$;\n\n",
    ));
    for migration in MIGRATIONS {
        // A DO block with the text inside: plain SQL, and a condition.
        script.push_str(&format!(
            "DO $promptpal_relay_guard$\nBEGIN\nIF NOT EXISTS (SELECT FROM relay.migrations WHERE version = {version}) THEN\n\
             EXECUTE $promptpal_relay_migration$\n{sql}\n$promptpal_relay_migration$;\n\
             INSERT INTO relay.migrations (version, name, checksum) VALUES ({version}, '{name}', '{checksum}');\n\
             ELSIF NOT EXISTS (SELECT FROM relay.migrations WHERE version = {version} AND checksum = '{checksum}') THEN\n\
             RAISE EXCEPTION 'migration {version} in the database differs from this script''s: relay.migrations has another checksum';\n\
             END IF;\nEND\n$promptpal_relay_guard$;\n\n",
            version = migration.version,
            name = migration.name,
            sql = migration.sql,
            checksum = migration.checksum(),
        ));
    }
    script.push_str(ROLES);
    script.push_str("\nCOMMIT;\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_migration_ends_the_quotation_that_print_puts_around_it() {
        assert!(MIGRATIONS.iter().all(|m| !m.sql.contains("$promptpal_relay")));
    }
}
