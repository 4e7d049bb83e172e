//! `top`: a live screen of how it goes. `state` has what is shown, `screen` draws it, `sample` is what the database tells.
//!
//! Two loops run side by side in one task. The one that watches has the session: it asks for a sample once a second, does
//! what the person asks, and connects again when the session is lost. The one that shows takes keys and what the first one
//! tells, and draws. So the screen answers to keys while Postgres does not answer. A thread reads the keys.

mod sample;
mod screen;
mod state;

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use ratatui::DefaultTerminal;
use tokio::sync::{Notify, mpsc};
use url::Url;

use crate::cli::Global;
use crate::command::top::sample::Sample;
use crate::command::top::state::{Ask, Name, Opened, State};
use crate::command::whole::{self, Call, Most, Related};
use crate::config;
use crate::daemon::signals::Stop;
use crate::error::{Error, Result, one_line};
use crate::outbox::migrations;
use crate::outbox::{Role, Store, Target};
use crate::postgres::Settings;
use crate::telemetry::terminal;

/// How often a sample is asked for.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// A session that does not answer for so long is given up.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// How often names that are known are read again.
const NAMES_KNOWN: Duration = Duration::from_secs(30);
/// How often the thread that reads keys checks whether the screen is gone.
const KEYS_POLL: Duration = Duration::from_millis(100);
/// Keys, things asked for and things told that wait: more than a person types in a second.
const WAITING_MAX: usize = 64;
/// What is told of a session that gives no answer.
const SILENT: &str = "Postgres does not answer";
/// The reason of a pause that was made here.
const REASON: &str = "paused in promptpal-relay top";

/// Shows the screen until the person quits, or SIGTERM.
///
/// # Errors
///
/// [`Error::Usage`] without a terminal. What keeps the first sample from being read; a session that is lost later is made
/// anew.
pub async fn run(global: &Global) -> Result<()> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Error::Usage(
            "top needs a terminal: run promptpal-relay status, which prints the same once".into(),
        ));
    }
    let settings = config::database(global)?;
    let mut watch = Watch::connect(&settings).await?;
    let title = watch.title().await?;
    // Before the screen is taken: what is wrong stands in a line of its own.
    let first = watch.sample().await?;
    let mut state = State::new(title, terminal::has_colours(&io::stdout()));
    first.into_state(&mut state);
    let hung_up = Arc::new(Notify::new());
    let rings = hung_up.clone();
    let stop = Stop::install(move || rings.notify_one())?;
    let (asking, asked) = mpsc::channel(WAITING_MAX);
    let (telling, told) = mpsc::channel(WAITING_MAX);
    let mut screen = Screen::take()?;
    tokio::select! {
        shown = show(&mut screen, state, asking, told) => shown,
        () = watch.run(asked, telling) => Ok(()),
        () = stop.wait() => Ok(()),
        // The terminal is gone.
        () = hung_up.notified() => Ok(()),
    }
}

/// The terminal while it is ours. Given back when it is dropped, also by a panic.
pub struct Screen(DefaultTerminal);

impl Screen {
    /// Takes the terminal: the alternate screen, and keys as they are typed. A panic gives it back before it is told.
    ///
    /// # Errors
    ///
    /// When the terminal refuses.
    pub fn take() -> Result<Screen> {
        let doing = "taking the terminal";
        let mut screen = ratatui::try_init().map(Screen).map_err(Error::io(doing))?;
        screen.0.hide_cursor().map_err(Error::io(doing))?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A panic has given it back already. Twice would put the cursor where it was before, above what the panic said.
        if thread::panicking() {
            return;
        }
        if let Err(error) = self.0.show_cursor().and_then(|()| ratatui::try_restore()) {
            eprintln!("promptpal-relay: giving the terminal back: {error}; the command reset helps");
        }
    }
}

/// What the loop that watches tells the one that shows.
enum Told {
    Sample(Box<Fresh>),
    /// Why there is none.
    Lost(String),
    /// A call that was asked for.
    Call(Box<Opened>),
    /// What came of something else that was asked for.
    Notice(String),
}

