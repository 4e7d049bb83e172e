//! The head of an answer, mended so that a strict parser takes it.
//!
//! The status decides, whatever the header lines are. So a clean head goes to the parser as it came. Of a flawed head, the
//! record keeps the status and the headers that can be told, and the parser gets a short head in its place. Interim answers
//! (1xx) are dropped. Pure: bytes in, bytes and notes out. Knows no connection.

use std::mem::MaybeUninit;

use crate::delivery::transport::framing::{Body, Framing};
use crate::delivery::transport::repair::{HEAD_BYTES_MAX, Record, repair};
use crate::delivery::transport::status_line::{First, StatusLine, status_line};

/// Header lines that the parser takes.
const PARSER_LINES_MAX: usize = 128;

/// What to do after some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait: the head goes on.
    More,
    /// Pass the bytes on: this is no answer of HTTP/1, and the parser refuses it.
    NotHttp,
    /// Pass the head on: it is over, and good as it is.
    Clean {
        /// The body has chunks.
        chunked: bool,
        /// Another answer may follow on this connection.
        reusable: bool,
    },
    /// Give the parser this head instead: the one that came is over and flawed. No other answer may follow.
    Repaired {
        /// For the parser.
        head: Vec<u8>,
        /// For the log.
        record: Record,
        /// The body has chunks.
        chunked: bool,
    },
}

/// What to do, and with which bytes. Of all bytes that came, the last `kept` are the head in hand with the bytes behind it, and
/// the last `rest` are those behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fed {
    /// The step.
    pub step: Step,
    /// Bytes from the beginning of the head on. Those before it (interim answers, empty lines) are dropped.
    pub kept: usize,
    /// Bytes after the head.
    pub rest: usize,
}

/// The heads that come before the body of an answer.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    /// The head in hand, when it did not come at once.
    part: Vec<u8>,
    /// Its status line, when that is complete.
    status: Option<StatusLine>,
}

impl Heads {
    /// Takes the next bytes of the connection.
    pub(crate) fn feed(&mut self, new: &[u8]) -> Fed {
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
            // Most heads are clean. Then httparse, which ureq uses, has found the end as well.
            if seen == 0
                && !status.is_interim()
                && let Some((length, framing)) = clean(head, status)
            {
                break (clean_step(&framing), head.len() - length);
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

    /// Ends the head here, for this reason. None when no status line of a final answer has come.
    pub(crate) fn cut(&mut self, why: &str) -> Option<(Vec<u8>, Record)> {
        let status = self.status.filter(|status| !status.is_interim())?;
        let (head, mut record, _) = repair(&self.part, status, true);
        record.flaws = if record.flaws.is_empty() { why.into() } else { format!("{why}; {}", record.flaws) };
        record.lost = true;
        Some((head, record))
    }
}

/// Length of a head with the empty line behind it. The first `seen` bytes have no such line.
fn end(head: &[u8], seen: usize) -> Option<usize> {
    // The last bytes that came may have been a line feed and a return.
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
        Some((length, framing)) if length == head.len() => clean_step(&framing),
        _ => {
            let (head, record, chunked) = repair(head, status, false);
            Step::Repaired { head, record, chunked }
        }
    }
}

fn clean_step(framing: &Framing) -> Step {
    Step::Clean { chunked: framing.body == Body::Chunked, reusable: framing.reusable }
}

/// Length of a head that the parser takes, and where the body ends if the parser understands that as we do.
fn clean(bytes: &[u8], status: StatusLine) -> Option<(usize, Framing)> {
    let mut lines = [MaybeUninit::uninit(); PARSER_LINES_MAX];
    let mut answer = httparse::Response::new(&mut []);
    // ureq uses httparse with these settings: it takes what is taken here.
    let config = httparse::ParserConfig::default();
    let parsed = config.parse_response_with_uninit_headers(&mut answer, bytes, &mut lines);
    let Ok(httparse::Status::Complete(length)) = parsed else { return None };
    if length > HEAD_BYTES_MAX || answer.code != Some(status.code) {
        return None;
    }
    let framing = Framing::of(answer.headers.iter().map(|line| (line.name.as_bytes(), line.value)), status);
    framing.flaw.is_none().then_some((length, framing))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::delivery::transport::repair::LINES_MAX;

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
