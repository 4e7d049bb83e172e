//! The examples for containers: their flags, ports and paths are the program's, and what they set up works.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::{CommandFactory, Parser};
use promptpal_relay::inside::cli::{Cli, Command as Cmd, Run};
use serde_norway::Value;

use crate::support::{Database, Relay, closed_port, outcome, repository_file};

/// Longer than a stop may take besides the call in flight: a second, and ten more for a commit that Postgres holds up.
const BESIDES_THE_CALL: Duration = Duration::from_secs(11);

/// A receiver that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn read(path: &str) -> Value {
    serde_norway::from_str(&repository_file(path)).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text: {value:?}"))
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_sequence().into_iter().flatten().map(text).collect()
}

/// The image of this version.
fn image() -> String {
    format!("promptpal-relay:{}", env!("CARGO_PKG_VERSION"))
}

/// The command line as the program reads it.
fn parsed(arguments: &[&str]) -> Cli {
    let words = ["promptpal-relay"].iter().chain(arguments);
    Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

fn run(cli: Cli) -> Run {
    let Cmd::Run(run) = cli.command else { panic!("it is not run") };
    *run
}

/// The port of `--metrics-listen`, which must be open to other hosts.
fn metrics_port(run: &Run) -> String {
    let listen = run.metrics_listen.unwrap().to_string();
    listen.strip_prefix("0.0.0.0:").unwrap_or_else(|| panic!("{listen} is closed to others")).to_owned()
}

#[test]
fn the_composition_runs_commands_that_there_are_and_its_parts_find_one_another() {
    let compose = read("packaging/compose.yaml");
    let services = compose["services"].as_mapping().unwrap();
    let names: BTreeSet<&str> = services.keys().map(text).collect();
    let command = Cli::command();
    let flags = command.find_subcommand("run").unwrap().get_arguments().chain(command.get_arguments());
    let variables: BTreeSet<&str> =
        flags.filter_map(|flag| flag.get_env()?.to_str()).chain(["DATABASE_URL"]).collect();
    let mut ours = Vec::new();
    for (name, service) in services {
        for (other, _) in service["depends_on"].as_mapping().into_iter().flatten() {
            assert!(names.contains(text(other)), "{name:?} waits for {other:?}");
        }
        if !text(&service["image"]).starts_with("promptpal-relay") {
            continue;
        }
        assert_eq!(text(&service["image"]), image(), "{name:?}");
        parsed(&texts(&service["command"]));
        for (variable, value) in service["environment"].as_mapping().unwrap() {
            assert!(variables.contains(text(variable)), "there is no {variable:?}");
            assert!(text(value).ends_with("@postgres/app"), "{value:?}");
        }
        ours.push(text(name));
    }
    assert_eq!(ours, ["migrate", "relay"]);
    assert!(names.contains("postgres") && names.contains("receiver"));

    let relay = &compose["services"]["relay"];
    let run = run(parsed(&texts(&relay["command"])));
    let subnet = text(&compose["networks"]["default"]["ipam"]["config"][0]["subnet"]);
    assert_eq!(run.allow_net.iter().map(ToString::to_string).collect::<Vec<_>>(), [subnet]);
    let port = metrics_port(&run);
    assert_eq!(texts(&relay["ports"]), [format!("127.0.0.1:{port}:{port}")]);
    let grace = text(&relay["stop_grace_period"]).strip_suffix('s').unwrap().parse().map(Duration::from_secs);
    assert!(grace.unwrap() > run.timeout + BESIDES_THE_CALL);
}

/// Skipped where there is no Python.
#[tokio::test]
async fn the_composition_sets_up_a_webhook_whose_receiver_prints_what_it_gets() {
    if Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: there is no python3");
        return;
    }
    let compose = read("packaging/compose.yaml");
    let database = Database::new().await;
    let words = texts(&compose["services"]["setup"]["command"]);
    let sql = *words.last().unwrap();
    // The role would be seen by the tests beside this one. Its statement runs, and is taken back.
    database.client.batch_execute(&format!("BEGIN; {sql}")).await.unwrap();
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox").await, 1);
    let row = database.client.query_one("SELECT url FROM relay.webhooks", &[]).await.unwrap();
    let url: String = row.get(0);
    database.client.batch_execute("ROLLBACK").await.unwrap();

    let code = texts(&compose["services"]["receiver"]["command"])[2].to_owned();
    let port = url.strip_prefix("http://receiver:").unwrap().trim_end_matches('/');
    let free = closed_port();
    let here = code.replacen(&format!("(\"\", {port})"), &format!("(\"127.0.0.1\", {free})"), 1);
    assert_ne!(here, code, "the receiver listens at another port than {port}");
    let mut python = Command::new("python3");
    python.args(["-uc", &here]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut receiver = Ends(python.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", free)).is_err() {
        assert!(Instant::now() < deadline && receiver.0.try_wait().unwrap().is_none(), "it does not listen");
        thread::sleep(Duration::from_millis(10));
    }
    let webhook = database.webhook(1, &format!("http://127.0.0.1:{free}/")).await.to_string();
    let _relay = Relay::start(&database, &[]);
    let (code, out, err) = outcome(database.command(&["send-test", "--webhook", &webhook]));
    assert_eq!(code, 0, "{out}{err}");
    let mut printed = String::new();
    BufReader::new(receiver.0.stdout.take().unwrap()).read_line(&mut printed).unwrap();
    assert!(printed.starts_with("msg_") && printed.contains("\"event\":\"onPromptFinished\""), "{printed}");
}

#[test]
fn the_deployment_asks_for_paths_and_gives_flags_that_there_are() {
    let deployment = read("packaging/kubernetes.yaml");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(text(&container["image"]), image());
    let arguments = texts(&container["args"]);
    let run = run(parsed(&arguments));
    // What may become of a pod that stops is decided by the time that it has.
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    assert!(grace > run.timeout + BESIDES_THE_CALL);

    let port = &container["ports"][0];
    assert_eq!(port["containerPort"].as_u64().unwrap().to_string(), metrics_port(&run));
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(text(&container[probe]["httpGet"]["path"]), path);
        assert_eq!(container[probe]["httpGet"]["port"], port["name"], "{probe}");
    }

    // The image's user, who reads the secret by its group.
    let user: u64 = {
        let script = repository_file("scripts/image");
        let line = script.lines().find_map(|line| line.strip_prefix("USER = ")).unwrap();
        line.parse().unwrap()
    };
    let security = &pod["securityContext"];
    for who in ["runAsUser", "runAsGroup", "fsGroup"] {
        assert_eq!(security[who].as_u64(), Some(user), "{who}");
    }
    let (volume, mount) = (&pod["volumes"][0], &container["volumeMounts"][0]);
    assert_eq!(volume["name"], mount["name"]);
    assert_eq!(volume["secret"]["defaultMode"].as_u64(), Some(0o440));
    let file = arguments.iter().find_map(|word| word.strip_prefix("--database-url-file=")).unwrap();
    assert_eq!(file, format!("{}/database-url", text(&mount["mountPath"])));
    assert!(arguments.iter().all(|word| !word.contains("postgres://")));
}
