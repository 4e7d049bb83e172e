//! What the user typed, taken apart as libpq does it: a `postgres://` URL or `key=value` pairs.
//!
//! Knows the two notations, and not what the keys mean. Its errors never repeat a text from a place where a password may
//! stand: a password that is not percent-encoded ends up in the strangest places of a URL.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Keys in libpq's spelling and their values. A later mention of a key replaces the earlier, also by an empty value:
/// that is the default, whatever the variables say.
pub(super) type Params = BTreeMap<String, String>;

/// What C's `isspace` takes for white space; Unicode has more, which may be part of a password.
pub(super) const SPACES: [char; 6] = [' ', '\t', '\n', '\u{b}', '\u{c}', '\r'];

/// Takes the text apart. Its beginning decides which of the two notations it is.
pub(super) fn parse(text: &str) -> Result<Params> {
    // White space around a URL is left over from a file or a shell; inside, its meaning is unclear.
    let trimmed = text.trim_matches(SPACES);
    if let Some(rest) = ["postgres://", "postgresql://"].iter().find_map(|p| trimmed.strip_prefix(p)) {
        return match rest.contains(SPACES) {
            true => refuse("there is white space in it; write %20 for a space"),
            false => url(rest),
        };
    }
    match text.split_once("://") {
        Some((scheme, _)) if !scheme.contains('=') => {
            refuse("it must begin with postgres:// or postgresql://")
        }
        _ => pairs(text),
    }
}

fn refuse<T>(what: &str) -> Result<T> {
    Err(Error::Config(format!("database URL: {what}")))
}

/// The hint that goes with everything that a raw password can break.
const ENCODE: &str = "in a user name or password, / ? @ : and % must be percent-encoded (@ is %40)";

/// `[user[:password]@][host[:port],…][/database][?key=value&…]`, each part optional.
fn url(rest: &str) -> Result<Params> {
    let mut params = Params::new();
    // A part that is not there says nothing.
    let mut set = |key: &str, value: String| {
        if !value.is_empty() {
            params.insert(key.to_owned(), value);
        }
    };

    // libpq's rule: what stands before an `@` is the credentials, unless a `/` comes first.
    let (credentials, rest) = match rest.find(['@', '/']) {
        Some(at) if rest.as_bytes()[at] == b'@' => (&rest[..at], &rest[at + 1..]),
        _ => ("", rest),
    };
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    set("user", decode(user)?);
    set("password", decode(password)?);

    let (mut hosts, mut next) = (Vec::new(), rest);
    let rest = loop {
        let (host, rest) = host_and_port(next)?;
        hosts.push(host);
        match rest.strip_prefix(',') {
            Some(more) => next = more,
            None => break rest,
        }
    };
    let list = |part: fn(&(String, String)) -> &str| hosts.iter().map(part).collect::<Vec<_>>().join(",");
    set("host", list(|(host, _)| host));
    set("port", list(|(_, port)| port));

    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let database = path.strip_prefix('/').unwrap_or(path);
    if database.contains('@') {
        return refuse(&format!("there is an @ in the database's name; {ENCODE}"));
    }
    set("dbname", decode(database)?);

    // One & may stand at the end.
    let query = query.strip_suffix('&').filter(|rest| !rest.is_empty()).unwrap_or(query);
    for pair in query.split('&').filter(|_| !query.is_empty()) {
        let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.contains('=')) else {
            return refuse(
                "after the ?, parameters are written key=value, with & between them and = as %3D in a value",
            );
        };
        match (decode(key)?.as_str(), decode(value)?) {
            // The JDBC driver's spelling, which libpq takes too.
            ("ssl", value) if value == "true" => params.insert("sslmode".to_owned(), "require".to_owned()),
            (key, value) => params.insert(key.to_owned(), value),
        };
    }
    Ok(params)
}

/// `host`, `host:port`, `[::1]:port`, or `%2Fdirectory`, each part may be empty; and what follows: nothing, or from the `,`,
/// `/` or `?` on.
fn host_and_port(text: &str) -> Result<((String, String), &str)> {
    const IPV6: &str = "an IPv6 address is written [address]:port";
    let split = |text: &'_ str, end: &[char]| text.find(end).unwrap_or(text.len());
    let (host, rest) = match text.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((host, rest))
                if !host.is_empty() && (rest.is_empty() || rest.starts_with([':', '/', '?', ','])) =>
            {
                (host, rest)
            }
            _ => return refuse(IPV6),
        },
        None => text.split_at(split(text, &[':', '/', '?', ','])),
    };
    let (port, rest) = match rest.strip_prefix(':') {
        Some(port) => port.split_at(split(port, &['/', '?', ','])),
        None => ("", rest),
    };
    if host.contains('@') || port.contains('@') {
        return refuse(&format!("there is more than one @; {ENCODE}"));
    }
    if port.contains(':') {
        return refuse(IPV6);
    }
    let port = decode(port)?;
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return refuse(&format!("the port is not a number; {ENCODE}"));
    }
    Ok(((decode(host)?, port), rest))
}

/// Percent-decoding by libpq's rule: a `%` that begins no code is an error, and so is `%00`. The crate percent-encoding takes
/// both as they are, and a mistyped password would be another one.
fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = match tail {
            [high, low, ..] if *first == b'%' => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        match (first, code) {
            (b'%', None | Some(0)) => return refuse(&format!("a % is not followed by a code; {ENCODE}")),
            (_, Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (byte, None) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).or_else(|_| refuse("it is not UTF-8 after percent-decoding"))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// `key = value`, with white space between; a value with spaces stands in single quotes, `\` escapes.
fn pairs(text: &str) -> Result<Params> {
    let mut params = Params::new();
    let mut rest = text.trim_start_matches(SPACES);
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || SPACES.contains(&c)).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let Some(after) = after.trim_start_matches(SPACES).strip_prefix('=') else {
            return refuse(
                "it is neither a postgres:// URL nor key=value pairs (a value with spaces needs single quotes)",
            );
        };
        let (value, after) = pair_value(after.trim_start_matches(SPACES))?;
        params.insert(key.to_owned(), value);
        rest = after.trim_start_matches(SPACES);
    }
    Ok(params)
}

/// One value and what follows it.
fn pair_value(text: &str) -> Result<(String, &str)> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if SPACES.contains(&c) && !quoted => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted { refuse("a single quote is not closed") } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests;
