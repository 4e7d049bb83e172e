//! The names in the pages are those of the program: flags, variables, exit codes, metrics, columns, constraints, functions.

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory;
use promptpal_relay::inside::cli::Cli;
use promptpal_relay::inside::model::ErrorKind;

use super::{Page, all, bare};
use crate::support::{BINARY, Database, Receiver, Relay, gated, outcome, program, repository_file, scrape};

/// Flags of other programs: `pg_restore`, postgres_exporter, the benchmark, `sha256sum`, and the scripts.
const FOREIGN_FLAGS: &[&str] = &[
    "--check",
    "--clean",
    "--extend",
    "--data-only",
    "--full",
    "--no-deps",
    "--document-private-items",
    "--open",
    "--package",
    "--test",
    "--lib",
];

/// Variables that the tests read.
const FOREIGN_VARIABLES: &[&str] = &["PROMPTPAL_RELAY_PG_BIN"];

/// Names with an underscore that are neither the relay's nor Postgres': PromptPal's columns and files, keys of connections,
/// names in examples, systemd.
const FOREIGN_NAMES: &[&str] = &[
    "app_user",
    "connect_timeout",
    "create_time",
    "default_model",
    "pgbouncer",
    "promptpal_schema",
    "relay_run",
    "response_token",
    "target_session_attrs",
    "total_token",
    "update_time",
    "webhook_project",
    "webhook_calls_YYYYMMDD",
    "prompt_calls",
    "pg_restore",
    "pg_rewind",
    "pg_upgrade",
    "last_look",
    "pool_mode",
];

/// Pages that name things of the source, too.
fn is_about_the_source(page: &Page) -> bool {
    ["docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md"].contains(&page.path.as_str())
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The names that begin with this text, wherever they stand in a span.
fn beginning<'a>(span: &'a str, prefix: &str, is_part: fn(char) -> bool) -> Vec<&'a str> {
    let starts = span.match_indices(prefix).map(|(at, _)| at);
    let starts = starts
        .filter(|at| !span[..*at].chars().next_back().is_some_and(|c| is_name(c) || c == '-' || c == '.'));
    starts.map(|at| span[at..].split(|c| !is_part(c)).next().unwrap()).collect()
}

/// The flags of a command, those of all commands included; those of every command for none.
fn flags(of: Option<&str>) -> BTreeSet<String> {
    let command = Cli::command();
    let subcommands = command.get_subcommands().filter(|sub| of.is_none_or(|name| sub.get_name() == name));
    let arguments = command.get_arguments().chain(subcommands.flat_map(clap::Command::get_arguments));
    let named = arguments.filter_map(clap::Arg::get_long).map(|flag| format!("--{flag}"));
    named.chain(["--help", "--version"].map(str::to_owned)).collect()
}

