//! Whether and how a terminal is written to: its colours and its width.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::fd::AsFd;

/// Whether to write colours there: to a terminal that has them by its `TERM`, unless `NO_COLOR` is set
/// (<https://no-color.org>).
pub fn has_colours(stream: &impl IsTerminal) -> bool {
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    stream.is_terminal() && are_wanted(&variable("TERM"), &variable("NO_COLOR"))
}

fn are_wanted(term: &OsStr, no_color: &OsStr) -> bool {
    !term.is_empty() && term != "dumb" && no_color.is_empty()
}

/// How many characters a line may have there; none when it is no terminal.
pub fn width(stream: impl AsFd) -> Option<usize> {
    terminal_size::terminal_size_of(stream).map(|(width, _)| width.0.into())
}

#[cfg(test)]
mod tests {
    use super::*;

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