/// A sample, and names that were read with it.
struct Fresh {
    sample: Sample,
    names: HashMap<i64, Name>,
}

impl Fresh {
    fn into_state(self, state: &mut State) {
        state.named(self.names);
        state.sampled(self.sample);
    }
}

/// Takes keys and what is told, and draws; ends when the person quits, or the terminal is gone.
async fn show(
    screen: &mut Screen,
    mut state: State,
    asking: mpsc::Sender<Ask>,
    mut told: mpsc::Receiver<Told>,
) -> Result<()> {
    let mut keys = read_keys();
    let mut seconds = tokio::time::interval(SAMPLE_INTERVAL);
    let mut sampled = Instant::now();
    loop {
        screen.0.draw(|frame| screen::draw(frame, &state)).map_err(Error::io("writing to the terminal"))?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(Ok(Some(key))) => match state.key(key) {
                    Some(Ask::Quit) => return Ok(()),
                    Some(ask) if asking.try_send(ask).is_err() => {
                        state.notice = Some("Postgres does not answer: nothing was done".into());
                    }
                    // It is under way, or there is nothing to do.
                    Some(_) | None => {}
                },
                // Another size: the next drawing takes it.
                Some(Ok(None)) => {}
                Some(Err(error)) => return Err(Error::io("reading from the terminal")(error)),
                None => return Ok(()),
            },
            told = told.recv() => match told {
                Some(Told::Sample(fresh)) => {
                    sampled = Instant::now();
                    fresh.into_state(&mut state);
                }
                Some(Told::Lost(why)) => state.lost = Some(why),
                Some(Told::Call(opened)) => state.opened = Some(*opened),
                Some(Told::Notice(text)) => state.notice = Some(text),
                None => return Ok(()),
            },
            _ = seconds.tick() => {
                state.stale_s = sampled.elapsed().as_secs();
                if state.lost.is_none() && sampled.elapsed() > 3 * SAMPLE_INTERVAL {
                    state.lost = Some(SILENT.into());
                }
            }
        }
    }
}