#[test]
fn flags_and_variables_are_those_of_the_program() {
    let command = Cli::command();
    let subcommands: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    let arguments =
        || command.get_arguments().chain(command.get_subcommands().flat_map(clap::Command::get_arguments));
    let variables: BTreeSet<&str> = arguments().filter_map(|argument| argument.get_env()?.to_str()).collect();
    let mut count = (0, 0);
    let mut problems = Vec::new();
    for page in all() {
        for (span, at) in page.spans() {
            let mut words = span.split_whitespace();
            let first = words
                .next()
                .filter(|word| *word != "promptpal-relay")
                .or_else(|| words.next())
                .unwrap_or_default();
            if ["cargo", "pg_restore", "systemctl", "sudo", "dpkg"].contains(&first)
                || span.contains("cargo ")
            {
                continue;
            }
            let known = flags(subcommands.iter().copied().find(|name| *name == first));
            for flag in beginning(&span, "--", |c| c.is_ascii_lowercase() || c == '-')
                .into_iter()
                .filter(|flag| *flag != "--")
            {
                count.0 += 1;
                if !known.contains(flag) && !FOREIGN_FLAGS.contains(&flag) {
                    problems.push(format!("{at}: there is no {flag}: `{span}`"));
                }
            }
            for variable in beginning(&span, "PROMPTPAL_RELAY_", |c| c.is_ascii_uppercase() || c == '_') {
                count.1 += 1;
                let is_known = variables.contains(variable) || FOREIGN_VARIABLES.contains(&variable);
                assert!(is_known, "{at}: there is no {variable}");
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(count.0 > 150 && count.1 >= 5, "{count:?}");
}

#[test]
fn the_tables_of_commands_flags_and_exit_codes_are_those_of_the_program() {
    let page = Page::read("docs/operations.md");
    let command = Cli::command();
    let commands: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .filter(|name| name != "help")
        .collect();
    let mut told: Vec<String> =
        page.table("| command | does |").iter().map(|row| bare(&row[0]).to_owned()).collect();
    told.sort();
    let mut sorted = commands.clone();
    sorted.sort();
    assert_eq!(told, sorted);

    let run = command.find_subcommand("run").unwrap();
    for (head, arguments) in [
        ("| flag of `run` |", run.get_arguments().collect::<Vec<_>>()),
        ("| flag of all commands |", command.get_arguments().collect()),
    ] {
        let rows: BTreeMap<String, String> =
            page.table(head).into_iter().map(|row| (bare(&row[0]).to_owned(), row[1].clone())).collect();
        let arguments: BTreeMap<String, &clap::Arg> = arguments
            .into_iter()
            .filter(|argument| argument.get_env().is_some())
            .filter_map(|argument| Some((format!("--{}", argument.get_long()?), argument)))
            .collect();
        assert_eq!(rows.keys().collect::<Vec<_>>(), arguments.keys().collect::<Vec<_>>(), "{head}");
        for (flag, told) in rows {
            let default = arguments[&flag].get_default_values().first().and_then(|value| value.to_str());
            let is_off = !arguments[&flag].get_action().takes_values();
            match default.filter(|_| flag != "--user-agent-version" && !is_off) {
                Some(default) => assert_eq!(told, default, "{flag}"),
                None => assert!(
                    ["none", "off", "the program's", "see below", "standard error"].contains(&told.as_str()),
                    "{flag}: {told}"
                ),
            }
        }
    }

    let (code, help, _) = outcome(program(&["--help"], ""));
    assert_eq!(code, 0);
    let help = help.split_once("Exit codes: ").unwrap().1.replace('\n', " ");
    let codes: Vec<&str> = help
        .split("; ")
        .filter_map(|part| part.split(' ').next())
        .filter(|word| word.parse::<u8>().is_ok())
        .collect();
    let told: Vec<String> = page.table("| exit code |").into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(told, codes, "{BINARY} --help");
    // In sentences, too.
    let mut count = 0;
    for page in all() {
        let text: Vec<&str> = page.prose().into_iter().map(|(_, line)| line.trim()).collect();
        let text = text.join(" ");
        for phrase in ["exits with ", "exit with ", "exit code ", "exit codes "] {
            for after in text.split(phrase).skip(1) {
                let number = after.split(|c: char| !c.is_ascii_digit()).next().unwrap();
                if !number.is_empty() {
                    count += 1;
                    assert!(
                        codes.contains(&number),
                        "{}: exit code {number}: {}",
                        page.path,
                        after.chars().take(60).collect::<String>()
                    );
                }
            }
        }
    }
    assert!(count > 20, "{count}");
}

/// The names under which `/metrics` serves.
fn metrics_served(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split_once(' ').unwrap().0.to_owned()).collect()
}

#[tokio::test]
async fn metrics_and_alerts_are_those_that_are_served() {
    // Some are served only when there was a wait, a call has failed, or one is in flight.
    let (receiver, gate) = gated();
    let database = Database::new().await;
    database.webhook(1, &receiver.url("/")).await;
    database.webhook(2, "http://127.0.0.1:1/").await;
    let relay = Relay::start(&database, &[]);
    database.events(2, 1).await;
    scrape::until(relay.port(), "promptpal_relay_webhook_recent_failures{webhook=\"2\"}", |calls| {
        calls == 1.0
    });
    scrape::until(relay.port(), "promptpal_relay_wakeups_total{cause=\"poll\"}", |times| times >= 1.0);
    database.events(1, 1).await;
    let text = scrape::until(relay.port(), "promptpal_relay_calls_running", |calls| calls == 1.0);
    gate.open();
    let served = metrics_served(&text);
    assert!(served.len() > 20);
    for page in all().into_iter().filter(|page| page.path != "CHANGELOG.md") {
        for (span, at) in page.spans() {
            for name in beginning(&span, "promptpal_relay_", is_name) {
                assert!(served.contains(name), "{at}: there is no metric {name}");
            }
        }
    }
    let page = Page::read("docs/operations.md");
    let told: BTreeSet<String> =
        page.table("| metric | what |").iter().map(|row| bare(&row[0]).to_owned()).collect();
    assert_eq!(told, served);
    let rules = repository_file("monitoring/alerts.yml");
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let rows = page.table("| alert | says |");
    assert_eq!(rows.iter().map(|row| bare(&row[0])).collect::<BTreeSet<_>>(), alerts);
}

/// What the schema `relay` has, as the catalogs tell.
struct Schema {
    /// Tables and views, with their columns.
    relations: BTreeMap<String, BTreeSet<String>>,
    /// Functions, with the least and the most arguments.
    functions: BTreeMap<String, (usize, usize)>,
    /// Constraints, indexes, triggers.
    others: BTreeSet<String>,
    /// Whatever else a page may name: settings, catalogs and functions of Postgres.
    of_postgres: BTreeSet<String>,
}

async fn schema(database: &Database) -> Schema {
    let rows = async |sql: &str| database.client.query(sql, &[]).await.unwrap();
    let mut relations: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let sql = "SELECT c.relname::text, a.attname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
               WHERE c.relnamespace = 'relay'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')";
    for row in rows(sql).await {
        relations.entry(row.get(0)).or_default().insert(row.get(1));
    }
    let sql = "SELECT proname::text, (pronargs - pronargdefaults)::integer, pronargs::integer FROM pg_proc WHERE pronamespace = 'relay'::regnamespace";
    let rows_of_functions = rows(sql).await;
    let functions = rows_of_functions.iter().map(|row| {
        let number = |index| usize::try_from(row.get::<_, i32>(index)).unwrap();
        (row.get(0), (number(1), number(2)))
    });
    let functions = functions.collect();
    let names = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|row| row.get::<_, String>(0)).collect();
    // The rules of the outbox stand in a trigger's function.
    let sql = "SELECT conname::text FROM pg_constraint WHERE connamespace = 'relay'::regnamespace
               UNION SELECT (regexp_matches(prosrc, '''(outbox_[a-z_]+)''', 'g'))[1] FROM pg_proc WHERE proname = 'refuse_invalid_event'
               UNION SELECT relname::text FROM pg_class WHERE relnamespace = 'relay'::regnamespace
               UNION SELECT tgname::text FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'relay'::regnamespace)";
    let others = names(rows(sql).await);
    let sql = "SELECT name FROM pg_settings UNION SELECT proname::text FROM pg_proc UNION SELECT relname::text FROM pg_class
               UNION SELECT attname::text FROM pg_attribute UNION SELECT rolname::text FROM pg_roles UNION SELECT nspname::text FROM pg_namespace";
    let of_postgres = names(rows(sql).await);
    Schema { relations, functions, others, of_postgres }
}

