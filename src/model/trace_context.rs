//! W3C trace context (<https://www.w3.org/TR/trace-context/>): what an application gives, and what a call sends.
//!
//! Pure; draws no random number.

use std::fmt;

/// Hex digits of a trace id.
const TRACE_DIGITS: usize = 32;
/// Hex digits of a span id.
const SPAN_DIGITS: usize = 16;
/// Length of the header in version 00; later versions may add to it.
const LENGTH: usize = 55;

/// A valid `traceparent`, but for the caller's span.
#[derive(Clone, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: String,
    flags: String,
}

impl TraceParent {
    /// Reads a header. None when the specification says that it is not valid: then it is left out. Of a version later than 00
    /// the part that version 00 has is read.
    pub fn parse(header: &str) -> Option<TraceParent> {
        let (head, rest) = header.split_at_checked(LENGTH)?;
        let mut parts = head.split('-');
        let (version, trace_id) = (parts.next()?, parts.next()?);
        let (span_id, flags) = (parts.next()?, parts.next()?);
        let is_longer_allowed = version != "00" && rest.starts_with('-');
        let valid = parts.next().is_none()
            && (rest.is_empty() || is_longer_allowed)
            && is_hex(version, 2)
            && version != "ff"
            && is_hex(trace_id, TRACE_DIGITS)
            && !is_zero(trace_id)
            && is_hex(span_id, SPAN_DIGITS)
            && !is_zero(span_id)
            && is_hex(flags, 2);
        valid.then(|| TraceParent { trace_id: trace_id.to_owned(), flags: flags.to_owned() })
    }

    /// The header of a call, in version 00, with a span of its own. Zero is no span id, so it counts as 1.
    pub fn header(&self, span_id: u64) -> String {
        format!("00-{}-{:016x}-{}", self.trace_id, span_id.max(1), self.flags)
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-…-{}", self.trace_id, self.flags)
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_zero(text: &str) -> bool {
    text.bytes().all(|b| b == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_one_goes_on_with_another_span() {
        let parent = TraceParent::parse(GOOD).expect("it is the specification's example");
        assert_eq!(parent.header(0x1234), "00-0af7651916cd43dd8448eb211c80319c-0000000000001234-01");
        assert_eq!(parent.header(0), "00-0af7651916cd43dd8448eb211c80319c-0000000000000001-01");
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        let later = GOOD.replacen("00", "cc", 1);
        assert!(TraceParent::parse(&later).is_some());
        let longer = TraceParent::parse(&format!("{later}-what-the-future-holds")).expect("valid");
        assert!(longer.header(1).starts_with("00-"));
        assert_eq!(TraceParent::parse(&format!("{later}x")), None);
    }

    #[test]
    fn what_is_not_valid_is_none() {
        let upper = GOOD.to_uppercase();
        let longer = format!("{GOOD}-00");
        let bad = [
            "",
            "00",
            &upper,
            &longer,
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32), 1),
            &GOOD.replacen("b7ad6b7169203331", &"0".repeat(16), 1),
            &GOOD.replace('-', "_"),
            &GOOD.replacen('b', "ä", 1),
            &GOOD.replacen("0a", "0\n", 1),
        ];
        for header in bad {
            assert_eq!(TraceParent::parse(header), None, "{header:?}");
        }
    }
}
