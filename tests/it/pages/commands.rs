//! The command lines of the pages can be typed: the program's are run, and what the others name is there.

use std::path::Path;

use clap::Parser;
use promptpal_relay::inside::cli::Cli;

use super::{all, queries};
use crate::support::{Database, Receiver, Relay, Reply, outcome, psql, repository_file};

/// Programs that are not ours. What they do is not looked at.
const FOREIGN: &[&str] = &[
    "apt",
    "cargo",
    "createdb",
    "curl",
    "dpkg",
    "echo",
    "export",
    "install",
    "journalctl",
    "mkdir",
    "pg_dump",
    "pg_restore",
    "podman",
    "printf",
    "rust-audit-info",
    "sha256sum",
    "sudo",
    "systemd-sysusers",
    "tar",
    "tee",
];

/// The words of a command line as a shell makes them, by the pipes between its commands. Only what the pages use: quotes and
/// comments.
fn pipeline(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote) = (None::<String>, None);
    for c in line.chars().chain([' ']) {
        match (quote, c) {
            (None, '#') if word.is_none() => break,
            (None, ' ' | '|') => {
                commands.last_mut().unwrap().extend(word.take());
                if c == '|' {
                    commands.push(Vec::new());
                }
            }
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), _) if c == open => quote = None,
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "a quote is not closed: {line}");
    commands
}

/// The lines of the blocks of commands, with their places. A line that ends with a backslash goes on.
fn lines() -> Vec<(String, String)> {
    let pages = all();
    let mut lines = Vec::new();
    for block in pages.iter().flat_map(super::Page::blocks).filter(|block| block.language == "sh") {
        let joined = block.code.replace("\\\n", " ");
        lines.extend(
            joined
                .lines()
                .filter(|line| !line.trim().is_empty())
                .map(|line| (block.at.clone(), line.to_owned())),
        );
    }
    lines
}

/// The command itself: without variables before it, and without sudo and its user.
fn without_prefix(words: &[String]) -> &[String] {
    let is_variable = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    let mut words = words;
    loop {
        match words {
            [first, rest @ ..] if is_variable(first) => words = rest,
            [sudo, option, _, rest @ ..] if sudo == "sudo" && option == "-u" => words = rest,
            [sudo, rest @ ..] if sudo == "sudo" => words = rest,
            _ => return words,
        }
    }
}

/// What keeps a command of the program's from being run here; none when it is run.
fn not_run(words: &[&str]) -> Option<&'static str> {
    match words[0] {
        "run" | "demo" => Some("it does not end by itself, and other tests run it"),
        "top" => Some("it needs a terminal, and its own tests run it"),
        "migrate" if words.iter().any(|word| word.starts_with("--site")) => {
            Some("no daemon may run meanwhile; the tests of copies run it")
        }
        _ => None,
    }
}

/// Runs the SQL of a `-c`, and takes it back.
async fn run_sql(database: &Database, sql: &str, at: &str) {
    database.client.batch_execute("BEGIN; CREATE ROLE app_user").await.unwrap();
    // The daemon's login of the example is there where the line does not make it.
    let login = "\"promptpal-relay\"";
    if sql.contains(login) && !sql.contains("CREATE ROLE") {
        database.client.batch_execute(&format!("CREATE ROLE {login}")).await.unwrap();
    }
    let outcome = database.client.batch_execute(sql).await;
    database.client.batch_execute("ROLLBACK").await.unwrap();
    outcome.unwrap_or_else(|error| panic!("{at}: {error:?}\n{sql}"));
}

