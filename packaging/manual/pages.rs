//! The manual pages, section 8: one for the program, and one for each command.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// System administration commands and daemons.
const SECTION: &str = "8";

/// A term of a list, and what the page says of it.
type Item = (&'static str, &'static str);

/// Command lines that work, by command. The test below parses each of them.
const EXAMPLES: &[(&str, &[Item])] = &[
    (
        "run",
        &[
            (
                "promptpal-relay run --metrics-listen 9464",
                "Run the daemon, and serve /metrics and /healthz on a port of 127.0.0.1.",
            ),
            (
                "promptpal-relay run --allow-net 10.0.0.0/8 --https-only",
                "Also call receivers in a private network; call no URL with http:.",
            ),
        ],
    ),
    (
        "migrate",
        &[
            ("promptpal-relay migrate", "Create or upgrade the schema. The command can be run again."),
            ("promptpal-relay migrate --print | psql -v ON_ERROR_STOP=1", "Let a DBA run the SQL."),
            (
                "promptpal-relay migrate --site staging --accept-copy skip",
                "Accept this copy as the site staging, and deliver no event that was pending in it.",
            ),
        ],
    ),
    (
        "check",
        &[("promptpal-relay check", "Check all that run needs. The exit status tells whether it is there.")],
    ),
    ("status", &[("promptpal-relay status", "Show the instances, the backlog and the webhooks that fail.")]),
    (
        "calls",
        &[
            (
                "promptpal-relay calls --webhook 1 --failed --since 1d",
                "Show the failed calls of a webhook since yesterday.",
            ),
            ("promptpal-relay calls --follow --json", "Print each new call as a line of JSON."),
        ],
    ),
    ("call", &[("promptpal-relay call 42", "Show one call: its request, its answer, and what repeated it.")]),
    ("top", &[("promptpal-relay top", "Show live whether calls are made, and which webhooks fail.")]),
    (
        "replay",
        &[
            ("promptpal-relay replay --call 42", "Repeat one call."),
            (
                "promptpal-relay replay --webhook 1 --since 1d --failed --dry-run",
                "Tell how many open failures would be repeated.",
            ),
            ("promptpal-relay replay --webhook 1 --since 1d --failed --yes", "Repeat them."),
        ],
    ),
    (
        "pause",
        &[(
            "promptpal-relay pause --webhook 1 --reason maintenance --until 2h",
            "Do not call a webhook for two hours.",
        )],
    ),
    (
        "resume",
        &[(
            "promptpal-relay resume --webhook 1 --replay",
            "Call it again, and repeat the calls that were held back.",
        )],
    ),
    (
        "send-test",
        &[("promptpal-relay send-test --webhook 1", "Send a test event, and print the result of the call.")],
    ),
    ("demo", &[("promptpal-relay demo", "Show deliveries of all kinds, and leave nothing behind.")]),
];

const FILES: &[Item] = &[
    (
        "/etc/promptpal-relay.env",
        "Settings of promptpal-relay.service: each variable, with its default or an example.",
    ),
    (
        "/etc/promptpal-relay/NAME.env",
        "Settings of an instance of the template, promptpal-relay@NAME.service.",
    ),
    (
        "/etc/promptpal-relay.url",
        "The usual place of the URL for LoadCredential= in the unit. It does not exist until the operator makes it.",
    ),
    ("~/.pgpass", "Passwords of Postgres, in libpq's form. PGPASSFILE names another file."),
    (
        "~/.postgresql/root.crt, ~/.postgresql/postgresql.crt, ~/.postgresql/postgresql.key",
        "Certificates for TLS to Postgres, as libpq has them.",
    ),
    (
        "/var/log/promptpal-relay/",
        "The folder that the unit lets the daemon write its log files to (--log-dir).",
    ),
    ("/usr/share/promptpal-relay/sql/", "The SQL of the schema and of each query."),
    ("/usr/share/promptpal-relay/monitoring/", "Alert rules and a dashboard."),
    ("/usr/share/doc/promptpal-relay/", "The pages for operators, DBAs, developers and receivers."),
];

