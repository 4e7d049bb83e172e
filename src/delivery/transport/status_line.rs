//! The status line of an answer: what counts as one of HTTP/1, and its status. Pure.

/// A status line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatusLine {
    /// The status.
    pub code: u16,
    /// It is of HTTP/1.0.
    pub old: bool,
}

/// What the beginning of a head is.
pub(crate) enum First {
    /// No status line of HTTP/1.
    Not,
    /// The beginning of one.
    Part,
    /// A whole one.
    Whole(StatusLine),
}

impl StatusLine {
    /// Whether another answer follows this one. After 101 none does.
    pub(crate) fn is_interim(self) -> bool {
        self.code < 200 && self.code != 101
    }
}

/// The status line at the beginning of a head. The first `seen` bytes have no line end.
pub(crate) fn status_line(head: &[u8], seen: usize) -> First {
    const NAME: &[u8] = b"HTTP/1";
    let known = head.len().min(NAME.len());
    if !head[..known].eq_ignore_ascii_case(&NAME[..known]) {
        return First::Not;
    }
    let (mut rest, mut old) = (&head[known..], false);
    if let [b'.', after @ ..] = rest {
        match after.first() {
            None => return First::Part,
            Some(minor) if minor.is_ascii_digit() => (rest, old) = (&after[1..], *minor == b'0'),
            Some(_) => return First::Not,
        }
    }
    let blanks = rest.iter().take_while(|byte| is_blank(byte)).count();
    if blanks == rest.len() {
        return First::Part;
    }
    let rest = &rest[blanks..];
    let digits = rest.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    match rest.get(digits) {
        None if digits < 4 => return First::Part,
        Some(next) if digits == 3 && blanks > 0 && !next.is_ascii_alphanumeric() => {}
        _ => return First::Not,
    }
    let code = rest[..3].iter().fold(0, |code, digit| 10 * code + u16::from(digit - b'0'));
    if code < 100 {
        return First::Not;
    }
    match head[seen.min(head.len())..].contains(&b'\n') {
        true => First::Whole(StatusLine { code, old }),
        false => First::Part,
    }
}

/// A blank of HTTP.
pub(crate) fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}