async fn run_psql(database: &Database, words: &[String], line: &str, at: &str) {
    let after = |option: &str| {
        let at =
            words.iter().enumerate().filter(move |(_, word)| *word == option).map(|(index, _)| index + 1);
        at.map(|index| words[index].as_str()).collect::<Vec<_>>()
    };
    for file in after("-f") {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).is_file(), "{at}: there is no {file}");
    }
    for sql in after("-c") {
        if sql.contains("FROM STDIN") {
            let mut shell = std::process::Command::new("sh");
            let psql = psql();
            let psql = psql.get_program().to_str().unwrap();
            shell.args(["-c", &line.replacen("| psql", &format!("| {psql} -v ON_ERROR_STOP=1"), 1)]);
            shell.env("DATABASE_URL", &database.url);
            let before = database.number("SELECT count(*) FROM relay.outbox").await;
            let (code, out, err) = outcome(shell);
            assert_eq!(code, 0, "{at}: {out}{err}");
            assert_eq!(database.number("SELECT count(*) FROM relay.outbox").await, before + 1, "{at}");
        } else {
            run_sql(database, sql, at).await;
        }
    }
}

#[tokio::test]
async fn each_command_line_of_the_pages_can_be_typed() {
    let failing = Receiver::start(|_| Reply::status(500));
    let database = queries::scene(&failing).await;
    // `send-test` succeeds where the endpoint does.
    let receiver = Receiver::good();
    let sql = format!("UPDATE relay.webhooks SET url = '{}'", receiver.url("/"));
    database.client.batch_execute(&sql).await.unwrap();
    let _relay = Relay::start(&database, &[]);
    let (mut run, mut passed_over) = (0, 0);
    for (at, line) in lines() {
        for words in pipeline(&line) {
            let words = without_prefix(&words);
            let Some(program) = words.first() else { continue };
            match program.as_str() {
                "promptpal-relay" => {
                    let parsed = Cli::try_parse_from(words);
                    parsed.unwrap_or_else(|error| panic!("{at}: {line}\n{error}"));
                    let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
                    if not_run(&arguments).is_some() {
                        passed_over += 1;
                        continue;
                    }
                    let (code, out, err) = outcome(database.command(&arguments));
                    assert_eq!(code, 0, "{at}: {line}\n{out}{err}");
                    run += 1;
                }
                "psql" => run_psql(&database, words, &line, &at).await,
                "systemctl" => {
                    for unit in words.iter().filter(|word| word.starts_with("promptpal-relay")) {
                        let file = if unit.contains('.') { unit.clone() } else { format!("{unit}.service") };
                        repository_file(&format!("systemd/{file}"));
                    }
                }
                script if script.starts_with("scripts/") => {
                    repository_file(script);
                    // `with-postgres` runs what follows.
                    let known = words.get(1).is_none_or(|word| word == "cargo");
                    assert!(known, "{at}: {line}");
                }
                program => assert!(FOREIGN.contains(&program), "{at}: what is {program}? {line}"),
            }
        }
    }
    assert!(run > 25 && passed_over > 0, "{run} {passed_over}");
}

/// Commands in the middle of a sentence, with N, NAME and TIME for what the reader puts there.
#[test]
fn each_command_in_a_sentence_can_be_typed() {
    let mut count = 0;
    for page in all() {
        for (span, at) in page.spans() {
            let Some(rest) = span.strip_prefix("promptpal-relay ") else { continue };
            if rest.contains('…') || rest == "--version" {
                continue;
            }
            let words = rest.split('|').next().unwrap().split_whitespace().map(|word| match word {
                "N" => "1",
                "NAME" | "NEW" | "TEXT" => "name",
                "T" | "TIME" => "1d",
                word => word,
            });
            let words: Vec<&str> = ["promptpal-relay"].into_iter().chain(words).collect();
            Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{at}: {span}\n{error}"));
            count += 1;
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn lines_are_read_as_a_shell_reads_them() {
    let read = |line| pipeline(line).iter().map(|words| words.join("~")).collect::<Vec<_>>();
    assert_eq!(read("a 'b c' d#e | f \"g | 'h'\"  # i"), ["a~b c~d#e", "f~g | 'h'"]);
    assert_eq!(read("a ''"), ["a~"]);
    let words: Vec<String> = ["sudo", "-u", "postgres", "PGDATABASE=app", "promptpal-relay", "migrate"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(without_prefix(&words).join(" "), "promptpal-relay migrate");
}
