//! Draws the live screen: a function of the state, and of nothing else. Each text that others wrote is escaped here.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Sparkline, Table, TableState, Wrap};

use crate::command::table::{BAD, GOOD};
use crate::command::top::sample::{COUNTED_MAX, Failure, Sample};
use crate::command::top::state::{Column, Focus, Mode, Opened, Row, State};
use crate::command::whole::{self, span};
use crate::telemetry::terminal::escaped;

/// Pending and parked rows that are older are bad, as for `status`.
const PENDING_GOOD_S: f64 = 60.0;
const PARKED_GOOD_S: f64 = 3600.0;
/// What the table has at 80 columns; beyond that the names, hosts and errors get more.
const WIDTH: u16 = 80;
const NAME_WIDTH: u16 = 12;
const HOST_WIDTH: u16 = 11;
/// Most characters that names and hosts get more.
const NAME_MORE: u16 = 20;
const HOST_MORE: u16 = 30;
/// The columns before the sparklines.
const LABEL_WIDTH: u16 = 22;
/// Lines that the failures have: a quarter of the screen, so many at least, the heading included.
const FAILURES_MIN: u16 = 4;

/// Draws all of it.
pub(crate) fn draw(frame: &mut Frame, state: &State) {
    let area = frame.area();
    let [head, middle, foot] =
        Layout::vertical([Constraint::Length(5), Constraint::Fill(1), Constraint::Length(2)]).areas(area);
    draw_head(frame, head, state);
    match &state.opened {
        Some(opened) => draw_call(frame, middle, state, opened),
        None => {
            let failures = (area.height / 4).max(FAILURES_MIN);
            let [table, last] =
                Layout::vertical([Constraint::Fill(1), Constraint::Length(failures)]).areas(middle);
            draw_webhooks(frame, table, state);
            draw_failures(frame, last, state);
        }
    }
    draw_foot(frame, foot, state);
}

/// A foreign text, fit for the terminal.
fn clean(text: &str) -> String {
    escaped(text).into_owned()
}

fn colour(state: &State, colour: Color) -> Style {
    if state.colours { Style::new().fg(colour) } else { Style::new() }
}

fn mark(state: &State, good: bool) -> Span<'static> {
    match good {
        true => Span::styled(format!("{GOOD} "), colour(state, Color::Green)),
        false => Span::styled(format!("{BAD} "), colour(state, Color::Red).add_modifier(Modifier::BOLD)),
    }
}

fn bold(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().add_modifier(Modifier::BOLD))
}

fn draw_head(frame: &mut Frame, area: Rect, state: &State) {
    let [title, instances, calls, failed, queue] = Layout::vertical([Constraint::Length(1); 5]).areas(area);
    let now = state.sample.as_ref().map_or("", |sample| sample.now.as_str());
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(9)]).areas(title);
    frame.render_widget(Line::from(vec![bold(clean(&state.title))]), left);
    frame.render_widget(Line::from(format!("{now}Z")), right);
    let Some(sample) = &state.sample else { return };
    frame.render_widget(running(state, sample), instances);
    let (rate, failing) = state.rates();
    let good = failing * 2.0 <= rate;
    draw_sparkline(frame, calls, (mark(state, good), "calls", rate), state, false);
    draw_sparkline(frame, failed, (Span::raw("  "), "failures", failing), state, true);
    frame.render_widget(waits(state, sample), queue);
}

/// Which instances run.
fn running(state: &State, sample: &Sample) -> Line<'static> {
    if sample.standby {
        return Line::from("  this is a standby: only the primary can tell which instances run");
    }
    let mut spans = vec![mark(state, !sample.instances.is_empty())];
    match sample.instances.len() {
        0 => spans.push(bold("no instance runs: nothing is delivered")),
        1 => spans.push(Span::raw("1 instance: ")),
        count => spans.push(Span::raw(format!("{count} instances: "))),
    }
    let one = |instance: &super::sample::Instance| {
        let (host, version) = (clean(&instance.host), clean(&instance.version));
        format!("{host}:{} {version} up {}", instance.pid, span(instance.age_s))
    };
    spans.push(Span::raw(sample.instances.iter().map(one).collect::<Vec<_>>().join(", ")));
    Line::from(spans)
}

