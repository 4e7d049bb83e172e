//! Chunks of a body (RFC 9112, 7.1), mended so that a strict parser takes them. Mended are lines that end with a bare line feed,
//! and sizes with long extensions or many zeros in front.
//!
//! Pure: bytes in, bytes out, however they are cut into pieces. Good chunks go through as they are, without a copy. Bytes that
//! are no chunk go through, too, and the parser refuses them.

use std::borrow::Cow;

/// Longest line of a size that the parser takes is 20 bytes.
const SIZE_LINE_MAX: u8 = 20;

/// The chunks of one body.
#[derive(Debug)]
pub(crate) struct Chunks {
    state: State,
    /// Some lines ended with a bare line feed.
    pub bare: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Within the digits of a size: its value so far, and how many there are.
    Size(u64, u8),
    /// Behind the digits; and the length of the line.
    Extension(u64, u8),
    /// The line of a size has a return.
    SizeReturn(u64),
    /// Within the data; so many bytes are left.
    Data(u64),
    /// Between the data and the next size.
    DataEnd,
    DataReturn,
    /// A line of the trailers, or the empty one behind them.
    Trailer {
        empty: bool,
    },
    TrailerReturn {
        empty: bool,
    },
    /// The chunks are over, or these are none.
    Through,
}

/// What to do with a byte.
enum Act {
    Keep,
    Drop,
    /// Put a return before it: it is a bare line feed.
    Mend,
}

impl Default for Chunks {
    fn default() -> Chunks {
        Chunks { state: State::Size(0, 0), bare: false }
    }
}

impl Chunks {
    /// Takes the next bytes, and gives what the parser wants in their place.
    pub(crate) fn feed<'a>(&mut self, input: &'a [u8]) -> Cow<'a, [u8]> {
        let mut changed: Option<Vec<u8>> = None;
        let mut at = 0;
        while at < input.len() {
            let whole = match &mut self.state {
                State::Data(left) => {
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len() - at);
                    *left -= length as u64;
                    if *left == 0 {
                        self.state = State::DataEnd;
                    }
                    length
                }
                State::Through => input.len() - at,
                _ => 0,
            };
            if whole > 0 {
                if let Some(changed) = &mut changed {
                    changed.extend_from_slice(&input[at..at + whole]);
                }
                at += whole;
                continue;
            }
            let byte = input[at];
            let (next, act) = self.state.after(byte);
            self.state = next;
            match act {
                Act::Keep => changed.iter_mut().for_each(|changed| changed.push(byte)),
                Act::Drop => drop(changed.get_or_insert_with(|| input[..at].to_vec())),
                Act::Mend => {
                    self.bare = true;
                    changed.get_or_insert_with(|| input[..at].to_vec()).extend(b"\r\n");
                }
            }
            at += 1;
        }
        changed.map_or(Cow::Borrowed(input), Cow::Owned)
    }
}

impl State {
    /// The state after a byte of the framing.
    fn after(self, byte: u8) -> (State, Act) {
        use State::{
            Data, DataEnd, DataReturn, Extension, Size, SizeReturn, Through, Trailer, TrailerReturn,
        };
        match (self, byte) {
            (Size(value, digits), _) if byte.is_ascii_hexdigit() => {
                let digit = u64::from(char::from(byte).to_digit(16).expect("a digit"));
                match value.checked_mul(16) {
                    // A zero in front changes nothing.
                    Some(0) if digits > 0 && digit == 0 => (self, Act::Drop),
                    Some(more) => (Size(more + digit, digits + 1), Act::Keep),
                    None => (Through, Act::Keep),
                }
            }
            (Size(_, 0), _) => (Through, Act::Keep),
            (Size(value, _) | Extension(value, _), b'\r') => (SizeReturn(value), Act::Keep),
            (Size(value, _) | Extension(value, _), b'\n') => (State::of(value), Act::Mend),
            (Size(value, digits), b';' | b' ' | b'\t') => (Extension(value, digits + 1), Act::Keep),
            (Extension(value, column), _) if column < SIZE_LINE_MAX => {
                (Extension(value, column + 1), Act::Keep)
            }
            (Extension(..), _) => (self, Act::Drop),
            (SizeReturn(value), b'\n') => (State::of(value), Act::Keep),
            (DataEnd, b'\r') => (DataReturn, Act::Keep),
            (DataEnd, b'\n') => (Size(0, 0), Act::Mend),
            (DataReturn, b'\n') => (Size(0, 0), Act::Keep),
            (Trailer { empty } | TrailerReturn { empty }, b'\r') => (TrailerReturn { empty }, Act::Keep),
            (Trailer { empty: true }, b'\n') => (Through, Act::Mend),
            (TrailerReturn { empty: true }, b'\n') => (Through, Act::Keep),
            (Trailer { empty: false }, b'\n') => (Trailer { empty: true }, Act::Mend),
            (TrailerReturn { empty: false }, b'\n') => (Trailer { empty: true }, Act::Keep),
            (Trailer { .. } | TrailerReturn { .. }, _) => (Trailer { empty: false }, Act::Keep),
            (Size(..) | SizeReturn(_) | DataEnd | DataReturn | Data(_) | Through, _) => (Through, Act::Keep),
        }
    }

