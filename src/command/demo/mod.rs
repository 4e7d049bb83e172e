//! `demo`: everything on one machine, with a private, throw-away Postgres.
//!
//! Plays the application and three receivers around the real daemon, shows what happens, and compares it with the
//! promise at the end. Leaves no process and no file behind.

pub mod postgres;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::command::demo::postgres::{Cluster, spawn_for_life};
use crate::command::table::{aligned, columns_for, printable};
use crate::error::{Error, Result};

/// The project of all that is shown.
const PROJECT: i64 = 123;
/// The daemon's `--timeout`: short, because one receiver never answers and people watch.
const TIMEOUT: &str = "2s";
/// How long anything that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to look at the database, and for Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);
/// A request that the receivers take: the daemon's are far smaller.
const REQUEST_MAX: u64 = 1024 * 1024;

/// The three receivers.
const RECEIVERS: [(&str, Manner); 3] =
    [("good", Manner::Good), ("failing", Manner::Failing), ("silent", Manner::Silent)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Answers 200.
    Good,
    /// Answers 500.
    Failing,
    /// Never answers.
    Silent,
}

/// What the DBA asks at the end.
const CALL_LOG: &str = "\
SELECT c.outbox_id AS row, w.name AS webhook, c.status_code AS status, c.succeeded, c.error_kind, c.error_message,
       round(extract(epoch FROM c.end_time - c.start_time) * 1000) AS ms
  FROM relay.webhook_calls c
  JOIN relay.webhooks w ON w.id = c.webhook_id
 ORDER BY c.outbox_id, w.id";

/// Compares what happened with the promise: rows that are done, calls, and those of each outcome.
const TALLY: &str = "\
SELECT (SELECT count(*) FROM relay.outbox WHERE done_at IS NOT NULL),
       count(*),
       count(*) FILTER (WHERE succeeded),
       count(*) FILTER (WHERE error_kind = 'http_status' AND status_code = 500),
       count(*) FILTER (WHERE is_timeout)
  FROM relay.webhook_calls";

/// Runs the demo. With `keep` it stays until Ctrl-C.
///
/// # Errors
///
/// [`Error::Failed`] when what is shown is not as promised, or it was interrupted.
pub async fn run(keep: bool) -> Result<()> {
    let interrupted = interrupts()?;
    say("Making a private Postgres in a temporary folder …")?;
    let cluster = Cluster::start(&[])?;
    let url = cluster.url("postgres");
    say(&format!(
        "  running on port {} of 127.0.0.1, and on the socket in {}",
        cluster.port(),
        cluster.socket_dir().display()
    ))?;

    say("\n$ promptpal-relay migrate")?;
    let status = program(&["migrate"], &url)?.status().map_err(Error::io("running migrate"))?;
    if !status.success() {
        return Err(Error::Failed(format!("migrate ended with {status}")));
    }

    let (arrivals, arrived) = mpsc::channel();
    let (client, connection) =
        tokio_postgres::connect(&url, NoTls).await.map_err(Error::postgres("connecting"))?;
    // Ends with the client.
    tokio::spawn(connection);
    say("\nStarting three receivers, the webhooks of project 123:")?;
    for (name, manner) in RECEIVERS {
        let address = receive(name, manner, arrivals.clone())?;
        let url = format!("http://{address}/webhook");
        client
            .execute(
                "INSERT INTO relay.webhooks (project_id, name, url) VALUES ($1, $2, $3)",
                &[&PROJECT, &name, &url],
            )
            .await
            .map_err(Error::postgres("adding a webhook"))?;
        let manner = match manner {
            Manner::Good => "answers 200",
            Manner::Failing => "answers 500",
            Manner::Silent => "never answers",
        };
        say(&format!("  {name:<8} {url}  {manner}"))?;
    }

    let flags = ["run", "--allow-net", "127.0.0.0/8", "--timeout", TIMEOUT];
    say(&format!("\n$ promptpal-relay {}", flags.join(" ")))?;
    let daemon = Daemon::start(&flags, &url)?;

    let show = Show { client, arrived, interrupted, started: Instant::now() };
    let rows = show.play_the_application().await?;
    show.deliveries(rows).await?;
    show.call_log().await?;
    show.verdict(rows).await?;
    if keep {
        say(&format!(
            "\nIt stays until Ctrl-C. To connect:\n  psql '{url}'\n  psql -h 127.0.0.1 -p {} -U postgres\n\
             To see it live:\n  DATABASE_URL='{url}' promptpal-relay top",
            cluster.port()
        ))?;
        show.stay().await?;
    }
    say("\nStopping the daemon (SIGTERM) …")?;
    daemon.stop()?;
    say("  it drained and exited 0")?;
    drop(show);
    drop(cluster);
    say("Stopped Postgres and removed its folder. Nothing is left.")
}

