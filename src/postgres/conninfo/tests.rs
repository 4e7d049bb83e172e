//! Both notations against what libpq says, by a list and by libpq itself.

use std::process::Command;

use super::*;
use crate::postgres::keywords::is_known;

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
        ("host='' user=x", "host= | user=x"),
        ("host=a host=", "host="),
        ("user=x\u{a0}y\u{2003}z\u{85}", "user=x\u{a0}y\u{2003}z\u{85}"),
        (r"password=a\ ", "password=a "),
        ("host=a\u{b}user=b", "host=a | user=b"),
        ("host=/run/pg,db2 port=1,", "host=/run/pg,db2 | port=1,"),
        ("password=a://b", "password=a://b"),
        ("user=x host=", "host= | user=x"),
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

/// Tried where the dynamic linker does not find it: what a Postgres brings along that was not packaged by the system.
const ELSEWHERE: [&str; 2] = ["/usr/local/pgsql/lib/libpq.so.5", "/opt/homebrew/lib/libpq.so.5"];

/// A parser's answer: values as bytes, or none if it refuses the text.
type Answer = Option<BTreeMap<String, Vec<u8>>>;

/// What libpq says of each text.
fn libpq(texts: &[String]) -> Vec<Answer> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (source, program) = (folder.path().join("libpq.c"), folder.path().join("libpq"));
    std::fs::write(&source, include_str!("libpq.c")).expect("written");
    let made = Command::new("cc").arg("-o").args([&program, &source]).arg("-ldl").status();
    assert!(made.expect("a C compiler; install the package gcc").success());
    std::fs::write(
        folder.path().join("texts"),
        texts.iter().flat_map(|t| [t.as_bytes(), b"\0"].concat()).collect::<Vec<_>>(),
    )
    .expect("written");
    let mut asked = ["libpq.so.5"].iter().chain(&ELSEWHERE).map(|library| {
        let texts = std::fs::File::open(folder.path().join("texts")).expect("opened");
        Command::new(&program).arg(library).stdin(texts).output().expect("it runs")
    });
    let asked = asked.find(|output| output.status.success());
    let output = asked.expect("THERE IS NO libpq.so.5: nothing was compared; install the package libpq5");
    let unhex = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
    };
    let text = String::from_utf8(output.stdout).expect("text");
    let answers: Vec<Answer> = text
        .split_terminator(".\n")
        .map(|answer| {
            let value = |line: &str| line.split_once(' ').map(|(key, hex)| (key.to_owned(), unhex(hex)));
            (answer != "refused\n").then(|| answer.lines().filter_map(value).collect())
        })
        .collect();
    assert_eq!(answers.len(), texts.len());
    answers
}

/// What we say of it: a key that libpq does not have is refused where the keys get their meaning.
fn ours(text: &str) -> Answer {
    let params = parse(text).ok()?;
    let all_known = params.keys().all(|key| is_known(key));
    all_known.then(|| params.into_iter().map(|(key, value)| (key, value.into_bytes())).collect())
}

/// Why we mean to differ there; all of it is about URLs.
fn intended(text: &str, ours: &Answer, libpq: &Answer) -> Option<&'static str> {
    let url = text.trim_matches(SPACES);
    let rest = ["postgres://", "postgresql://"].iter().find_map(|prefix| url.strip_prefix(prefix))?;
    if text.contains(SPACES) {
        return Some(
            "white space: around a URL it is left over, inside it must be %20 (as in newer versions of libpq)",
        );
    }
    let libpq = libpq.as_ref().filter(|_| ours.is_none())?;
    let value = |key: &str| libpq.get(key).map(Vec::as_slice).unwrap_or_default();
    if libpq.values().any(|value| str::from_utf8(value).is_err()) {
        return Some("not UTF-8: Postgres would refuse it, and we could not show it");
    }
    let after_credentials = match rest.find(['@', '/']) {
        Some(at) if rest.as_bytes()[at] == b'@' => &rest[at + 1..],
        _ => rest,
    };
    if after_credentials.split('?').next().is_some_and(|rest| rest.contains('@')) {
        return Some("a second @, or one in a database's name: a password that is not percent-encoded");
    }
    if value("port").iter().any(|byte| !byte.is_ascii_digit() && *byte != b',') {
        return Some("a port that is no number: libpq refuses it when it connects");
    }
    None
}

