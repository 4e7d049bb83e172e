//! `status`: who runs, what waits, who fails. A line for each fact, then tables. Changes nothing.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::{self, Global};
use crate::command::locks;
use crate::command::table::{Screen, printable};
use crate::command::whole::{shown_time, span, webhook};
use crate::config;
use crate::error::{Error, Result};
use crate::outbox::installation::Installation;
use crate::outbox::migrations;
use crate::outbox::{Role, Store};

/// A pending row that is older is bad, as for the alert `PromptpalRelayQueueOld`.
const PENDING_GOOD_S: f64 = 60.0;
/// A parked row that is older is bad, as for the alert `PromptpalRelayParkedOld`.
const PARKED_GOOD_S: f64 = 3600.0;
/// How much is shown of a webhook's id and name.
const NAME_WIDTH: usize = 20;
/// The rows of each kind that the statement counts.
const COUNTED_MAX: i64 = 100_000;

/// What `status.sql` says and a person reads; the JSON has more.
#[derive(Deserialize)]
struct Status {
    standby: bool,
    pending: i64,
    parked: i64,
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
pub async fn run(global: &Global, flags: &cli::Status) -> Result<()> {
    let store = Store::connect(&config::database(global)?, Role::Command).await?;
    let newer = migrations::require_usable(&store).await?;
    let read = |error| Error::Failed(format!("reading the status: {error}"));
    let mut value: Value = serde_json::from_str(&store.status().await?).map_err(read)?;
    let installation = store.installation().await?;
    value["database"] = as_json(&installation);
    let holders = locks::held_for_long(&store).await?;
    value["lock_holders"] = locks::json(&holders);
    let known = migrations::newest();
    value["schema"] = json!({"migration": newer.unwrap_or(known), "known_migration": known});
    let screen = Screen::coloured_as(flags.color);
    let text = value.to_string();
    let status: Status = serde_json::from_value(value).map_err(read)?;
    if flags.json {
        screen.line(&text)?;
    } else {
        screen.fact(Some(!installation.is_copy), "database", &line(&installation))?;
        if let Some(migration) = newer {
            screen.fact(None, "schema", &migrations::describe_newer(migration))?;
        }
        for fact in facts(&status, store.oldest().await?) {
            screen.fact(fact.good, fact.name, &fact.text)?;
        }
        for holder in &holders {
            screen.fact(Some(false), "lock", &locks::line(holder))?;
        }
        let ids: Vec<i64> = status.webhooks.iter().map(|webhook| webhook.webhook_id).collect();
        let names = store.webhook_names(&ids).await?;
        tables(&screen, &status, &names.into_iter().map(|(id, named)| (id, named.name)).collect())?;
    }
    if status.instances.is_empty() && !status.standby {
        return Err(Error::Failed("no instance runs: nothing is delivered".into()));
    }
    Ok(())
}

/// A line of the status.
struct Fact {
    /// None where it is neither.
    good: Option<bool>,
    name: &'static str,
    text: String,
}

/// The status in lines. `oldest` are the ages of the oldest row, of the pending ones and of the parked ones.
fn facts(status: &Status, oldest: (f64, f64)) -> Vec<Fact> {
    let fact = |good, name, text| Fact { good, name, text };
    let (pending, parked) = (status.pending - status.parked, status.parked);
    let counted = |count: i64, one: &str, many: &str| match count {
        1 => format!("1 row {one}"),
        count if count >= COUNTED_MAX => format!("at least {count} rows {many}"),
        count => format!("{count} rows {many}"),
    };
    let age = |count: i64, seconds: f64| match count {
        0 => String::new(),
        _ => format!("; the oldest was inserted {} ago", span(seconds)),
    };
    let instances = match status.instances.len() {
        _ if status.standby => {
            fact(None, "instances", "this is a standby: only the primary can tell which instances run".into())
        }
        0 => fact(Some(false), "instances", "no instance runs: nothing is delivered".into()),
        1 => fact(Some(true), "instances", "1 instance runs".into()),
        count => fact(Some(true), "instances", format!("{count} instances run")),
    };
    let (calls, failures) = (status.calls_5min, status.failures_5min);
    let good = match failures {
        0 => Some(true),
        failures if 2 * failures > calls => Some(false),
        _ => None,
    };
    let mut facts = vec![
        instances,
        fact(
            Some(pending == 0 || oldest.0 <= PENDING_GOOD_S),
            "waiting",
            counted(
                pending,
                "waits for its calls, or has them under way",
                "wait for their calls, or have them under way",
            ) + &age(pending, oldest.0),
        ),
        fact(
            Some(parked == 0 || oldest.1 <= PARKED_GOOD_S),
            "parked",
            counted(parked, "waits for a slot at slow webhooks", "wait for a slot at slow webhooks")
                + &age(parked, oldest.1),
        ),
        fact(
            None,
            "in hand",
            counted(status.in_flight, "is in hand of an instance", "are in hand of instances"),
        ),
        fact(good, "calls", format!("{calls} in the last 5 minutes, of which {failures} failed")),
    ];
    if status.paused > 0 {
        facts.push(fact(None, "paused", format!("{} webhooks or projects are not called", status.paused)));
    }
    if status.without_call_5min > 0 {
        let text = format!(
            "{} rows in the last 5 minutes met no enabled webhook, so nothing was called",
            status.without_call_5min
        );
        facts.push(fact(None, "without call", text));
    }
    facts
}

/// The database and its site; on a copy also that no daemon runs there.
fn line(installation: &Installation) -> String {
    let Installation { identity, site, .. } = installation;
    let site = site.as_ref().map_or("no site".to_owned(), |site| format!("site {}", printable(site)));
    let copy = installation.difference().map(|difference| {
        format!(
            "; this is a copy ({difference}): no daemon runs here until it is accepted. First disable its webhooks \
             that are not yours, then run promptpal-relay migrate --accept-copy=skip (or =deliver)"
        )
    });
    format!(
        "{}, {site}, system identifier {}, oid {}{}",
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

/// The tables; each only when it has a row.
fn tables(screen: &Screen, status: &Status, names: &HashMap<i64, String>) -> Result<()> {
    let rows: Vec<_> = status
        .instances
        .iter()
        .map(|i| {
            let texts =
                [printable(&i.host), i.pid.to_string(), printable(&i.version), shown_time(&i.started_at)];
            let mut row = vec![i.epoch.to_string()];
            row.extend(texts);
            row.push(i.in_flight.to_string());
            (false, row)
        })
        .collect();
    section(screen, &["INSTANCE", "HOST", "PID", "VERSION", "SINCE", "IN HAND"], &rows)?;
    let rows: Vec<_> = status
        .backlog
        .iter()
        .map(|b| {
            let numbers = [b.project_id, b.pending, b.parked].map(|number| number.to_string());
            let mut row = numbers.to_vec();
            row.push(span(b.oldest_age_s));
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
            let until = p.until.as_deref().map_or_else(|| "resumed".to_owned(), shown_time);
            let row =
                [name, shown_time(&p.created_at), until, printable(&p.created_by), printable(&p.reason)];
            (false, row.to_vec())
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
            let mut row = [w.calls, w.failures, w.timeouts].map(|number| number.to_string()).to_vec();
            let name = names.get(&w.webhook_id).map(String::as_str);
            row.insert(0, printable(&webhook(w.webhook_id, name)).chars().take(NAME_WIDTH).collect());
            row.extend([w.p50_ms, w.p95_ms].map(|ms| span(ms / 1000.0)));
            row.push(printable(w.last_error.as_deref().unwrap_or_default()));
            (w.failures > 0, row)
        })
        .collect();
    section(screen, &["WEBHOOK", "CALLS", "FAILED", "TIMEOUTS", "P50", "P95", "LAST ERROR"], &rows)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: i64, parked: i64, failures: i64) -> Status {
        let value = json!({
            "standby": false, "pending": pending, "parked": parked, "oldest_age_s": 0.0, "in_flight": 0, "calls_5min": 10,
            "failures_5min": failures, "without_call_5min": 0, "instances": [], "backlog": [], "paused": 0, "pauses": [],
            "webhooks": [], "without_call": []
        });
        serde_json::from_value(value).expect("a status")
    }

    /// Marks and texts of the lines `waiting`, `parked` and `calls`.
    fn told(status: &Status, oldest: (f64, f64)) -> Vec<(Option<bool>, String)> {
        let facts = facts(status, oldest).into_iter();
        let wanted = facts.filter(|fact| ["waiting", "parked", "calls"].contains(&fact.name));
        wanted.map(|fact| (fact.good, fact.text)).collect()
    }

    #[test]
    fn what_waits_is_bad_when_it_waits_for_long() {
        let idle = told(&status(0, 0, 0), (0.0, 0.0));
        assert_eq!(idle[0], (Some(true), "0 rows wait for their calls, or have them under way".into()));
        let young = told(&status(13, 12, 0), (2.0, 3000.0));
        let waits = "1 row waits for its calls, or has them under way; the oldest was inserted 2.0 s ago";
        assert_eq!(young[0], (Some(true), waits.into()));
        let parked = "12 rows wait for a slot at slow webhooks; the oldest was inserted 50 min ago";
        assert_eq!(young[1], (Some(true), parked.into()));
        let old = told(&status(13, 12, 0), (61.0, 3601.0));
        assert_eq!((old[0].0, old[1].0), (Some(false), Some(false)));
        assert!(told(&status(200_000, 100_000, 0), (0.0, 0.0))[0].1.starts_with("at least 100000 rows wait"));
    }

    #[test]
    fn calls_are_bad_when_more_than_half_fail() {
        let mark = |failures| told(&status(0, 0, failures), (0.0, 0.0))[2].0;
        assert_eq!([mark(0), mark(1), mark(5), mark(6)], [Some(true), None, None, Some(false)]);
    }
}
