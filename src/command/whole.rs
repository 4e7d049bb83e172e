//! One call whole, in lines for people: `call`, `send-test` and `top` show it. Reads nothing and prints nothing.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::command::table::Screen;
use crate::error::{Error, Result};
use crate::outbox::{Repeat, Store, Whole};

/// A call as the log has it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Call {
    pub(crate) id: i64,
    pub(crate) webhook_id: i64,
    pub(crate) error_kind: Option<String>,
    outbox_id: i64,
    project_id: i64,
    trace_id: String,
    url: String,
    request_headers: Map<String, Value>,
    request_body: String,
    status_code: Option<i32>,
    response_headers: Option<Map<String, Value>>,
    response_body: Option<String>,
    response_bytes: i64,
    response_truncated: bool,
    start_time: String,
    end_time: String,
    error_message: Option<String>,
    succeeded: bool,
    repeated: bool,
    remote_addr: Option<String>,
    event_id: String,
}

impl Call {
    /// From all columns of the log as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] when these are not the columns.
    pub(crate) fn of(json: &str) -> Result<Call> {
        serde_json::from_str(json).map_err(|error| Error::Failed(format!("reading a call: {error}")))
    }

    /// The status, or the kind of the failure when there is none.
    fn outcome(&self) -> String {
        let (kind, status) = (self.error_kind.as_deref(), self.status_code);
        let outcome = outcome(kind, status);
        if self.repeated { format!("{outcome}, repeated") } else { outcome }
    }
}

/// What is known besides of a call: the webhook's name, and the calls for the same event and webhook.
#[derive(Clone, Debug, Default)]
pub(crate) struct Related {
    /// Of the webhook; none when it is gone, or its name cannot be read.
    pub(crate) name: Option<String>,
    /// The call that it repeats, and what came of that; without the latter when the log has it no more.
    pub(crate) repeats: Option<(i64, Option<String>)>,
    /// Calls that repeated it, or repeated one of these, the oldest first.
    pub(crate) repeated_by: Vec<Repeat>,
    /// Outbox rows that are about to do so.
    pub(crate) pending: Vec<i64>,
}

impl Related {
    /// Reads what belongs to a call.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub(crate) async fn of(store: &Store, call: &Whole) -> Result<Related> {
        let (now, _) = store.clock().await?;
        let names = store.webhook_names(&[call.webhook_id]).await?;
        let repeats = match call.replay_of {
            None => None,
            Some(id) => {
                let before = store.call(id).await?.map(|before| Call::of(&before.json)).transpose()?;
                Some((id, before.map(|before| before.outcome())))
            }
        };
        let (repeated_by, pending) = store.repeats(call, now).await?;
        let name = names.into_values().next().map(|named| named.name).filter(|name| !name.is_empty());
        Ok(Related { name, repeats, repeated_by, pending })
    }
}

/// A line about a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Whether it is good, its name, the text.
    Fact(Option<bool>, &'static str, String),
    /// What the next lines are.
    Heading(String),
    /// A line of headers or of a body.
    Text(String),
}

/// How much of each body is shown: lines, and characters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    /// Lines.
    pub(crate) lines: usize,
    /// Characters in all of these lines.
    pub(crate) characters: usize,
}

impl Most {
    /// All of it.
    pub(crate) const ALL: Most = Most { lines: usize::MAX, characters: usize::MAX };
    /// What shows how a body begins.
    pub(crate) const BEGINNING: Most = Most { lines: 10, characters: 1000 };
}

/// What came of a call, in a word or two: `200`, `503`, `timeout`, `timeout 200`.
pub(crate) fn outcome(kind: Option<&str>, status: Option<i32>) -> String {
    match (kind, status) {
        (None | Some("http_status"), Some(status)) => status.to_string(),
        (None, None) => "ok".into(),
        (Some(kind), Some(status)) => format!("{kind} {status}"),
        (Some(kind), None) => kind.to_owned(),
    }
}

/// A duration as people read it: `12 ms`, `1.5 s`, `3 min`, `2 h`, `4 d`.
pub(crate) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 0.9995 => format!("{:.0} ms", s.max(0.0) * 1000.0),
        s if s < 99.5 => format!("{s:.1} s"),
        s if s < 99.5 * 60.0 => format!("{:.0} min", s / 60.0),
        s if s < 99.5 * 3600.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86400.0),
    }
}

/// A time of Postgres' JSON, which is UTC in our sessions.
fn time(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(&text.replace("+00:00", "Z")).ok()
}

