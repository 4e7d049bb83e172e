//! `calls`: the call log, newest first, and as it grows.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use crate::cli::{Calls, Global};
use crate::command::table::Screen;
use crate::config;
use crate::daemon::signals::Stop;
use crate::error::{Error, Result, one_line};
use crate::outbox::migrations;
use crate::outbox::{Key, Role, Store, Wanted};
use crate::postgres::Settings;
use crate::telemetry::terminal::escaped;

/// The span that is searched first; each further one is so many times as long. The log has no index in order of time, so the
/// command searches where the wanted calls most likely are.
const SPAN_MIN: Duration = Duration::from_secs(10);
const SPAN_FACTOR: u32 = 8;
/// How often to look for new calls.
const LOOK: Duration = Duration::from_millis(500);
/// Ids are drawn before commit: for so long after one was seen, lower ones may still appear.
const LATE: Duration = Duration::from_secs(10);
/// Most calls that one query finds.
const AT_ONCE: i64 = 10_000;
/// Most calls that are read whole at once, and most bytes of their texts, unless a single call has more: the memory has them
/// several times.
const PAGE_CALLS: usize = 500;
const PAGE_BYTES: usize = 1024 * 1024;

/// Prints the calls.
///
/// # Errors
///
/// What keeps the log from being read. With `--follow`, a lost connection is made anew.
pub async fn run(global: &Global, calls: &Calls) -> Result<()> {
    let settings = config::database(global)?;
    let store = connect(&settings).await?;
    let screen = Screen::of_stdout();
    if !calls.json {
        screen.call_headings()?;
    }
    let (now, last) = store.clock().await?;
    let wanted = Wanted { webhook_id: calls.webhook, failed: calls.failed, since: calls.since.at(now) };
    let printed = Printed { screen: &screen, json: calls.json };
    if !calls.follow {
        let keys = newest(&store, &wanted, now, calls.limit.into()).await?;
        return printed.print(&store, &keys).await;
    }
    let stop = Stop::install(|| {})?;
    let following = async {
        // Calls that are recorded from here on are shown: their ids are drawn later. Some of the last ids may not be committed yet.
        let floor = last.saturating_sub(AT_ONCE);
        let known = store.calls_after(&wanted, now, floor, &[], AT_ONCE).await?;
        let mut keys = newest(&store, &wanted, now, calls.limit.into()).await?;
        keys.reverse();
        printed.print(&store, &keys).await?;
        let seen = known.iter().chain(&keys).map(|key| key.id).collect();
        follow(&settings, store, &printed, wanted, now, Seen { ids: seen, floor, top: last }).await
    };
    tokio::select! {
        result = following => result,
        () = stop.wait() => Ok(()),
    }
}

async fn connect(settings: &Settings) -> Result<Store> {
    let store = Store::connect(settings, Role::Command).await?;
    migrations::require_current(&store).await?;
    Ok(store)
}

/// How calls are printed.
struct Printed<'a> {
    screen: &'a Screen,
    json: bool,
}

impl Printed<'_> {
    /// Reads these calls, some at a time, and prints them.
    async fn print(&self, store: &Store, mut keys: &[Key]) -> Result<()> {
        while !keys.is_empty() {
            let (page, rest) = keys.split_at(page(keys));
            for call in store.whole_calls(page, self.json).await? {
                match &call.json {
                    Some(json) => self.screen.line(json)?,
                    None => self.screen.call(&call)?,
                }
            }
            keys = rest;
        }
        Ok(())
    }
}

/// How many of the calls are read whole at once: the first at least.
fn page(keys: &[Key]) -> usize {
    let mut bytes = 0;
    let fits = |key: &&Key| {
        bytes += key.bytes;
        bytes <= PAGE_BYTES
    };
    keys.iter().take(PAGE_CALLS).take_while(fits).count().max(1)
}

/// The newest calls: of the last seconds, and if those are not enough, of a longer and longer span.
async fn newest(store: &Store, wanted: &Wanted, now: SystemTime, limit: i64) -> Result<Vec<Key>> {
    let mut span = SPAN_MIN;
    loop {
        let start = now.checked_sub(span).filter(|start| *start > wanted.since);
        let part = Wanted { since: start.unwrap_or(wanted.since), ..wanted.clone() };
        let calls = store.calls(&part, now, limit).await?;
        if calls.len() as i64 >= limit || start.is_none() {
            return Ok(calls);
        }
        span = span.saturating_mul(SPAN_FACTOR);
    }
}

/// The calls that need not be shown any more.
struct Seen {
    /// Calls above the floor that were there.
    ids: HashSet<i64>,
    /// Ids up to it are ignored: they were drawn [`LATE`] ago.
    floor: i64,
    /// The highest id that is known.
    top: i64,
}

/// Prints calls as they are recorded that were not seen; ends with an error only.
async fn follow(
    settings: &Settings,
    mut store: Store,
    printed: &Printed<'_>,
    wanted: Wanted,
    now: SystemTime,
    mut seen: Seen,
) -> Result<()> {
    let mut top_seen = Instant::now();
    loop {
        let known: Vec<i64> = seen.ids.iter().copied().collect();
        let mut shown = 0;
        let looked = async {
            let keys = store.calls_after(&wanted, now, seen.floor, &known, AT_ONCE).await?;
            // Calls that are printed are not read again after a lost connection.
            for keys in keys.chunks(PAGE_CALLS) {
                printed.print(&store, keys).await?;
                shown += keys.len();
                seen.ids.extend(keys.iter().map(|key| key.id));
            }
            Ok(())
        };
        match looked.await {
            Ok(()) => {}
            Err(error) if store.is_closed() => {
                eprintln!("promptpal-relay: {}; connecting again", escaped(&one_line(&error)));
                store = again(settings).await?;
            }
            Err(error) => return Err(error),
        }
        if top_seen.elapsed() > LATE {
            seen.floor = seen.top;
            seen.ids.retain(|id| *id > seen.floor);
            (seen.top, top_seen) = (seen.ids.iter().copied().max().unwrap_or(seen.top), Instant::now());
        }
        // Where a query found as many as it may, there may be more: these are read at once.
        if shown < AT_ONCE as usize {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Connects again, for as long as it takes.
async fn again(settings: &Settings) -> Result<Store> {
    loop {
        match connect(settings).await {
            Err(error) if error.may_pass() => tokio::time::sleep(Duration::from_secs(1)).await,
            result => return result.map_err(|error| Error::Failed(one_line(&error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_whole_some_at_a_time() {
        let key = |bytes| Key { id: 1, start_time: SystemTime::UNIX_EPOCH, bytes };
        assert_eq!(page(&[key(0); 2000]), PAGE_CALLS);
        assert_eq!(page(&[key(64 * 1024); 2000]), 16);
        assert_eq!(page(&[key(2 * PAGE_BYTES), key(0)]), 1);
        assert_eq!(page(&[key(0), key(2 * PAGE_BYTES)]), 1);
    }
}
