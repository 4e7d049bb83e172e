//! The page for receivers: its guide is the promise, word for word, and its examples verify real calls.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use promptpal_relay::inside::delivery::sign;
use promptpal_relay::inside::model::Secret;
use sha2::{Digest, Sha256};

use super::{Page, bare};
use crate::support::{Database, Relay, closed_port};

/// Of the guide that receivers were given, from "## Overview" to its end. Another value is another promise.
const GUIDE_SHA256: &str = "2507cba0d4439484669b26b44b76916cd71811d1b65dcb5e9967c151e8e66b40";

#[test]
fn the_guide_stands_word_for_word() {
    let page = Page::read("docs/receivers.md");
    let begin = page.text.find("## Overview\n").unwrap();
    let end = page.text.find("\n## Each call has an id").unwrap();
    let guide = page.text[begin..end].trim_end();
    let digest: String = Sha256::digest(guide).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, GUIDE_SHA256);
}

#[test]
fn the_values_to_try_a_verifier_with_are_those_of_a_real_signature() {
    let rows = Page::read("docs/receivers.md").table("| value | is |");
    let value = |name: &str| {
        let row = rows.iter().find(|row| bare(&row[0]) == name).unwrap();
        bare(&row[1]).to_owned()
    };
    let at = Duration::from_secs(value("webhook-timestamp").parse().unwrap());
    let secret = Secret(value("secret"));
    let signed = sign(&secret, &value("webhook-id"), UNIX_EPOCH + at, &value("body")).unwrap();
    assert_eq!(signed.signature, value("webhook-signature"));
}

/// A receiver of the page; killed on drop.
struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("an example of the page is not killed: {error}");
        }
    }
}

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// Writes an example into the folder and returns the command that runs it; none where the language is not installed.
fn command(language: &str, folder: &Path) -> Option<Command> {
    let heading = match language {
        "js" => "### Verify in Node.js",
        "python" => "### Verify in Python",
        _ => "### Verify in Go",
    };
    let page = Page::read("docs/receivers.md");
    let after = page.text.split_once(heading).unwrap().1;
    let code = after.split_once(&format!("```{language}\n")).unwrap().1.split_once("```").unwrap().0;
    let is_there = |program: &str, version: &str| {
        Command::new(program).arg(version).output().is_ok_and(|out| out.status.success())
    };
    let file = folder.join(format!("receiver.{}", if language == "python" { "py" } else { language }));
    fs::write(&file, code).unwrap();
    let command = match language {
        "js" if is_there("node", "--version") => {
            let mut node = Command::new("node");
            node.arg(&file);
            node
        }
        "python" if is_there("python3", "--version") => {
            let mut python = Command::new("python3");
            python.arg(&file);
            python
        }
        "go" if is_there("go", "version") => {
            let program = folder.join("receiver");
            let built = Command::new("go")
                .arg("build")
                .arg("-o")
                .arg(&program)
                .arg(&file)
                .current_dir(folder)
                .output()
                .unwrap();
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
            Command::new(program)
        }
        _ => {
            println!("skipped: {language} is not installed");
            return None;
        }
    };
    Some(command)
}

#[tokio::test]
async fn the_examples_verify_real_calls_and_refuse_those_of_another_secret() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::new().await;
    let _relay = Relay::start(&database, &[]);
    for (project, language) in (1_i64..).zip(["js", "python", "go"]) {
        let Some(mut command) = command(language, folder.path()) else { continue };
        let port = closed_port();
        command.env("PORT", port.to_string()).env("WEBHOOK_SECRET", SECRET).stdin(Stdio::null());
        let _example = Example(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "{language}: the example does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        let webhook = database.webhook(project, &format!("http://127.0.0.1:{port}/")).await;
        let answer = async |secret: &str| {
            let sql = "UPDATE relay.webhooks SET signing_secret = $2::text WHERE id = $1";
            database.client.execute(sql, &[&webhook, &secret]).await.unwrap();
            database.events(project, 1).await;
            database.all_done().await;
            let sql = "SELECT coalesce(status_code, 0), coalesce(response_body, error_message) FROM relay.webhook_calls
                       WHERE webhook_id = $1 ORDER BY id DESC LIMIT 1";
            let row = database.client.query_one(sql, &[&webhook]).await.unwrap();
            (row.get::<_, i32>(0), row.get::<_, Option<String>>(1).unwrap_or_default())
        };
        let (status, body) = answer(SECRET).await;
        assert_eq!(status, 200, "{language}: {body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["status"], &body["project"]), (&"received".into(), &project.into()), "{language}");
        let other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        assert_eq!(answer(other).await.0, 401, "{language}: the secret of another");
        // While a secret is exchanged there are two signatures.
        assert_eq!(answer(&format!("{other} {SECRET}")).await.0, 200, "{language}: two secrets");
    }
}
