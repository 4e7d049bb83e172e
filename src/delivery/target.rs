//! Targets: what a customer typed as a URL, as something that can be called, or why it cannot. Looks up no name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use ureq::http::Uri;
use url::Url;

use crate::delivery::networks;
use crate::model::redact;

/// URLs that are remembered parsed: a few megabytes with URLs of the usual length. Beyond it all are forgotten, which costs
/// parsing each once more.
const TARGETS_MAX: usize = 4096;
/// Longest URL: about what servers take as the line of a request. `claim.sql` reads a little more of it, so that a longer one
/// is seen.
const URL_BYTES_MAX: usize = 8 * 1024;

/// A URL that can be called.
pub(crate) struct Target {
    /// Without user, password and fragment.
    pub url: Url,
    /// The URL, for the HTTP client.
    pub uri: Uri,
    /// The value of `Authorization`, from the URL's user and password.
    pub authorization: Option<String>,
    /// What the customer typed, without user and password.
    pub shown: String,
}

impl Target {
    /// Scheme, host and port, as text.
    pub(crate) fn origin(&self) -> &str {
        &self.url[..url::Position::BeforePath]
    }
}

/// Targets by the text that the customer typed: parsing takes as long as writing the request.
#[derive(Default)]
pub(crate) struct Targets(
    // All threads write it.
    Mutex<HashMap<String, Arc<Target>>>,
);

impl Targets {
    /// The target of a text.
    ///
    /// # Errors
    ///
    /// Why it can never be called, for the customer.
    pub(crate) fn get(&self, text: &str, https_only: bool) -> Result<Arc<Target>, String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(text).cloned();
        if let Some(target) = known {
            return Ok(target);
        }
        let target = Arc::new(parse(text, https_only)?);
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if targets.len() >= TARGETS_MAX {
            targets.clear();
        }
        targets.insert(text.to_owned(), target.clone());
        Ok(target)
    }
}

/// What the customer typed, as something that can be called.
///
/// # Errors
///
/// Why it can never be called, for the customer.
pub(crate) fn parse(text: &str, https_only: bool) -> Result<Target, String> {
    let bare = text.trim_matches(|c| c <= ' ');
    if bare.is_empty() {
        return Err("the URL is empty".into());
    }
    if text.len() > URL_BYTES_MAX {
        return Err(format!("the URL is longer than {URL_BYTES_MAX} bytes"));
    }
    let mut url = Url::parse(bare).map_err(|error| format!("not a URL: {}", in_our_words(error)))?;
    match url.scheme() {
        "https" => {}
        "http" if !https_only => {}
        "http" => return Err("http is not allowed here, only https".into()),
        // The parser takes a user name for a scheme where the scheme was forgotten.
        _ if redact::may_have_password(text) => return Err("the scheme is not http or https".into()),
        other => return Err(format!("the scheme is {}, not http or https", other.escape_default())),
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("the URL has no host".into());
    }
    if let Some(port) = url.port().filter(|port| networks::is_bad_port(*port)) {
        return Err(format!("port {port} cannot be called: it belongs to another protocol"));
    }
    let authorization = authorization(&url);
    url.set_fragment(None);
    let bare = url.set_username("").and_then(|()| url.set_password(None));
    bare.map_err(|()| "the URL cannot have a user".to_owned())?;
    if url.as_str().len() > URL_BYTES_MAX {
        return Err(format!("the URL is longer than {URL_BYTES_MAX} bytes when it is encoded"));
    }
    // The HTTP client is stricter than browsers are.
    let uri = Uri::try_from(url.as_str()).map_err(|_| NOT_FOR_HTTP.to_owned())?;
    Ok(Target { url, uri, authorization, shown: redact::without_credentials(text) })
}

/// The HTTP client refuses a URL that browsers take.
const NOT_FOR_HTTP: &str = "not a URL: a character in it cannot be sent in a request";

/// What is wrong with a text that is no URL. relay.url_problem() has the same words.
fn in_our_words(error: url::ParseError) -> &'static str {
    use url::ParseError as E;
    match error {
        E::EmptyHost => "the host is empty",
        E::InvalidPort => "the port is no number up to 65535",
        E::InvalidIpv4Address => "the host is neither a name nor an IPv4 address",
        E::InvalidIpv6Address => "what is in brackets is no IPv6 address",
        E::IdnaError | E::InvalidDomainCharacter => "the host has a character that no host has",
        E::RelativeUrlWithoutBase => "it does not begin with https://",
        E::Overflow => "it is too long",
        _ => "it cannot be read",
    }
}

/// The value of `Authorization` for a URL with user or password.
pub(crate) fn authorization(url: &Url) -> Option<String> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pair = [plain(url.username()), plain(url.password().unwrap_or_default())].join(":");
    Some(format!("Basic {}", STANDARD.encode(pair)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(redact::without_credentials("https://a:b@example.com/x?y"), "https://example.com/x?y");
        assert_eq!(redact::without_credentials("https://example.com/x"), "https://example.com/x");
        assert_eq!(redact::without_credentials("a:b@"), "(not a URL)");
        assert_eq!(redact::without_credentials("nonsense"), "nonsense");
    }

    #[test]
    fn basic_authentication_is_of_the_decoded_text() {
        for (url, expected) in [
            ("https://us%40er:p%2Bw+%C3%A9@example.com/", Some("us@er:p+w+é")),
            ("https://user:a&b=c%3Dd%zz@example.com/", Some("user:a&b=c=d%zz")),
            ("https://user@example.com/", Some("user:")),
            ("https://:word@example.com/", Some(":word")),
            ("https://example.com/", None),
        ] {
            let expected = expected.map(|pair| format!("Basic {}", STANDARD.encode(pair)));
            assert_eq!(authorization(&Url::parse(url).expect("a URL")), expected, "{url}");
        }
    }
}
