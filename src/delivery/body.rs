//! The body of an answer as text, as it comes: the memory has no more of it than the log keeps.
//!
//! Knows neither HTTP nor the source of the bytes.

use crate::model::memory::Room;
use crate::model::text::floor_char_boundary;

/// What stands for bytes that are no UTF-8, and for NUL, which Postgres cannot hold.
const REPLACEMENT: char = '\u{FFFD}';
/// The space that is asked for at first; most answers are shorter.
const FIRST: usize = 512;

/// A body, as far as it has come and is kept.
pub(crate) struct BodyText<'a> {
    text: String,
    /// The beginning of a character whose other bytes have not come yet: at most three bytes.
    begun: Vec<u8>,
    limit: usize,
    room: &'a mut Room,
    cut: bool,
}

impl<'a> BodyText<'a> {
    /// Keeps at most `limit` bytes of text, and no more than there is room for.
    pub(crate) fn new(limit: usize, room: &'a mut Room) -> BodyText<'a> {
        BodyText { text: String::new(), begun: Vec::new(), limit, room, cut: false }
    }

    /// Adds bytes. False: nothing more is kept.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        let joined;
        let mut rest = bytes;
        if !self.begun.is_empty() {
            joined = [&std::mem::take(&mut self.begun), bytes].concat();
            rest = &joined;
        }
        while !rest.is_empty() && !self.cut {
            match str::from_utf8(rest) {
                Ok(text) => {
                    self.add(text);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, other) = rest.split_at(error.valid_up_to());
                    self.add(str::from_utf8(valid).expect("it was looked at"));
                    match error.error_len() {
                        Some(length) => {
                            self.add(REPLACEMENT.encode_utf8(&mut [0; 4]));
                            rest = &other[length..];
                        }
                        None => {
                            self.begun.extend_from_slice(other);
                            rest = &[];
                        }
                    }
                }
            }
        }
        !self.cut
    }

    /// The text, and whether something was left out of it.
    pub(crate) fn end(mut self) -> (String, bool) {
        if !self.begun.is_empty() && !self.cut {
            self.add(REPLACEMENT.encode_utf8(&mut [0; 4]));
        }
        self.text.shrink_to_fit();
        (self.text, self.cut)
    }

    fn add(&mut self, text: &str) {
        let mut pieces = text.split('\0');
        self.add_plain(pieces.next().unwrap_or_default());
        for piece in pieces {
            self.add_plain(REPLACEMENT.encode_utf8(&mut [0; 4]));
            self.add_plain(piece);
        }
    }

    fn add_plain(&mut self, text: &str) {
        if self.cut || text.is_empty() {
            return;
        }
        let wanted = (self.text.len() + text.len()).min(self.limit);
        if wanted > self.text.capacity() {
            // Twice as much, so that a long body is not copied for each of its pieces.
            let ahead = (2 * self.text.capacity()).max(FIRST).max(wanted).min(self.limit);
            let room = self.room.allow(ahead);
            let room = if room < wanted { self.room.allow(wanted) } else { room };
            self.text.reserve_exact(room.min(ahead).saturating_sub(self.text.len()));
        }
        let left = wanted.min(self.text.capacity()) - self.text.len();
        let keep = floor_char_boundary(text, left.min(text.len()));
        self.text.push_str(&text[..keep]);
        self.cut = keep < text.len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::memory::Memory;
    use crate::model::text::storable;

    fn kept(pieces: &[Vec<u8>], limit: usize, memory: usize) -> (String, bool) {
        let memory = Memory::new(memory);
        let mut room = Room::new(memory.hold(0), usize::MAX);
        let mut body = BodyText::new(limit, &mut room);
        for piece in pieces {
            if !body.push(piece) {
                break;
            }
        }
        body.end()
    }

    #[test]
    fn a_body_is_kept_whole_up_to_its_limit() {
        let pieces = [b"gr\xc3".to_vec(), b"\xb6\xc3".to_vec(), b"\x9fe\0\xff".to_vec()];
        assert_eq!(kept(&pieces, 100, 1000), ("größe\u{FFFD}\u{FFFD}".into(), false));
        assert_eq!(kept(&pieces, 7, 1000), ("größe".into(), true));
        assert_eq!(kept(&pieces, 5, 1000), ("grö".into(), true), "not within a character");
        assert_eq!(kept(&pieces, 100, 5), ("grö".into(), true), "no more than there is room for");
        assert_eq!(kept(&[b"\xc3".to_vec()], 100, 1000), ("\u{FFFD}".into(), false));
        assert_eq!(kept(&[b"a".to_vec()], 0, 1000), (String::new(), true));
    }

    proptest! {
        #[test]
        fn in_pieces_it_is_the_same_as_at_once_and_never_more_than_the_limit(
            pieces in prop::collection::vec(
                prop::collection::vec(prop_oneof![any::<u8>(), Just(0xc3), Just(0xe2), Just(0), Just(b'a')], 0..700), 0..5),
            limit in 0usize..3000,
            memory in 0usize..5000,
        ) {
            let whole = storable(pieces.concat());
            prop_assert_eq!(&kept(&pieces, usize::MAX >> 2, usize::MAX >> 1).0, &whole);
            let (text, cut) = kept(&pieces, limit, memory);
            prop_assert!(whole.starts_with(&text) && text.len() <= limit && text.len() <= memory);
            prop_assert_eq!(cut, text.len() < whole.len());
        }
    }
}
