//! The two formats of `/metrics`, and which of them a scraper asks for.
//!
//! prometheus-client writes OpenMetrics only. The text format of Prometheus (0.0.4) differs from it in the comments. A counter
//! and an information have the names of their samples there. Units and the end are not told. The samples are the same. So
//! one format is made of the other, and no second library writes what is counted. A pure rule.

/// A format of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The text format of Prometheus, version 0.0.4.
    Text,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The format that a scraper likes best, by the values of its `Accept` headers (RFC 9110, 12.5.1). Of two that it likes
    /// the same the first one wins, as with Prometheus' own libraries. Without a word about either it is the text format: a
    /// person reads it, and every scraper.
    pub(crate) fn wanted<'a>(accept: impl Iterator<Item = &'a str>) -> Format {
        let mut best = (0.0, Format::Text);
        for range in accept.flat_map(|value| value.split(',')) {
            if let Some((format, quality)) = offer(range)
                && quality > best.0
            {
                best = (quality, format);
            }
        }
        best.1
    }

    /// The value of `Content-Type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The format that a media range stands for, with its quality; none when it stands for neither.
fn offer(range: &str) -> Option<(Format, f32)> {
    let mut parts = range.split(';').map(str::trim);
    let kind = parts.next()?.to_ascii_lowercase();
    let (mut quality, mut version) = (1.0, None);
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => quality = value.trim().parse().ok().filter(|q| (0.0..=1.0).contains(q))?,
            "version" => version = Some(value.trim().trim_matches('"')),
            _ => {}
        }
    }
    let format = match (kind.as_str(), version) {
        ("application/openmetrics-text", None | Some("1.0.0")) => Format::OpenMetrics,
        ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", None) => Format::Text,
        _ => return None,
    };
    Some((format, quality))
}

/// Makes the text format of what prometheus-client has written.
pub(crate) fn text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut line_out = |parts: [&str; 4]| {
        text.extend(parts);
        text.push('\n');
    };
    // HELP comes before TYPE, which tells under which name both stand.
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(named) = line.strip_prefix("# HELP ") {
            help = named.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|named| named.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total ", "counter"),
                "info" => ("_info ", "gauge"),
                "unknown" => (" ", "untyped"),
                kind => (" ", kind),
            };
            if let Some((_, words)) = help.take().filter(|(helped, _)| *helped == name) {
                line_out(["# HELP ", name, suffix, words]);
            }
            line_out(["# TYPE ", name, suffix, kind]);
        } else if !line.starts_with('#') {
            line_out([line, "", "", ""]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(accept: &[&str]) -> Format {
        Format::wanted(accept.iter().copied())
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_likes_best() {
        use Format::{OpenMetrics, Text};
        // As versions 2.42, 2.53 and 3 of Prometheus ask.
        let old = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                   text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,\
                        application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.6,*/*;q=0.1";
        let new = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                   application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                   text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for (accept, format) in [
            (&[][..], Text),
            (&[""], Text),
            (&["*/*"], Text),
            (&[old], OpenMetrics),
            (&[protobuf], OpenMetrics),
            (&[new], OpenMetrics),
            (&[browser], Text),
            (&["application/json"], Text),
            (&["application/openmetrics-text"], OpenMetrics),
            (&["Application/OpenMetrics-Text ; Version=\"1.0.0\" ; Q=0.1"], OpenMetrics),
            (&["application/openmetrics-text; version=0.0.1, text/plain;q=0.1"], Text),
            (&["application/openmetrics-text; version=2.0.0"], Text),
            (&["application/openmetrics-text;q=0.4, text/plain;q=0.5"], Text),
            (&["text/plain;q=0.4", "application/openmetrics-text;q=0.5"], OpenMetrics),
            (&["application/openmetrics-text, text/plain"], OpenMetrics),
            (&["text/plain, application/openmetrics-text"], Text),
            (&["text/*;q=0.9, application/openmetrics-text;q=0.8"], Text),
            (&["application/openmetrics-text;q=0"], Text),
            (&["application/openmetrics-text;q=0, text/plain;q=0"], Text),
            (&["application/openmetrics-text;q=2", "application/openmetrics-text;q=x"], Text),
            (&["text/plain;version=0.0.4"], Text),
            (&[";;=,,q=1;"], Text),
        ] {
            assert_eq!(wanted(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn the_text_format_has_the_same_samples_under_the_names_that_prometheus_knows() {
        let openmetrics = "# HELP a_seconds How long it took.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\n\
                           a_seconds_total{b=\"# HELP\"} 1.5\n# HELP c This program.\n# TYPE c info\nc_info{v=\"1\"} 1\n\
                           # HELP d_seconds Each.\n# TYPE d_seconds histogram\n# UNIT d_seconds seconds\nd_seconds_sum 0.0\n\
                           d_seconds_count 0\nd_seconds_bucket{le=\"+Inf\"} 0\n# TYPE e unknown\ne NaN\n# HELP f F.\n\
                           # TYPE f gauge\nf -1\n# EOF\n";
        let expected = "# HELP a_seconds_total How long it took.\n# TYPE a_seconds_total counter\n\
                        a_seconds_total{b=\"# HELP\"} 1.5\n# HELP c_info This program.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n\
                        # HELP d_seconds Each.\n# TYPE d_seconds histogram\nd_seconds_sum 0.0\n\
                        d_seconds_count 0\nd_seconds_bucket{le=\"+Inf\"} 0\n# TYPE e untyped\ne NaN\n# HELP f F.\n\
                        # TYPE f gauge\nf -1\n";
        assert_eq!(text(openmetrics), expected);
    }
}