const SIGNALS: &[Item] = &[
    (
        "SIGTERM, SIGINT",
        "The daemon stops claiming and gives back the rows that have not begun. It finishes the calls in flight, records them and exits with 0. \
         A second one of these signals ends it at once, with 1.",
    ),
    ("SIGHUP", "The daemon opens its log files anew."),
];

/// What the definition of the command line does not tell.
const VARIABLES: &[Item] = &[
    ("DATABASE_URL", "The URL of Postgres, where neither --database-url nor --database-url-file is given."),
    (
        "CREDENTIALS_DIRECTORY",
        "The folder of systemd's credentials. Its file database-url is read where no other URL is given.",
    ),
    (
        "PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD, PGPASSFILE, PGSSLMODE, PGSSLROOTCERT and others",
        "What the URL leaves out, as for libpq.",
    ),
    ("NO_COLOR", "Set to any value, it keeps colours out of log lines on a terminal."),
    ("RUST_BACKTRACE", "Set to 1, it adds a backtrace to the message of a panic."),
    ("PROMPTPAL_RELAY_PG_BIN", "The folder of Postgres' server programs, for demo."),
];

const EXIT_STATUS: &[Item] = &[
    ("0", "The command has finished, or the daemon has recorded its calls after a signal."),
    (
        "1",
        "The command has failed; another attempt may help. For status: no instance runs. For send-test: the call failed, or was not made in time.",
    ),
    ("2", "The arguments are wrong."),
    (
        "78",
        "Configuration, schema or rights are wrong; a restart will not help. The last line says what to do.",
    ),
];

/// Writes the pages.
///
/// # Errors
///
/// What the system says.
pub(crate) fn write(command: Command, folder: &Path) -> io::Result<()> {
    let mut command = command.disable_help_subcommand(true).subcommand_help_heading("COMMANDS");
    command.build();
    let names: Vec<String> = command.get_subcommands().map(|one| one.get_name().to_owned()).collect();
    for one in command.get_subcommands() {
        let name = one.get_name().to_owned();
        let mut related = vec!["promptpal-relay".to_owned()];
        related.extend(
            names.iter().filter(|other| **other != name).map(|other| format!("promptpal-relay-{other}")),
        );
        page(one.clone(), folder, |roff| {
            examples(roff, |command| command == name);
            if name == "run" {
                list(roff, "FILES", FILES);
                list(roff, "SIGNALS", SIGNALS);
            }
            environment(roff, one);
            list(roff, "EXIT STATUS", EXIT_STATUS);
            see_also(roff, &related);
        })?;
    }
    let related: Vec<String> = names.iter().map(|name| format!("promptpal-relay-{name}")).collect();
    let whole = command.clone();
    page(command, folder, |roff| {
        examples(roff, |_| true);
        list(roff, "FILES", FILES);
        list(roff, "SIGNALS", SIGNALS);
        environment(roff, &whole);
        list(roff, "EXIT STATUS", EXIT_STATUS);
        see_also(roff, &related);
    })
}

/// One page: what clap knows, and then the sections that `more` adds.
fn page(command: Command, folder: &Path, more: impl FnOnce(&mut Roff)) -> io::Result<()> {
    let has_commands = command.has_subcommands();
    let source = concat!("promptpal-relay ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).section(SECTION).source(source).manual("System Administration");
    let mut file = File::create(folder.join(man.get_filename()))?;
    man.render_title(&mut file)?;
    man.render_name_section(&mut file)?;
    man.render_synopsis_section(&mut file)?;
    man.render_description_section(&mut file)?;
    if has_commands {
        man.render_subcommands_section(&mut file)?;
    }
    man.render_options_section(&mut file)?;
    let mut roff = Roff::default();
    more(&mut roff);
    roff.to_writer(&mut file)?;
    file.flush()
}

fn examples(roff: &mut Roff, is_shown: impl Fn(&str) -> bool) {
    roff.control("SH", ["EXAMPLES"]);
    let shown = EXAMPLES.iter().filter(|(command, _)| is_shown(command));
    for (line, does) in shown.flat_map(|(_, examples)| *examples) {
        item(roff, line, does);
    }
}

/// The variables that stand for flags, and those of a whole program on the page of the program and of `run`.
fn environment(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["ENVIRONMENT"]);
    roff.text([roman("A flag wins over its variable. An empty variable counts as one that is not set.")]);
    let mut flags: Vec<_> = command.get_arguments().collect();
    if let Some(run) = command.find_subcommand("run") {
        let own = run.get_arguments().filter(|flag| !flag.is_global_set());
        flags.extend(own);
    }
    for flag in flags {
        if let (Some(variable), Some(long)) = (flag.get_env(), flag.get_long()) {
            item(roff, &variable.to_string_lossy(), &format!("The value of --{long}."));
        }
    }
    list_items(roff, VARIABLES);
}