/// Texts of both notations and of none, from pieces that mean something to a parser.
fn random(generator: &mut fastrand::Rng) -> String {
    const PIECES: &[&str] = &[
        "host",
        "port",
        "user",
        "password",
        "dbname",
        "sslmode",
        "application_name",
        "options",
        "ssl",
        "true",
        "nokey",
        "=",
        "=",
        "=",
        "=",
        " ",
        " ",
        " ",
        "\t",
        "\n",
        "\u{b}",
        "\u{c}",
        "\r",
        "\u{a0}",
        "\u{85}",
        "\u{2003}",
        "'",
        "'",
        "\\",
        "\\ ",
        "\\'",
        "@",
        ":",
        "/",
        "/",
        "?",
        "&",
        "&",
        "#",
        ",",
        "[",
        "]",
        "[::1]",
        "%20",
        "%2F",
        "%40",
        "%3D",
        "%00",
        "%4",
        "%zz",
        "%c3%b6",
        "%ff",
        "a",
        "b",
        "ö",
        "1",
        "5432",
        "://",
        "db.example.org",
    ];
    let mut text = String::from(match generator.u8(..4) {
        0 => "",
        1 => "user=",
        2 => "postgresql://",
        _ => "postgres://",
    });
    for _ in 0..generator.usize(..12) {
        text.push_str(PIECES[generator.usize(..PIECES.len())]);
    }
    text
}

#[test]
fn what_libpq_reads_is_read_the_same() {
    // What has been read otherwise once, and what is near it.
    let mut texts: Vec<String> = [
        "",
        " ",
        "=",
        "a",
        "host=a",
        "host = a",
        "host=a host=",
        "host=a host=''",
        "user=x\u{a0}y",
        "user=x\u{2003}host=y",
        "\u{a0}user=x",
        "user=x\u{85}",
        "host=a\u{b}user=b",
        "host=a\u{c}user=b",
        r"password=a\ ",
        r"password=a\",
        r"password='a\",
        r"password='a\' ",
        "password='a'user=b",
        "password=''",
        "password= user=b",
        "host= ",
        "nokey=a",
        "=a",
        "host='a b' user='c\\\\d\\'e'",
        "user=a 'b",
        "user",
        "user a=b",
        "ssl=true",
        "sslmode=require sslmode=",
        "postgres://",
        "postgresql://",
        "postgres:/",
        "postgres//h",
        "POSTGRES://h",
        "mysql://h",
        "mysql://h?a=b",
        "postgres://h/d?",
        "postgres://h/d?&",
        "postgres://h/d?&host=a",
        "postgres://h/d?host=a&",
        "postgres://h/d?host=a&&user=b",
        "postgres://h/d?host=a&&",
        "postgres://h/d?host",
        "postgres://h/d?host=",
        "postgres://h/d?host=&user=b",
        "postgres://h/d?=a",
        "postgres://h/d?options=-c a=b",
        "postgres://h/d?options=-c%20a=b",
        "postgres://h/d?options=-c%20a%3Db",
        "postgres://h/d?ssl=true",
        "postgres://h/d?ssl=false",
        "postgres://h/d?sslmode=",
        "postgres://h/d?host%3Da",
        "postgres://[]/d",
        "postgres://[",
        "postgres://[::1",
        "postgres://[::1]",
        "postgres://[::1]:5",
        "postgres://[::1]5",
        "postgres://[::1],h:1/d",
        "postgres://[::1]@h",
        "postgres://[a%20b]/d",
        "postgres://h:%35/d",
        "postgres://h:5x/d",
        "postgres://h:,:1/d",
        "postgres://,/d",
        "postgres://,,,",
        "postgres://:1,:2/d",
        "postgres://u@h/d",
        "postgres://u:@h",
        "postgres://:p@h",
        "postgres://@h",
        "postgres://u:p:q@h",
        "postgres://u:p@h@i/d",
        "postgres://u:p/q@h/d",
        "postgres://u:p@h/d@e",
        "postgres://h?user=a@b",
        "postgres://h?a",
        "postgres://u%zz@h",
        "postgres://u%@h",
        "postgres://u%4@h",
        "postgres://u%00@h",
        "postgres://u%ff@h",
        "postgres://%2Frun%2Fpg/d",
        "postgres://h//d",
        "postgres://h/d/e",
        "postgres:///d",
        "postgres:////d",
        "postgres://h/d#f",
        "postgres://h?x#y",
        "postgres://h/d?host=a?b",
        "postgres://h/d?host=a/b",
        " postgres://h",
        "postgres://h ",
        "postgres://h/a b",
        "postgres://h/\u{a0}d",
        "postgres://h/d\u{2003}",
        "\u{a0}postgres://h",
    ]
    .map(String::from)
    .to_vec();
    let mut generator = fastrand::Rng::with_seed(13);
    texts.extend((0..100_000).map(|_| random(&mut generator)));
    let mut differences = BTreeMap::new();
    let mut accepted = 0;
    for (text, libpq) in texts.iter().zip(libpq(&texts)) {
        let ours = ours(text);
        if ours == libpq {
            accepted += usize::from(ours.is_some());
            continue;
        }
        let why = intended(text, &ours, &libpq)
            .unwrap_or_else(|| panic!("{text:?}: we read {ours:?}, libpq {libpq:?}"));
        *differences.entry(why).or_insert(0) += 1;
    }
    // The comparison compares: much is taken by both, and each difference that is meant was met.
    assert!(accepted > 5_000, "{accepted}");
    assert_eq!(differences.len(), 4, "{differences:?}");
}
