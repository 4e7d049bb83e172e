//! `check`: tells whether everything is in place, one line for each thing that it looks at.

use crate::cli::{Global, Run};
use crate::command::locks;
use crate::command::pause;
use crate::command::table::{Column, Screen, aligned, printable};
use crate::config::Config;
use crate::delivery::client::Caller;
use crate::error::{Error, Result, one_line};
use crate::model::event::EVENTS;
use crate::outbox::migrations;
use crate::outbox::{Role, Store};

/// Webhooks that are read at once.
const PAGE: i64 = 1000;
/// Webhooks with a problem, and tables, that are named; the rest is counted.
const NAMED_MAX: usize = 20;
/// A pause without an end that is older may have been forgotten.
const PAUSE_DAYS: i32 = 7;

/// The columns of a line: the verdict, what was looked at, and the text.
const COLUMNS: [Column; 3] = [Column::Left(8), Column::Left(14), Column::Last];

/// Prints the lines to standard output. The checks that depend on a failed one are left out.
///
/// # Errors
///
/// The first thing that keeps the daemon from running. A line has told it already.
pub async fn run(global: &Global, run: &Run) -> Result<()> {
    let report = Report(Screen::of_stdout());
    let config = report
        .outcome("configuration", Config::new(global, run), |_| "flags and environment are valid".into())?;
    let caller = report.outcome("endpoints", Caller::new(config.endpoint.clone()), |_| {
        format!("timeout {}, {} threads", humantime::format_duration(run.timeout), run.workers)
    })?;
    way_out(&report, &config, &caller)?;
    let store = Store::connect(&config.database, Role::Command).await;
    let store = report.outcome("connection", store, |_| config.database.describe())?;
    let server = report.unless_failed("server", store.server().await)?;
    report.outcome("server", migrations::check_server(&server), |()| {
        format!("PostgreSQL {}, {}", server.version / 10_000, server.encoding)
    })?;
    if server.has_migrations {
        report.outcome("row security", migrations::require_visible(&store).await, |()| {
            "hides nothing".into()
        })?;
    }
    match report.unless_failed("schema", migrations::require_usable(&store).await)? {
        Some(migration) => report.line("warning", "schema", &migrations::describe_newer(migration))?,
        None => report.line("ok", "schema", &format!("migration {}", migrations::newest()))?,
    }
    privileges(&report, &store).await?;
    installation(&report, &store, run).await?;
    unlisted(&report, &store).await?;
    triggers(&report, &store).await?;
    locks(&report, &store).await?;
    publications(&report, &store).await?;
    pauses(&report, &store).await?;
    webhooks(&report, &store, &caller).await
}

/// Where calls leave from, and through which proxy. The daemon also runs while the proxy is away.
fn way_out(report: &Report, config: &Config, caller: &Caller) -> Result<()> {
    let sources: Vec<String> = config.endpoint.sources.addresses().map(|source| source.to_string()).collect();
    match sources.as_slice() {
        [] => report.line("ok", "bind address", "none; the kernel chooses")?,
        sources => report.line("ok", "bind address", &sources.join(", "))?,
    }
    match caller.try_proxy() {
        None => report.line("ok", "proxy", "none"),
        Some(Ok(proxy)) => report.line("ok", "proxy", &format!("{proxy} takes connections")),
        Some(Err(why)) => report.line("warning", "proxy", &format!("{why}; calls wait until then")),
    }
}

async fn privileges(report: &Report, store: &Store) -> Result<()> {
    let privileges = report.unless_failed("privileges", store.privileges().await)?;
    let missing: Vec<String> =
        privileges.into_iter().filter(|(_, granted)| !granted).map(|(need, _)| need).collect();
    let result = match missing.as_slice() {
        [] => Ok(()),
        missing => Err(Error::Config(format!(
            "missing: {}; make the user a member of relay_daemon (GRANT relay_daemon TO …)",
            missing.join("; ")
        ))),
    };
    report.outcome("privileges", result, |()| "all that run needs".into())?;
    report.outcome("foreign code", migrations::require_own_code(store).await, |()| "none runs here".into())
}

/// Whether this is the database that `migrate` wrote down, and of the daemon's site.
async fn installation(report: &Report, store: &Store, run: &Run) -> Result<()> {
    let installation = report.unless_failed("installation", store.installation().await)?;
    let fits = installation.require_original().and_then(|()| installation.require_site(run.site.as_deref()));
    report.outcome("installation", fits, |()| match &installation.site {
        Some(site) => format!("no copy; site {}", printable(site)),
        None => "no copy; no site".into(),
    })
}

/// Rows that no daemon takes over. Prints nothing where there are none.
async fn unlisted(report: &Report, store: &Store) -> Result<()> {
    let rows = report.unless_failed("claims", store.unlisted_epochs().await)?;
    if rows == 0 {
        return Ok(());
    }
    let text = format!(
        "pending rows of an instance that relay.instances does not list: {rows}. No daemon delivers them. As the owner of \
         the schema, run: UPDATE relay.outbox o SET claimed_by = 0 WHERE o.done_at IS NULL AND \
         o.claimed_by <> 0 AND NOT EXISTS (SELECT FROM relay.instances i WHERE i.epoch = o.claimed_by)"
    );
    report.line("warning", "claims", &text)
}

