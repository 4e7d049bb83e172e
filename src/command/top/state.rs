//! What the live screen shows, and what a key or a sample changes of it. No clock, no session, no terminal: `mod.rs` brings
//! keys and samples, `screen` draws.

use std::collections::{BTreeMap, HashMap, HashSet};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::command::top::sample::{Failure, SPAN_S, Sample, Span};
use crate::command::whole::{self, Line};

/// Spans of calls that are kept: the widest screen shows no more.
const SPANS_MAX: usize = 200;
/// Failed calls that are kept.
const FAILURES_MAX: usize = 100;
/// Longest text that filters.
const FILTER_MAX: usize = 60;
/// How far a page goes in the lists, and in a call.
const PAGE: usize = 10;

/// What a person has asked for, and the loop does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// End.
    Quit,
    /// Read this call.
    Open(i64),
    /// Repeat this call.
    Replay(i64),
    /// Pause this webhook.
    Pause(i64),
}

/// A column of the table of webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Webhook,
    Project,
    Host,
    Rate,
    Failing,
    P50,
    P95,
    InHand,
    Waiting,
    LastError,
}

impl Column {
    /// In the order in which they stand.
    pub(crate) const ALL: [Column; 10] = [
        Column::Webhook,
        Column::Project,
        Column::Host,
        Column::Rate,
        Column::Failing,
        Column::P50,
        Column::P95,
        Column::InHand,
        Column::Waiting,
        Column::LastError,
    ];

    fn next(self, step: usize) -> Column {
        let at = Column::ALL.iter().position(|column| *column == self).unwrap_or(0);
        Column::ALL[(at + step) % Column::ALL.len()]
    }
}

/// Which list the arrow keys move in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Focus {
    Webhooks,
    Failures,
}

/// What the keys mean at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They move and choose.
    List,
    /// They write the text that filters.
    Filter,
    /// One of them says yes to what is asked.
    Confirm {
        /// What is done then.
        ask: Ask,
        /// What the person is asked.
        question: String,
    },
}

/// What is known of a webhook besides its calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) name: String,
    /// Of the URL.
    pub(crate) host: String,
}

/// A row of the table of webhooks.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) webhook_id: i64,
    pub(crate) project_id: i64,
    pub(crate) name: String,
    pub(crate) host: String,
    /// Calls a second.
    pub(crate) rate: f64,
    /// Percent of the calls that failed; none without calls.
    pub(crate) failing: Option<f64>,
    pub(crate) p50_s: Option<f64>,
    pub(crate) p95_s: Option<f64>,
    /// Rows of its project that an instance has in hand, and that wait.
    pub(crate) in_hand: i64,
    pub(crate) waiting: i64,
    /// The last failure; empty without one.
    pub(crate) last_error: String,
    pub(crate) paused: bool,
    last_call: i64,
    last_failure: Option<i64>,
}

impl Row {
    fn text_of(&self) -> String {
        whole::webhook(self.webhook_id, Some(&self.name))
    }

    fn has(&self, text: &str) -> bool {
        let all = [&self.text_of(), &self.project_id.to_string(), &self.host, &self.last_error];
        all.iter().any(|part| part.to_lowercase().contains(text))
    }
}

/// A call that is open.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) id: i64,
    pub(crate) webhook_id: i64,
    pub(crate) lines: Vec<Line>,
    /// Lines that are above the screen.
    pub(crate) scroll: usize,
}

/// All that the screen shows.
#[derive(Debug)]
pub(crate) struct State {
    /// The database and its site.
    pub(crate) title: String,
    /// Whether colours are drawn.
    pub(crate) colours: bool,
    pub(crate) sample: Option<Sample>,
    pub(crate) mode: Mode,
    pub(crate) focus: Focus,
    pub(crate) sort: Column,
    pub(crate) ascending: bool,
    pub(crate) failed_only: bool,
    pub(crate) filter: String,
    pub(crate) opened: Option<Opened>,
    /// What came of the last thing that was asked for.
    pub(crate) notice: Option<String>,
    /// Why there is no fresh sample.
    pub(crate) lost: Option<String>,
    /// How old the sample is, in seconds.
    pub(crate) stale_s: u64,
    spans: BTreeMap<i64, Span>,
    failures: Vec<Failure>,
    names: HashMap<i64, Name>,
    // The chosen row and failure, by id: they stay chosen when the order changes.
    webhook: Option<i64>,
    failure: Option<i64>,
}