fn draw_sparkline(
    frame: &mut Frame,
    area: Rect,
    (mark, name, rate): (Span<'static>, &str, f64),
    state: &State,
    failed: bool,
) {
    let [label, line] =
        Layout::horizontal([Constraint::Length(LABEL_WIDTH), Constraint::Fill(1)]).areas(area);
    frame.render_widget(Line::from(vec![mark, Span::raw(format!("{name:<9}{:>7}/s", number(rate)))]), label);
    let style = colour(state, if failed { Color::Red } else { Color::Green });
    // Both have one scale, so that the eye can compare them.
    let calls = state.history(line.width.into(), false);
    let most = calls.iter().copied().max().unwrap_or(0).max(1);
    let data = if failed { state.history(line.width.into(), true) } else { calls };
    frame.render_widget(Sparkline::default().data(data).max(most).style(style), line);
}

/// What waits, and who is paused.
fn waits(state: &State, sample: &Sample) -> Line<'static> {
    let is_old = |age: Option<f64>, good| age.is_some_and(|age| age > good);
    let good = !is_old(sample.pending_age_s, PENDING_GOOD_S) && !is_old(sample.parked_age_s, PARKED_GOOD_S);
    let counted =
        |count: i64| if count >= COUNTED_MAX { format!("{count} or more") } else { count.to_string() };
    let age = |age: Option<f64>| age.map(|age| format!(", oldest {}", span(age))).unwrap_or_default();
    let mut text = format!("{} pending{}", counted(sample.pending), age(sample.pending_age_s));
    text += &format!(" | {} parked{}", counted(sample.parked), age(sample.parked_age_s));
    text += &format!(" | {} in hand", sample.in_hand);
    if sample.paused > 0 {
        text += &format!(" | {} paused", sample.paused);
    }
    Line::from(vec![mark(state, good), Span::raw(text)])
}

/// A rate in five characters at most, up to 99,999.
fn number(rate: f64) -> String {
    if rate < 99.95 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// A duration without a blank.
fn short(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".into(), |seconds| span(seconds).replace(' ', ""))
}

fn heading(state: &State, column: Column) -> String {
    let text = match column {
        Column::Webhook => "WEBHOOK",
        Column::Project => "PROJ",
        Column::Host => "HOST",
        Column::Rate => "CALL/S",
        Column::Failing => "FAIL",
        Column::P50 => "P50",
        Column::P95 => "P95",
        Column::InHand => "HAND",
        Column::Waiting => "WAIT",
        Column::LastError => "LAST ERROR",
    };
    let arrow = if state.ascending { '▲' } else { '▼' };
    if column == state.sort { format!("{arrow}{text}") } else { text.to_owned() }
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Text::from(text).right_aligned())
}

fn draw_webhooks(frame: &mut Frame, area: Rect, state: &State) {
    let rows = state.rows();
    let more = area.width.saturating_sub(WIDTH);
    let widths = [
        Constraint::Length(NAME_WIDTH + (more / 4).min(NAME_MORE)),
        Constraint::Length(5),
        Constraint::Length(HOST_WIDTH + (more / 4).min(HOST_MORE)),
        Constraint::Length(7),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Fill(1),
    ];
    let is_number = |column: &Column| !matches!(column, Column::Webhook | Column::Host | Column::LastError);
    let cells = Column::ALL.iter().map(|column| {
        let text = heading(state, *column);
        if is_number(column) { right(text) } else { Cell::from(text) }
    });
    let header = TableRow::new(cells).style(Style::new().add_modifier(Modifier::BOLD));
    let chosen = state.chosen_row(&rows);
    let shown: Vec<TableRow> = rows.iter().map(|row| webhook(state, row)).collect();
    let table = list(shown, widths, header, state.focus == Focus::Webhooks);
    let mut at = TableState::new().with_selected((!rows.is_empty()).then_some(chosen));
    frame.render_stateful_widget(table, area, &mut at);
    if rows.is_empty() && area.height > 1 {
        let text = match (state.filter.is_empty(), state.failed_only) {
            (true, false) => "no calls in the last 15 minutes",
            (true, true) => "no failed calls in the last 15 minutes; f shows all webhooks",
            (false, _) => "no webhook has the text of the filter; Esc clears it",
        };
        frame.render_widget(Line::from(text), Rect { y: area.y + 1, height: 1, ..area });
    }
}

fn list<'a, const N: usize>(
    rows: Vec<TableRow<'a>>,
    widths: [Constraint; N],
    header: TableRow<'a>,
    has_focus: bool,
) -> Table<'a> {
    let chosen = if has_focus { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
    Table::new(rows, widths).header(header).column_spacing(1).row_highlight_style(chosen)
}

