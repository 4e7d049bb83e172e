//! What the user typed, taken apart as libpq does it: a `postgres://` URL or `key=value` pairs.
//!
//! Knows the two notations and nothing of what the keys mean. Its errors never repeat what stands where a password
//! may stand: a password that is not percent-encoded ends up in the strangest places of a URL.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Keys in libpq's spelling and their values. A later mention of a key replaces the earlier.
pub(super) type Params = BTreeMap<String, String>;

/// Takes the text apart; which of the two notations it is decides its beginning.
pub(super) fn parse(text: &str) -> Result<Params> {
    let text = text.trim();
    if let Some(rest) = ["postgres://", "postgresql://"].iter().find_map(|p| text.strip_prefix(p)) {
        return url(rest);
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

    let (hosts, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let hosts = hosts.split(',').map(host_and_port).collect::<Result<Vec<_>>>()?;
    let list = |part: fn(&(String, String)) -> &str| hosts.iter().map(part).collect::<Vec<_>>().join(",");
    set("host", list(|(host, _)| host));
    set("port", list(|(_, port)| port));

    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let database = path.strip_prefix('/').unwrap_or(path);
    if database.contains('@') {
        return refuse(&format!("there is an @ in the database's name; {ENCODE}"));
    }
    set("dbname", decode(database)?);

    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return refuse("after the ?, parameters are written key=value, with & between them");
        };
        match (decode(key)?.as_str(), decode(value)?) {
            // The JDBC driver's spelling, which libpq takes too.
            ("ssl", value) if value == "true" => set("sslmode", "require".to_owned()),
            (key, value) => set(key, value),
        }
    }
    Ok(params)
}

/// `host`, `host:port`, `[::1]:port`, or `%2Fdirectory`; each part may be empty.
fn host_and_port(text: &str) -> Result<(String, String)> {
    if text.contains('@') {
        return refuse(&format!("there is more than one @; {ENCODE}"));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((host, "")) => (host, ""),
            Some((host, port)) if port.starts_with(':') => (host, &port[1..]),
            _ => return refuse("an IPv6 address is written [address]:port"),
        },
        None => text.split_once(':').unwrap_or((text, "")),
    };
    if port.contains(':') {
        return refuse("an IPv6 address is written [address]:port");
    }
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return refuse(&format!("the port is not a number; {ENCODE}"));
    }
    Ok((decode(host)?, port.to_owned()))
}

/// Percent-decoding, strict: a `%` that begins no code is an error, as it is for libpq.
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
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let Some(after) = after.trim_start().strip_prefix('=') else {
            return refuse(
                "it is neither a postgres:// URL nor key=value pairs (a value with spaces needs single quotes)",
            );
        };
        let (value, after) = pair_value(after.trim_start())?;
        if !value.is_empty() {
            params.insert(key.to_owned(), value);
        }
        rest = after.trim_start();
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
            c if c.is_whitespace() && !quoted => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted { refuse("a single quote is not closed") } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parameters in one line, by key.
    fn shown(text: &str) -> String {
        match parse(text) {
            Ok(params) => params.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" | "),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn urls_are_read_as_libpq_reads_them() {
        for (text, expected) in [
            ("postgres://", ""),
            ("postgresql:///app", "dbname=app"),
            ("postgres://db1", "host=db1"),
            ("postgres://relay@db1:5433/app", "dbname=app | host=db1 | port=5433 | user=relay"),
            ("postgres://r%40x:p%2Fw%25@db1/my%20app", "dbname=my app | host=db1 | password=p/w% | user=r@x"),
            ("postgres://relay:a:b?c@db1", "host=db1 | password=a:b?c | user=relay"),
            ("postgres://a:1,b,[::1]:3/x", "dbname=x | host=a,b,::1 | port=1,,3"),
            ("postgres://a,b/x", "dbname=x | host=a,b | port=,"),
            ("postgres://[2001:db8::1]/x", "dbname=x | host=2001:db8::1"),
            ("postgres://:5433/x", "dbname=x | port=5433"),
            ("postgres://%2Frun%2Fpg:5433/x", "dbname=x | host=/run/pg | port=5433"),
            ("postgres:///x?host=%2Frun&port=1", "dbname=x | host=/run | port=1"),
            ("postgres:///x?application_name=a@b", "application_name=a@b | dbname=x"),
            ("postgres://h?options=-c%20geqo%3Doff", "host=h | options=-c geqo=off"),
            ("postgres://h/x?ssl=true", "dbname=x | host=h | sslmode=require"),
            ("postgres://h/x?sslmode=disable&sslmode=require", "dbname=x | host=h | sslmode=require"),
            ("postgres://größe@h", "host=h | user=größe"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn pairs_are_read_as_libpq_reads_them() {
        for (text, expected) in [
            ("", ""),
            ("host=db1 port=5433", "host=db1 | port=5433"),
            ("  host = db1\tdbname\n=\napp ", "dbname=app | host=db1"),
            (r"password='it\'s \\ me' user=a\ b", r"password=it's \ me | user=a b"),
            ("host='' user=x", "user=x"),
            ("host=/run/pg,db2 port=1,", "host=/run/pg,db2 | port=1,"),
            ("password=a://b", "password=a://b"),
            ("user=x host=", "user=x"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_repeating_it() {
        for text in [
            "mysql://relay:s3cret@h/x",
            "postgresql+asyncpg://relay:s3cret@h/x",
            "postgres://relay:s3/cret@h/x",
            "postgres://relay:12/s3cret@h/x",
            "postgres://relay:s3@cret@h/x",
            "postgres://relay:s3%cret@h/x",
            "postgres://relay:s3%00cret@h/x",
            "postgres://relay:%ff@h/x",
            "postgres://relay:%e2%82@h/x",
            "postgres://h:5432x/x",
            "postgres://::1/x",
            "postgres://[::1/x",
            "postgres://[::1]5432/x",
            "postgres://h/x?s3cret",
            "password=my s3cret",
            "password='s3cret",
            "s3cret",
        ] {
            let answer = shown(text);
            assert!(answer.starts_with("error: database URL: "), "{text} gave {answer}");
            assert!(!answer.contains("s3") && !answer.contains("cret"), "{text} gave {answer}");
        }
    }
}