impl State {
    pub(crate) fn new(title: String, colours: bool) -> State {
        State {
            title,
            colours,
            sample: None,
            mode: Mode::List,
            focus: Focus::Webhooks,
            sort: Column::Rate,
            ascending: false,
            failed_only: false,
            filter: String::new(),
            opened: None,
            notice: None,
            lost: None,
            stale_s: 0,
            spans: BTreeMap::new(),
            failures: Vec::new(),
            names: HashMap::new(),
            webhook: None,
            failure: None,
        }
    }

    /// Takes a sample in.
    pub(crate) fn sampled(&mut self, sample: Sample) {
        for span in &sample.spans {
            let known = self.spans.entry(span.key).or_insert(*span);
            // The later look has seen more of a span, but for one that is about to leave the span that is read.
            known.calls = known.calls.max(span.calls);
            known.failed = known.failed.max(span.failed);
        }
        // So many calls that the sample does not reach back to the beginning of the span: the rate stands in for it.
        if sample.covered_s < SPAN_S as f64 {
            let whole = |calls: u64| (calls as f64 * SPAN_S as f64 / sample.covered_s.max(0.1)) as u64;
            let key = (sample.now_s / SPAN_S as f64).floor() as i64 * SPAN_S;
            let now = self.spans.entry(key).or_insert(Span { key, calls: 0, failed: 0 });
            now.calls = now.calls.max(whole(sample.calls));
            now.failed = now.failed.max(whole(sample.failed));
        }
        while self.spans.len() > SPANS_MAX {
            self.spans.pop_first();
        }
        let known: HashSet<i64> = sample.failures.iter().map(|failure| failure.id).collect();
        let older = std::mem::take(&mut self.failures).into_iter().filter(|old| !known.contains(&old.id));
        self.failures = sample.failures.iter().cloned().chain(older).take(FAILURES_MAX).collect();
        self.sample = Some(sample);
        self.lost = None;
        self.stale_s = 0;
    }

    /// Takes names in.
    pub(crate) fn named(&mut self, names: HashMap<i64, Name>) {
        self.names.extend(names);
    }

    /// The last failed calls, the newest first.
    pub(crate) fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// The webhook by its id and its name.
    pub(crate) fn webhook_name(&self, id: i64) -> String {
        whole::webhook(id, self.names.get(&id).map(|name| name.name.as_str()))
    }

    /// Calls, or failed calls, a second: one number for each of the last `count` spans, the newest last. The first spans have
    /// none where the program does not know them.
    pub(crate) fn history(&self, count: usize, failed: bool) -> Vec<u64> {
        let Some(sample) = &self.sample else { return Vec::new() };
        let newest = (sample.now_s / SPAN_S as f64).floor() as i64;
        let of = |span: &Span| if failed { span.failed } else { span.calls };
        let number = |back| self.spans.get(&((newest - back) * SPAN_S)).map_or(0, of);
        (0..i64::try_from(count).unwrap_or(0)).rev().map(number).collect()
    }

    /// Calls and failed calls a second.
    pub(crate) fn rates(&self) -> (f64, f64) {
        let Some(sample) = &self.sample else { return (0.0, 0.0) };
        let rate = |calls: u64| calls as f64 / sample.covered_s.max(0.1);
        (rate(sample.calls), rate(sample.failed))
    }