fn webhook(state: &State, row: &Row) -> TableRow<'static> {
    let name = clean(&whole::webhook(row.webhook_id, Some(&row.name)));
    let name = if row.paused { format!("‖{name}") } else { name };
    let style = match row.failing {
        Some(failing) if failing > 50.0 => colour(state, Color::Red),
        Some(failing) if failing > 0.0 => colour(state, Color::Yellow),
        _ => Style::new(),
    };
    TableRow::new([
        Cell::from(name),
        right(row.project_id.to_string()),
        Cell::from(clean(&row.host)),
        right(number(row.rate)),
        right(row.failing.map_or_else(|| "-".into(), |failing| format!("{failing:.0}%"))),
        right(short(row.p50_s)),
        right(short(row.p95_s)),
        right(row.in_hand.to_string()),
        right(row.waiting.to_string()),
        Cell::from(clean(&row.last_error)),
    ])
    .style(style)
}

fn draw_failures(frame: &mut Frame, area: Rect, state: &State) {
    let widths = [
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(20),
        Constraint::Length(7),
        Constraint::Length(15),
        Constraint::Fill(1),
    ];
    let header = TableRow::new(["FAILED", "CALL", "WEBHOOK", "TOOK", "OUTCOME", "MESSAGE"])
        .style(Style::new().add_modifier(Modifier::BOLD));
    let row = |failure: &Failure| {
        TableRow::new([
            Cell::from(failure.start.clone()),
            Cell::from(failure.id.to_string()),
            Cell::from(clean(&state.webhook_name(failure.webhook_id))),
            Cell::from(short(Some(failure.seconds))),
            Cell::from(clean(&whole::outcome(failure.error_kind.as_deref(), failure.status_code))),
            Cell::from(clean(failure.message.as_deref().unwrap_or_default())),
        ])
    };
    let rows: Vec<TableRow> = state.failures().iter().map(row).collect();
    let chosen = (!rows.is_empty()).then(|| state.chosen_failure());
    let table = list(rows, widths, header, state.focus == Focus::Failures);
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(chosen));
}

fn draw_call(frame: &mut Frame, area: Rect, state: &State, opened: &Opened) {
    let line = |line: &whole::Line| match line {
        whole::Line::Fact(good, name, text) => {
            let mark = good.map_or_else(|| Span::raw("  "), |good| mark(state, good));
            Line::from(vec![mark, Span::raw(format!("{name:<12} {}", clean(text)))])
        }
        whole::Line::Heading(text) => Line::from(bold(text.clone())),
        whole::Line::Text(text) => Line::from(format!("  {}", clean(text))),
    };
    // Only what may be on the screen: a body may have a great many lines.
    let shown = opened.lines.iter().skip(opened.scroll).take(area.height.into());
    let text: Vec<Line> = shown.map(line).collect();
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), area);
}

fn draw_foot(frame: &mut Frame, area: Rect, state: &State) {
    let [notice, keys] = Layout::vertical([Constraint::Length(1); 2]).areas(area);
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    let told = match (&state.lost, &state.mode, &state.notice) {
        (_, Mode::Confirm { question, .. }, _) => Line::styled(clean(question), reversed),
        (Some(why), ..) => {
            let text = format!("what you see is {} s old: {}", state.stale_s, clean(why));
            Line::styled(text, colour(state, Color::Red).add_modifier(Modifier::REVERSED))
        }
        (None, Mode::Filter, _) => {
            Line::from(vec![bold("filter: "), Span::raw(clean(&state.filter)), bold("_")])
        }
        (None, _, Some(text)) => Line::styled(clean(text), reversed),
        _ if !state.filter.is_empty() => Line::from(format!("filter: {}", clean(&state.filter))),
        _ => Line::default(),
    };
    frame.render_widget(told, notice);
    let help = match (&state.mode, &state.opened) {
        (Mode::Filter, _) => "Enter keep  Esc clear",
        (Mode::Confirm { .. }, _) => "y yes  any other key no",
        (_, Some(_)) => "↑↓ scroll  r replay  p pause webhook  Esc back",
        _ => "q quit ↑↓ Tab Enter open  ←→ sort  o order f failed / filter r replay p pause",
    };
    frame.render_widget(Line::styled(help, Style::new().add_modifier(Modifier::DIM)), keys);
}
