//! The live screen, on a terminal as a person has it.

use std::env;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::gethostname;
use promptpal_relay::inside::top::Screen;

use crate::support::{Database, Receiver, Relay, Reply, Terminal, as_user, outcome};
use crate::terminal::EVIL;

/// A database in which nothing changes by itself: three rows are in flight, and the calls end in ten minutes, so that the
/// rates stay the same.
struct Scene {
    database: Database,
    relay: Relay,
    // Answers nothing; the calls in flight end when it is dropped.
    receiver: Option<Receiver>,
    reader: String,
}

/// A payload that can be sent again.
const BODY: &str = r#"{"event":"onPromptFinished","projectId":1,"promptId":1,"userId":"u","result":0,"timestamp":"2024-01-15T10:30:00Z","duration":1,"tokens":{"prompt":1,"completion":1,"total":2},"cached":false,"ip":"","userAgent":""}"#;

/// Records calls of a webhook that take so many seconds.
async fn record(database: &Database, webhook: i64, count: i64, seconds: f64, failure: &str) {
    let sql = format!(
        "INSERT INTO relay.webhook_calls (outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body,
             status_code, response_headers, response_body, response_bytes, response_truncated, start_time, end_time, is_timeout,
             error_kind, error_message, succeeded, repeated, user_agent, ip, event_id)
         SELECT n, {webhook}, {webhook}, 'trace', 'https://hooks.example.com/', '{{\"content-type\": \"application/json\"}}', '{BODY}',
                f.status, '{{\"x-from\": \"there\"}}', 'sorry', 5, false, t.start, t.start + {seconds} * interval '1 s',
                false, f.kind, f.message, f.kind IS NULL, false, '', '', gen_random_uuid()
           FROM generate_series(1, {count}) AS n, (VALUES ({failure})) AS f (status, kind, message),
                LATERAL (SELECT now() + interval '10 min' + n * interval '1 microsecond' AS start) AS t"
    );
    database.client.batch_execute(&sql).await.unwrap();
}

async fn scene() -> Scene {
    let database = Database::new().await;
    let receiver = Receiver::start(|_| Reply::Never);
    for (name, url) in [
        ("orders", "https://hooks.example.com/a".to_owned()),
        ("billing", "https://billing.example.net/".to_owned()),
        ("a slow one", receiver.url("/")),
        ("held back", "https://paused.example.org/".to_owned()),
    ] {
        let sql = "INSERT INTO relay.webhooks (project_id, name, url)
                   SELECT coalesce(max(id), 0) + 1, $1, $2 FROM relay.webhooks";
        database.client.execute(sql, &[&name, &url]).await.unwrap();
    }
    record(&database, 1, 600, 0.012, "200, NULL, NULL").await;
    record(&database, 2, 30, 0.25, "200, NULL, NULL").await;
    record(&database, 2, 30, 0.5, "503, 'http_status', 'status 503'").await;
    record(&database, 4, 60, 0.1, "200, NULL, NULL").await;
    record(&database, 3, 6, 10.0, "NULL::integer, 'timeout', 'no answer within 10s'").await;
    database.client.batch_execute("SELECT relay.pause_webhook(4, 'too much')").await.unwrap();
    let relay = Relay::start(&database, &["--timeout", "1h"]);
    database.events(3, 3).await;
    receiver.wait_for(3);
    let name = database.url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let login = format!("{name}_reads");
    let sql = format!("CREATE ROLE {login} LOGIN PASSWORD 'x' IN ROLE relay_reader");
    database.client.batch_execute(&sql).await.unwrap();
    let reader = as_user(&database.url, &login, "x");
    Scene { database, relay, receiver: Some(receiver), reader }
}

impl Scene {
    /// The command, by a login that may read and no more.
    fn top(&self) -> Command {
        let mut command = self.database.command(&["top"]);
        command.env("DATABASE_URL", &self.reader);
        command
    }