/// A time of Postgres' JSON as all commands write it: `2026-01-02T03:04:05Z`.
pub(crate) fn shown_time(text: &str) -> String {
    time(text).map_or_else(|| text.to_owned(), |time| humantime::format_rfc3339_seconds(time).to_string())
}

/// The webhook by its id, and by its name if that is known.
pub(crate) fn webhook(id: i64, name: Option<&str>) -> String {
    match name {
        Some(name) if !name.is_empty() => format!("{id} {name}"),
        _ => id.to_string(),
    }
}

/// The call in lines. The texts are as the log has them: the caller escapes them.
pub(crate) fn lines(call: &Call, related: &Related, most: Most) -> Vec<Line> {
    let fact = |name, text: String| Line::Fact(None, name, text);
    let took = match (time(&call.start_time), time(&call.end_time)) {
        (Some(start), Some(end)) => end.duration_since(start).unwrap_or(Duration::ZERO).as_secs_f64(),
        _ => 0.0,
    };
    let outcome = format!("{} after {}", call.outcome(), span(took));
    let mut lines =
        vec![fact("call", call.id.to_string()), Line::Fact(Some(call.succeeded), "outcome", outcome)];
    if let Some(message) = &call.error_message {
        lines.push(fact("message", message.clone()));
    }
    let name = webhook(call.webhook_id, related.name.as_deref());
    lines.extend([
        fact("webhook", format!("{name}, of project {}", call.project_id)),
        fact("url", call.url.clone()),
        fact("started", millis(&call.start_time)),
        fact("ended", millis(&call.end_time)),
        fact("connected to", call.remote_addr.clone().unwrap_or_else(|| "nothing".into())),
        fact("outbox row", call.outbox_id.to_string()),
        fact("event", call.event_id.clone()),
        fact("trace", call.trace_id.clone()),
    ]);
    if call.repeated {
        let text = "an instance that died had the row in hand: the receiver may have seen this call before";
        lines.push(fact("repeated", text.into()));
    }
    lines.push(fact(
        "repeats",
        match &related.repeats {
            None => "no call".into(),
            Some((id, None)) => format!("call {id}, which the log has no more"),
            Some((id, Some(outcome))) => format!("call {id} ({outcome})"),
        },
    ));
    let repeated = related.repeated_by.iter().map(|repeat| {
        let start = humantime::format_rfc3339_seconds(repeat.start_time);
        format!(
            "call {} ({}) at {start}",
            repeat.id,
            self::outcome(repeat.error_kind.as_deref(), repeat.status_code)
        )
    });
    let pending = related.pending.iter().map(|row| format!("outbox row {row}, which is not done yet"));
    let repeated: Vec<String> = repeated.chain(pending).collect();
    if repeated.is_empty() {
        lines.push(fact("repeated by", "no call".into()));
    }
    lines.extend(repeated.into_iter().map(|text| fact("repeated by", text)));
    lines.push(Line::Heading("Request".into()));
    lines.extend(headers(&call.request_headers));
    lines.extend(body(&call.request_body, most));
    match (&call.response_headers, &call.response_body) {
        (None, None) => lines.push(Line::Heading("No answer".into())),
        (headers, text) => {
            let cut = if call.response_truncated { ", cut" } else { "" };
            lines.push(Line::Heading(format!("Answer, {} bytes of body{cut}", call.response_bytes)));
            lines.extend(headers.iter().flat_map(self::headers));
            lines.extend(text.iter().flat_map(|text| body(text, most)));
        }
    }
    lines
}

fn millis(text: &str) -> String {
    time(text).map_or_else(|| text.to_owned(), |time| humantime::format_rfc3339_millis(time).to_string())
}

fn headers(headers: &Map<String, Value>) -> Vec<Line> {
    let one = |name: &str, value: &Value| match value {
        Value::String(value) => Line::Text(format!("{name}: {value}")),
        other => Line::Text(format!("{name}: {other}")),
    };
    headers
        .iter()
        .flat_map(|(name, value)| match value {
            Value::Array(values) => values.iter().map(|value| one(name, value)).collect(),
            value => vec![one(name, value)],
        })
        .collect()
}

/// An empty line, and the body's lines.
fn body(text: &str, most: Most) -> Vec<Line> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut left = most.characters;
    let mut lines = vec![Line::Text(String::new())];
    let mut is_whole = true;
    for (number, line) in text.lines().enumerate() {
        if number == most.lines || left == 0 {
            is_whole = false;
            break;
        }
        let shown: String = line.chars().take(left).collect();
        is_whole = shown.len() == line.len();
        left -= shown.chars().count();
        lines.push(Line::Text(shown));
    }
    if !is_whole {
        lines.push(Line::Text("…".into()));
    }
    lines
}

