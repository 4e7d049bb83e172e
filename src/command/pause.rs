//! `pause` and `resume`: stops calling a webhook or a project, and goes on. Inserts outbox rows for what was held back; the
//! daemon delivers them.

use std::time::{Duration, Instant, SystemTime};

use crate::cli::{Global, Pause, Resume, Which};
use crate::command::progress::Progress;
use crate::command::table::Screen;
use crate::config;
use crate::error::{Error, Result};
use crate::outbox::migrations;
use crate::outbox::{Role, Store, Target};

/// Calls that are repeated in one transaction.
const BATCH: usize = 100;
/// Most calls that one command repeats.
const CALLS_MAX: i32 = 1_000_000;
/// How often to look whether the rows in hand are done.
const LOOK: Duration = Duration::from_millis(50);
/// How long the rows in hand are waited for: a call with the default of --timeout has ended by then.
const IN_HAND_MAX: Duration = Duration::from_secs(15);

/// Pauses.
///
/// # Errors
///
/// What [`Store::pause`] returns.
pub async fn pause(global: &Global, flags: &Pause) -> Result<()> {
    let (store, target) = connect(global, &flags.which).await?;
    let until = match flags.until {
        Some(until) => Some(until.at(store.clock().await?.0)),
        None => None,
    };
    store.pause(target, &flags.reason, until).await?;
    let (name, flag) = (name(target), flag(target));
    let end = match until {
        Some(until) => format!("until {}", humantime::format_rfc3339_seconds(until)),
        None => format!("until promptpal-relay resume {flag}"),
    };
    Screen::of_stdout().line(&format!("{name} is paused {end}"))
}

/// Resumes, and repeats what was held back if it is asked to.
///
/// # Errors
///
/// [`Error::Failed`] when what was held back cannot be repeated: the webhook is gone or disabled, or its project is paused.
/// It is resumed all the same.
pub async fn resume(global: &Global, flags: &Resume) -> Result<()> {
    let (store, target) = connect(global, &flags.which).await?;
    let (screen, name) = (Screen::of_stdout(), name(target));
    let resumed = store.resume(target).await?;
    let was = if resumed.paused_since.is_some() { "is resumed" } else { "was not paused" };
    screen.line(&format!("{name} {was}"))?;
    if let Some(project) = resumed.paused_project {
        let still = format!(
            "it is still not called: its project is paused; run promptpal-relay resume --project {project}"
        );
        return match flags.replay {
            true => Err(Error::Failed(still)),
            false => screen.line(&still),
        };
    }
    if !flags.replay {
        return Ok(());
    }
    if !resumed.can_be_called {
        return Err(Error::Failed(format!(
            "the calls that were held back cannot be repeated: {name} is gone or disabled"
        )));
    }
    // These rows were claimed before. What they hold back is recorded when they are done.
    let in_hand = store.rows_in_hand(target).await?;
    let left = wait(&store, &in_hand).await?;
    let rows = replay(&store, target, resumed.paused_since).await?;
    screen.line(&format!("{rows} calls that were held back are repeated"))?;
    match left {
        0 => Ok(()),
        left => screen.line(&format!(
            "{left} rows that were claimed before are not done yet: run this again later, to repeat what they hold back"
        )),
    }
}

async fn connect(global: &Global, which: &Which) -> Result<(Store, Target)> {
    let target = match (which.webhook, which.project) {
        (Some(webhook), None) => Target::Webhook(webhook),
        (None, Some(project)) => Target::Project(project),
        // clap refuses it before.
        _ => return Err(Error::Usage("give either --webhook N or --project N".into())),
    };
    let store = Store::connect(&config::database(global)?, Role::Command).await?;
    migrations::require_usable(&store).await?;
    Ok((store, target))
}

/// What a person calls it.
pub fn name(target: Target) -> String {
    match target {
        Target::Webhook(id) => format!("webhook {id}"),
        Target::Project(id) => format!("project {id}"),
    }
}

/// The flag that names it.
pub fn flag(target: Target) -> String {
    match target {
        Target::Webhook(id) => format!("--webhook {id}"),
        Target::Project(id) => format!("--project {id}"),
    }
}

/// Waits until these rows are done, [`IN_HAND_MAX`] at most; how many are not.
async fn wait(store: &Store, rows: &[i64]) -> Result<i64> {
    let start = Instant::now();
    loop {
        let left = store.not_done(rows).await?;
        if left == 0 || start.elapsed() > IN_HAND_MAX {
            return Ok(left);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Repeats what was held back, some at a time; how many calls.
async fn replay(store: &Store, target: Target, since: Option<SystemTime>) -> Result<usize> {
    let calls = store.held_back(target, since, CALLS_MAX).await?;
    let mut rows = 0;
    let mut progress = Progress::of(calls.len(), "calls");
    for batch in calls.chunks(BATCH) {
        rows += store.replay_failed(batch).await?.len();
        progress.add(batch.len());
    }
    Ok(rows)
}
