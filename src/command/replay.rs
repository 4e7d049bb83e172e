//! `replay`: repeats one call, or those of a webhook in a span of time. Inserts outbox rows; the daemon delivers them.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime};

use tokio::time::MissedTickBehavior;

use crate::cli::{Global, Replay};
use crate::command::outcomes::Outcomes;
use crate::command::progress::Progress;
use crate::command::table::Screen;
use crate::config;
use crate::error::{Error, Result};
use crate::outbox::migrations;
use crate::outbox::{Role, Store, Wanted};

/// Most calls that one command repeats.
const CALLS_MAX: i32 = 1_000_000;
/// How often rows are inserted: as many at once as the rate allows.
const TICK: Duration = Duration::from_millis(200);
/// How far the database's clock and that of the daemon's machine may differ, for `--wait`.
const CLOCKS: Duration = Duration::from_secs(3600);
/// Most calls that `relay.replay_failed` takes at once.
const FAILED_MAX: usize = 1000;
/// How long the command tries again to repeat calls that another session is repeating. Another command holds them for the
/// time of one statement.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which open failures the command is about.
#[derive(Clone, Copy)]
struct Span {
    webhook: i64,
    since: SystemTime,
    until: Option<SystemTime>,
}

/// Open failures, by whether they can be repeated.
struct Open {
    /// The calls that can be, the oldest first.
    ids: Vec<i64>,
    /// How many cannot, because the webhook is gone, disabled or of another project now.
    uncallable: usize,
    /// Whether the webhook is there and enabled.
    enabled: bool,
}

impl Open {
    async fn of(store: &Store, span: Span) -> Result<Open> {
        let open = store.open_failures(span.webhook, span.since, span.until, CALLS_MAX + 1).await?;
        if open.is_empty() {
            return Ok(Open { ids: Vec::new(), uncallable: 0, enabled: true });
        }
        let projects = store.callable_for(span.webhook).await?;
        let callable = open.iter().filter(|(_, project)| projects.contains(project));
        let ids: Vec<i64> = callable.map(|(id, _)| *id).collect();
        Ok(Open { uncallable: open.len() - ids.len(), enabled: !projects.is_empty(), ids })
    }

    /// Tells what cannot be repeated.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] when the operator can mend it: the webhook is gone or disabled. Calls of a project that the webhook
    /// has left stay as they are, so they make no timer fail.
    fn tell_uncallable(&self, webhook: i64) -> Result<()> {
        match (self.uncallable, self.enabled) {
            (0, _) => Ok(()),
            (count, true) => {
                eprintln!("{count} calls are left out: webhook {webhook} is of another project now");
                Ok(())
            }
            (count, false) => Err(Error::Failed(format!(
                "{count} calls are left out: webhook {webhook} is gone or disabled"
            ))),
        }
    }
}

/// Inserts the rows.
///
/// # Errors
///
/// [`Error::Usage`] when standard input is no terminal to ask at and `--yes` is missing. [`Error::Postgres`] when the call is
/// gone, or its webhook is gone or disabled. With `--failed` [`Error::Failed`] when the webhook is gone or disabled, or when
/// another session holds calls for long. With `--wait` [`Error::Failed`] when a call fails or is not made in time, and
/// [`Error::Installation`] on a copy. Rows that were inserted before an error stay.
pub async fn run(global: &Global, replay: &Replay) -> Result<()> {
    let store = Store::connect(&config::database(global)?, Role::Command).await?;
    migrations::require_usable(&store).await?;
    let screen = Screen::of_stdout();
    if replay.wait.is_some() {
        // No daemon would deliver the rows, and a login that may not read the log would not see what comes of them.
        store.installation().await?.require_original()?;
        store.outcomes(&[], SystemTime::now()).await?;
    }
    let ids = match (replay.call, replay.webhook, replay.since) {
        (Some(call), ..) => vec![call],
        (None, Some(webhook), Some(since)) => {
            let (now, _) = store.clock().await?;
            let until = replay.until.map(|until| until.at(now));
            if replay.failed {
                return run_failed(&store, &screen, replay, Span { webhook, since: since.at(now), until })
                    .await;
            }
            let wanted = Wanted { webhook_id: Some(webhook), failed: false, since: since.at(now) };
            store.call_ids(&wanted, until, now, i64::from(CALLS_MAX) + 1).await?
        }
        // clap refuses it before.
        _ => return Err(Error::Usage("give --call N, or --webhook N --since TIME".into())),
    };
    if !agreed(&store, &screen, replay, &ids).await? {
        return Ok(());
    }
    let rows = insert(&store, &ids, replay).await?;
    match rows.as_slice() {
        [row] if ids.len() == 1 => screen.line(&format!("outbox row {row} repeats the call"))?,
        rows => screen.line(&format!("{} calls are repeated", rows.len()))?,
    }
    wait(&store, &screen, replay, &rows).await
}

