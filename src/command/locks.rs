//! Sessions that hold the relay's advisory locks and should not, for `check` and `status`. Tells, and ends no session.

use std::time::Duration;

use serde_json::{Value, json};

use crate::command::table::printable;
use crate::error::Result;
use crate::outbox::{Holder, Store, lock_class};

/// A lock is held for long when the same transaction still has it after this time. The server does not tell every role since
/// when it is held.
const LONG: Duration = Duration::from_secs(1);

/// Looks once, and a second later again where it has found a holder.
///
/// # Errors
///
/// When the locks cannot be read.
pub(crate) async fn held_for_long(store: &Store) -> Result<Vec<Holder>> {
    let first = store.lock_holders(None).await?;
    if first.is_empty() {
        return Ok(first);
    }
    tokio::time::sleep(LONG).await;
    let transactions: Vec<String> = first.into_iter().map(|holder| holder.transaction).collect();
    store.lock_holders(Some(&transactions)).await
}

/// A holder in words: the session, the lock, and the consequence.
pub(crate) fn line(holder: &Holder) -> String {
    let who = match (holder.backend, &holder.login) {
        (Some(backend), Some(login)) => format!("session {backend} of {}", printable(login)),
        (Some(backend), None) => format!("session {backend}"),
        (None, _) => "a prepared transaction (see pg_prepared_xacts)".to_owned(),
    };
    let state = holder.state.as_ref().map(|state| format!(" ({state})")).unwrap_or_default();
    match holder.lock.as_str() {
        lock if lock == lock_class::SLEEP.name => format!(
            "{who}{state} holds the sleep lock for more than {} s: until it ends its transaction or its session, Postgres \
             notifies no daemon of rows, and daemons poll four times a second",
            LONG.as_secs()
        ),
        lock => {
            format!("{who}{state} holds the {lock} lock, which belongs to the daemons; this has no effect")
        }
    }
}

/// The holders as JSON.
pub(crate) fn json(holders: &[Holder]) -> Value {
    let one = |holder: &Holder| json!({"lock": holder.lock, "pid": holder.backend, "user": holder.login, "state": holder.state});
    holders.iter().map(one).collect()
}
