//! `calls`: the call log, newest first, and as it grows.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use crate::cli::{Calls, Global};
use crate::command::table::{BETWEEN, Column, Screen, aligned, printable};
use crate::command::whole;
use crate::config;
use crate::daemon::signals::Stop;
use crate::error::{Error, Result, one_line};
use crate::outbox::migrations;
use crate::outbox::{Key, Logged, Role, Store, Wanted};
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

/// What of a call fits into 80 characters. The last column is as long as the terminal lets it be.
const HEADINGS: [&str; 6] = ["TIME", "CALL", "WEBHOOK", "MS", "OUTCOME", "MESSAGE"];
const COLUMNS: [Column; 6] = [
    Column::Left(8),
    Column::Right(6),
    Column::Left(NAME_WIDTH),
    Column::Right(5),
    Column::Left(8),
    Column::Last,
];
/// How much is shown of a webhook's id and name.
const NAME_WIDTH: usize = 16;
/// With `--wide`.
const WIDE_HEADINGS: [&str; 9] =
    ["TIME", "CALL", "WEBHOOK", "PROJECT", "MS", "OUTCOME", "MESSAGE", "TRACE", "URL"];
const WIDE_COLUMNS: [Column; 9] = [
    Column::Left(24),
    Column::Right(8),
    Column::Left(24),
    Column::Right(7),
    Column::Right(6),
    Column::Left(16),
    Column::Left(40),
    Column::Left(32),
    Column::Last,
];
/// A time of the day alone tells calls of this span apart.
const DAY: Duration = Duration::from_secs(86400);

/// Prints the calls.
///
/// # Errors
///
/// What keeps the log from being read. With `--follow`, a lost connection is made anew.
pub async fn run(global: &Global, calls: &Calls) -> Result<()> {
    let settings = config::database(global)?;
    let store = connect(&settings).await?;
    let (now, last) = store.clock().await?;
    let wanted = Wanted { webhook_id: calls.webhook, failed: calls.failed, since: calls.since.at(now) };
    let screen = Screen::of_stdout();
    let look = match (calls.json, calls.wide) {
        (true, _) => Look::Json,
        (_, true) => Look::Wide,
        _ => Look::Short { today: now.checked_sub(DAY).unwrap_or(now) },
    };
    let screen = if calls.wide { screen.uncut() } else { screen };
    let printed = Printed { screen, look, names: RefCell::default() };
    if !calls.follow {
        let keys = newest(&store, &wanted, now, calls.limit.into()).await?;
        if keys.is_empty() {
            return printed.nothing(&wanted);
        }
        printed.headings()?;
        return printed.print(&store, &keys).await;
    }
    printed.headings()?;
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
    migrations::require_usable(&store).await?;
    Ok(store)
}

/// In which form calls are printed.
enum Look {
    /// One JSON object a line.
    Json,
    /// All that a line can have.
    Wide,
    /// What fits into 80 characters. A call that started before `today` has its date.
    Short {
        /// A day before the command.
        today: SystemTime,
    },
}

/// How calls are printed.
struct Printed {
    screen: Screen,
    look: Look,
    // The webhooks' names that were asked for; empty for one that has none, or is gone.
    names: RefCell<HashMap<i64, String>>,
}

impl Printed {
    fn headings(&self) -> Result<()> {
        match self.look {
            Look::Json => Ok(()),
            Look::Wide => self.screen.heading(&aligned(&WIDE_COLUMNS, WIDE_HEADINGS, BETWEEN)),
            Look::Short { .. } => self.screen.heading(&aligned(&COLUMNS, HEADINGS, BETWEEN)),
        }
    }

    /// Says that there are no such calls, and which span was asked for.
    fn nothing(&self, wanted: &Wanted) -> Result<()> {
        match self.look {
            Look::Json => Ok(()),
            _ => self.screen.line(&nothing(wanted)),
        }
    }

    /// Reads these calls, some at a time, and prints them.
    async fn print(&self, store: &Store, mut keys: &[Key]) -> Result<()> {
        while !keys.is_empty() {
            let (page, rest) = keys.split_at(page(keys));
            let calls = store.whole_calls(page, matches!(self.look, Look::Json)).await?;
            if !matches!(self.look, Look::Json) {
                self.learn_names(store, &calls).await?;
            }
            for call in calls {
                match &call.json {
                    Some(json) => self.screen.line(json)?,
                    None => self.call(&call)?,
                }
            }
            keys = rest;
        }
        Ok(())
    }

    /// Asks for the names of the webhooks that are new.
    async fn learn_names(&self, store: &Store, calls: &[Logged]) -> Result<()> {
        let mut ids: Vec<i64> = calls.iter().map(|call| call.webhook_id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| !self.names.borrow().contains_key(id));
        if ids.is_empty() {
            return Ok(());
        }
        let mut found = store.webhook_names(&ids).await?;
        let mut name = |id: i64| found.remove(&id).map(|named| named.name).unwrap_or_default();
        self.names.borrow_mut().extend(ids.into_iter().map(|id| (id, name(id))));
        Ok(())
    }

    fn call(&self, call: &Logged) -> Result<()> {
        let names = self.names.borrow();
        let name = names.get(&call.webhook_id).map(String::as_str);
        let line = match self.look {
            Look::Short { today } => short(call, name, today),
            _ => wide(call, name),
        };
        self.screen.outcome(call.error_kind.is_some(), &line)
    }
}

