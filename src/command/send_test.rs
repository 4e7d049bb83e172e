//! `send-test`: sends one test event to one webhook, and prints the result.

use std::time::{Duration, Instant, SystemTime};

use crate::cli::Global;
use crate::command::table::Screen;
use crate::command::whole::{self, Call, Most, Related};
use crate::config;
use crate::error::{Error, Result};
use crate::outbox::migrations;
use crate::outbox::{Role, Store};

/// How often to look whether the row is done.
const LOOK: Duration = Duration::from_millis(50);
/// How far the database's clock and that of the daemon's machine may differ. Where they differ more, a longer search is made.
const CLOCKS: Duration = Duration::from_secs(3600);

/// Sends the event, and waits at most `wait` for the result.
///
/// # Errors
///
/// [`Error::Failed`] when the call failed, or was not made in time; [`Error::Installation`] on a copy, where nothing is inserted.
pub async fn run(global: &Global, webhook_id: i64, wait: Duration, json: bool) -> Result<()> {
    let store = Store::connect(&config::database(global)?, Role::Command).await?;
    migrations::require_usable(&store).await?;
    // No daemon would deliver it.
    store.installation().await?.require_original()?;
    let start = Instant::now();
    let since = store.clock().await?.0 - CLOCKS;
    // A login that may not read the log would send the event and not see the result: it fails before.
    store.calls_of_row(0, since).await?;
    let row = store.send_test(webhook_id).await?;
    while !store.is_done(row).await? {
        if start.elapsed() > wait {
            return Err(Error::Failed(format!(
                "outbox row {row} is not delivered after {}; it still will be: see promptpal-relay status",
                humantime::format_duration(wait)
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
    let mut calls = store.calls_of_row(row, since).await?;
    if calls.is_empty() {
        calls = store.calls_of_row(row, SystemTime::UNIX_EPOCH).await?;
    }
    let Some(call) = calls.first() else {
        return Err(Error::Failed(format!("webhook {webhook_id} was not called: it was disabled meanwhile")));
    };
    let json_of = call.json.as_deref().unwrap_or_default();
    let screen = Screen::of_stdout();
    if json {
        screen.line(json_of)?;
    } else {
        let name = store.webhook_names(&[webhook_id]).await?.remove(&webhook_id).map(|named| named.name);
        let related = Related { name, ..Related::default() };
        whole::print(&screen, &whole::lines(&Call::of(json_of)?, &related, Most::BEGINNING))?;
    }
    match &call.error_kind {
        None => Ok(()),
        Some(kind) => Err(Error::Failed(format!("the call to webhook {webhook_id} failed ({kind})"))),
    }
}
