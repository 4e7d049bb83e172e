//! The files in `monitoring/` against a real Prometheus that scrapes real daemons. Without Prometheus' programs these tests say
//! that they do not run; `scripts/with-prometheus` brings them along.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tempfile::TempDir;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::support::scrape::{ask, get, until};
use crate::support::{Database, Receiver, Relay, Reply, gated, outcome, repository_file};

/// How long a condition may take to come true; long, because the machine may be busy with other tests.
const DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two questions to Prometheus, which knows something new once a second.
const LOOK: Duration = Duration::from_millis(100);

/// One of Prometheus' programs; none, and a word about it, where it is not installed.
fn installed(name: &str) -> Option<Command> {
    let found = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("skipped: there is no {name} (scripts/with-prometheus brings it along)");
        return None;
    }
    Some(Command::new(name))
}

fn monitoring(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring").join(file)
}

/// What the alert rules say, in their order.
fn rules() -> Vec<Value> {
    let parsed: Value = serde_norway::from_str(&repository_file("monitoring/alerts.yml")).unwrap();
    parsed["groups"][0]["rules"].as_array().unwrap().clone()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// The queries of the dashboard, each with its panel's title, as Grafana asks them with all instances chosen.
fn queries_of_the_dashboard() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&repository_file("monitoring/grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut queries = Vec::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert!(!text(&panel["description"]).is_empty(), "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            let query = text(&target["expr"]);
            assert!(query.contains("{instance=~\"$instance\""), "{}: {query}", panel["title"]);
            let query = query.replace("$instance", ".+").replace("$__rate_interval", "10s");
            assert!(!query.contains('$'), "{query}");
            queries.push((text(&panel["title"]).to_owned(), query));
        }
    }
    assert!(queries.len() > 30, "{}", queries.len());
    queries
}

#[test]
fn each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() {
    let tests: Value = serde_norway::from_str(&repository_file("monitoring/alerts_test.yml")).unwrap();
    let tests = tests["tests"].as_array().unwrap();
    let cases = tests.iter().flat_map(|test| test["alert_rule_test"].as_array().unwrap());
    let (fires, quiet): (Vec<&Value>, Vec<&Value>) = cases.partition(|case| case["exp_alerts"].is_array());
    let named = |cases: Vec<&Value>| -> BTreeSet<String> {
        cases.iter().map(|case| text(&case["alertname"]).to_owned()).collect()
    };
    let alerts: BTreeSet<String> = rules().iter().map(|rule| text(&rule["alert"]).to_owned()).collect();
    assert_eq!(named(fires), alerts);
    assert_eq!(named(quiet), alerts);
    assert!(
        rules().iter().all(|rule| rule["expr"].is_string() && rule["annotations"]["summary"].is_string())
    );
}

#[test]
fn the_alerts_fire_when_they_should() {
    let Some(mut check) = installed("promtool") else { return };
    check.args(["check", "rules"]).arg(monitoring("alerts.yml"));
    let (code, out, err) = outcome(check);
    assert_eq!(code, 0, "{out}{err}");
    let mut test = installed("promtool").unwrap();
    test.args(["test", "rules"]).arg(monitoring("alerts_test.yml"));
    let (code, out, err) = outcome(test);
    assert_eq!(code, 0, "{out}{err}");
}

/// A Prometheus that scrapes once a second and knows the alert rules; killed on drop.
struct Prometheus {
    child: Child,
    port: u16,
    // It goes away with the process.
    _folder: TempDir,
}

