//! The head of an answer, made such that a strict parser takes it.
//!
//! The status decides, whatever the header lines are (DESIGN, section 4). So a head that is clean goes to the parser as it
//! came; of any other the status is kept, with the headers that can be told, and the parser gets a short head in its place.
//! Pure: bytes in, bytes and notes out. Knows no connection. Heads of interim answers (1xx) end here.

use std::mem::MaybeUninit;

/// Longest head of an answer that is kept; what Node takes, too.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Header lines that are kept. More than the parser takes: of others we keep the record ourselves.
const LINES_MAX: usize = 256;
/// Header lines that the parser takes.
const PARSER_LINES_MAX: usize = 128;
/// Longest `Location` that is told to the parser; all of it is in the record.
const LOCATION_BYTES_MAX: usize = 4 * 1024;

/// Where the body ends (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// After so many bytes.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// What a flawed head says, as far as that can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The status.
    pub status: u16,
    /// The header lines that are kept: name, colon, value and a line feed.
    pub headers: Vec<u8>,
    /// What is wrong with it, for people.
    pub flaws: String,
    /// Something of it is not kept.
    pub lost: bool,
}

/// What there is to do after some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The head goes on.
    More,
    /// It is no answer of HTTP/1: the parser says so.
    NotHttp,
    /// The head is over, and good as it is.
    Clean {
        /// The body has chunks.
        chunked: bool,
        /// Another answer may follow on this connection.
        reusable: bool,
    },
    /// The head is over. The parser takes this one instead, and no other answer may follow.
    Repaired {
        /// For the parser.
        head: Vec<u8>,
        /// For the log.
        record: Record,
        /// The body has chunks.
        chunked: bool,
    },
}

/// What there is to do, and which of the bytes are meant: of all that came, the last `kept` belong to the head in hand
/// and what is behind it, and the last `rest` are behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fed {
    /// The step.
    pub step: Step,
    /// Bytes from the beginning of the head on; those before it are over (interim answers, empty lines).
    pub kept: usize,
    /// Bytes after the head.
    pub rest: usize,
}

