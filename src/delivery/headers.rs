//! Headers of requests and answers, as the JSON of the call log: an object with lower-case names; a name that came twice has
//! an array. Knows no connection.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use ureq::http::HeaderMap;

use crate::model::text::storable_text;

/// Longest value of a header where not all headers fit.
const VALUE_BYTES_MAX: usize = 1024;

/// The headers in a request's head, as JSON, without credentials.
pub(crate) fn sent(head: &[u8]) -> String {
    let end = head.windows(4).position(|end| end == b"\r\n\r\n").unwrap_or(head.len());
    let lines = head[..end].iter().position(|byte| *byte == b'\n').map_or(end, |first| first + 1);
    let sent = pairs(&head[lines..end]);
    json(sent.filter(|(name, _)| !name.eq_ignore_ascii_case(b"authorization")))
}

/// The names and values of header lines.
pub(crate) fn pairs(lines: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

/// The names and values of headers that were parsed.
pub(crate) fn parsed(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

/// The headers of an answer as JSON of at most `most` bytes, and whether something was left out. Where all are longer, each
/// keeps the beginning of its value, and the last ones are left out.
pub(crate) fn that_fit<'a, I: Iterator<Item = (&'a [u8], &'a [u8])>>(
    all: impl Fn() -> I,
    most: usize,
) -> (String, bool) {
    let whole = json(all());
    if whole.len() <= most {
        return (whole, false);
    }
    let mut bytes = 2;
    let shorter = all().map(|(name, value)| (name, &value[..value.len().min(VALUE_BYTES_MAX)]));
    let fits = |pair: &(&'a [u8], &'a [u8])| {
        // As it is alone: more than its share of an array.
        bytes += json(std::iter::once(*pair)).len();
        bytes <= most
    };
    (json(shorter.take_while(fits)), true)
}

/// The value of a header, or the values of one that came more than once.
#[derive(Serialize)]
#[serde(untagged)]
enum Values<'a> {
    One(Cow<'a, str>),
    Many(Vec<Cow<'a, str>>),
}

/// A JSON object with lower-case names; a name that came twice has an array.
fn json<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> String {
    // A list: few are looked through faster than sorted.
    let mut object: Vec<(Cow<str>, Values)> = Vec::with_capacity(16);
    for (name, value) in pairs {
        let (mut name, value) = (storable_text(name), storable_text(value));
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            name.to_mut().make_ascii_lowercase();
        }
        match object.iter_mut().find(|(known, _)| *known == name) {
            None => object.push((name, Values::One(value))),
            Some((_, values)) => match values {
                Values::Many(values) => values.push(value),
                Values::One(first) => *values = Values::Many(vec![std::mem::take(first), value]),
            },
        }
    }
    let mut text = Vec::with_capacity(256);
    let written = serde_json::Serializer::new(&mut text)
        .collect_map(object.iter().map(|(name, values)| (name, values)));
    written.expect("strings have a JSON form");
    String::from_utf8(text).expect("JSON is text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_an_object_with_lower_case_names() {
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic c2VjcmV0\r\nX-A: 1\r\nx-a: 2\r\n\r\n{\"b\": 1}";
        assert_eq!(sent(head), r#"{"host":"a","x-a":["1","2"]}"#);
        assert_eq!(sent(b""), "{}");
    }
}