impl Prometheus {
    /// Starts it; none where it is not installed. `targets` are ports of 127.0.0.1.
    fn start(targets: &[u16]) -> Option<Prometheus> {
        let mut command = installed("prometheus")?;
        let folder = tempfile::tempdir().unwrap();
        let targets: Vec<String> = targets.iter().map(|port| format!("'127.0.0.1:{port}'")).collect();
        let settings = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs: [{{job_name: relay, static_configs: [{{targets: [{}]}}]}}]\n",
            monitoring("alerts.yml").display(),
            targets.join(", ")
        );
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("prometheus.yml"), settings).unwrap();
        let child = command
            .arg(format!("--config.file={}", path("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .args(["--web.listen-address=127.0.0.1:0", "--log.format=json"])
            .stdin(Stdio::null())
            .stderr(File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        let mut prometheus = Prometheus { child, port: 0, _folder: folder };
        let log = prometheus._folder.path().join("log");
        prometheus.port = eventually("Prometheus listens", || {
            let log = std::fs::read_to_string(&log).unwrap();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let address = lines.rfind(|line| line["msg"] == "Listening on");
            let address = address.ok_or(log)?["address"].as_str().unwrap().to_owned();
            address.rsplit_once(':').unwrap().1.parse().map_err(|_| address.clone())
        });
        eventually("Prometheus is ready", || match ask(prometheus.port, "/-/ready", &[]) {
            Ok(answer) if answer.status() == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
        Some(prometheus)
    }

    /// Asks its interface.
    fn api(&self, path: &str) -> Value {
        let answer = ask(self.port, &format!("/api/v1/{path}"), &[]).unwrap();
        let answer = answer.json();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    /// The series that an expression gives now.
    fn query(&self, expression: &str) -> Vec<Value> {
        let data = self.api(&format!("query?query={}", utf8_percent_encode(expression, NON_ALPHANUMERIC)));
        data["result"].as_array().unwrap().clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Waits until something is so; the error says what is instead.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) => assert!(Instant::now() < deadline, "never {what}: {instead}"),
        }
        thread::sleep(LOOK);
    }
}

/// The selectors of the relay's metrics in a PromQL text.
fn selectors(expression: &str) -> Vec<String> {
    let starts = expression.match_indices("promptpal_relay_").map(|(at, _)| &expression[at..]);
    let selector = |text: &str| {
        let name = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        let end = if text[name..].starts_with('{') { text.find('}').unwrap() + 1 } else { name };
        text[..end].to_owned()
    };
    starts.map(selector).collect()
}

/// Serves what a relay's `/metrics` answers to a scraper that says nothing about formats: Prometheus 2.42 always asks for
/// OpenMetrics.
fn in_the_text_format(port: u16) -> (Receiver, u16) {
    let proxy = Receiver::forgetful(move |_| {
        let answer = ask(port, "/metrics", &[]).unwrap();
        let kind = answer.header("Content-Type").unwrap().to_owned();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        Reply::full(200, &[("Content-Type", &kind)], &answer.body)
    });
    let url = proxy.url("");
    let port = url.rsplit_once(':').unwrap().1.parse().unwrap();
    (proxy, port)
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_ask_for_what_a_prometheus_has() {
    let database = Database::new().await;
    let (slow, gate) = gated();
    let receiver = Receiver::start(|request| Reply::status(if request.path() == "/bad" { 503 } else { 200 }));
    for (project, url) in
        [(1, receiver.url("/")), (2, receiver.url("/bad")), (3, slow.url("/")), (4, receiver.url("/"))]
    {
        database.webhook(project, &url).await;
    }
    database.client.batch_execute("SELECT relay.pause_webhook(4, 'a test', NULL)").await.unwrap();
    let relays = [Relay::start(&database, &[]), Relay::start(&database, &[])];
    let (_proxy, text_port) = in_the_text_format(relays[0].port());
    let Some(prometheus) = Prometheus::start(&[relays[0].port(), relays[1].port(), text_port]) else {
        return;
    };
    let all_are_scraped = || match prometheus.query("sum(up)").as_slice() {
        [sum] if sum["value"][1] == "3" => Ok(()),
        other => Err(format!("{other:?}: {}", prometheus.api("targets"))),
    };
    eventually("all are scraped", all_are_scraped);
    // One project for each kind of webhook, and one without any.
    for project in 1..=5 {
        database.events(project, 3).await;
    }
    let mut waiting = queries_of_the_dashboard();
    eventually("each query of the dashboard gives a series", || {
        waiting.retain(|(_, query)| prometheus.query(query).is_empty());
        if waiting.is_empty() { Ok(()) } else { Err(format!("{waiting:#?}")) }
    });
    for rule in rules() {
        let expression = text(&rule["expr"]);
        prometheus.query(expression);
        let named = selectors(expression);
        assert!(!named.is_empty(), "{expression}");
        for selector in named {
            assert!(!prometheus.query(&selector).is_empty(), "{}: no {selector}", rule["alert"]);
        }
    }
    eventually("each alert is evaluated", || {
        let data = prometheus.api("rules");
        let evaluated = data["groups"][0]["rules"].as_array().unwrap();
        assert_eq!(evaluated.len(), rules().len());
        let ill: Vec<&Value> = evaluated.iter().filter(|rule| rule["health"] != "ok").collect();
        if ill.is_empty() { Ok(()) } else { Err(format!("{ill:?}")) }
    });
    // Both formats have the same series.
    let names = |port: u16| -> BTreeSet<String> {
        let selector = format!("{{__name__=~'promptpal_.+|process_.+', instance='127.0.0.1:{port}'}}");
        let series = prometheus.query(&format!("count by (__name__) ({selector})"));
        series.iter().map(|series| text(&series["metric"]["__name__"]).to_owned()).collect()
    };
    eventually("the formats agree", || {
        let (openmetrics, text) = (names(relays[0].port()), names(text_port));
        let differ: Vec<_> = openmetrics.symmetric_difference(&text).collect();
        let agree = openmetrics.len() > 30 && differ.is_empty();
        if agree { Ok(()) } else { Err(format!("{} {differ:?}", openmetrics.len())) }
    });
    // An instance that is gone is missed.
    let [one, other] = relays;
    let instance = format!("127.0.0.1:{}", other.port());
    other.kill();
    let rules = rules();
    let gone = rules.iter().find(|rule| rule["alert"] == "PromptpalRelayInstanceGone").unwrap();
    eventually("the gone instance is missed", || match prometheus.query(text(&gone["expr"])).as_slice() {
        [series] if series["metric"]["instance"] == instance.as_str() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    gate.open();
    drop(one);
}

#[tokio::test]
async fn the_text_format_is_as_promtool_wants_it() {
    let Some(mut check) = installed("promtool") else { return };
    let database = Database::new().await;
    let (slow, gate) = gated();
    let bad = Receiver::start(|_| Reply::status(503));
    for (project, url) in [(1, bad.url("/")), (2, slow.url("/"))] {
        database.webhook(project, &url).await;
        database.events(project, 1).await;
    }
    let relay = Relay::start(&database, &[]);
    until(relay.port(), "promptpal_relay_webhook_recent_failures{webhook=\"1\"}", |calls| calls == 1.0);
    until(relay.port(), "promptpal_relay_webhook_calls_running{webhook=\"2\"}", |calls| calls == 1.0);
    let (_, metrics) = get(relay.port(), "/metrics");
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(metrics.as_bytes()).unwrap();
    file.rewind().unwrap();
    check.args(["check", "metrics"]).stdin(file);
    let (code, out, err) = outcome(check);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""), "{metrics}");
    gate.open();
}

#[tokio::test]
async fn the_queries_for_postgres_exporter_give_what_they_say_to_a_reader() {
    let database = Database::new().await;
    let receiver = Receiver::start(|request| Reply::status(if request.path() == "/1" { 503 } else { 200 }));
    for project in 1..=25 {
        database.webhook(project, &receiver.url(&format!("/{project}"))).await;
        database.events(project, 1).await;
    }
    let relay = Relay::start(&database, &[]);
    database.all_done().await;
    drop(relay);
    for project in 1..=25 {
        database.events(project, project).await;
    }
    database.client.batch_execute("SET ROLE relay_reader").await.unwrap();
    let queries: BTreeMap<String, Value> =
        serde_norway::from_str(&repository_file("monitoring/postgres_exporter.yaml")).unwrap();
    assert_eq!(queries.keys().collect::<Vec<_>>(), ["promptpal_backlog", "promptpal_webhook_health"]);
    for (name, query) in queries {
        let usages: BTreeMap<&str, &str> = query["metrics"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|metric| metric.as_object().unwrap())
            .map(|(column, metric)| (column.as_str(), text(&metric["usage"])))
            .collect();
        let messages = database.client.simple_query(text(&query["query"])).await.unwrap();
        let rows: Vec<SimpleQueryRow> = messages
            .into_iter()
            .filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
            .collect();
        assert_eq!(rows.len(), 20, "{name}");
        for row in &rows {
            let columns: BTreeSet<&str> = row.columns().iter().map(|column| column.name()).collect();
            assert_eq!(columns, usages.keys().copied().collect(), "{name}");
            for (column, usage) in &usages {
                let value: f64 = row.get(*column).unwrap().parse().unwrap();
                assert!(["LABEL", "GAUGE"].contains(usage) && value.is_finite(), "{name}: {column}");
            }
        }
        // The worst comes first.
        let of = |column: &str| rows[0].get(column).unwrap();
        match name.as_str() {
            "promptpal_backlog" => assert_eq!((of("project_id"), of("pending")), ("1", "1")),
            _ => assert_eq!((of("webhook_id"), of("failures"), of("calls")), ("1", "1", "1")),
        }
    }
}
