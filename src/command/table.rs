//! What the commands print: aligned columns, coloured on a terminal, and no foreign character that steers it.

use std::borrow::Cow;
use std::io::{self, Write};

use crate::error::{Error, Result};
use crate::outbox::Logged;
use crate::telemetry::terminal::{self, escaped};

const RED: &str = "\x1b[31m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";
/// Between the columns of [`Screen::table`] and [`Screen::call`].
const BETWEEN: &str = "  ";
/// The columns of a call. Up to the outcome they fit into 80 characters.
const CALL_COLUMNS: [Column; 8] = [
    Column::Left(24),
    Column::Right(8),
    Column::Right(7),
    Column::Right(7),
    Column::Right(6),
    Column::Left(16),
    Column::Left(32),
    Column::Last,
];
/// Longest text in a column.
const TEXT_MAX: usize = 100;

/// Standard output.
pub(crate) struct Screen {
    colour: bool,
    // None where standard output is no terminal.
    width: Option<usize>,
}

impl Screen {
    /// With colours on a terminal that has them; see [`terminal::has_colours`].
    pub(crate) fn of_stdout() -> Screen {
        Screen { colour: terminal::has_colours(&io::stdout()), width: terminal::width(io::stdout()) }
    }

    /// Prints a line, [`escaped`].
    ///
    /// # Errors
    ///
    /// When standard output cannot be written, also because its reader is gone; see [`Error::is_closed_pipe`].
    pub(crate) fn line(&self, text: &str) -> Result<()> {
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

    /// Prints a table. Columns are as wide as what is in them; the last one is not padded.
    ///
    /// # Errors
    ///
    /// As [`Screen::line`].
    pub(crate) fn table(&self, headings: &[&str], rows: &[(bool, Vec<String>)]) -> Result<()> {
        let headings = headings.iter().map(|heading| (*heading).to_owned()).collect::<Vec<_>>();
        let columns = columns_for(std::iter::once(&headings).chain(rows.iter().map(|(_, row)| row)));
        let aligned = |cells: &[String]| {
            aligned(&columns, cells.iter().map(String::as_str), BETWEEN).trim_end().to_owned()
        };
        self.heading(&aligned(&headings))?;
        for (failed, row) in rows {
            self.outcome(*failed, &aligned(row))?;
        }
        Ok(())
    }

    /// Prints the headings of [`Screen::call`].
    ///
    /// # Errors
    ///
    /// As [`Screen::line`].
    pub(crate) fn call_headings(&self) -> Result<()> {
        let headings = ["TIME", "CALL", "WEBHOOK", "PROJECT", "MS", "OUTCOME", "TRACE", "WHAT"];
        self.heading(&aligned(&CALL_COLUMNS, headings, BETWEEN))
    }

    /// Prints a call, in columns of a fixed width: more may follow.
    ///
    /// # Errors
    ///
    /// As [`Screen::line`].
    pub(crate) fn call(&self, call: &Logged) -> Result<()> {
        let mut outcome = match (&call.error_kind, call.status_code) {
            (None, Some(status)) => status.to_string(),
            (None, None) => "ok".into(),
            (Some(kind), Some(status)) => format!("{kind} {status}"),
            (Some(kind), None) => kind.clone(),
        };
        if call.repeated {
            outcome.push_str(" repeated");
        }
        let cells = [
            humantime::format_rfc3339_millis(call.start_time).to_string(),
            call.id.to_string(),
            call.webhook_id.to_string(),
            call.project_id.to_string(),
            format!("{:.0}", call.seconds * 1000.0),
            outcome,
            printable(&call.trace_id),
            printable(call.error_message.as_deref().unwrap_or(&call.url)),
        ];
        let line = aligned(&CALL_COLUMNS, cells.iter().map(String::as_str), BETWEEN);
        self.outcome(call.error_kind.is_some(), &line)
    }
}

fn print(line: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{line}").map_err(Error::io("writing to standard output"))
}

/// A column of a table: how many characters its cells have at least, and at which end the blanks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// The text stands on the left.
    Left(usize),
    /// The text stands on the right, as numbers do.
    Right(usize),
    /// The last column: no blanks.
    Last,
}

/// The cells of one line, each in its column.
pub(crate) fn aligned<'a>(
    columns: &[Column],
    cells: impl IntoIterator<Item = &'a str>,
    between: &str,
) -> String {
    let cell = |(column, cell): (&Column, &str)| match column {
        Column::Left(width) => format!("{cell:<width$}"),
        Column::Right(width) => format!("{cell:>width$}"),
        Column::Last => cell.to_owned(),
    };
    columns.iter().zip(cells).map(cell).collect::<Vec<_>>().join(between)
}

/// Columns as wide as the widest cell of each; as many as the first row has.
pub(crate) fn columns_for<'a>(rows: impl Iterator<Item = &'a Vec<String>>) -> Vec<Column> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        let cells = row.iter().map(|cell| cell.chars().count());
        match widths.is_empty() {
            true => widths = cells.collect(),
            false => widths.iter_mut().zip(cells).for_each(|(width, cell)| *width = cell.max(*width)),
        }
    }
    widths.into_iter().map(Column::Left).collect()
}

/// A foreign text, fit for a column: [`escaped`], and not too long.
pub(crate) fn printable(text: &str) -> String {
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
    fn cells_stand_in_their_columns_however_many_bytes_a_character_has() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let rows = [row(&["A", "B", "C"]), row(&["äöü", "1", ""]), row(&["x", "1234", "y"])];
        let columns = columns_for(rows.iter());
        assert_eq!(columns, [Column::Left(3), Column::Left(4), Column::Left(1)]);
        let line = |at: usize| aligned(&columns, rows[at].iter().map(String::as_str), "|");
        assert_eq!([line(0), line(1), line(2)], ["A  |B   |C", "äöü|1   | ", "x  |1234|y"]);
        let mixed = [Column::Right(3), Column::Left(3), Column::Last];
        assert_eq!(aligned(&mixed, ["1", "a", "b "], " "), "  1 a   b ");
        assert_eq!(aligned(&mixed, ["1234", "abcd", ""], " "), "1234 abcd ", "a long one is not cut");
        assert!(columns_for(std::iter::empty()).is_empty());
    }

    #[test]
    fn a_call_fits_into_eighty_columns_up_to_its_outcome() {
        let cells = ["2026-01-02T03:04:05.678Z", "1", "22", "333", "4", "200", "trace", "https://a.example/"];
        assert_eq!(
            aligned(&CALL_COLUMNS, cells, BETWEEN),
            "2026-01-02T03:04:05.678Z         1       22      333       4  200               trace                             \
             https://a.example/"
        );
    }

    #[test]
    fn a_line_of_a_table_is_cut_to_the_terminals_width() {
        let screen = |width| Screen { colour: false, width };
        assert_eq!(screen(Some(4)).cut("ääää"), "ääää");
        assert_eq!(screen(Some(4)).cut("äääää"), "äää…");
        assert_eq!(screen(None).cut("äääää"), "äääää");
    }
}