    /// The rows of the table, filtered and sorted.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let Some(sample) = &self.sample else { return Vec::new() };
        let projects: HashMap<i64, (i64, i64)> = sample
            .projects
            .iter()
            .map(|project| (project.project_id, (project.in_hand, project.waiting)))
            .collect();
        let mut rows: Vec<Row> = sample
            .webhooks
            .iter()
            .map(|webhook| {
                let name = self.names.get(&webhook.webhook_id).cloned().unwrap_or_default();
                let (in_hand, waiting) = projects.get(&webhook.project_id).copied().unwrap_or_default();
                let calls = webhook.calls as f64;
                let kind = webhook.error_kind.as_deref();
                let last_error = kind.map_or_else(String::new, |kind| {
                    let outcome = whole::outcome(Some(kind), webhook.status_code);
                    // The message of a status says no more than the status.
                    match webhook.message.as_deref().filter(|_| kind != "http_status") {
                        Some(message) => format!("{outcome} {message}"),
                        None => outcome,
                    }
                });
                Row {
                    webhook_id: webhook.webhook_id,
                    project_id: webhook.project_id,
                    name: name.name,
                    host: name.host,
                    rate: calls / sample.covered_s.max(0.1),
                    failing: (webhook.calls > 0).then(|| 100.0 * webhook.failed as f64 / calls),
                    p50_s: webhook.p50_s,
                    p95_s: webhook.p95_s,
                    in_hand,
                    waiting,
                    last_error,
                    paused: sample.pauses.iter().any(|pause| {
                        pause.webhook_id == Some(webhook.webhook_id)
                            || pause.project_id == Some(webhook.project_id)
                    }),
                    last_call: webhook.last_call,
                    last_failure: webhook.last_failure,
                }
            })
            .filter(|row| !self.failed_only || row.last_failure.is_some())
            .filter(|row| row.has(&self.filter.to_lowercase()))
            .collect();
        rows.sort_by(|a, b| self.order(a, b));
        rows
    }

    fn order(&self, a: &Row, b: &Row) -> std::cmp::Ordering {
        let number = |a: Option<f64>, b: Option<f64>| a.unwrap_or(-1.0).total_cmp(&b.unwrap_or(-1.0));
        let ordering = match self.sort {
            Column::Webhook => a.name.cmp(&b.name),
            Column::Project => a.project_id.cmp(&b.project_id),
            Column::Host => a.host.cmp(&b.host),
            Column::Rate => a.rate.total_cmp(&b.rate),
            Column::Failing => number(a.failing, b.failing),
            Column::P50 => number(a.p50_s, b.p50_s),
            Column::P95 => number(a.p95_s, b.p95_s),
            Column::InHand => a.in_hand.cmp(&b.in_hand),
            Column::Waiting => a.waiting.cmp(&b.waiting),
            Column::LastError => a.last_error.cmp(&b.last_error),
        };
        let ordering = if self.ascending { ordering } else { ordering.reverse() };
        ordering.then(a.webhook_id.cmp(&b.webhook_id))
    }

    /// Where the chosen row stands; the first one when none is chosen, or it is gone.
    pub(crate) fn chosen_row(&self, rows: &[Row]) -> usize {
        rows.iter().position(|row| Some(row.webhook_id) == self.webhook).unwrap_or(0)
    }

    /// Where the chosen failure stands, as [`State::chosen_row`].
    pub(crate) fn chosen_failure(&self) -> usize {
        self.failures.iter().position(|failure| Some(failure.id) == self.failure).unwrap_or(0)
    }

    /// Takes a key; what the loop is to do about it.
    pub(crate) fn key(&mut self, key: KeyEvent) -> Option<Ask> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Ask::Quit);
        }
        match &self.mode {
            Mode::Filter => {
                self.write(key.code);
                None
            }
            Mode::Confirm { ask, .. } => {
                let ask = *ask;
                self.mode = Mode::List;
                let yes = matches!(key.code, KeyCode::Char('y' | 'Y'));
                self.notice = (!yes).then(|| "nothing was done".into());
                yes.then_some(ask)
            }
            Mode::List => {
                self.notice = None;
                match self.opened {
                    Some(_) => self.key_in_call(key.code),
                    None => self.key_in_lists(key.code),
                }
            }
        }
    }

    fn write(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::List,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::List;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if self.filter.chars().count() < FILTER_MAX => self.filter.push(c),
            _ => {}
        }
    }

    fn key_in_call(&mut self, code: KeyCode) -> Option<Ask> {
        let opened = self.opened.as_mut()?;
        let last = opened.lines.len().saturating_sub(1);
        match code {
            KeyCode::Esc | KeyCode::Enter | KeyCode::Char('q') | KeyCode::Backspace => self.opened = None,
            KeyCode::Up | KeyCode::Char('k') => opened.scroll = opened.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => opened.scroll = (opened.scroll + 1).min(last),
            KeyCode::PageUp => opened.scroll = opened.scroll.saturating_sub(PAGE),
            KeyCode::PageDown | KeyCode::Char(' ') => opened.scroll = (opened.scroll + PAGE).min(last),
            KeyCode::Home => opened.scroll = 0,
            KeyCode::Char('r') => {
                let (id, webhook) = (opened.id, opened.webhook_id);
                self.ask_replay(id, webhook);
            }
            KeyCode::Char('p') => {
                let webhook = opened.webhook_id;
                self.ask_pause(webhook);
            }
            _ => {}
        }
        None
    }

    fn key_in_lists(&mut self, code: KeyCode) -> Option<Ask> {
        match code {
            KeyCode::Char('q') => return Some(Ask::Quit),
            KeyCode::Char('f') => self.failed_only = !self.failed_only,
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Tab => {
                self.focus = match self.focus {
                    Focus::Webhooks => Focus::Failures,
                    Focus::Failures => Focus::Webhooks,
                }
            }
            KeyCode::Left | KeyCode::Char('<') => self.sort = self.sort.next(Column::ALL.len() - 1),
            KeyCode::Right | KeyCode::Char('>') => self.sort = self.sort.next(1),
            KeyCode::Char('o') => self.ascending = !self.ascending,
            KeyCode::Up | KeyCode::Char('k') => self.go(|at| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go(|at| at + 1),
            KeyCode::PageUp => self.go(|at| at.saturating_sub(PAGE)),
            KeyCode::PageDown => self.go(|at| at + PAGE),
            KeyCode::Home => self.go(|_| 0),
            KeyCode::End => self.go(|_| usize::MAX),
            KeyCode::Enter => return self.chosen_call().map(|(call, _)| Ask::Open(call)),
            KeyCode::Char('r') => {
                if let Some((call, webhook)) = self.chosen_call() {
                    self.ask_replay(call, webhook);
                }
            }
            KeyCode::Char('p') => {
                let rows = self.rows();
                let webhook = match self.focus {
                    Focus::Webhooks => rows.get(self.chosen_row(&rows)).map(|row| row.webhook_id),
                    Focus::Failures => self.chosen_call().map(|(_, webhook)| webhook),
                };
                if let Some(webhook) = webhook {
                    self.ask_pause(webhook);
                }
            }
            _ => {}
        }
        None
    }

    /// Chooses another row of the list that has the focus.
    fn go(&mut self, to: impl Fn(usize) -> usize) {
        match self.focus {
            Focus::Webhooks => {
                let rows = self.rows();
                let at = to(self.chosen_row(&rows)).min(rows.len().saturating_sub(1));
                self.webhook = rows.get(at).map(|row| row.webhook_id);
            }
            Focus::Failures => {
                let at = to(self.chosen_failure()).min(self.failures.len().saturating_sub(1));
                self.failure = self.failures.get(at).map(|failure| failure.id);
            }
        }
    }

    /// The chosen call and its webhook: the failure, or the last failure of the chosen webhook, or its last call.
    fn chosen_call(&self) -> Option<(i64, i64)> {
        match self.focus {
            Focus::Failures => {
                self.failures.get(self.chosen_failure()).map(|failure| (failure.id, failure.webhook_id))
            }
            Focus::Webhooks => {
                let rows = self.rows();
                let row = rows.get(self.chosen_row(&rows))?;
                Some((row.last_failure.unwrap_or(row.last_call), row.webhook_id))
            }
        }
    }

    fn ask_replay(&mut self, call: i64, webhook: i64) {
        let question = format!("Repeat call {call} to webhook {}? [y/N]", self.webhook_name(webhook));
        self.mode = Mode::Confirm { ask: Ask::Replay(call), question };
    }

    fn ask_pause(&mut self, webhook: i64) {
        let question = format!("Pause webhook {} until it is resumed? [y/N]", self.webhook_name(webhook));
        self.mode = Mode::Confirm { ask: Ask::Pause(webhook), question };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Three webhooks: a busy one, one that fails, one that was called a while ago.
    fn sample() -> Sample {
        let webhook = |id: i64, calls: i64, failed: i64, failure: Option<i64>| {
            json!({
                "webhook_id": id, "project_id": id * 10, "calls": calls, "failed": failed, "p50_s": 0.01 * id as f64,
                "p95_s": null, "last_call": id * 100, "last_failure": failure, "status_code": 503,
                "error_kind": failure.map(|_| "http_status"), "message": "status 503"
            })
        };
        let failure = |id: i64| {
            json!({"id": id, "webhook_id": 2, "start": "01:02:03", "seconds": 0.1, "status_code": 503,
                   "error_kind": "http_status", "message": "status 503"})
        };
        Sample::of(
            &json!({
                "now": "01:02:03", "now_s": 1002.0, "standby": false, "covered_s": 60.0, "calls": 660, "failed": 30, "pending": 3, "parked": 0,
                "in_hand": 1, "pending_age_s": 1.0, "parked_age_s": null, "instances": [],
                "projects": [{"project_id": 20, "in_hand": 1, "waiting": 2}],
                "spans": [{"key": 1000, "calls": 4, "failed": 1}, {"key": 990, "calls": 6, "failed": 0}],
                "paused": 1, "pauses": [{"webhook_id": null, "project_id": 10}],
                "webhooks": [webhook(1, 600, 0, None), webhook(2, 60, 30, Some(201)), webhook(3, 0, 0, None)],
                "failures": [failure(201), failure(200)]
            })
            .to_string(),
        )
        .expect("a sample")
    }

    fn state() -> State {
        let mut state = State::new("app".into(), true);
        state.sampled(sample());
        let name = |name: &str, host: &str| Name { name: name.into(), host: host.into() };
        state.named(HashMap::from([(1, name("zeta", "a.example")), (2, name("Alpha", "b.example"))]));
        state
    }

    fn press(state: &mut State, keys: &str) -> Option<Ask> {
        let codes = keys.chars().map(|c| match c {
            '⏎' => KeyCode::Enter,
            '⎋' => KeyCode::Esc,
            '⇥' => KeyCode::Tab,
            '↓' => KeyCode::Down,
            '↑' => KeyCode::Up,
            '←' => KeyCode::Left,
            '→' => KeyCode::Right,
            '⌫' => KeyCode::Backspace,
            c => KeyCode::Char(c),
        });
        codes.map(|code| state.key(KeyEvent::new(code, KeyModifiers::NONE))).last().flatten()
    }

    fn ids(state: &State) -> Vec<i64> {
        state.rows().iter().map(|row| row.webhook_id).collect()
    }

    #[test]
    fn rows_have_rates_and_what_waits_and_who_is_paused() {
        let rows = state().rows();
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (row.webhook_id, row.rate, row.failing, row.in_hand, row.waiting, row.paused))
            .collect();
        let expected = [
            (1, 10.0, Some(0.0), 0, 0, true),
            (2, 1.0, Some(50.0), 1, 2, false),
            (3, 0.0, None, 0, 0, false),
        ];
        assert_eq!(shown, expected);
        assert_eq!(rows[1].last_error, "503");
        assert_eq!(state().rates(), (11.0, 0.5));
    }

    #[test]
    fn rows_are_sorted_by_any_column_both_ways() {
        let mut state = state();
        let orders: Vec<Vec<i64>> = Column::ALL
            .iter()
            .map(|column| {
                state.sort = *column;
                ids(&state)
            })
            .collect();
        // By name (descending): zeta, Alpha, none; then by project, host, rate, failing, p50, p95, in hand, waiting, error.
        let expected: [[i64; 3]; 10] = [
            [1, 2, 3],
            [3, 2, 1],
            [2, 1, 3],
            [1, 2, 3],
            [2, 1, 3],
            [3, 2, 1],
            [1, 2, 3],
            [2, 1, 3],
            [2, 1, 3],
            [2, 1, 3],
        ];
        assert_eq!(orders, expected);
        press(&mut state, "o");
        state.sort = Column::Rate;
        assert_eq!(ids(&state), [3, 2, 1]);
        press(&mut state, "→");
        assert_eq!(state.sort, Column::Failing);
        press(&mut state, "←←");
        assert_eq!(state.sort, Column::Host);
        state.sort = Column::LastError;
        press(&mut state, "→");
        assert_eq!(state.sort, Column::Webhook);
    }

    #[test]
    fn rows_are_filtered_by_text_and_by_failure() {
        let mut state = state();
        press(&mut state, "f");
        assert_eq!(ids(&state), [2]);
        press(&mut state, "f/ALPhax⌫");
        assert_eq!((state.filter.as_str(), ids(&state)), ("ALPha", vec![2]));
        press(&mut state, "⏎");
        assert_eq!((&state.mode, ids(&state)), (&Mode::List, vec![2]));
        press(&mut state, "⎋");
        assert_eq!(ids(&state), [1, 2, 3]);
        press(&mut state, "/a.ex");
        assert_eq!(ids(&state), [1], "the host");
        press(&mut state, "q");
        assert_eq!(state.filter, "a.exq", "a letter of the text is no command");
    }

    #[test]
    fn what_is_chosen_stays_chosen_when_the_order_changes() {
        let mut state = state();
        press(&mut state, "↓");
        assert_eq!(state.chosen_row(&state.rows()), 1);
        press(&mut state, "o");
        assert_eq!(state.rows()[state.chosen_row(&state.rows())].webhook_id, 2);
        press(&mut state, "↓↓↓↓");
        assert_eq!(state.chosen_row(&state.rows()), 2, "not beyond the last");
        press(&mut state, "↑↑↑↑");
        assert_eq!(state.chosen_row(&state.rows()), 0);
    }

    #[test]
    fn enter_opens_the_last_failure_or_the_last_call() {
        let mut state = state();
        assert_eq!(press(&mut state, "⏎"), Some(Ask::Open(100)));
        assert_eq!(press(&mut state, "↓⏎"), Some(Ask::Open(201)));
        assert_eq!(press(&mut state, "⇥↓⏎"), Some(Ask::Open(200)), "of the failures the second");
    }

    #[test]
    fn nothing_is_done_without_a_yes() {
        let mut state = state();
        assert_eq!(press(&mut state, "↓r"), None);
        let Mode::Confirm { question, .. } = &state.mode else { panic!("{:?}", state.mode) };
        assert_eq!(question, "Repeat call 201 to webhook 2 Alpha? [y/N]");
        assert_eq!(press(&mut state, "⏎"), None, "Enter is no yes");
        assert_eq!(state.notice.as_deref(), Some("nothing was done"));
        assert_eq!(press(&mut state, "ry"), Some(Ask::Replay(201)));
        assert_eq!(press(&mut state, "pn"), None);
        assert_eq!(press(&mut state, "py"), Some(Ask::Pause(2)));
        assert_eq!(press(&mut state, "⇥↓py"), Some(Ask::Pause(2)));
    }

    #[test]
    fn a_call_that_is_open_scrolls_and_closes() {
        let mut state = state();
        let lines = vec![Line::Text(String::new()); 3];
        state.opened = Some(Opened { id: 201, webhook_id: 2, lines, scroll: 0 });
        press(&mut state, "↓↓↓↓");
        assert_eq!(state.opened.as_ref().map(|opened| opened.scroll), Some(2));
        assert_eq!(press(&mut state, "ry"), Some(Ask::Replay(201)));
        assert_eq!(press(&mut state, "q"), None, "it closes the call, not the program");
        assert!(state.opened.is_none());
        assert_eq!(press(&mut state, "q"), Some(Ask::Quit));
    }

    #[test]
    fn control_c_quits_whatever_the_keys_mean() {
        let mut state = state();
        for keys in ["", "/", "⎋p"] {
            press(&mut state, keys);
            let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
            assert_eq!(state.key(key), Some(Ask::Quit), "{keys}");
        }
    }

    #[test]
    fn the_history_grows_by_what_each_sample_has_seen() {
        let mut state = state();
        assert_eq!(state.history(4, false), [0, 6, 0, 4]);
        assert_eq!(state.history(2, true), [0, 1]);
        let mut later = sample();
        later.now_s = 1006.0;
        later.spans = vec![
            Span { key: 1005, calls: 2, failed: 2 },
            Span { key: 1000, calls: 9, failed: 1 },
            // Most of it is no longer read.
            Span { key: 990, calls: 1, failed: 0 },
        ];
        later.failures[0].id = 300;
        later.failures.truncate(1);
        state.sampled(later);
        assert_eq!(state.history(4, false), [6, 0, 9, 2]);
        let failures: Vec<i64> = state.failures().iter().map(|failure| failure.id).collect();
        assert_eq!(failures, [300, 201, 200]);
    }

    #[test]
    fn where_calls_are_too_many_to_be_read_the_rate_stands_in_for_their_number() {
        let mut many = sample();
        (many.covered_s, many.calls, many.failed) = (0.5, 10_000, 1_000);
        many.spans = vec![Span { key: 1000, calls: 10_000, failed: 1_000 }];
        let mut state = State::new("app".into(), true);
        state.sampled(many);
        assert_eq!((state.history(1, false), state.history(1, true)), (vec![100_000], vec![10_000]));
        assert_eq!(state.rates(), (20_000.0, 2_000.0));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut state = state();
        for round in 0..10 {
            let mut more = sample();
            more.spans = (0..100).map(|n| Span { key: (round * 100 + n) * 5, calls: 1, failed: 0 }).collect();
            for (n, failure) in more.failures.iter_mut().enumerate() {
                failure.id = 1000 + round * 100 + n as i64;
            }
            let first = more.failures[0].clone();
            more.failures.extend((0..50).map(|n| Failure { id: 9000 + round * 100 + n, ..first.clone() }));
            state.sampled(more);
        }
        assert_eq!((state.spans.len(), state.failures.len()), (SPANS_MAX, FAILURES_MAX));
        press(&mut state, "/");
        press(&mut state, &"x".repeat(100));
        assert_eq!(state.filter.len(), FILTER_MAX);
    }
}