#[tokio::test]
async fn tables_columns_functions_and_constraints_are_those_of_the_schema() {
    let database = Database::new().await;
    let schema = schema(&database).await;
    let kinds = ErrorKind::ALL.map(ErrorKind::as_str);
    let mut count = (0, 0);
    let mut told = BTreeSet::new();
    let mut problems = Vec::new();
    for page in all() {
        for (span, at) in page.spans() {
            let is_dotted = |c: char| is_name(c) || c == '.';
            for dotted in beginning(&span, "relay.", is_dotted) {
                let mut parts = dotted.trim_end_matches('.').split('.').skip(1);
                let Some(name) = parts.next().filter(|name| !name.is_empty()) else { continue };
                count.0 += 1;
                told.insert(name.to_owned());
                let after = span.split_once(dotted).unwrap().1;
                if let Some(column) = parts.next() {
                    let columns = schema
                        .relations
                        .get(name)
                        .unwrap_or_else(|| panic!("{at}: there is no table relay.{name}"));
                    assert!(columns.contains(column), "{at}: there is no column {dotted}");
                } else if let Some(arguments) = after.strip_prefix('(') {
                    let (least, most) = schema
                        .functions
                        .get(name)
                        .unwrap_or_else(|| panic!("{at}: there is no function relay.{name}"));
                    let arguments = arguments.split(')').next().unwrap();
                    let number = arguments.split(',').count();
                    let fits = arguments.is_empty() || (*least..=*most).contains(&number);
                    assert!(fits, "{at}: relay.{name} takes {least} to {most} arguments");
                } else {
                    let is_there = schema.relations.contains_key(name) || schema.functions.contains_key(name);
                    assert!(is_there || name == "webhook_calls_YYYYMMDD", "{at}: there is no relay.{name}");
                }
            }
            let is_one_name = !span.ends_with('_')
                && span.contains('_')
                && span.chars().all(is_name)
                && !span.starts_with("PROMPTPAL_");
            let is_lower = span.chars().all(|c| !c.is_ascii_uppercase());
            if is_about_the_source(&page)
                || page.path == "CHANGELOG.md"
                || !is_one_name
                || !is_lower
                || span.starts_with("promptpal_relay_")
                // A webhook-id.
                || span.starts_with("msg_")
                || span.starts_with("process_")
            {
                continue;
            }
            count.1 += 1;
            let is_known = schema.relations.values().any(|columns| columns.contains(&span))
                || schema.functions.contains_key(&span)
                || schema.others.contains(&span)
                || schema.of_postgres.contains(&span)
                || kinds.contains(&span.as_str())
                || FOREIGN_NAMES.contains(&span.as_str());
            if !is_known {
                problems.push(format!("{at}: what is `{span}`?"));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(count.0 > 120 && count.1 > 150, "{count:?}");

    // The other way: what people may use is told.
    let sql = "SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = 'relay'::regnamespace AND c.relkind IN ('r', 'p', 'v')
                  AND NOT c.relispartition AND has_any_column_privilege('relay_reader', c.oid, 'SELECT')
               UNION SELECT p.proname::text FROM pg_proc p WHERE p.pronamespace = 'relay'::regnamespace
                  AND (has_function_privilege('relay_reader', p.oid, 'EXECUTE') OR has_function_privilege('relay_app', p.oid, 'EXECUTE'))";
    for row in database.client.query(sql, &[]).await.unwrap() {
        let name: String = row.get(0);
        assert!(told.contains(&name), "no page names relay.{name}");
    }
    let text: String = ["docs/dba.md", "docs/applications.md"].map(repository_file).concat();
    let sql = "SELECT DISTINCT conname::text FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
               WHERE c.connamespace = 'relay'::regnamespace AND c.contype = 'c' AND t.relname NOT LIKE 'webhook\\_calls\\_%'
                 AND t.relname IN ('webhooks', 'pauses', 'installation', 'accepted_copies')
               UNION SELECT (regexp_matches(prosrc, '''(outbox_[a-z_]+)''', 'g'))[1] FROM pg_proc WHERE proname = 'refuse_invalid_event'";
    for row in database.client.query(sql, &[]).await.unwrap() {
        let name: String = row.get(0);
        assert!(text.contains(&format!("`{name}`")), "no page names the constraint {name}");
    }
    let rows = Page::read("docs/dba.md").table("| kind | means |");
    assert_eq!(rows.iter().map(|row| bare(&row[0])).collect::<Vec<_>>(), kinds);
}

#[tokio::test]
async fn the_columns_that_the_application_writes_have_the_types_and_defaults_of_the_page() {
    let database = Database::new().await;
    let page = Page::read("docs/applications.md");
    for (table, head, has_key) in [
        ("outbox", "| column | type | default | payload key |", true),
        ("webhooks", "| column | type | default | meaning |", false),
    ] {
        let sql = "SELECT a.attname::text, replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz'),
                          CASE WHEN a.attidentity <> '' THEN 'drawn'
                               WHEN d.adbin IS NOT NULL THEN replace(pg_get_expr(d.adbin, d.adrelid), '::text', '')
                               WHEN a.attnotnull THEN 'none' ELSE 'null' END,
                          coalesce(substring(col_description(a.attrelid, a.attnum) FROM 'Payload key ([A-Za-z.]+[A-Za-z])'), '')
                     FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                    WHERE a.attrelid = ('relay.' || $1::text)::regclass AND a.attnum > 0
                      AND has_column_privilege('relay_app', a.attrelid, a.attnum, 'INSERT')
                      AND NOT (a.attname IN ('id', 'replay_of') AND $1::text = 'outbox')";
        let mut wanted: Vec<[String; 4]> = database
            .client
            .query(sql, &[&table])
            .await
            .unwrap()
            .iter()
            .map(|row| [0, 1, 2, 3].map(|n| row.get(n)))
            .collect();
        let mut told: Vec<[String; 4]> = page
            .table(head)
            .iter()
            .map(|row| {
                [0, 1, 2, 3]
                    .map(|n| if n == 3 && !has_key { String::new() } else { bare(&row[n]).to_owned() })
            })
            .collect();
        for row in &mut wanted {
            if row[0] == "event" && has_key {
                // The comment does not say so; the payload's first key has its name.
                row[3] = "event".into();
            }
        }
        wanted.sort();
        told.sort();
        assert_eq!(told, wanted, "{table}");
    }
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    let sql = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens, provider_id,
                   provider_default_model) VALUES (1, 1, 'u', 0, 1, 1, 1, 1, 'm')";
    database.client.batch_execute(sql).await.unwrap();
    let body = receiver.wait_for(1).remove(0).json();
    let sent = body.as_object().unwrap().keys().flat_map(|key| match body[key].as_object() {
        Some(object) => object.keys().map(|inner| format!("{key}.{inner}")).collect(),
        None => vec![key.clone()],
    });
    let rows = page.table("| column | type | default | payload key |");
    let told: BTreeSet<String> =
        rows.iter().map(|row| bare(&row[3]).to_owned()).filter(|key| !key.is_empty()).collect();
    assert_eq!(sent.collect::<BTreeSet<_>>(), told);
}