struct Show {
    client: Client,
    arrived: Receiver<Arrival>,
    interrupted: Receiver<()>,
    started: Instant,
}

impl Show {
    /// The application's transactions. Returns how many rows it committed.
    async fn play_the_application(&self) -> Result<i64> {
        say("\nThe application inserts events in its own transactions:")?;
        for (user, end) in [("alice", "COMMIT"), ("mallory", "ROLLBACK"), ("bob", "COMMIT")] {
            let sql = format!(
                "BEGIN;
                 INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
                 VALUES ({PROJECT}, 456, '{user}', 0, 1250, 150, 300);
                 {end}"
            );
            self.client.batch_execute(&sql).await.map_err(Error::postgres("playing the application"))?;
            let means = if end == "COMMIT" { "delivered" } else { "never sent" };
            let insert = format!("INSERT INTO relay.outbox … user_id '{user}';");
            say(&format!("  BEGIN; {insert:<50} {end:<8}  → {means}"))?;
        }
        Ok(2)
    }

    /// Shows what arrives until all rows are done.
    async fn deliveries(&self, rows: i64) -> Result<()> {
        say("\nDeliveries as they arrive at the receivers:")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check_interrupt()?;
            while let Ok(arrival) = self.arrived.try_recv() {
                if arrival.user == "mallory" {
                    return Err(Error::Failed("an event arrived whose transaction was rolled back".into()));
                }
                say(&format!(
                    "  {:>6.3} s  {:<8} got POST for {:<6} and {}",
                    (arrival.at - self.started).as_secs_f64(),
                    arrival.receiver,
                    arrival.user,
                    arrival.answer
                ))?;
            }
            let (done, ..) = self.tally().await?;
            if done == rows {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Failed(format!(
                    "{done} of {rows} rows are done after {} s",
                    PATIENCE.as_secs()
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The log as a DBA would query it.
    async fn call_log(&self) -> Result<()> {
        say("\nThe call log, as a DBA asks for it:\n")?;
        say(CALL_LOG)?;
        let messages =
            self.client.simple_query(CALL_LOG).await.map_err(Error::postgres("reading the call log"))?;
        let mut table: Vec<Vec<String>> = Vec::new();
        for message in &messages {
            let SimpleQueryMessage::Row(row) = message else { continue };
            if table.is_empty() {
                table.push(row.columns().iter().map(|column| column.name().to_owned()).collect());
            }
            table.push((0..row.len()).map(|at| printable(row.get(at).unwrap_or_default())).collect());
        }
        say("")?;
        print_table(&table)
    }

    async fn verdict(&self, rows: i64) -> Result<()> {
        let tally = self.tally().await?;
        let expected = (rows, rows * 3, rows, rows, rows);
        if tally != expected {
            return Err(Error::Failed(format!(
                "not as promised: rows and calls are {tally:?}, not {expected:?}"
            )));
        }
        say(&format!(
            "\nAs promised: {rows} committed rows, {} calls, one record each; {rows} succeeded, {rows} answered 500, {rows} timed out\n\
             after {TIMEOUT}; nothing of the transaction that rolled back.",
            rows * 3
        ))
    }

    async fn tally(&self) -> Result<(i64, i64, i64, i64, i64)> {
        let row = self.client.query_one(TALLY, &[]).await.map_err(Error::postgres("counting"))?;
        Ok((row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)))
    }

    /// Until Ctrl-C.
    async fn stay(&self) -> Result<()> {
        while self.check_interrupt().is_ok() {
            while let Ok(arrival) = self.arrived.try_recv() {
                say(&format!(
                    "  {:<8} got POST for {} and {}",
                    arrival.receiver, arrival.user, arrival.answer
                ))?;
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn check_interrupt(&self) -> Result<()> {
        match self.interrupted.try_recv() {
            Ok(()) => Err(Error::Failed("interrupted".into())),
            Err(_) => Ok(()),
        }
    }
}

/// What ends a program, a terminal that is closed included, as messages, so that whatever runs is cleaned up.
fn interrupts() -> Result<Receiver<()>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let (sender, receiver) = mpsc::channel();
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])
        .map_err(Error::io("installing signal handlers"))?;
    thread::spawn(move || {
        for _ in signals.forever() {
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

// ---- the daemon ---------------------------------------------------------------------------------------------------

/// This program with these arguments on the demo's database, and nothing else of the environment's configuration.
fn program(arguments: &[&str], url: &str) -> Result<Command> {
    let myself = std::env::current_exe().map_err(Error::io("finding this program"))?;
    let mut command = Command::new(myself);
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("PG") || name.starts_with("PROMPTPAL_RELAY_") || name == "NOTIFY_SOCKET" {
            command.env_remove(variable);
        }
    }
    // A group of its own: Ctrl-C reaches this process alone, which ends the daemon in order.
    command.process_group(0);
    command.args(arguments).env("DATABASE_URL", url).stdin(Stdio::null());
    Ok(command)
}

struct Daemon(Child);

impl Daemon {
    fn start(flags: &[&str], url: &str) -> Result<Daemon> {
        spawn_for_life(program(flags, url)?).map(Daemon).map_err(Error::io("starting the daemon"))
    }

    /// Stops it by SIGTERM; it must drain and exit 0.
    fn stop(mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("process ids are positive integers"));
        kill(pid, Signal::SIGTERM).map_err(|error| Error::Failed(format!("stopping the daemon: {error}")))?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().map_err(Error::io("waiting for the daemon"))? {
                return if status.success() {
                    Ok(())
                } else {
                    Err(Error::Failed(format!("the daemon ended with {status}")))
                };
            }
            thread::sleep(LOOK);
        }
        Err(Error::Failed("the daemon does not stop".into()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // After stop() no process is left to kill.
        let runs = matches!(self.0.try_wait(), Ok(None));
        if runs && let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            tracing::warn!(%error, "cannot end the daemon");
        }
    }
}

// ---- the receivers ------------------------------------------------------------------------------------------------

/// A request at a receiver.
struct Arrival {
    receiver: &'static str,
    user: String,
    answer: &'static str,
    at: Instant,
}

/// Starts a receiver on a free port of loopback.
fn receive(name: &'static str, manner: Manner, arrivals: Sender<Arrival>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(Error::io("starting a receiver"))?;
    let address = listener.local_addr().map_err(Error::io("starting a receiver"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let arrivals = arrivals.clone();
            thread::spawn(move || {
                // The daemon closes its connections as it likes; that is no failure of the demo.
                if let Err(error) = serve(&stream, name, manner, &arrivals) {
                    tracing::debug!(%error, "a connection of a receiver ended");
                }
            });
        }
    });
    Ok(address)
}

fn serve(
    stream: &TcpStream,
    name: &'static str,
    manner: Manner,
    arrivals: &Sender<Arrival>,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(body) = read_request(&mut reader)? {
        // With --keep, any user of this machine may post here.
        let user =
            printable(serde_json::from_slice::<serde_json::Value>(&body)?["userId"].as_str().unwrap_or("?"));
        let (answer, bytes) = match manner {
            Manner::Good => {
                ("answers 200", "HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{\"status\":\"received\"}")
            }
            Manner::Failing => ("answers 500", "HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops"),
            Manner::Silent => ("says nothing", ""),
        };
        if arrivals.send(Arrival { receiver: name, user, answer, at: Instant::now() }).is_err() {
            return Ok(());
        }
        let mut writer = stream;
        writer.write_all(bytes.as_bytes())?;
    }
    Ok(())
}

/// The body of the next request; none at the end of the connection.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.by_ref().take(REQUEST_MAX).read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if line.trim_end().is_empty() {
            break;
        }
    }
    let mut body = Vec::new();
    reader.take(length.min(REQUEST_MAX)).read_to_end(&mut body)?;
    Ok(Some(body))
}

// ---- words --------------------------------------------------------------------------------------------------------

fn say(text: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}").map_err(Error::io("writing to standard output"))
}

/// Prints a table as psql does; the first row is the heading.
fn print_table(rows: &[Vec<String>]) -> Result<()> {
    let columns = columns_for(rows.iter());
    for (at, row) in rows.iter().enumerate() {
        let cells = aligned(&columns, row.iter().map(String::as_str), " | ");
        say(format!(" {cells}").trim_end())?;
        if at == 0 {
            // Empty cells, with dashes for blanks.
            let rule = vec![""; columns.len()];
            say(&format!("-{}-", aligned(&columns, rule, "-+-").replace(' ', "-")))?;
        }
    }
    Ok(())
}
