//! `migrate`: creates or upgrades the schema, or prints the SQL that does. Accepts a copy and names the site, when it was
//! asked to.
//!
//! Each migration is one transaction, in which it is written down; so an interrupted migrate is simply run again.
//!
//! While a transaction waits for a lock on a table, each later statement on the table waits behind it, inserts of the
//! application included. So a transaction waits for a lock only for a moment, gives up, and is tried again.

use std::io::Write;
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::cli::{Global, Migrate};
use crate::command::progress::Progress;
use crate::config;
use crate::error::{Error, Result};
use crate::outbox::lock_class;
use crate::outbox::migrations::{self, ACCEPT_COPY, BOOKKEEPING, MIGRATIONS, Migration, ROLES, State};
use crate::outbox::{Role, Store};

/// How often to try for the lock while another migrate has it.
const LOCK_RETRY: Duration = Duration::from_millis(100);
/// How often progress is told of a statement that takes longer than this.
const PROGRESS: Duration = Duration::from_secs(2);
/// How long to wait for another migrate, and how long a transaction is tried for want of a lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(300);
/// The limit on each wait for a lock of a transaction's tries, one after the other and over again. Inserts wait no longer
/// behind it. It is below Postgres' `deadlock_timeout` (1 s), so that of two transactions that wait for each other ours gives
/// way. Each third try is above it: then Postgres ends an autovacuum that holds the lock.
const LOCK_WAITS: [&str; 3] = ["400ms", "400ms", "1200ms"];
/// The pause between two tries: what has waited behind one is done before the next one begins.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// Applies what is missing, and does what the flags say of a copy and of the site.
///
/// # Errors
///
/// [`Error::Installation`] on a copy that the flags do not accept; nothing was changed then.
pub async fn run(global: &Global, flags: &Migrate) -> Result<()> {
    let settings = config::database(global)?;
    let store = Store::connect(&settings, Role::Command).await?;
    migrations::check_server(&store.server().await?)?;
    lock(&store).await?;
    Step::each_time(BOOKKEEPING, "preparing relay.migrations").apply(&store).await?;
    // Before anything else is changed.
    if flags.accept_copy.is_none() && store.has_installation().await? {
        let installation = store.installation().await?;
        installation.require_original()?;
        installation.require_same_site(flags.site.as_deref())?;
    }
    let applied = told("reading relay.migrations", store.migrations(), None).await?;
    let state = migrations::compare(&applied);
    match &state {
        State::Current => tracing::info!("the schema is current"),
        State::Behind(missing) => {
            require_stopped(&store, missing, applied.last().map_or(0, |newest| newest.version)).await?;
            let mut progress = Progress::beside_lines(missing.len(), "migrations");
            for migration in MIGRATIONS.iter().filter(|m| missing.contains(&m.version)) {
                Step::migration(migration, &progress).apply(&store).await?;
                progress.add(1);
                if !progress.says("migrations") {
                    tracing::info!(version = migration.version, name = migration.name, "migrated");
                }
            }
            let had_bar = progress.says("migrations");
            drop(progress);
            if had_bar {
                tracing::info!(migrations = missing.len(), "migrated");
            }
        }
        // Its roles are the newer program's, too.
        State::Compatible(migration) => {
            return Err(Error::Schema(format!(
                "there is nothing to migrate: the schema has {}",
                migrations::describe_newer(*migration)
            )));
        }
        State::Newer(_) | State::Changed(_) => return state.problem().map_or(Ok(()), Err),
    }
    Step::each_time(ROLES, "creating the group roles").apply(&store).await?;
    accept(&store, flags).await
}

/// Succeeds when no daemon runs, or when daemons of the schema as it is work with each missing migration. A daemon that runs does
/// not look at the schema. Of daemons that start in this moment this knows nothing.
///
/// # Errors
///
/// [`Error::Schema`] with the migration.
async fn require_stopped(store: &Store, missing: &[i32], applied: i32) -> Result<()> {
    let Some(migration) = migrations::first_incompatible(missing, applied) else { return Ok(()) };
    if store.has_installation().await? && store.daemon_runs().await? {
        return Err(Error::Schema(format!(
            "a daemon runs on this database, and does not work with migration {} ({}): stop all daemons, then run migrate again; \
             this migration was not applied",
            migration.version, migration.name
        )));
    }
    Ok(())
}