    fn login(&self) -> String {
        self.reader.split("://").nth(1).unwrap().split(':').next().unwrap().to_owned()
    }

    /// What is on the screen, without what differs from run to run.
    fn normal(&self, screen: &str) -> String {
        let host = gethostname().unwrap().into_string().unwrap();
        let pid = format!("HOST:{}", self.relay.pid());
        let name = self.login();
        let text = screen
            .replace(name.trim_end_matches("_reads"), "DATABASE")
            .replace(&format!("{host}:"), "HOST:")
            .replace(&pid, "HOST:PID")
            .replace(env!("CARGO_PKG_VERSION"), "VERSION");
        text.lines().map(|line| normal_line(line) + "\n").collect()
    }

    async fn ends(self) {
        let login = self.login();
        drop(self.relay);
        self.database.client.batch_execute(&format!("DROP ROLE {login}")).await.unwrap();
    }
}

/// A line without times and ages. What moves with their length is put in its place.
fn normal_line(line: &str) -> String {
    let is_time = |word: &str| {
        word.len() >= 8
            && word.as_bytes()[2] == b':'
            && word.as_bytes()[5] == b':'
            && word.as_bytes()[0].is_ascii_digit()
    };
    let words: Vec<String> =
        line.split(' ').map(|word| if is_time(word) { "hh:mm:ss".into() } else { word.to_owned() }).collect();
    let mut line = words.join(" ").trim_end().to_owned();
    for before in [" up ", "oldest "] {
        if let Some((start, rest)) = line.split_once(before) {
            let end = rest.find([',', '|']).map_or(String::new(), |at| rest[at..].replacen('|', " |", 1));
            line = format!("{start}{before}AGE{end}");
        }
    }
    if line.ends_with("hh:mm:ss") {
        line = line.trim_end_matches("hh:mm:ss").trim_end().to_owned() + " hh:mm:ss";
    }
    line
}

/// The last line of a screen with so many.
fn last_line(screen: &str, rows: usize) -> &str {
    screen.lines().nth(rows - 1).unwrap_or_default()
}

fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[tokio::test]
async fn top_shows_in_eighty_columns_whether_it_works_and_why_not() {
    let scene = scene().await;
    let mut terminal = Terminal::start(&scene.top(), 80, 24);
    let screen =
        terminal.until("drawn to the last line", |screen| last_line(screen, 24).starts_with("q quit"));
    snapshot("top_80x24", &scene.normal(&screen));
    // Failed ones only, in another order.
    terminal.types("f");
    terminal.until("no good ones", |screen| !screen.contains("orders"));
    terminal.types("o");
    // The order is another one, and the lines below are empty.
    let screen = terminal.until("the two that fail", |screen| {
        let lines: Vec<&str> = screen.lines().map(str::trim_end).collect();
        lines[6].starts_with("3 a slow one") && lines[7].starts_with("2 billing") && lines[8..10] == ["", ""]
    });
    assert!(screen.contains("▲CALL/S"), "{screen}");
    snapshot("top_failed_only", &scene.normal(&screen));
    terminal.types("fo/BILL");
    let screen = terminal.until("one webhook", |s| s.contains("filter: BILL_") && !s.contains("orders"));
    assert!(screen.contains("2 billing"), "{screen}");
    terminal.types("\x1b");
    terminal.until_shown("1 orders");
    // A larger terminal shows more of all.
    terminal.resize(200, 60);
    let screen =
        // Its height and its width change one after the other.
        terminal.until("drawn to the last line, and with whole names", |screen| {
            last_line(screen, 60).starts_with("q quit") && screen.contains("billing.example.net")
        });
    snapshot("top_200x60", &scene.normal(&screen));
    terminal.types("q");
    assert!(terminal.ends().success());
    terminal.until_taken(false);
    scene.ends().await;
}

