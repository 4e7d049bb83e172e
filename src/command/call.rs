//! `call`: one call whole, and the calls that it repeats or that repeated it. Changes nothing.

use serde_json::{Value, json};

use crate::cli::Global;
use crate::command::table::Screen;
use crate::command::whole::{self, Call, Most, Related};
use crate::config;
use crate::error::{Error, Result};
use crate::outbox::migrations;
use crate::outbox::{Repeat, Role, Store};

/// Prints the call.
///
/// # Errors
///
/// [`Error::Failed`] when the log has no such call.
pub async fn run(global: &Global, id: i64, json: bool) -> Result<()> {
    let store = Store::connect(&config::database(global)?, Role::Command).await?;
    migrations::require_usable(&store).await?;
    let Some(call) = store.call(id).await? else {
        return Err(Error::Failed(format!(
            "there is no call {id} in relay.webhook_calls: calls are kept for --retain-calls (30 days unless set)"
        )));
    };
    let related = Related::of(&store, &call).await?;
    let screen = Screen::of_stdout();
    if json {
        return screen.line(&with_related(&call.json, &related)?);
    }
    whole::print(&screen, &whole::lines(&Call::of(&call.json)?, &related, Most::ALL))
}

/// All columns, and what belongs to the call.
fn with_related(call: &str, related: &Related) -> Result<String> {
    let mut value: Value =
        serde_json::from_str(call).map_err(|error| Error::Failed(format!("reading a call: {error}")))?;
    let repeat = |repeat: &Repeat| {
        json!({
            "id": repeat.id,
            "start_time": humantime::format_rfc3339_micros(repeat.start_time).to_string(),
            "replay_of": repeat.replay_of,
            "status_code": repeat.status_code,
            "error_kind": repeat.error_kind,
        })
    };
    value["webhook_name"] = json!(related.name);
    value["repeated_by"] = related.repeated_by.iter().map(repeat).collect();
    value["pending_rows"] = json!(related.pending);
    Ok(value.to_string())
}
