//! What may be shown of a URL that may have a password in it.

use url::Url;

use crate::model::text::storable;

/// A URL as it may be shown and stored: without user and password. A text that is no URL to call is given as it is,
/// unless it may have a password in it.
pub fn without_credentials(text: &str) -> String {
    match Url::parse(text.trim()) {
        Ok(mut url) if url.has_host() => {
            if url.username().is_empty() && url.password().is_none() {
                return storable(text.as_bytes());
            }
            // Cannot fail where there is a host.
            let bare = url.set_username("").and_then(|()| url.set_password(None));
            bare.map_or_else(|()| String::new(), |()| storable(url.as_str().as_bytes()))
        }
        _ if may_have_password(text) => "(not a URL)".into(),
        _ => storable(text.as_bytes()),
    }
}

/// Whether a text that is no URL may have a password in it. Encoded and full-width signs, too: they separate one as
/// much as the right sign does, for people.
pub(crate) fn may_have_password(text: &str) -> bool {
    ["@", "%40", "\u{FF20}", "\u{FE6B}"].iter().any(|at| text.contains(at))
}
