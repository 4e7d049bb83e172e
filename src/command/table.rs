//! What the commands print: aligned columns, coloured on a terminal, and never a character of somebody else's that steers
//! it.

use std::borrow::Cow;
use std::io::{self, Write};

use crate::error::{Error, Result};
use crate::outbox::Logged;
use crate::telemetry::terminal::{self, escaped};

const RED: &str = "\x1b[31m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";
/// Longest text in a column.
const TEXT_MAX: usize = 100;

/// Standard output.
pub struct Screen {
    colour: bool,
    // Of a terminal.
    width: Option<usize>,
}

impl Screen {
    /// With colours on a terminal that has them; see [`terminal::has_colours`].
    pub fn of_stdout() -> Screen {
        Screen { colour: terminal::has_colours(&io::stdout()), width: terminal::width(io::stdout()) }
    }

    /// Prints a line, [`escaped`].
    ///
    /// # Errors
    ///
    /// When nobody reads any more, too; see [`Error::is_closed_pipe`].
    pub fn line(&self, text: &str) -> Result<()> {
        print(&escaped(text))
    }

    /// A table's line of headings, cut to the terminal's width.
    fn heading(&self, text: &str) -> Result<()> {
        print(&self.coloured(BOLD, &self.cut(text)))
    }

    /// A table's line about something that failed, or about something that did not, cut to the terminal's width.
    fn outcome(&self, failed: bool, text: &str) -> Result<()> {
        let text = escaped(text);
        let text = self.cut(&text);
        if failed { print(&self.coloured(RED, &text)) } else { print(&text) }
    }

    fn cut<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.width {
            Some(width) if text.chars().count() > width => {
                text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
            }
            _ => text.into(),
        }
    }

    fn coloured(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }

    /// A table. Columns are as wide as what is in them; the last one is not padded.
    pub fn table(&self, headings: &[&str], rows: &[(bool, Vec<String>)]) -> Result<()> {
        let width = |column: usize| {
            let cells = rows.iter().map(|(_, row)| row[column].chars().count());
            cells.chain([headings[column].len()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        let aligned = |cells: &mut dyn Iterator<Item = &str>| {
            let line: String = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
            line.trim_end().to_owned()
        };
        self.heading(&aligned(&mut headings.iter().copied()))?;
        for (failed, row) in rows {
            self.outcome(*failed, &aligned(&mut row.iter().map(String::as_str)))?;
        }
        Ok(())
    }

    /// The headings of [`Screen::call`].
    pub fn call_headings(&self) -> Result<()> {
        self.heading(&call_line("TIME", "CALL", "WEBHOOK", "PROJECT", "MS", "OUTCOME", "TRACE", "WHAT"))
    }

    /// A call, in columns of a fixed width: more may follow.
    pub fn call(&self, call: &Logged) -> Result<()> {
        let mut outcome = match (&call.error_kind, call.status_code) {
            (None, Some(status)) => status.to_string(),
            (None, None) => "ok".into(),
            (Some(kind), Some(status)) => format!("{kind} {status}"),
            (Some(kind), None) => kind.clone(),
        };
        if call.repeated {
            outcome.push_str(" repeated");
        }
        let what = call.error_message.as_deref().unwrap_or(&call.url);
        let line = call_line(
            &humantime::format_rfc3339_millis(call.start_time).to_string(),
            &call.id.to_string(),
            &call.webhook_id.to_string(),
            &call.project_id.to_string(),
            &format!("{:.0}", call.seconds * 1000.0),
            &outcome,
            &printable(&call.trace_id),
            &printable(what),
        );
        self.outcome(call.error_kind.is_some(), &line)
    }
}

fn print(line: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{line}").map_err(Error::io("writing to standard output"))
}

#[expect(clippy::too_many_arguments, reason = "the columns of a line")]
fn call_line(
    time: &str,
    id: &str,
    webhook: &str,
    project: &str,
    ms: &str,
    outcome: &str,
    trace: &str,
    what: &str,
) -> String {
    // Up to the outcome it fits into 80 columns.
    format!("{time:<24}  {id:>8}  {webhook:>7}  {project:>7}  {ms:>6}  {outcome:<16}  {trace:<32}  {what}")
}

/// A text that others wrote, fit for a column: [`escaped`], and not too long.
pub fn printable(text: &str) -> String {
    let mut short: String = text.chars().take(TEXT_MAX).collect();
    if text.chars().nth(TEXT_MAX).is_some() {
        short.push('…');
    }
    escaped(&short).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_escaped_and_not_too_long() {
        assert_eq!(printable("a\x1b[2Jb\r\u{2028}"), r"a\u001b[2Jb\u000d\u2028");
        assert_eq!(printable(&"ä".repeat(200)).chars().count(), TEXT_MAX + 1);
    }

    #[test]
    fn a_line_of_a_table_is_cut_to_the_terminals_width() {
        let screen = |width| Screen { colour: false, width };
        assert_eq!(screen(Some(4)).cut("ääää"), "ääää");
        assert_eq!(screen(Some(4)).cut("äääää"), "äää…");
        assert_eq!(screen(None).cut("äääää"), "äääää");
    }
}