/// Does what the flags say of a copy and of the site.
async fn accept(store: &Store, flags: &Migrate) -> Result<()> {
    if flags.accept_copy.is_none() && flags.site.is_none() {
        return Ok(());
    }
    let before = store.last_accepted().await?;
    run_alone(store, &asked(flags), "saying what was asked").await?;
    run_alone(store, ACCEPT_COPY, "accepting this database").await?;
    let site = store.installation().await?.site;
    let site = site.as_deref().unwrap_or("none");
    match (flags.accept_copy, store.last_accepted().await?) {
        (Some(decision), Some(last)) if Some(last) != before => tracing::info!(
            accept_copy = decision.name(),
            skipped = last.1,
            site,
            "daemons may run on this database, and new events go to the enabled webhooks in it; the pending rows that `skipped` counts \
             were marked done without calls"
        ),
        (Some(_), _) => {
            tracing::info!(
                site,
                "this database is no copy: there is nothing to accept, and nothing was changed"
            );
        }
        (None, _) => {
            tracing::info!(site, "the site is named; daemons of another one do not start")
        }
    }
    Ok(())
}

/// The settings by which [`ACCEPT_COPY`] knows what was asked.
fn asked(flags: &Migrate) -> String {
    let decision = flags.accept_copy.map_or("", |decision| decision.name());
    // A backslash is one: standard_conforming_strings is on in our sessions and in the script.
    let site = flags.site.as_deref().unwrap_or_default().replace('\'', "''");
    format!("SET promptpal_relay.accept_copy = '{decision}';\nSET promptpal_relay.site = '{site}';\n")
}

