//! `status`: who runs, what waits, who fails.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::command::locks;
use crate::command::table::{Screen, printable};
use crate::config;
use crate::error::{Error, Result};
use crate::outbox::installation::Installation;
use crate::outbox::migrations;
use crate::outbox::{Role, Store};

/// What `status.sql` says and a person reads; the JSON has more.
#[derive(Deserialize)]
struct Status {
    standby: bool,
    pending: i64,
    parked: i64,
    oldest_age_s: f64,
    in_flight: i64,
    calls_5min: i64,
    failures_5min: i64,
    without_call_5min: i64,
    instances: Vec<Instance>,
    backlog: Vec<Backlog>,
    paused: i64,
    pauses: Vec<Pause>,
    webhooks: Vec<Webhook>,
    without_call: Vec<WithoutCall>,
}

#[derive(Deserialize)]
struct Pause {
    webhook_id: Option<i64>,
    project_id: Option<i64>,
    reason: String,
    created_at: String,
    created_by: String,
    until: Option<String>,
}

#[derive(Deserialize)]
struct Instance {
    epoch: i64,
    host: String,
    pid: i64,
    version: String,
    started_at: String,
    in_flight: i64,
}

#[derive(Deserialize)]
struct Backlog {
    project_id: i64,
    pending: i64,
    parked: i64,
    oldest_age_s: f64,
}

#[derive(Deserialize)]
struct Webhook {
    webhook_id: i64,
    calls: i64,
    failures: i64,
    timeouts: i64,
    p50_ms: f64,
    p95_ms: f64,
    last_error: Option<String>,
}

/// Rows of a project that met no webhook.
#[derive(Deserialize)]
struct WithoutCall {
    project_id: i64,
    rows: i64,
    last_outbox_id: i64,
}

/// Prints the status.
///
/// # Errors
///
/// [`Error::Failed`] when no instance runs, after everything was printed. Not at a standby, where that cannot be known.
pub async fn run(global: &Global, json: bool) -> Result<()> {
    let store = Store::connect(&config::database(global)?, Role::Command).await?;
    migrations::require_current(&store).await?;
    let read = |error| Error::Failed(format!("reading the status: {error}"));
    let mut value: Value = serde_json::from_str(&store.status().await?).map_err(read)?;
    let installation = store.installation().await?;
    value["database"] = as_json(&installation);
    let holders = locks::held_for_long(&store).await?;
    value["lock_holders"] = locks::json(&holders);
    let screen = Screen::of_stdout();
    let text = value.to_string();
    let status: Status = serde_json::from_value(value).map_err(read)?;
    if json {
        screen.line(&text)?;
    } else {
        print(&screen, &status, &line(&installation))?;
        for holder in &holders {
            screen.line(&format!("warning: {}", locks::line(holder)))?;
        }
    }
    if status.instances.is_empty() && !status.standby {
        return Err(Error::Failed("no instance runs: nothing is delivered".into()));
    }
    Ok(())
}

/// The database and its site; on a copy also that no daemon runs there.
fn line(installation: &Installation) -> String {
    let Installation { identity, site, .. } = installation;
    let site = site.as_ref().map_or("no site".to_owned(), |site| format!("site {}", printable(site)));
    let copy = installation.difference().map(|difference| {
        format!(
            "; this is a copy ({difference}): no daemon runs here until it is accepted (promptpal-relay migrate \
             --accept-copy=skip, or =deliver)"
        )
    });
    format!(
        "database {}, system identifier {}, oid {}, {site}{}",
        printable(&installation.database),
        identity.system_identifier,
        identity.database_oid,
        copy.unwrap_or_default()
    )
}

/// As JSON. The identifier is a text, because it is longer than the numbers that many programs can hold.
fn as_json(installation: &Installation) -> Value {
    json!({
        "name": installation.database,
        "system_identifier": installation.identity.system_identifier.to_string(),
        "oid": installation.identity.database_oid,
        "site": installation.site,
        "is_copy": installation.is_copy,
    })
}

fn print(screen: &Screen, status: &Status, database: &str) -> Result<()> {
    screen.line(&format!(
        "pending {}, of which {} are parked; the oldest is {:.1} s old; in flight {}; calls in 5 min {}, failed {}; rows done in 5 min without a call, for want of a webhook: {}",
        status.pending,
        status.parked,
        status.oldest_age_s,
        status.in_flight,
        status.calls_5min,
        status.failures_5min,
        status.without_call_5min
    ))?;
    screen.line(database)?;
    if status.standby {
        screen.line("This is a standby: whether the instances run cannot be seen here. Ask the primary.")?;
    }
    let rows: Vec<_> = status
        .instances
        .iter()
        .map(|i| {
            let texts =
                [printable(&i.host), i.pid.to_string(), printable(&i.version), printable(&i.started_at)];
            let mut row = vec![i.epoch.to_string()];
            row.extend(texts);
            row.push(i.in_flight.to_string());
            (false, row)
        })
        .collect();
    section(screen, &["INSTANCE", "HOST", "PID", "VERSION", "SINCE", "IN FLIGHT"], &rows)?;
    let rows: Vec<_> = status
        .backlog
        .iter()
        .map(|b| {
            let numbers = [b.project_id, b.pending, b.parked].map(|number| number.to_string());
            let mut row = numbers.to_vec();
            row.push(format!("{:.1} s", b.oldest_age_s));
            (false, row)
        })
        .collect();
    section(screen, &["PROJECT", "PENDING", "PARKED", "OLDEST"], &rows)?;
    let rows: Vec<_> = status
        .pauses
        .iter()
        .map(|p| {
            let name = match (p.webhook_id, p.project_id) {
                (Some(id), _) => format!("webhook {id}"),
                (None, id) => format!("project {}", id.unwrap_or_default()),
            };
            let until = p.until.as_deref().unwrap_or("resumed");
            let texts = [&p.created_at, until, &p.created_by, &p.reason].map(printable);
            (false, [vec![name], texts.to_vec()].concat())
        })
        .collect();
    section(screen, &["PAUSED", "SINCE", "UNTIL", "BY", "REASON"], &rows)?;
    let more = status.paused - status.pauses.len() as i64;
    if more > 0 {
        screen.line(&format!("and {more} more pauses: SELECT * FROM relay.pauses"))?;
    }
    let rows: Vec<_> = status
        .webhooks
        .iter()
        .map(|w| {
            let mut row =
                [w.webhook_id, w.calls, w.failures, w.timeouts].map(|number| number.to_string()).to_vec();
            row.extend([w.p50_ms, w.p95_ms].map(|ms| format!("{ms:.1}")));
            row.push(printable(w.last_error.as_deref().unwrap_or_default()));
            (w.failures > 0, row)
        })
        .collect();
    section(screen, &["WEBHOOK", "CALLS", "FAILED", "TIMEOUTS", "P50 MS", "P95 MS", "LAST ERROR"], &rows)?;
    let row =
        |u: &WithoutCall| [u.project_id, u.rows, u.last_outbox_id].map(|number| number.to_string()).to_vec();
    let rows: Vec<_> = status.without_call.iter().map(|u| (false, row(u))).collect();
    section(screen, &["PROJECT", "ROWS WITHOUT A CALL", "LAST OUTBOX ROW"], &rows)
}

fn section(screen: &Screen, headings: &[&str], rows: &[(bool, Vec<String>)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    screen.line("")?;
    screen.table(headings, rows)
}
