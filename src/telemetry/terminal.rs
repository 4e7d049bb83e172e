//! Whether and how a terminal is written to: its colours and its width, and what of a foreign text may reach it.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write;
use std::io::IsTerminal;
use std::os::fd::AsFd;

/// Whether to write colours to a stream: to a terminal that has them by its `TERM`, unless `NO_COLOR` is set
/// (<https://no-color.org>).
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    stream.is_terminal() && are_wanted(&variable("TERM"), &variable("NO_COLOR"))
}

fn are_wanted(term: &OsStr, no_color: &OsStr) -> bool {
    !term.is_empty() && term != "dumb" && no_color.is_empty()
}

/// How many characters a line of a terminal may have; none when the stream is no terminal.
pub(crate) fn width(stream: impl AsFd) -> Option<usize> {
    terminal_size::terminal_size_of(stream).map(|(width, _)| width.0.into())
}

/// A foreign text, fit for a terminal and for the journal. Each character that steers a terminal or deceives its reader
/// is written as JSON writes it (`\u001b`), one beyond U+FFFF as two. JSON stays JSON and means the same: such characters
/// stand in its strings only.
///
/// Each text that is printed or logged passes here where it is written, and only there. The places are standard output in
/// `command::table`, the screen of `top` in `command::top::screen`, the last line in `main`, the lines of the log in [`crate::telemetry::logging`], systemd's status, `/healthz`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(deceives) {
        return text.into();
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if deceives(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(clean, "\\u{unit:04x}").expect("writing to a string cannot fail");
            }
        } else {
            clean.push(c);
        }
    }
    clean.into()
}

/// Control characters (C0, DEL, C1) move the cursor, recolour the screen and begin new lines; the others end a line, turn
/// the direction of writing, or are not seen. The two joiners (U+200C, U+200D) stay: Persian and emoji need them.
fn deceives(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Soft hyphen, Arabic letter mark, Mongolian vowel separator, zero-width space.
            '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'
            // Direction marks; line and paragraph separators, embeddings and overrides.
            | '\u{200E}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            // Invisible operators, isolates, deprecated format characters; byte order mark, annotations.
            | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
            // Shorthand and musical format characters; tags, which carry invisible text.
            | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E007F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_does_not_steer_a_terminal_and_stays_the_same_json() {
        for (text, expected) in [
            ("gr\u{f6}\u{df}e \u{200d} \u{645}\u{6cc}\u{200c}\u{62e} \u{1f600} \\ \"", None),
            ("\u{1b}[2J\u{7f}\u{9b}1m\r\n", Some(r"\u001b[2J\u007f\u009b1m\u000d\u000a")),
            ("a\u{202e}b\u{2028}c\u{2029}d\u{61c}", Some(r"a\u202eb\u2028c\u2029d\u061c")),
            ("\u{e0041}\u{feff}\u{2066}\u{200b}", Some(r"\udb40\udc41\ufeff\u2066\u200b")),
        ] {
            assert_eq!(escaped(text), expected.unwrap_or(text), "{text:?}");
            // As Postgres writes it: of the control characters only the first 32 are escaped.
            let json = serde_json::to_string(text).expect("a text");
            let back: String = serde_json::from_str(&escaped(&json)).expect("still JSON");
            assert_eq!(back, text);
        }
    }

    #[test]
    fn colours_are_for_terminals_that_have_them_and_people_who_want_them() {
        for (term, no_color, expected) in [
            ("xterm-256color", "", true),
            ("xterm-256color", "1", false),
            ("dumb", "", false),
            ("", "", false),
        ] {
            assert_eq!(are_wanted(term.as_ref(), no_color.as_ref()), expected, "{term} {no_color}");
        }
    }
}