/// With `--wait`: waits for what comes of the rows, and tells it.
async fn wait(store: &Store, screen: &Screen, replay: &Replay, rows: &[i64]) -> Result<()> {
    let Some(patience) = replay.wait else { return Ok(()) };
    // The first row was inserted when the command began, which is an insert of a million rows ago at most.
    let span = Duration::from_secs(rows.len() as u64 / u64::from(replay.rate).max(1));
    let since = store.clock().await?.0 - CLOCKS - 2 * span;
    let outcomes = Outcomes::of(store, rows, since, patience).await?;
    screen.line(&outcomes.told())?;
    outcomes.require_success()
}

/// `--failed`: repeats what is open. One call that cannot be repeated does not stop the others.
async fn run_failed(store: &Store, screen: &Screen, replay: &Replay, span: Span) -> Result<()> {
    let open = Open::of(store, span).await?;
    if !agreed(store, screen, replay, &open.ids).await? {
        return open.tell_uncallable(span.webhook);
    }
    let mut inserted = insert(store, &open.ids, replay).await?;
    let asked: HashSet<i64> = open.ids.iter().copied().collect();
    let (mut last, mut busy) = (open, 0);
    let patient_until = Instant::now() + PATIENCE;
    // Those that are open still are in the hands of another session, which may end without repeating them.
    while inserted.len() < asked.len() {
        last = Open::of(store, span).await?;
        let left: Vec<i64> = last.ids.iter().copied().filter(|id| asked.contains(id)).collect();
        busy = left.len();
        if busy == 0 || Instant::now() > patient_until {
            break;
        }
        tokio::time::sleep(TICK).await;
        let more = insert(store, &left, replay).await?;
        busy -= more.len();
        inserted.extend(more);
    }
    screen.line(&format!("{} calls are repeated", inserted.len()))?;
    let waited = wait(store, screen, replay, &inserted).await;
    let told = last.tell_uncallable(span.webhook);
    if busy == 0 && waited.is_ok() {
        return told;
    }
    if let Err(error) = told {
        eprintln!("{error}");
    }
    if busy == 0 {
        return waited;
    }
    if let Err(error) = waited {
        eprintln!("{error}");
    }
    Err(Error::Failed(format!("{busy} calls are left out: another session is repeating them")))
}

/// Whether the calls are to be repeated; tells what a dry run finds, and asks.
async fn agreed(store: &Store, screen: &Screen, replay: &Replay, ids: &[i64]) -> Result<bool> {
    let count = ids.len();
    if count > CALLS_MAX as usize {
        return Err(Error::Usage(format!(
            "more than {CALLS_MAX} calls: give a shorter span (--since, --until)"
        )));
    }
    if replay.dry_run {
        rehearse(store, ids).await?;
    }
    if replay.dry_run || count == 0 {
        screen.line(&format!("{count} calls would be repeated"))?;
        return Ok(false);
    }
    if replay.webhook.is_some() && !replay.yes && !confirmed(count)? {
        return Err(Error::Failed("nothing was repeated".into()));
    }
    Ok(true)
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
            "{count} calls would be repeated; without a terminal the command cannot ask: add --yes, or --dry-run"
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
    let per_tick = if replay.failed { per_tick.min(FAILED_MAX) } else { per_tick };
    let pause = Duration::from_secs_f64(per_tick as f64 / f64::from(rate));
    let mut ticks = tokio::time::interval(pause);
    // After a slow statement the following ones keep their pace.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rows = Vec::with_capacity(ids.len());
    let mut progress = Progress::of(ids.len(), "calls");
    for part in ids.chunks(per_tick) {
        ticks.tick().await;
        rows.extend(match replay.failed {
            true => store.replay_failed(part).await?,
            false => store.replay(part).await?,
        });
        progress.add(part.len());
    }
    Ok(rows)
}