/// The heads that come before the body of an answer.
#[derive(Debug, Default)]
pub struct Heads {
    /// The head in hand, when it did not come at once.
    part: Vec<u8>,
    /// Its status line, when that is complete.
    status: Option<StatusLine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StatusLine {
    code: u16,
    /// HTTP/1.0.
    old: bool,
}

/// What the beginning of a head is.
enum First {
    Not,
    Part,
    Whole(StatusLine),
}

impl Heads {
    /// Takes the next bytes of the connection.
    pub fn feed(&mut self, new: &[u8]) -> Fed {
        let mut held = std::mem::take(&mut self.part);
        let mut seen = held.len();
        // Most heads come at once, and are not copied.
        let all = if held.is_empty() {
            new
        } else {
            held.extend_from_slice(new);
            &held
        };
        let mut at = 0;
        let (step, rest) = loop {
            at += all[at..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            let head = &all[at..];
            if self.status.is_none() {
                match status_line(head, seen) {
                    First::Not => break (Step::NotHttp, 0),
                    First::Part => break (Step::More, 0),
                    First::Whole(status) => self.status = Some(status),
                }
            }
            let status = self.status.expect("set above");
            // Most are clean: then the parser's own parser has found the end as well.
            if seen == 0
                && !status.is_interim()
                && let Some((length, framing)) = clean(head, status)
            {
                break (framing.step(), head.len() - length);
            }
            let Some(length) = end(head, seen) else { break (Step::More, 0) };
            if status.is_interim() {
                (at, seen, self.status) = (at + length, 0, None);
                continue;
            }
            break (judge(&head[..length], status), head.len() - length);
        };
        let kept = all.len() - at;
        if step == Step::More {
            if held.is_empty() {
                held.extend_from_slice(&new[at..]);
            } else {
                held.drain(..at);
            }
            self.part = held;
        }
        Fed { step, kept, rest }
    }

    /// The head ends here, for this reason. None when no status line of a final answer has come.
    pub fn cut(&mut self, why: &str) -> Option<(Vec<u8>, Record)> {
        let status = self.status.filter(|status| !status.is_interim())?;
        let (head, mut record, _) = repair(&self.part, status, true);
        record.flaws = if record.flaws.is_empty() { why.into() } else { format!("{why}; {}", record.flaws) };
        record.lost = true;
        Some((head, record))
    }
}

impl StatusLine {
    /// An answer that is followed by another. 101 is the last one.
    fn is_interim(self) -> bool {
        self.code < 200 && self.code != 101
    }
}

/// The status line at the beginning of a head; of what was looked at before, `seen` bytes have no line end.
fn status_line(head: &[u8], seen: usize) -> First {
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

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Length of a head with the empty line behind it. Of what was looked at before, `seen` bytes have no such line.
fn end(head: &[u8], seen: usize) -> Option<usize> {
    // An end of line, and a return, may have been the last that came.
    let mut at = seen.saturating_sub(2).min(head.len());
    while let Some(line) = head[at..].iter().position(|byte| *byte == b'\n') {
        at += line + 1;
        match head[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// What to do with a whole head.
fn judge(head: &[u8], status: StatusLine) -> Step {
    match clean(head, status) {
        Some((length, framing)) if length == head.len() => framing.step(),
        _ => {
            let (head, record, chunked) = repair(head, status, false);
            Step::Repaired { head, record, chunked }
        }
    }
}

/// Length of a head that the parser takes, and where the body ends if the parser understands that as we do.
fn clean(bytes: &[u8], status: StatusLine) -> Option<(usize, Framing)> {
    let mut lines = [MaybeUninit::uninit(); PARSER_LINES_MAX];
    let mut answer = httparse::Response::new(&mut []);
    // The parser's own parser: what it takes here it takes there.
    let config = httparse::ParserConfig::default();
    let parsed = config.parse_response_with_uninit_headers(&mut answer, bytes, &mut lines);
    let Ok(httparse::Status::Complete(length)) = parsed else { return None };
    if length > HEAD_BYTES_MAX || answer.code != Some(status.code) {
        return None;
    }
    let framing = Framing::of(answer.headers.iter().map(|line| (line.name.as_bytes(), line.value)), status);
    framing.flaw.is_none().then_some((length, framing))
}

struct Framing {
    body: Body,
    /// Nobody can be of another opinion on where it ends.
    reusable: bool,
    flaw: Option<&'static str>,
}

impl Framing {
    /// What to do with a clean head.
    fn step(&self) -> Step {
        Step::Clean { chunked: self.body == Body::Chunked, reusable: self.reusable }
    }

    fn of<'a>(lines: impl Iterator<Item = (&'a [u8], &'a [u8])>, status: StatusLine) -> Framing {
        let (mut length, mut flaw) = (None, None);
        let (mut encoded, mut chunks, mut last_is_chunked) = (false, 0, false);
        for (name, value) in lines {
            if name.eq_ignore_ascii_case(b"content-length") {
                for element in value.split(|byte| *byte == b',') {
                    match (number(element.trim_ascii()), length) {
                        (None, _) => flaw = Some("its Content-Length is no number"),
                        (Some(new), Some(known)) if new != known => {
                            flaw = Some("it has more than one Content-Length");
                        }
                        (new, _) => length = new,
                    }
                }
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                encoded = true;
                for coding in value.split(|byte| *byte == b',') {
                    last_is_chunked = coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
                    chunks += usize::from(last_is_chunked);
                }
            }
        }
        let reusable = !(encoded && length.is_some());
        let length = length.filter(|_| flaw.is_none());
        let body = length.map_or(Body::Close, Body::Length);
        match (encoded, status.old) {
            (false, _) => Framing { body, reusable, flaw },
            (true, false) if last_is_chunked && chunks == 1 => {
                Framing { body: Body::Chunked, reusable, flaw }
            }
            (true, old) => {
                let unknown = "its Transfer-Encoding is not known";
                let flaw = if old { "it has a Transfer-Encoding in HTTP/1.0" } else { unknown };
                // Chunks that are not the last coding, or twice: not even where they end is known.
                let body = if chunks > 0 { Body::Close } else { body };
                Framing { body, reusable, flaw: Some(flaw) }
            }
        }
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    // The standard library takes a sign, too.
    let text = str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

/// What a flawed head is to the parser and to the log, and whether the body has chunks. An `unended` one ends with the
/// connection: of its last line nothing is known.
fn repair(head: &[u8], status: StatusLine, unended: bool) -> (Vec<u8>, Record, bool) {
    let mut flaws = Flaws::default();
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    if !is_good_status_line(first) {
        flaws.add("its status line is not as it should be");
    }
    let whole = if unended { head.iter().filter(|byte| **byte == b'\n').count() - 1 } else { usize::MAX };
    let mut kept = Kept::default();
    for line in lines.take(whole) {
        kept.add(line, &mut flaws);
    }
    let framing = Framing::of(kept.framing.iter().map(|(name, value)| (*name, value.as_slice())), status);
    if let Some(flaw) = framing.flaw {
        flaws.add(flaw);
    }
    let body = if unended { Body::Close } else { framing.body };
    let mut text = format!("HTTP/1.1 {}\r\nConnection: close\r\n", status.code).into_bytes();
    match body {
        Body::Length(length) => text.extend(format!("Content-Length: {length}\r\n").into_bytes()),
        Body::Chunked => text.extend(b"Transfer-Encoding: chunked\r\n"),
        Body::Close => {}
    }
    if let Some(location) = &kept.location {
        text.extend(b"Location: ");
        text.extend(location.iter().take(LOCATION_BYTES_MAX));
        text.extend(b"\r\n");
    }
    text.extend(b"\r\n");
    let record = Record { status: status.code, headers: kept.text(), flaws: flaws.text(), lost: kept.lost };
    (text, record, body == Body::Chunked)
}

fn is_good_status_line(line: &[u8]) -> bool {
    let parsed = httparse::Response::new(&mut []).parse(&[line, b"\n"].concat());
    parsed == Ok(httparse::Status::Partial)
}

/// What is wrong, each once.
#[derive(Default)]
struct Flaws(Vec<&'static str>);

impl Flaws {
    fn add(&mut self, flaw: &'static str) {
        if !self.0.contains(&flaw) {
            self.0.push(flaw);
        }
    }

    fn text(&self) -> String {
        if self.0.is_empty() { String::new() } else { format!("the answer's head: {}", self.0.join(", ")) }
    }
}

/// The header lines of a flawed head.
#[derive(Default)]
struct Kept<'a> {
    /// Each with its value as one line; those without room for the log are left out.
    lines: Vec<Vec<u8>>,
    bytes: usize,
    /// Those that say where the body ends, kept however many there are before them.
    framing: Vec<(&'a [u8], Vec<u8>)>,
    /// Of the last one; bytes that are no text are left out.
    location: Option<Vec<u8>>,
    /// What a folded line continues.
    last: Last,
    lost: bool,
}

/// What became of the last line.
#[derive(Clone, Copy, Default, PartialEq)]
enum Last {
    /// Not kept, and nor is what continues it.
    #[default]
    Dropped,
    /// The last of the lines; and of those with a meaning.
    Kept { framing: bool, location: bool },
}

impl<'a> Kept<'a> {
    fn add(&mut self, line: &'a [u8], flaws: &mut Flaws) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().any(is_control) {
            flaws.add("it has characters in headers that may not be there");
        }
        let blanks = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r');
        let trimmed = line.len() - line.iter().rev().take_while(|byte| blanks(byte)).count();
        let trimmed = &line[..trimmed];
        if line.first().is_some_and(is_blank) {
            flaws.add("it has folded lines");
            return self.fold(trimmed.trim_ascii_start(), flaws);
        }
        if trimmed.is_empty() {
            return;
        }
        self.last = Last::Dropped;
        let colon = trimmed.iter().position(|byte| *byte == b':').unwrap_or_default();
        let name = trimmed[..colon].trim_ascii_end();
        if name.is_empty() || !name.iter().all(is_token) {
            self.lost = true;
            return flaws.add("it has lines that are no headers");
        }
        let value = trimmed[colon + 1..].trim_ascii_start();
        if name.len() < colon {
            flaws.add("it has blanks behind names");
        }
        let framing =
            [&b"content-length"[..], b"transfer-encoding"].iter().any(|own| name.eq_ignore_ascii_case(own));
        if framing && self.framing.len() < LINES_MAX {
            self.framing.push((name, value.to_vec()));
        }
        let location = name.eq_ignore_ascii_case(b"location");
        if location {
            self.location = Some(printable(value));
        }
        let full = [name, b": ", value].concat();
        if self.has_room(full.len(), flaws) {
            self.bytes += full.len();
            self.lines.push(full);
            self.last = Last::Kept { framing, location };
        }
    }

    /// Appends to the last line what continues it (RFC 9112, 5.2).
    fn fold(&mut self, more: &[u8], flaws: &mut Flaws) {
        let Last::Kept { framing, location } = self.last else {
            self.lost = true;
            return;
        };
        if more.is_empty() {
            return;
        }
        if !self.has_room(1 + more.len(), flaws) {
            self.last = Last::Dropped;
            return;
        }
        self.bytes += 1 + more.len();
        let add = |line: &mut Vec<u8>, more: &[u8]| {
            if !line.is_empty() {
                line.push(b' ');
            }
            line.extend_from_slice(more);
        };
        add(self.lines.last_mut().expect("it was kept"), more);
        if let Some((_, value)) = self.framing.last_mut().filter(|_| framing) {
            add(value, more);
        }
        if let Some(value) = self.location.as_mut().filter(|_| location) {
            add(value, &printable(more));
        }
    }

    fn has_room(&mut self, bytes: usize, flaws: &mut Flaws) -> bool {
        let long = self.bytes + bytes > HEAD_BYTES_MAX;
        if long {
            flaws.add("it is longer than 16 KiB");
        }
        let many = self.lines.len() >= LINES_MAX;
        if many {
            flaws.add("it has more than 256 lines");
        }
        self.lost |= long || many;
        !long && !many
    }

    fn text(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| [line, &b"\n"[..]]).flatten().copied().collect()
    }
}

/// What may be in a header's name (RFC 9110, 5.6.2).
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// What may not be in a header's value (RFC 9110, 5.5).
fn is_control(byte: &u8) -> bool {
    byte.is_ascii_control() && *byte != b'\t'
}

fn printable(value: &[u8]) -> Vec<u8> {
    value.iter().filter(|byte| !is_control(byte)).copied().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What comes of a whole connection: the bytes for the parser, and the record if it is not given what came.
    #[derive(Clone, Debug, PartialEq)]
    struct Told {
        given: Vec<u8>,
        record: Option<Record>,
        over: bool,
    }

    /// Feeds pieces that end at these places, and then the end.
    fn told(bytes: &[u8], cuts: &[usize]) -> Option<Told> {
        let mut heads = Heads::default();
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        ends.extend([0, bytes.len()]);
        ends.sort_unstable();
        for pair in ends.windows(2) {
            let Fed { step, kept, rest } = heads.feed(&bytes[pair[0]..pair[1]]);
            let behind = &bytes[pair[1] - rest..];
            match step {
                Step::More => {}
                Step::NotHttp => return None,
                Step::Clean { .. } => {
                    let given = bytes[pair[1] - kept..].to_vec();
                    return Some(Told { given, record: None, over: true });
                }
                Step::Repaired { head, record, .. } => {
                    return Some(Told { given: [&head, behind].concat(), record: Some(record), over: true });
                }
            }
        }
        let (given, record) = heads.cut("over")?;
        Some(Told { given, record: Some(record), over: false })
    }

    /// Whether the parser takes it, with this status.
    fn is_taken(given: &[u8], status: u16) -> bool {
        let mut lines = [httparse::EMPTY_HEADER; PARSER_LINES_MAX];
        let mut answer = httparse::Response::new(&mut lines);
        matches!(answer.parse(given), Ok(httparse::Status::Complete(_))) && answer.code == Some(status)
    }

    fn record(head: &str) -> Record {
        let told = told(head.as_bytes(), &[]).expect("a status line");
        told.record.expect("it is flawed")
    }

    #[test]
    fn a_clean_head_is_given_as_it_came_without_what_was_before() {
        let head = "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 2\r\n\r\nhi";
        for before in ["", "\r\n", "HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n", "http/1.1 100\n\n\n"] {
            let told = told(format!("{before}{head}").as_bytes(), &[]).expect("a status line");
            assert_eq!((told.given.as_slice(), told.record), (head.as_bytes(), None), "{before:?}");
        }
        let step = |head: &str| Heads::default().feed(head.as_bytes()).step;
        for (lines, chunked, reusable) in [
            ("", false, true),
            ("Content-Length: 2\r\nContent-Length: 2\r\n", false, true),
            ("Transfer-Encoding: Chunked\r\n", true, true),
            ("Transfer-Encoding: gzip, chunked\r\n", true, true),
            ("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", true, false),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
            assert_eq!(step(&head), Step::Clean { chunked, reusable }, "{head:?}");
        }
    }

    #[test]
    fn a_flawed_head_is_told_and_the_parser_is_given_another() {
        let told = told(b"http/1.1 302 a\nA:  b\n\tc \nbad\nLocation: /\x01x\nContent-Length: 2\n\nhi", &[]);
        let told = told.expect("a status line");
        let given = "HTTP/1.1 302\r\nConnection: close\r\nContent-Length: 2\r\nLocation: /x\r\n\r\nhi";
        assert_eq!(String::from_utf8_lossy(&told.given), given);
        let record = told.record.expect("it is flawed");
        assert_eq!(record.headers, b"A: b c\nLocation: /\x01x\nContent-Length: 2\n");
        assert!(record.lost);
        assert_eq!(
            record.flaws,
            "the answer's head: its status line is not as it should be, it has folded lines, it has lines that are no \
             headers, it has characters in headers that may not be there"
        );
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_length_is_found_behind_it() {
        let lines = "a: b\r\n".repeat(5000);
        let told = told(format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 7\r\n\r\n").as_bytes(), &[]);
        let told = told.expect("a status line");
        assert!(told.given.ends_with(b"Content-Length: 7\r\n\r\n"));
        let many = told.record.expect("it is flawed");
        assert_eq!((many.headers.len(), many.lost), (LINES_MAX * 5, true));
        let long =
            record(&format!("HTTP/1.1 200 OK\r\nA: 1\r\nB: {}\r\nC: 2\r\n\r\n", "x".repeat(HEAD_BYTES_MAX)));
        assert_eq!((long.headers.as_slice(), long.lost), (&b"A: 1\nC: 2\n"[..], true));
    }

    #[test]
    fn a_head_that_ends_early_has_its_whole_lines() {
        let mut heads = Heads::default();
        assert_eq!(heads.cut("over"), None);
        assert_eq!(heads.feed(b"HTTP/1.1 200 O").step, Step::More);
        assert_eq!(heads.cut("over"), None, "more of the line may come");
        assert_eq!(heads.feed(b"K\r\nA: 1\r\nContent-Length: 5\r\nB: 2").step, Step::More);
        let (head, record) = heads.cut("over").expect("a status line");
        assert_eq!(head, b"HTTP/1.1 200\r\nConnection: close\r\n\r\n");
        let headers = b"A: 1\nContent-Length: 5\n".to_vec();
        assert_eq!(record, Record { status: 200, headers, flaws: "over".into(), lost: true });
        let mut interim = Heads::default();
        interim.feed(b"HTTP/1.1 103 Hints\r\nA: 1\r\n");
        assert_eq!(interim.cut("over"), None, "the answer is still to come");
    }

    #[test]
    fn what_is_no_answer_is_known_at_once() {
        for bytes in [
            "S",
            "HTTP/2",
            "HTTP/1.x",
            "HTTP/1.1 x",
            "HTTP/1.1 20 ",
            "HTTP/1.1 0999",
            "HTTP/1.1 099 ",
            "ICY",
            " ",
        ] {
            assert_eq!(Heads::default().feed(bytes.as_bytes()).step, Step::NotHttp, "{bytes:?}");
        }
        for bytes in
            ["", "\r\n", "h", "HTTP/1", "HTTP/1.", "HTTP/1.1", "HTTP/1.1 ", "HTTP/1.1 20", "HTTP/1.1 200"]
        {
            assert_eq!(Heads::default().feed(bytes.as_bytes()).step, Step::More, "{bytes:?}");
        }
    }

    /// Lines, good and bad.
    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just(b"Content-Length: 5".to_vec()),
            Just(b"Content-Length: x".to_vec()),
            Just(b"Transfer-Encoding: chunked".to_vec()),
            Just(b"Location: /".to_vec()),
            Just(b"A: b".to_vec()),
            Just(b" folded".to_vec()),
            Just(b"".to_vec()),
            prop::collection::vec(any::<u8>(), 0..30),
        ];
        let end = prop::sample::select(vec![&b"\r\n"[..], b"\n", b"\r"]);
        prop::collection::vec((line, end).prop_map(|(line, end)| [&line, end].concat()), 0..40)
            .prop_map(|lines| lines.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn after_a_status_line_there_is_always_a_status_and_a_head_that_the_parser_takes(
            status in 200u16..=999,
            minor in 0..=1,
            end in prop_oneof![Just("\r\n"), Just("\n"), Just(" OK\r\n"), Just(" \0\n")],
            lines in lines(),
            cuts in prop::collection::vec(any::<usize>(), 0..6),
        ) {
            let bytes = [format!("HTTP/1.{minor} {status}{end}").as_bytes(), &lines].concat();
            let whole = told(&bytes, &[]);
            let parts = told(&bytes, &cuts);
            prop_assert_eq!(&whole, &parts, "in pieces");
            let told = whole.expect("a status line");
            prop_assert!(is_taken(&told.given, status), "{:?}", told);
            if let Some(record) = told.record {
                prop_assert_eq!(record.status, status);
                prop_assert!(!record.flaws.is_empty() && record.headers.len() <= bytes.len() + 2 * 40);
            }
        }

        #[test]
        fn any_bytes_are_taken_in_any_pieces(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            start in prop_oneof![Just(""), Just("HTTP/1.1 "), Just("\r\nHTTP/1.1 100 A\r\n\r\n"), Just("HTTP/1.1 200 ")],
            cuts in prop::collection::vec(any::<usize>(), 0..6),
        ) {
            let bytes = [start.as_bytes(), &bytes].concat();
            prop_assert_eq!(told(&bytes, &[]), told(&bytes, &cuts));
        }
    }
}
