//! The password file (`~/.pgpass`, `PGPASSFILE`, `passfile=`): libpq's rules of matching, escaping and permission.
//!
//! Only reads; a file that libpq would ignore is ignored here too, with the reason for the operator.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a line must match.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Host name or address; "localhost" for a socket in a default folder.
    pub host: &'a str,
    pub port: u16,
    pub database: &'a str,
    pub user: &'a str,
}

/// The password of the first line that matches. The error says why the file is as good as none.
pub(super) fn look_up(path: &Path, wanted: Wanted<'_>) -> Result<Option<String>, String> {
    let meta = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
        Ok(meta) => meta,
    };
    if !meta.is_file() {
        return Err(format!("{} is not a plain file", path.display()));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(format!("{} is open to group or others and so ignored; chmod 0600 it", path.display()));
    }
    let text =
        fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Ok(find(&text, wanted))
}

/// The first line `host:port:database:user:password` whose first four fields match.
fn find(text: &str, wanted: Wanted<'_>) -> Option<String> {
    let port = wanted.port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for wanted in [wanted.host, &port, wanted.database, wanted.user] {
            let (field, after) = field(rest)?;
            if field != "*" && unescape(field) != wanted {
                return None;
            }
            rest = after;
        }
        // An empty password is none, and ends the search as it does in libpq.
        Some(unescape(rest))
    })
}

/// The text before the next colon that is not escaped, and the text after it.
fn field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    let end = text.bytes().position(|byte| {
        let found = byte == b':' && !escaped;
        escaped = byte == b'\\' && !escaped;
        found
    })?;
    Some((&text[..end], &text[end + 1..]))
}

fn unescape(text: &str) -> String {
    let mut chars = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const WANTED: Wanted<'_> = Wanted { host: "db1", port: 5432, database: "app", user: "relay" };

    #[test]
    fn the_first_line_that_matches_gives_the_password() {
        for (text, expected) in [
            ("db1:5432:app:relay:secret", Some("secret")),
            ("*:*:*:*:any\ndb1:5432:app:relay:late", Some("any")),
            (
                "db2:*:*:*:other\n*:5433:*:*:other\n*:*:x:*:other\n*:*:*:x:other\n*:*:*:relay:mine",
                Some("mine"),
            ),
            ("# db1:5432:app:relay:comment\n\ndb1:5432:app:relay:secret\r\n", Some("secret")),
            (r"db1:5432:app:relay:a\:b\\c:d", Some(r"a:b\c:d")),
            (r"d\b1:5432:app:relay:x", Some("x")),
            (r"\*:5432:app:relay:x", None),
            ("db1:5432:app:relay", None),
            ("db1:5432:app", None),
            ("", None),
        ] {
            assert_eq!(find(text, WANTED).as_deref(), expected, "{text}");
        }
        let v6 = Wanted { host: "::1", ..WANTED };
        assert_eq!(find(r"\:\:1:5432:app:relay:six", v6).as_deref(), Some("six"));
    }

    #[test]
    fn a_file_that_others_can_read_is_ignored_with_a_reason() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("pgpass");
        assert_eq!(look_up(&path, WANTED), Ok(None), "a missing file is no error");
        fs::write(&path, "*:*:*:*:secret\n").expect("written");
        for (mode, expected) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
            let answer = look_up(&path, WANTED);
            assert_eq!(answer == Ok(Some("secret".into())), expected, "{mode:o} gave {answer:?}");
            assert_eq!(answer.is_err(), !expected, "{mode:o} gave {answer:?}");
        }
    }
}
