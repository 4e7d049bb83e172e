//! What the commands print: aligned columns and facts, coloured on a terminal, and no foreign character that steers it.

use std::borrow::Cow;
use std::io::{self, Write};

use crate::cli::Color;
use crate::error::{Error, Result};
use crate::telemetry::terminal::{self, escaped};

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";
/// The marks of a fact: also without colours they differ.
pub(crate) const GOOD: &str = "✓";
pub(crate) const BAD: &str = "✗";
/// Between the columns of [`Screen::table`].
pub(crate) const BETWEEN: &str = "  ";
/// Longest text in a column.
const TEXT_MAX: usize = 100;
/// How wide the name of a fact stands.
const NAME_WIDTH: usize = 12;
/// What a fact's text begins behind: its mark, its name, and a blank after each.
const INDENT: usize = 2 + NAME_WIDTH + 1;
/// A text that is wrapped has at least so many characters in a line, however narrow the terminal is.
const WRAP_MIN: usize = 20;

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

    /// With colours as the flag says; with `auto` as [`Screen::of_stdout`] decides.
    pub(crate) fn coloured_as(color: Color) -> Screen {
        let screen = Screen::of_stdout();
        match color {
            Color::Auto => screen,
            Color::Always => Screen { colour: true, ..screen },
            Color::Never => Screen { colour: false, ..screen },
        }
    }

    /// Prints a fact in a line of its own: its mark, its name and its text. The mark is green when the fact is good, and red when
    /// it is bad. The text is wrapped at the terminal's width.
    ///
    /// # Errors
    ///
    /// As [`Screen::line`].
    pub(crate) fn fact(&self, good: Option<bool>, name: &str, text: &str) -> Result<()> {
        let mark = match good {
            Some(true) => self.coloured(GREEN, GOOD),
            Some(false) => self.coloured(RED, BAD),
            None => " ".into(),
        };
        let text = escaped(text);
        let width = self.width.map(|width| width.saturating_sub(INDENT).max(WRAP_MIN));
        let mut lines = wrapped(&text, width).into_iter();
        print(&format!("{mark} {name:<NAME_WIDTH$} {}", lines.next().unwrap_or_default()))?;
        for line in lines {
            print(&format!("{:INDENT$}{line}", ""))?;
        }
        Ok(())
    }

    /// Prints a line, [`escaped`].
    ///
    /// # Errors
    ///
    /// When standard output cannot be written, also because its reader is gone; see [`Error::is_closed_pipe`].
    pub(crate) fn line(&self, text: &str) -> Result<()> {
        print(&escaped(text))
    }

    /// Prints a line of headings, cut to the terminal's width.
    ///
    /// # Errors
    ///
    /// As [`Screen::line`].
    pub(crate) fn heading(&self, text: &str) -> Result<()> {
        print(&self.coloured(BOLD, &self.cut(text)))
    }

    /// Prints a line about something that failed, or about something that did not, cut to the terminal's width.
    ///
    /// # Errors
    ///
    /// As [`Screen::line`].
    pub(crate) fn outcome(&self, failed: bool, text: &str) -> Result<()> {
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

    /// This screen, on which no line is cut.
    pub(crate) fn uncut(self) -> Screen {
        Screen { width: None, ..self }
    }
}

fn print(line: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{line}").map_err(Error::io("writing to standard output"))
}

/// A text in lines of at most so many characters, broken at blanks. A longer word has a line of its own.
fn wrapped(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else { return vec![text.to_owned()] };
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one from the start");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
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
    fn a_fact_is_wrapped_at_blanks() {
        let lines = |text, width| wrapped(text, width).join("|");
        assert_eq!(lines("one two three", Some(7)), "one two|three");
        assert_eq!(lines("one two three", Some(3)), "one|two|three");
        assert_eq!(lines("äö üß", Some(5)), "äö üß");
        assert_eq!(lines("one two three", None), "one two three");
        assert_eq!(lines("", Some(5)), "");
    }

    #[test]
    fn a_line_of_a_table_is_cut_to_the_terminals_width() {
        let screen = |width| Screen { colour: false, width };
        assert_eq!(screen(Some(4)).cut("ääää"), "ääää");
        assert_eq!(screen(Some(4)).cut("äääää"), "äää…");
        assert_eq!(screen(None).cut("äääää"), "äääää");
    }
}