/// Keys as they are typed, and none for another size of the terminal. The thread ends when the receiver is dropped.
fn read_keys() -> mpsc::Receiver<io::Result<Option<KeyEvent>>> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    thread::spawn(move || {
        while !sender.is_closed() {
            let key = match event::poll(KEYS_POLL) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let is_last = key.is_err();
            let key = match key {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => Ok(Some(key)),
                Ok(Event::Resize(..)) => Ok(None),
                Ok(_) => continue,
                Err(error) => Err(error),
            };
            if sender.blocking_send(key).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// The session, and the names that were read.
struct Watch<'a> {
    settings: &'a Settings,
    store: Store,
    // Each with when it was read; also for webhooks that have none.
    names: HashMap<i64, Instant>,
}

impl Watch<'_> {
    async fn connect(settings: &Settings) -> Result<Watch<'_>> {
        let store = connect(settings).await?;
        Ok(Watch { settings, store, names: HashMap::new() })
    }

    /// The database and its site.
    async fn title(&self) -> Result<String> {
        let installation = self.store.installation().await?;
        let site = installation.site.map_or_else(|| "no site".to_owned(), |site| format!("site {site}"));
        let copy = if installation.is_copy { "; a copy, no daemon runs here" } else { "" };
        Ok(format!("promptpal-relay top: database {}, {site}{copy}", installation.database))
    }

    async fn sample(&mut self) -> Result<Fresh> {
        let (now, last) = self.store.clock().await?;
        let sample = Sample::of(&self.store.sample(now, last).await?)?;
        let old = |id: &i64| self.names.get(id).is_none_or(|read| read.elapsed() > NAMES_KNOWN);
        let called = sample.webhooks.iter().map(|webhook| webhook.webhook_id);
        let ids: Vec<i64> = called.filter(old).collect();
        if ids.is_empty() {
            return Ok(Fresh { sample, names: HashMap::new() });
        }
        let named = self.store.webhook_names(&ids).await?;
        let read = Instant::now();
        self.names.retain(|id, _| sample.webhooks.iter().any(|webhook| webhook.webhook_id == *id));
        self.names.extend(ids.into_iter().map(|id| (id, read)));
        let names = named.into_iter().map(|(id, named)| {
            let host = Url::parse(&named.url).ok();
            let host = host.as_ref().and_then(Url::host_str).unwrap_or_default().to_owned();
            (id, Name { name: named.name, host })
        });
        Ok(Fresh { sample, names: names.collect() })
    }

    /// Samples, and does what is asked; ends when the loop that shows has ended.
    async fn run(&mut self, mut asked: mpsc::Receiver<Ask>, telling: mpsc::Sender<Told>) {
        let mut looks = tokio::time::interval(SAMPLE_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let told = tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => within_silence_limit(self.answer(ask)).await,
                    None => return,
                },
                _ = looks.tick() => {
                    within_silence_limit(self.sample()).await.map(|sample| sample.map(|fresh| Told::Sample(Box::new(fresh))))
                }
            };
            let (told, is_lost) = match told {
                Some(Ok(told)) => (told, false),
                Some(Err(error)) => (Told::Lost(one_line(&error)), self.store.is_closed()),
                None => (Told::Lost(SILENT.into()), true),
            };
            if telling.send(told).await.is_err() {
                return;
            }
            if is_lost && !self.connect_again(&telling).await {
                return;
            }
        }
    }

    /// Connects again, for as long as it takes; false when the loop that shows has ended.
    async fn connect_again(&mut self, telling: &mpsc::Sender<Told>) -> bool {
        loop {
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            let why = match within_silence_limit(connect(self.settings)).await {
                Some(Ok(store)) => {
                    self.store = store;
                    return true;
                }
                Some(Err(error)) => one_line(&error),
                None => SILENT.into(),
            };
            if telling.send(Told::Lost(why)).await.is_err() {
                return false;
            }
        }
    }

    /// Does what is asked. A refusal of Postgres is an answer, too.
    async fn answer(&self, ask: Ask) -> Result<Told> {
        let done = match ask {
            Ask::Open(id) => self.open(id).await,
            Ask::Replay(id) => self.store.replay(&[id]).await.map(|rows| {
                let row = rows.first().copied().unwrap_or_default();
                Told::Notice(format!("outbox row {row} repeats call {id}"))
            }),
            Ask::Pause(id) => {
                let paused = self.store.pause(Target::Webhook(id), REASON, None).await;
                let told = format!("webhook {id} is paused until promptpal-relay resume --webhook {id}");
                paused.map(|()| Told::Notice(told))
            }
            // The loop that shows has ended by then.
            Ask::Quit => Ok(Told::Notice(String::new())),
        };
        match done {
            Err(error) if !self.store.is_closed() => {
                // The hint comes first: the line may be cut.
                let hint = if error.is_privilege() { "this needs a member of relay_app: " } else { "" };
                Ok(Told::Notice(format!("{hint}{}", one_line(&error))))
            }
            done => done,
        }
    }

    async fn open(&self, id: i64) -> Result<Told> {
        let Some(call) = self.store.call(id).await? else {
            return Ok(Told::Notice(format!("there is no call {id} any more")));
        };
        let related = Related::of(&self.store, &call).await?;
        let lines = whole::lines(&Call::of(&call.json)?, &related, Most::ALL);
        Ok(Told::Call(Box::new(Opened { id, webhook_id: call.webhook_id, lines, scroll: 0 })))
    }
}

/// Waits for Postgres, [`SILENCE_LIMIT`] at most; none when it did not answer.
async fn within_silence_limit<T>(work: impl Future<Output = Result<T>>) -> Option<Result<T>> {
    tokio::time::timeout(SILENCE_LIMIT, work).await.ok()
}

async fn connect(settings: &Settings) -> Result<Store> {
    let store = Store::connect(settings, Role::Top).await?;
    migrations::require_usable(&store).await?;
    Ok(store)
}