    /// The state behind the line of a size.
    fn of(size: u64) -> State {
        if size == 0 { State::Trailer { empty: true } } else { State::Data(size) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds pieces that end at these places.
    fn fed(bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, bool) {
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        ends.extend([0, bytes.len()]);
        ends.sort_unstable();
        let mut chunks = Chunks::default();
        let pieces: Vec<_> = ends.windows(2).map(|ends| chunks.feed(&bytes[ends[0]..ends[1]])).collect();
        (pieces.concat(), chunks.bare)
    }

    fn whole(text: &str) -> String {
        String::from_utf8(fed(text.as_bytes(), &[]).0).expect("text")
    }

    #[test]
    fn good_chunks_are_not_copied() {
        for text in [
            "5\r\nhello\r\n0\r\n\r\n",
            "5;a=b\r\nhel\nl\r\n0\r\na: b\r\n\r\nmore\n",
            "fF\r\n",
            "zz\n",
            "5\nhello",
        ] {
            let given = Chunks::default().feed(text.as_bytes()).into_owned();
            assert_eq!(given == text.as_bytes(), text != "5\nhello", "{text:?}");
        }
        assert!(matches!(Chunks::default().feed(b"5\r\nhello\r\n0\r\n\r\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn what_the_parser_would_not_take_is_mended() {
        assert_eq!(whole("5\nhe\nlo\n0\n\n"), "5\r\nhe\nlo\r\n0\r\n\r\n");
        assert_eq!(whole("1\na\n0\nb: c\n\nmore\n"), "1\r\na\r\n0\r\nb: c\r\n\r\nmore\n");
        assert_eq!(whole("0000000000000000000000000001\r\na\r\n"), "01\r\na\r\n");
        assert_eq!(whole("0000\r\n\r\n"), "0\r\n\r\n");
        assert_eq!(whole("00000ffffffffffffffff\r\n"), "0ffffffffffffffff\r\n");
        assert_eq!(
            whole(&format!("1;{}\r\na\r\n", "x".repeat(99))),
            format!("1;{}\r\na\r\n", "x".repeat(18))
        );
    }

    #[test]
    fn what_is_no_chunk_goes_through() {
        for text in ["zz\n", "\n", "1\ra\n", "1\r\nab\n", "1\r\na\rb\n", "fffffffffffffffff\n", "-1\n"] {
            assert_eq!(whole(text), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn pieces_are_the_same_as_the_whole(
            parts in prop::collection::vec(prop_oneof![
                Just(b"3\r\nabc\r\n".to_vec()),
                Just(b"3\nabc\n".to_vec()),
                Just(b"0003;a=bbbbbbbbbbbbbbbbbbbbbbbbb\r\nabc\r\n".to_vec()),
                Just(b"0\r\n".to_vec()),
                Just(b"\n".to_vec()),
                Just(b"\r\n".to_vec()),
                Just(b"a: b\r\n".to_vec()),
                prop::collection::vec(any::<u8>(), 0..5),
            ], 0..12),
            cuts in prop::collection::vec(any::<usize>(), 0..6),
        ) {
            let bytes = parts.concat();
            prop_assert_eq!(fed(&bytes, &[]), fed(&bytes, &cuts));
        }

        #[test]
        fn line_feeds_alone_are_as_good_as_with_returns(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
        ) {
            let text = |end: &str| {
                let mut text = Vec::new();
                for part in &parts {
                    text.extend(format!("{:x}{end}", part.len()).into_bytes());
                    text.extend(part);
                    text.extend(end.as_bytes());
                }
                text.extend(format!("0{end}{end}").into_bytes());
                text
            };
            let good = text("\r\n");
            prop_assert_eq!(fed(&good, &[]), (good.clone(), false));
            prop_assert_eq!(fed(&text("\n"), &[]), (good, true));
        }
    }
}