#[tokio::test]
async fn top_opens_a_call_and_asks_before_it_does_anything() {
    let scene = scene().await;
    let mut terminal = Terminal::start(&scene.top(), 80, 24);
    terminal.until_shown("3 in hand");
    // The failures are below: the last one.
    terminal.types("\t\r");
    let screen = terminal.until_shown("outcome");
    for part in ["webhook      3 a slow one, of project 3", "timeout after 10.0 s", "repeats      no call"] {
        assert!(screen.contains(part), "{part}\n{screen}");
    }
    terminal.types("jjjjjj");
    terminal.until("scrolled", |screen| !screen.contains("outcome") && screen.contains("repeats"));
    terminal.types("\x1b");
    terminal.until_shown("CALL/S");
    // A reader may look, and is told in one line that it may do no more.
    let pending = "SELECT count(*) FROM relay.outbox WHERE replay_of IS NOT NULL";
    terminal.types("r");
    terminal.until_shown("Repeat call 726 to webhook 3 a slow one? [y/N]");
    terminal.types("n");
    terminal.until_shown("nothing was done");
    terminal.types("ry");
    terminal.until_shown("this needs a member of relay_app");
    assert_eq!(scene.database.number(pending).await, 0);
    let sql = format!("GRANT relay_app TO {}", scene.login());
    scene.database.client.batch_execute(&sql).await.unwrap();
    terminal.types("ry");
    terminal.until("done", |screen| screen.contains("outbox row ") && screen.contains("repeats call 726"));
    assert_eq!(scene.database.number(pending).await, 1);
    // The webhook in the list above.
    terminal.types("\tp");
    terminal.until_shown("Pause webhook 1 orders until it is resumed? [y/N]");
    terminal.types("y");
    terminal.until_shown("webhook 1 is paused until promptpal-relay resume --webhook 1");
    terminal.until_shown("‖1 orders");
    let reason =
        "SELECT count(*) FROM relay.pauses WHERE webhook_id = 1 AND reason = 'paused in promptpal-relay top'";
    assert_eq!(scene.database.number(reason).await, 1);
    terminal.types("\x03");
    assert!(terminal.ends().success());
    scene.ends().await;
}

#[tokio::test]
async fn top_follows_what_happens_and_survives_a_lost_database() {
    let mut scene = scene().await;
    let terminal = Terminal::start(&scene.top(), 80, 24);
    terminal.until_shown("3 in hand");
    let glyphs = |screen: &str| screen.contains(['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']);
    assert!(!glyphs(&terminal.until_shown("calls")), "nothing has ended yet");
    let lost = format!("ALTER ROLE {} NOLOGIN", scene.login());
    scene.database.client.batch_execute(&lost).await.unwrap();
    crate::scenes::terminate(&scene.database, &scene.login(), "promptpal-relay top").await;
    let screen = terminal.until_shown("what you see is");
    assert!(screen.contains("1 orders"), "the last sample stays\n{screen}");
    drop(scene.receiver.take());
    scene.database.all_done().await;
    let back = format!("ALTER ROLE {} LOGIN", scene.login());
    scene.database.client.batch_execute(&back).await.unwrap();
    let screen = terminal.until_shown("0 in hand");
    assert!(!screen.contains("what you see is"), "{screen}");
    terminal.until("a sparkline", glyphs);
    scene.ends().await;
}

#[tokio::test]
async fn top_gives_the_terminal_back_however_it_ends() {
    let scene = scene().await;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut terminal = Terminal::start(&scene.top(), 80, 24);
        terminal.until_shown("3 in hand");
        terminal.until_taken(true);
        assert!(!terminal.is_cooked());
        terminal.signal(signal);
        assert_eq!(terminal.ends().code(), Some(0), "{signal}");
        terminal.until_taken(false);
        assert!(terminal.is_cooked(), "{signal}");
    }
    scene.ends().await;
}

/// What [`a_panic_gives_the_terminal_back_before_it_is_told`] runs in a process of its own.
#[test]
#[ignore = "it panics, on a terminal that another test has made"]
fn panics_on_the_screen() {
    let _screen = Screen::take().unwrap();
    panic!("it is broken");
}

