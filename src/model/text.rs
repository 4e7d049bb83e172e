//! Texts that are cut, and foreign bytes that become texts.

use std::borrow::Cow;

/// Cuts a text to so many bytes at most, between two characters, and gives the memory back. Returns whether it was longer.
pub(crate) fn cut(text: &mut String, most: usize) -> bool {
    let longer = text.len() > most;
    if longer {
        text.truncate(floor_char_boundary(text, most));
        text.shrink_to_fit();
    }
    longer
}

/// The last place up to `index` at which a text may be cut.
pub(crate) fn floor_char_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default()
}

/// Makes foreign bytes a text that Postgres can hold, as [`storable`] does, and copies nothing that is valid.
pub(crate) fn storable_text(bytes: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => text.into(),
        _ => storable(bytes).into(),
    }
}

/// Makes foreign bytes a text that Postgres can hold: invalid UTF-8 and NUL become U+FFFD. Keeps no space to grow, and does
/// not copy valid bytes.
pub fn storable(bytes: impl Into<Vec<u8>>) -> String {
    let mut text = String::from_utf8(bytes.into())
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    if text.contains('\0') {
        text = text.replace('\0', "\u{FFFD}");
    }
    text.shrink_to_fit();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_postgres_cannot_hold_is_replaced() {
        assert_eq!(storable(*b"a\0b\xff\xe2\x82"), "a\u{FFFD}b\u{FFFD}\u{FFFD}");
        assert_eq!(storable("größe".as_bytes()), "größe");
        for bytes in [&b"a\0b\xff\xe2\x82"[..], "größe".as_bytes(), b""] {
            assert_eq!(storable_text(bytes), storable(bytes));
        }
    }
}
