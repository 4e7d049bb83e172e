//! `calls`: the call log, newest first, and as it grows.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use crate::cli::{Calls, Global};
use crate::command::screen::Screen;
use crate::config;
use crate::db::Settings;
use crate::error::{Error, Result, one_line};
use crate::schema;
use crate::stop::Stop;
use crate::store::{Logged, Role, Store, Wanted};

/// The span that is looked through first; each further one is so much longer. The log has no index in order of time,
/// so what is wanted is looked for where it most likely is.
const SPAN_MIN: Duration = Duration::from_secs(10);
const SPAN_FACTOR: u32 = 8;
/// How often to look for new calls.
const LOOK: Duration = Duration::from_millis(500);
/// Ids are drawn before commit: so long after one was seen, lower ones may still appear.
const LATE: Duration = Duration::from_secs(10);
/// Calls that are read with one look.
const AT_ONCE: i64 = 10_000;

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
    let wanted =
        Wanted { webhook_id: calls.webhook, failed: calls.failed, since: calls.since, until: far_future() };
    if !calls.follow {
        for call in newest(&store, &wanted, calls.limit.into(), calls.json).await? {
            print(&screen, &call)?;
        }
        return Ok(());
    }
    let stop = Stop::install(|| {})?;
    let known = newest(&store, &wanted, AT_ONCE, calls.json).await?;
    for call in known.iter().take(calls.limit as usize).rev() {
        print(&screen, call)?;
    }
    let known = known.iter().map(|call| call.id).collect();
    tokio::select! {
        error = follow(&settings, store, &screen, wanted, known, calls.json) => error,
        () = stop.wait() => Ok(()),
    }
}

async fn connect(settings: &Settings) -> Result<Store> {
    let store = Store::connect(settings, Role::Command).await?;
    schema::require_current(&store).await?;
    Ok(store)
}

/// Later than any call, also one of a machine whose clock is ahead.
fn far_future() -> SystemTime {
    SystemTime::now() + Duration::from_secs(365 * 86400)
}

fn print(screen: &Screen, call: &Logged) -> Result<()> {
    match &call.json {
        Some(json) => screen.line(json),
        None => screen.call(call),
    }
}

/// The newest calls: of the last seconds, and if those are not enough, of a longer and longer span.
async fn newest(store: &Store, wanted: &Wanted, limit: i64, json: bool) -> Result<Vec<Logged>> {
    let mut span = SPAN_MIN;
    loop {
        let start = SystemTime::now().checked_sub(span).filter(|start| *start > wanted.since);
        let part = Wanted { since: start.unwrap_or(wanted.since), ..wanted.clone() };
        let calls = store.calls(&part, limit, json).await?;
        if calls.len() as i64 >= limit || start.is_none() {
            return Ok(calls);
        }
        span = span.saturating_mul(SPAN_FACTOR);
    }
}

/// Prints calls as they are recorded that are not among the newest known ones; ends with an error only.
async fn follow(
    settings: &Settings,
    mut store: Store,
    screen: &Screen,
    mut wanted: Wanted,
    mut seen: HashSet<i64>,
    json: bool,
) -> Result<()> {
    // Ids up to `floor` are not looked at any more: those that were seen LATE ago, and what is older.
    let mut floor = if seen.len() < AT_ONCE as usize { 0 } else { seen.iter().min().map_or(0, |id| id - 1) };
    let (mut top, mut top_seen) = (floor, Instant::now());
    let mut calls: Vec<Logged> = Vec::new();
    loop {
        for call in &calls {
            print(screen, call)?;
        }
        seen.extend(calls.iter().map(|call| call.id));
        if top_seen.elapsed() > LATE {
            floor = top;
            seen.retain(|id| *id > floor);
            (top, top_seen) = (seen.iter().copied().max().unwrap_or(top), Instant::now());
        }
        // More than fit into one look are read at once.
        if calls.len() < AT_ONCE as usize {
            tokio::time::sleep(LOOK).await;
        }
        // A call is recorded when it has ended: at most its timeout after it began. An hour is more than that.
        wanted.since = wanted.since.max(SystemTime::now() - Duration::from_secs(3600));
        let known: Vec<i64> = seen.iter().copied().collect();
        calls = match store.calls_after(&wanted, floor, &known, AT_ONCE, json).await {
            Ok(calls) => calls,
            Err(error) if store.is_closed() => {
                eprintln!("promptpal-relay: {}; connecting again", one_line(&error));
                store = again(settings).await?;
                Vec::new()
            }
            Err(error) => return Err(error),
        };
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
