//! `replay`: repeats one call, or those of a webhook in a span of time. Inserts outbox rows; the daemon delivers them.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::cli::{Global, Replay};
use crate::command::table::Screen;
use crate::config;
use crate::error::{Error, Result};
use crate::outbox::migrations;
use crate::outbox::{Role, Store, Wanted};

/// Most calls that one command repeats.
const CALLS_MAX: i32 = 1_000_000;
/// How often rows are inserted: as many at once as the rate allows.
const TICK: Duration = Duration::from_millis(200);
/// How often progress is told, when the replay takes longer than this.
const PROGRESS: Duration = Duration::from_secs(2);

/// Inserts the rows.
///
/// # Errors
///
/// [`Error::Usage`] when standard input is no terminal to ask at and `--yes` is missing. [`Error::Postgres`] when the call is gone, or its webhook
/// is gone or disabled. Rows that were inserted before an error stay.
pub async fn run(global: &Global, replay: &Replay) -> Result<()> {
    let store = Store::connect(&config::database(global)?, Role::Command).await?;
    migrations::require_current(&store).await?;
    let screen = Screen::of_stdout();
    let ids = match (replay.call, replay.webhook, replay.since) {
        (Some(call), ..) => vec![call],
        (None, Some(webhook), Some(since)) => {
            let (now, _) = store.clock().await?;
            let until = replay.until.map(|until| until.at(now));
            if replay.failed {
                store.open_failures(webhook, since.at(now), until, CALLS_MAX + 1).await?
            } else {
                let wanted = Wanted { webhook_id: Some(webhook), failed: false, since: since.at(now) };
                store.call_ids(&wanted, until, now, i64::from(CALLS_MAX) + 1).await?
            }
        }
        // clap refuses it before.
        _ => return Err(Error::Usage("give --call N, or --webhook N --since TIME".into())),
    };
    let count = ids.len();
    if count > CALLS_MAX as usize {
        return Err(Error::Usage(format!(
            "more than {CALLS_MAX} calls: give a shorter span (--since, --until)"
        )));
    }
    if replay.dry_run {
        rehearse(&store, &ids).await?;
    }
    if replay.dry_run || count == 0 {
        return screen.line(&format!("{count} calls would be repeated"));
    }
    if replay.webhook.is_some() && !replay.yes && !confirmed(count)? {
        return Err(Error::Failed("nothing was repeated".into()));
    }
    let rows = insert(&store, &ids, replay).await?;
    match rows.as_slice() {
        [row] if count == 1 => screen.line(&format!("outbox row {row} repeats the call")),
        rows => screen.line(&format!("{} calls are repeated", rows.len())),
    }
}

/// Fails as the replay itself would: repeats the first of the calls, and takes it back.
async fn rehearse(store: &Store, ids: &[i64]) -> Result<()> {
    let doing = "trying the replay";
    store.batch_execute("BEGIN").await.map_err(Error::postgres(doing))?;
    store.replay(&ids[..ids.len().min(1)]).await?;
    store.batch_execute("ROLLBACK").await.map_err(Error::postgres(doing))
}

/// Asks the person at the terminal.
fn confirmed(count: usize) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Error::Usage(format!(
            "{count} calls would be repeated; nobody can be asked here: add --yes, or --dry-run"
        )));
    }
    eprint!("Repeat {count} calls? [y/N] ");
    io::stderr().flush().map_err(Error::io("writing to standard error"))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(Error::io("reading the answer"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Inserts at most so many rows a second as wanted; with `--failed` none for a call that is not open any more.
async fn insert(store: &Store, ids: &[i64], replay: &Replay) -> Result<Vec<i64>> {
    let rate = replay.rate;
    let per_tick = (rate * TICK.subsec_millis()).div_ceil(1000) as usize;
    let pause = Duration::from_secs_f64(per_tick as f64 / f64::from(rate));
    let mut ticks = tokio::time::interval(pause);
    // After a slow statement the following ones keep their pace.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rows = Vec::with_capacity(ids.len());
    let mut told = Instant::now();
    let mut done = 0;
    for part in ids.chunks(per_tick) {
        ticks.tick().await;
        done += part.len();
        rows.extend(match replay.failed {
            true => store.replay_failed(part).await?,
            false => store.replay(part).await?,
        });
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            eprintln!("{} of {} calls", done, ids.len());
        }
    }
    Ok(rows)
}