/// One migrate at a time; tries, so as not to be a session that waits inside Postgres.
async fn lock(store: &Store) -> Result<()> {
    let start = Instant::now();
    let mut told = false;
    while !store.try_migrate().await? {
        if start.elapsed() > LOCK_PATIENCE {
            return Err(Error::Failed(format!(
                "another migrate has been running on this database for minutes; see in pg_locks which session holds the advisory lock ({}, 0), then try again",
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

/// Runs statements outside a transaction of ours.
async fn run_alone(store: &Store, sql: &str, doing: &str) -> Result<()> {
    told(doing, store.batch_execute(sql), None).await.map_err(Error::postgres(doing.to_owned()))
}

/// Says how it goes: behind the bar, or in the log where there is none.
fn tell(progress: Option<&Progress>, text: String) {
    if !progress.is_some_and(|progress| progress.says(text.as_str())) {
        tracing::info!("{text}");
    }
}

/// Waits for a statement, and says so now and then: the statement may wait for a lock of another session.
async fn told<T>(doing: &str, work: impl Future<Output = T>, progress: Option<&Progress>) -> T {
    let mut work = pin!(work);
    let start = Instant::now();
    loop {
        match tokio::time::timeout(PROGRESS, &mut work).await {
            Ok(done) => return done,
            Err(_) => {
                tell(
                    progress,
                    format!(
                        "{doing}: not done after {} s; pg_blocking_pids() tells whether another session holds it up",
                        start.elapsed().as_secs()
                    ),
                );
            }
        }
    }
}

/// A file that is applied in one transaction.
struct Step<'a> {
    doing: String,
    sql: &'static str,
    // Written down in the same transaction.
    record: Option<&'a Migration>,
    progress: Option<&'a Progress>,
}

impl<'a> Step<'a> {
    /// A file that every migrate applies.
    fn each_time(sql: &'static str, doing: &str) -> Step<'a> {
        Step { doing: doing.to_owned(), sql, record: None, progress: None }
    }

    fn migration(migration: &'a Migration, progress: &'a Progress) -> Step<'a> {
        let doing = format!("applying migration {} ({})", migration.version, migration.name);
        Step { doing, sql: migration.sql, record: Some(migration), progress: Some(progress) }
    }

    /// Applies it, its record included: a failure takes back both. Tries again for as long as another session holds a lock that
    /// it needs.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] after [`LOCK_PATIENCE`], with the session that held a lock then.
    async fn apply(&self, store: &Store) -> Result<()> {
        let start = Instant::now();
        let mut last_told = None::<Instant>;
        let mut waits = LOCK_WAITS.iter().cycle();
        loop {
            let wait = waits.next().expect("they go round and round");
            match self.try_once(store, wait).await {
                Err(error) if error.is_lock_timeout() || error.is_deadlock() => {}
                result => return result,
            }
            self.execute(store, "ROLLBACK").await?;
            let holder = store.oldest_holder().await?.map(|holder| format!(": {holder}")).unwrap_or_default();
            let text = format!(
                "{}: not done after {:.1} s; another session holds a lock that this needs{holder}",
                self.doing,
                start.elapsed().as_secs_f64()
            );
            if start.elapsed() > LOCK_PATIENCE {
                return Err(Error::Failed(format!("{text}; end that session, then run migrate again")));
            }
            if last_told.is_none_or(|told| told.elapsed() > PROGRESS) {
                last_told = Some(Instant::now());
                tell(self.progress, text);
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    /// One try, which waits for each lock no longer than `wait`.
    async fn try_once(&self, store: &Store, wait: &str) -> Result<()> {
        self.execute(store, &format!("BEGIN; SET LOCAL lock_timeout = '{wait}'")).await?;
        self.execute(store, self.sql).await?;
        if let Some(migration) = self.record {
            // A daemon may have started while this waited for a lock.
            let applied = store.migrations().await?.last().map_or(0, |newest| newest.version);
            require_stopped(store, &[migration.version], applied).await?;
            told(&self.doing, store.record_migration(migration), self.progress).await?;
        }
        self.execute(store, "COMMIT").await
    }

    async fn execute(&self, store: &Store, sql: &str) -> Result<()> {
        let done = told(&self.doing, store.batch_execute(sql), self.progress).await;
        done.map_err(Error::postgres(self.doing.clone()))
    }
}

/// Writes SQL to standard output that does what [`run`] does, when psql or any other client runs it. Needs no
/// database. It can be run again: what is applied already is skipped.
pub fn print(flags: &Migrate) -> Result<()> {
    std::io::stdout()
        .lock()
        .write_all(script(flags).as_bytes())
        .map_err(Error::io("writing to standard output"))
}

fn script(flags: &Migrate) -> String {
    let mut script = format!(
        "-- The schema of promptpal-relay {}. Run it in the database that is to have it, with \"stop at the first error\"\n\
         -- (psql -v ON_ERROR_STOP=1 -f FILE). It can be run again: what is applied already is skipped.\n\n\
         BEGIN;\n-- A backslash is one, whatever is set here. Functions are Postgres' own, and no row is hidden.\n\
         SET LOCAL standard_conforming_strings = on;\nSET LOCAL search_path = pg_catalog, pg_temp;\n\
         SET LOCAL row_security = off;\n\
         {BOOKKEEPING}\n-- One at a time.\nLOCK TABLE relay.migrations IN SHARE ROW EXCLUSIVE MODE;\n\n",
        env!("CARGO_PKG_VERSION")
    );
    script.push_str(&format!(
        "-- Inserts wait behind this script while it waits for a lock. So it gives up soon; then run it again.\n\
         SET LOCAL lock_timeout = '{}';\n\n",
        LOCK_WAITS[LOCK_WAITS.len() - 1]
    ));
    // The script refuses a newer schema, as run() does.
    let newest = migrations::newest();
    script.push_str(&format!(
        "DO $promptpal_relay_guard$\nBEGIN\nIF EXISTS (SELECT FROM relay.migrations WHERE version > {newest}) THEN\n\
         RAISE EXCEPTION 'the schema is newer than this script: install a newer promptpal-relay';\n\
         END IF;\nEND\n$promptpal_relay_guard$;\n\n",
    ));
    // It refuses a copy, too, unless it was asked to accept one.
    if flags.accept_copy.is_none() {
        script.push_str(
            "DO $promptpal_relay_guard$\nBEGIN\nIF to_regprocedure('relay.is_copy()') IS NOT NULL THEN\n\
             IF relay.is_copy() THEN\nRAISE EXCEPTION 'this database is a copy, and this script does not accept one: nothing was changed'\n\
             USING HINT = 'Print it with migrate --print --accept-copy=skip (pending rows are marked done without calls) or =deliver \
             (they are kept).';\n\
             END IF;\nEND IF;\nEND\n$promptpal_relay_guard$;\n\n",
        );
    }
    // It refuses what daemons that run do not work with.
    let marks: Vec<String> = MIGRATIONS.iter().map(|m| format!("({}, {})", m.version, mark(m))).collect();
    script.push_str(&format!(
        "DO $promptpal_relay_guard$\nBEGIN\nIF to_regclass('relay.installation') IS NOT NULL THEN\n\
         IF EXISTS (SELECT FROM (VALUES {}) AS m (version, oldest_daemon)\n\
         WHERE NOT EXISTS (SELECT FROM relay.migrations a WHERE a.version = m.version)\n\
         AND coalesce(m.oldest_daemon::integer, m.version) > (SELECT max(a.version) FROM relay.migrations a))\n\
         AND (\n{}) THEN\n\
         RAISE EXCEPTION 'a daemon runs on this database, and does not work with the new schema: stop all daemons, then run this script again';\n\
         END IF;\nEND IF;\nEND\n$promptpal_relay_guard$;\n\n",
        marks.join(", "),
        migrations::DAEMON_RUNS
    ));
    for migration in MIGRATIONS {
        // A DO block with the text inside: plain SQL, and a condition.
        script.push_str(&format!(
            "DO $promptpal_relay_guard$\nBEGIN\nIF NOT EXISTS (SELECT FROM relay.migrations WHERE version = {version}) THEN\n\
             EXECUTE $promptpal_relay_migration$\n{sql}\n$promptpal_relay_migration$;\n\
             INSERT INTO relay.migrations (version, name, checksum, oldest_daemon)\n\
             VALUES ({version}, '{name}', '{checksum}', {oldest_daemon});\n\
             ELSIF NOT EXISTS (SELECT FROM relay.migrations WHERE version = {version} AND checksum = '{checksum}') THEN\n\
             RAISE EXCEPTION 'migration {version} in the database differs from this script''s: relay.migrations has another checksum';\n\
             END IF;\nEND\n$promptpal_relay_guard$;\n\n",
            version = migration.version,
            name = migration.name,
            sql = migration.sql,
            checksum = migration.checksum(),
            oldest_daemon = mark(migration),
        ));
    }
    script.push_str(ROLES);
    script.push_str("\nCOMMIT;\n");
    if flags.accept_copy.is_some() || flags.site.is_some() {
        // Not in the transaction above: this commits batch by batch, and needs a client that sends one statement at a time.
        script.push_str(&format!(
            "\nSET standard_conforming_strings = on;\nSET search_path = pg_catalog, pg_temp;\nSET row_security = off;\n\
             {}\n{ACCEPT_COPY}\nRESET promptpal_relay.accept_copy;\nRESET promptpal_relay.site;\nRESET row_security;\n\
             RESET search_path;\nRESET standard_conforming_strings;\n",
            asked(flags)
        ));
    }
    script
}

/// The mark of a migration in SQL.
fn mark(migration: &Migration) -> String {
    migration.oldest_daemon().map_or("NULL".into(), |oldest| oldest.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_migration_ends_the_quotation_that_print_puts_around_it() {
        assert!(MIGRATIONS.iter().all(|m| !m.sql.contains("$promptpal_relay")));
        assert!(!BOOKKEEPING.contains("$promptpal_relay") && !ROLES.contains("$promptpal_relay"));
    }
}