/// That there are no such calls, and which span was asked for.
fn nothing(wanted: &Wanted) -> String {
    let failed = if wanted.failed { "failed " } else { "" };
    let of = wanted.webhook_id.map(|id| format!(" of webhook {id}")).unwrap_or_default();
    let since = humantime::format_rfc3339_seconds(wanted.since);
    format!("no {failed}calls{of} since {since}; for an earlier time give --since")
}

/// The line of a call in the columns [`COLUMNS`].
fn short(call: &Logged, name: Option<&str>, today: SystemTime) -> String {
    let time = humantime::format_rfc3339_seconds(call.start_time).to_string();
    let time = if call.start_time < today { time[5..19].replace('T', " ") } else { time[11..19].to_owned() };
    let name: String = printable(&whole::webhook(call.webhook_id, name)).chars().take(NAME_WIDTH).collect();
    let mut message = call.error_message.as_deref().map_or_else(|| printable(&call.url), printable);
    if call.repeated {
        message = format!("repeated; {message}");
    }
    let cells = [
        time,
        call.id.to_string(),
        name,
        format!("{:.0}", call.seconds * 1000.0),
        whole::outcome(call.error_kind.as_deref(), call.status_code),
        message,
    ];
    aligned(&COLUMNS, cells.iter().map(String::as_str), BETWEEN)
}

/// The line of a call in the columns [`WIDE_COLUMNS`].
fn wide(call: &Logged, name: Option<&str>) -> String {
    let mut outcome = match (&call.error_kind, call.status_code) {
        (Some(kind), Some(status)) => format!("{kind} {status}"),
        (kind, status) => whole::outcome(kind.as_deref(), status),
    };
    if call.repeated {
        outcome.push_str(" repeated");
    }
    let cells = [
        humantime::format_rfc3339_millis(call.start_time).to_string(),
        call.id.to_string(),
        printable(&whole::webhook(call.webhook_id, name)),
        call.project_id.to_string(),
        format!("{:.0}", call.seconds * 1000.0),
        outcome,
        printable(call.error_message.as_deref().unwrap_or_default()),
        printable(&call.trace_id),
        printable(&call.url),
    ];
    aligned(&WIDE_COLUMNS, cells.iter().map(String::as_str), BETWEEN)
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
    printed: &Printed,
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

    fn logged() -> Logged {
        Logged {
            id: 12,
            start_time: humantime::parse_rfc3339("2026-01-02T03:04:05.678Z").expect("a time"),
            webhook_id: 7,
            project_id: 3,
            trace_id: "trace".into(),
            url: "https://a.example/hook".into(),
            status_code: Some(503),
            error_kind: Some("http_status".into()),
            error_message: Some("status 503".into()),
            seconds: 0.0124,
            repeated: false,
            json: None,
        }
    }

    #[test]
    fn a_call_says_in_eighty_columns_why_it_failed() {
        let call = logged();
        let line = |call: &Logged, name| short(call, name, SystemTime::UNIX_EPOCH);
        assert_eq!(
            line(&call, Some("orders")),
            "03:04:05      12  7 orders             12  503       status 503"
        );
        let timeout = Logged {
            error_kind: Some("timeout".into()),
            status_code: None,
            error_message: Some("no answer within 10s".into()),
            seconds: 10.0,
            repeated: true,
            ..logged()
        };
        let long = line(&timeout, Some("a name that is longer than its column"));
        assert_eq!(
            long,
            "03:04:05      12  7 a name that is  10000  timeout   repeated; no answer within 10s"
        );
        let good = Logged { error_kind: None, error_message: None, status_code: Some(200), ..logged() };
        assert!(line(&good, None).ends_with("7                    12  200       https://a.example/hook"));
    }

    #[test]
    fn a_call_of_another_day_has_its_date() {
        let call = logged();
        let after = call.start_time + Duration::from_secs(1);
        assert!(short(&call, None, after).starts_with("01-02 03:04:05  "));
        assert!(short(&call, None, call.start_time).starts_with("03:04:05  "));
    }

    #[test]
    fn wide_has_everything() {
        let line = wide(&Logged { repeated: true, ..logged() }, Some("orders"));
        let words: Vec<&str> = line.split_whitespace().collect();
        let expected = "2026-01-02T03:04:05.678Z 12 7 orders 3 12 http_status 503 repeated status 503 trace \
                        https://a.example/hook";
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn an_empty_table_says_which_span_was_asked_for() {
        let since = SystemTime::UNIX_EPOCH;
        let all = Wanted { webhook_id: None, failed: false, since };
        assert_eq!(nothing(&all), "no calls since 1970-01-01T00:00:00Z; for an earlier time give --since");
        let some = Wanted { webhook_id: Some(7), failed: true, since };
        assert!(nothing(&some).starts_with("no failed calls of webhook 7 since "));
    }

    #[test]
    fn calls_are_read_whole_some_at_a_time() {
        let key = |bytes| Key { id: 1, start_time: SystemTime::UNIX_EPOCH, bytes };
        assert_eq!(page(&[key(0); 2000]), PAGE_CALLS);
        assert_eq!(page(&[key(64 * 1024); 2000]), 16);
        assert_eq!(page(&[key(2 * PAGE_BYTES), key(0)]), 1);
        assert_eq!(page(&[key(0), key(2 * PAGE_BYTES)]), 1);
    }
}