#[test]
fn a_panic_gives_the_terminal_back_before_it_is_told() {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "top::panics_on_the_screen", "--nocapture", "--test-threads=1"]);
    command.env("RUST_BACKTRACE", "0");
    let mut terminal = Terminal::start(&command, 120, 24);
    assert!(!terminal.ends().success());
    terminal.until_shown("it is broken");
    assert_eq!(terminal.taken(), (false, false));
    assert!(terminal.is_cooked());
}

#[tokio::test]
async fn top_has_no_colours_where_none_are_wanted() {
    let scene = scene().await;
    // Colours of text: SGR 30 to 37, 38, 90 to 97.
    let coloured = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.split("\x1b[").skip(1).any(|rest| {
            let (codes, end) = rest.split_at(rest.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(0));
            end.starts_with('m')
                && codes.split(';').any(|code| matches!(code, "31" | "32" | "33" | "38" | "91" | "92"))
        })
    };
    for (no_color, expected) in [("", true), ("1", false)] {
        let mut command = scene.top();
        command.env("NO_COLOR", no_color);
        let terminal = Terminal::start(&command, 80, 24);
        terminal.until_shown("3 in hand");
        assert_eq!(coloured(&terminal.written()), expected, "NO_COLOR={no_color}");
    }
    scene.ends().await;
}

#[tokio::test]
async fn top_without_a_terminal_points_at_status() {
    let database = Database::new().await;
    let (code, out, err) = outcome(database.command(&["top"]));
    assert_eq!((code, out.as_str(), err.lines().count()), (2, "", 1), "{err}");
    assert!(err.contains("top needs a terminal") && err.contains("promptpal-relay status"), "{err}");
}

#[tokio::test]
async fn top_ends_with_one_line_where_it_cannot_begin() {
    let scene = scene().await;
    let revoke = format!("REVOKE relay_reader FROM {}", scene.login());
    scene.database.client.batch_execute(&revoke).await.unwrap();
    let mut terminal = Terminal::start(&scene.top(), 120, 24);
    assert_eq!(terminal.ends().code(), Some(78));
    terminal.until_shown("this needs a member of relay_reader");
    assert_eq!(terminal.taken(), (false, false));
    scene.ends().await;
}

#[tokio::test]
async fn what_strangers_wrote_never_steers_the_live_screen() {
    let scene = scene().await;
    let client = &scene.database.client;
    client.execute("UPDATE relay.webhooks SET name = $1", &[&EVIL]).await.unwrap();
    let sql = "UPDATE relay.webhook_calls SET error_message = $1, response_body = $1, trace_id = $1 WHERE NOT succeeded";
    client.execute(sql, &[&EVIL]).await.unwrap();
    client.execute("UPDATE relay.instances SET host = $1", &[&EVIL]).await.unwrap();
    let mut terminal = Terminal::start(&scene.top(), 400, 40);
    let harmless = |screen: &str| {
        // A direction that turns, a text that no reader sees, a line of its own.
        assert!(!screen.contains(['\u{202e}', '\u{2066}', '\u{feff}', '\u{e0041}']), "{screen}");
        assert!(!screen.lines().any(|line| line.starts_with("<3>forged")), "{screen}");
        screen.matches(r"a\u001b[2J\u007f\u009b31m\u061c\u200e\u202eb").count()
    };
    // In the names, the message of each failure, and the host.
    let screen = terminal.until("all of it", |screen| last_line(screen, 40).starts_with("q quit"));
    assert!(harmless(&screen) > 5, "{screen}");
    terminal.types("\t\r");
    let screen = terminal.until("a call", |screen| screen.contains("outcome") && screen.contains("Answer"));
    assert!(harmless(&screen) >= 3, "{screen}");
    terminal.types("\x1br");
    let screen = terminal.until_shown("[y/N]");
    harmless(&screen);
    scene.ends().await;
}