/// Tables that the daemon cannot write because of logical replication. Prints nothing where there are no publications.
async fn publications(report: &Report, store: &Store) -> Result<()> {
    let broken = report.unless_failed("publications", store.publications().await)?;
    for (table, publication) in broken.iter().take(NAMED_MAX) {
        let text = format!(
            "{table} is in {publication} without a replica identity that fits: Postgres refuses UPDATE and DELETE there. \
             Run ALTER TABLE {table} REPLICA IDENTITY FULL, and publish all columns"
        );
        report.line("warning", "publication", &text)?;
    }
    match broken.len().saturating_sub(NAMED_MAX) {
        0 => Ok(()),
        more => report.line("warning", "publication", &format!("and {more} more tables")),
    }
}

/// Pauses without an end that an operator may have forgotten.
async fn pauses(report: &Report, store: &Store) -> Result<()> {
    let most = i64::try_from(NAMED_MAX).expect("it is small");
    let forgotten = report.unless_failed("pauses", store.forgotten_pauses(PAUSE_DAYS, most).await)?;
    for paused in &forgotten {
        let (name, flag) = (pause::name(paused.target), pause::flag(paused.target));
        let since = humantime::format_rfc3339_seconds(paused.since);
        let (by, reason) = (printable(&paused.by), printable(&paused.reason));
        let text = format!(
            "{name} is paused since {since} by {by}, without an end ({reason}): to end the pause, run promptpal-relay resume {flag}"
        );
        report.line("warning", "pauses", &text)?;
    }
    match forgotten.len() {
        0 => report.line("ok", "pauses", "none without an end is older than 7 days"),
        _ => Ok(()),
    }
}

/// The triggers of the outbox: each with what it does, and what happens without it.
async fn triggers(report: &Report, store: &Store) -> Result<()> {
    let missing = report.unless_failed("wake-up", store.missing_triggers().await)?;
    for (what, name, without) in [
        ("wake-up", "outbox_wake", "rows wait for the poll interval"),
        ("outbox", "outbox_valid", "invalid rows are accepted and delivered"),
    ] {
        if missing.iter().any(|missing| missing == name) {
            let text = format!("trigger {name} is missing or disabled: {without}");
            report.line("warning", what, &text)?;
        } else {
            report.line("ok", what, &format!("trigger {name} is in place"))?;
        }
    }
    Ok(())
}

/// Locks of the relay's that another session holds, or holds for long: told by login and process id.
async fn locks(report: &Report, store: &Store) -> Result<()> {
    let holders = report.unless_failed("locks", locks::held_for_long(store).await)?;
    for holder in &holders {
        report.line("warning", "locks", &locks::line(holder))?;
    }
    match holders.len() {
        0 => report.line("ok", "locks", "no other session holds them"),
        _ => Ok(()),
    }
}

/// Webhooks that can never work. They are the customers' mistakes, and the daemon runs all the same.
async fn webhooks(report: &Report, store: &Store, caller: &Caller) -> Result<()> {
    let (mut after, mut all, mut bad) = (0, 0, 0);
    loop {
        let page = report.unless_failed("webhooks", store.enabled_webhooks(after, PAGE).await)?;
        let Some((last, ..)) = page.last() else { break };
        after = last.id;
        all += page.len();
        for (webhook, event, project_id) in &page {
            let unmet = unmet(event.as_deref(), *project_id);
            let Some(problem) = unmet.or_else(|| caller.problem(webhook)) else { continue };
            bad += 1;
            if bad <= NAMED_MAX {
                report.line("warning", "webhook", &format!("{} can never work: {problem}", webhook.id))?;
            }
        }
    }
    match bad {
        0 => report.line("ok", "webhooks", &format!("{all} enabled")),
        _ => report.line("warning", "webhooks", &format!("{bad} of {all} enabled ones can never work")),
    }
}

/// Why no event can meet a webhook. The table's constraints keep such ones out; a view in its place has none.
fn unmet(event: Option<&str>, project_id: Option<i64>) -> Option<String> {
    let known = EVENTS.join(", ");
    match (event, project_id) {
        (None, _) => Some(format!("it has no event; set it to one of these: {known}")),
        (Some(event), _) if !EVENTS.contains(&event) => {
            Some(format!("no event is called {event:?}; set it to one of these: {known}"))
        }
        (_, None) => Some("it has no project, so no event meets it".into()),
        _ => None,
    }
}

struct Report(Screen);

impl Report {
    fn line(&self, verdict: &str, what: &str, text: &str) -> Result<()> {
        self.0.line(&aligned(&COLUMNS, [verdict, what, text], " "))
    }

    /// Prints a line for something that must be right to go on.
    fn outcome<T>(&self, what: &str, result: Result<T>, text: impl FnOnce(&T) -> String) -> Result<T> {
        let value = self.unless_failed(what, result)?;
        self.line("ok", what, &text(&value))?;
        Ok(value)
    }

    /// Prints a line only when something is wrong.
    fn unless_failed<T>(&self, what: &str, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.line("FAILED", what, &one_line(error))?;
        }
        result
    }
}