/// Prints the lines.
///
/// # Errors
///
/// As [`Screen::line`].
pub(crate) fn print(screen: &Screen, lines: &[Line]) -> Result<()> {
    for line in lines {
        match line {
            Line::Fact(good, name, text) => screen.fact(*good, name, text)?,
            Line::Heading(text) => {
                screen.line("")?;
                screen.heading(text)?;
            }
            Line::Text(text) if text.is_empty() => screen.line("")?,
            Line::Text(text) => screen.line(&format!("  {text}"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"id": 7, "webhook_id": 2, "error_kind": "http_status", "outbox_id": 3, "project_id": 4,
        "trace_id": "t", "url": "http://a.example/", "request_headers": {"a": "1", "b": ["2", "3"]}, "request_body": "{}",
        "status_code": 503, "response_headers": {"c": "4"}, "response_body": "one\ntwo", "response_bytes": 7,
        "response_truncated": true, "start_time": "2026-01-02T03:04:05.25+00:00", "end_time": "2026-01-02T03:04:06.5+00:00",
        "error_message": "status 503", "succeeded": false, "repeated": false, "remote_addr": null, "event_id": "e"}"#;

    fn shown(related: &Related, most: Most) -> Vec<String> {
        let line = |line: &Line| match line {
            Line::Fact(good, name, text) => format!("{good:?} {name}: {text}"),
            Line::Heading(text) => format!("# {text}"),
            Line::Text(text) => text.clone(),
        };
        lines(&Call::of(JSON).expect("a call"), related, most).iter().map(line).collect()
    }

    #[test]
    fn a_call_is_told_whole() {
        let lines = shown(&Related::default(), Most::ALL);
        for wanted in [
            "Some(false) outcome: 503 after 1.2 s",
            "None message: status 503",
            "None webhook: 2, of project 4",
            "None started: 2026-01-02T03:04:05.250Z",
            "None repeats: no call",
            "None repeated by: no call",
            "b: 2",
            "b: 3",
            "# Answer, 7 bytes of body, cut",
            "c: 4",
            "two",
        ] {
            assert!(lines.iter().any(|line| line == wanted), "{wanted}: {lines:#?}");
        }
    }

    #[test]
    fn its_repeats_are_told() {
        let repeat = Repeat {
            id: 9,
            start_time: SystemTime::UNIX_EPOCH,
            replay_of: Some(7),
            status_code: Some(200),
            error_kind: None,
        };
        let related = Related {
            name: Some("orders".into()),
            repeats: Some((5, Some("timeout".into()))),
            repeated_by: vec![repeat],
            pending: vec![11],
        };
        let lines = shown(&related, Most::ALL);
        for wanted in [
            "None webhook: 2 orders, of project 4",
            "None repeats: call 5 (timeout)",
            "None repeated by: call 9 (200) at 1970-01-01T00:00:00Z",
            "None repeated by: outbox row 11, which is not done yet",
        ] {
            assert!(lines.iter().any(|line| line == wanted), "{wanted}: {lines:#?}");
        }
    }

    #[test]
    fn a_long_body_is_cut_and_says_so() {
        let text = |most| {
            body("one\ntwo\nthree", most)
                .iter()
                .map(|line| match line {
                    Line::Text(text) => text.clone(),
                    other => panic!("{other:?}"),
                })
                .collect::<Vec<_>>()
                .join("|")
        };
        assert_eq!(text(Most::ALL), "|one|two|three");
        assert_eq!(text(Most { lines: 2, characters: 100 }), "|one|two|…");
        assert_eq!(text(Most { lines: 9, characters: 5 }), "|one|tw|…");
        assert_eq!(text(Most { lines: 9, characters: 6 }), "|one|two|…");
    }

    #[test]
    fn spans_and_outcomes_are_short() {
        let spans = [0.0, 0.0123, 0.9999, 12.34, 600.0, 36_000.0, 864_000.0].map(span);
        assert_eq!(spans, ["0 ms", "12 ms", "1.0 s", "12.3 s", "10 min", "10 h", "10 d"]);
        assert_eq!(outcome(Some("http_status"), Some(503)), "503");
        assert_eq!(outcome(Some("timeout"), Some(200)), "timeout 200");
        assert_eq!(outcome(Some("dns"), None), "dns");
        assert_eq!(outcome(None, Some(204)), "204");
        assert_eq!(shown_time("2026-01-02T03:04:05.678901+00:00"), "2026-01-02T03:04:05Z");
    }
}
