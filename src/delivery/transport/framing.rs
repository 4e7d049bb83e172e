//! Where the body of an answer ends, by its headers (RFC 9112, 6.3). Pure.

use crate::delivery::transport::status_line::StatusLine;

/// Where the body ends (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// It ends after so many bytes.
    Length(u64),
    /// It ends with its last chunk.
    Chunked,
    /// It ends with the connection.
    Close,
}

/// What the headers say about the end of the body.
pub(crate) struct Framing {
    /// Where the body ends.
    pub body: Body,
    /// All readers agree on where it ends.
    pub reusable: bool,
    /// What is wrong with the headers that say so.
    pub flaw: Option<&'static str>,
}

impl Framing {
    /// What these header lines say, under this status line.
    pub(crate) fn of<'a>(lines: impl Iterator<Item = (&'a [u8], &'a [u8])>, status: StatusLine) -> Framing {
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
                // Chunks are not the last coding, or come twice: where they end is unknown.
                let body = if chunks > 0 { Body::Close } else { body };
                Framing { body, reusable, flaw: Some(flaw) }
            }
        }
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    // The standard library takes a sign, which is no digit.
    let text = str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}