fn see_also(roff: &mut Roff, pages: &[String]) {
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for page in pages {
        line.extend([bold(page.as_str()), roman(format!("({SECTION}), "))]);
    }
    line.extend([bold("psql"), roman("(1), "), bold("systemd.exec"), roman("(5)")]);
    roff.text(line);
}

fn list(roff: &mut Roff, heading: &str, items: &[Item]) {
    roff.control("SH", [heading]);
    list_items(roff, items);
}

fn list_items(roff: &mut Roff, items: &[Item]) {
    for (term, text) in items {
        item(roff, term, text);
    }
}

fn item(roff: &mut Roff, term: &str, text: &str) {
    roff.control("TP", []);
    roff.text([bold(term)]);
    roff.text([roman(text)]);
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use clap::{CommandFactory, Parser};
    use promptpal_relay::inside::cli::Cli;

    use super::*;

    #[test]
    fn each_command_has_examples_and_each_example_is_one_of_its_command() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let (_, examples) = EXAMPLES
                .iter()
                .find(|(known, _)| *known == name)
                .unwrap_or_else(|| panic!("{name}: no example"));
            for (line, _) in *examples {
                let words: Vec<&str> = line.split(" | ").next().unwrap_or_default().split(' ').collect();
                assert_eq!(words.get(1), Some(&name), "{line}");
                Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
    }

    #[test]
    fn each_help_text_begins_with_a_verb() {
        // A noun or an article first is what a list of nouns begins with; a verb in the imperative has neither.
        let wrong = [
            "The", "A", "An", "This", "How", "What", "Whether", "Most", "Least", "Of", "All", "One", "When",
            "Why", "It",
        ];
        let mut without = Vec::new();
        let command = Cli::command();
        for one in command.get_subcommands().chain([&command]) {
            let flags = one.get_arguments().map(|flag| (flag.get_id().to_string(), flag.get_help()));
            for (name, text) in flags.chain([(one.get_name().to_owned(), one.get_about())]) {
                let text = text.unwrap_or_else(|| panic!("{name}: no text")).to_string();
                let first = text.split([' ', ':']).next().unwrap_or_default();
                let is_third_person = first.ends_with('s') && !first.ends_with("ss");
                if wrong.contains(&first) || is_third_person {
                    without.push(format!("{} {name}: {text}", one.get_name()));
                }
            }
        }
        assert!(without.is_empty(), "{without:#?}");
    }

    #[test]
    fn the_page_of_the_program_has_each_section_and_man_finds_no_fault_in_any() {
        let folder = tempfile::tempdir().expect("a folder");
        write(Cli::command(), folder.path()).expect("the pages");
        let page = std::fs::read_to_string(folder.path().join("promptpal-relay.8")).expect("the page");
        let mut at = 0;
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "COMMANDS",
            "OPTIONS",
            "\"CONNECTION AND LOGGING\"",
            "EXAMPLES",
            "FILES",
            "SIGNALS",
            "ENVIRONMENT",
            "\"EXIT STATUS\"",
            "\"SEE ALSO\"",
        ] {
            let found = page[at..].find(&format!(".SH {section}\n"));
            at += found.unwrap_or_else(|| panic!("{section} is not there, or not in its place:\n{page}"));
        }
        for file in std::fs::read_dir(folder.path()).expect("the folder") {
            let path = file.expect("a file").path();
            assert_eq!(
                path.extension().and_then(|ending| ending.to_str()),
                Some(SECTION),
                "{}",
                path.display()
            );
            let Ok(done) = Process::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(&path).output()
            else {
                println!("skipped: there is no groff");
                continue;
            };
            assert!(
                done.status.success() && done.stderr.is_empty(),
                "{}",
                String::from_utf8_lossy(&done.stderr)
            );
        }
    }
}
