//! Other queues on Postgres at the work of the relay's drain: for each job one POST and one row of the call log, durable.
//!
//! `peers PEER fill JOBS` makes the queue's schema and inserts the jobs. `peers PEER run JOBS batches|alone` works until all are
//! done, and prints one JSON line. The last word says how the log is written.
//!
//! The database (`DATABASE_URL`) has the schema `relay`, whose call log is written. `RECEIVER_URL` takes the POSTs.
//! `cargo bench -- --peers` starts both.

mod awa_queue;
mod call;
mod graphile;
mod log;

use std::env;
use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use call::{Caller, Job};

/// Between two questions whether the queue is empty, after the last log row.
const POLL: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let url = env::var("DATABASE_URL")?;
    match arguments.as_slice() {
        [peer, "fill", jobs] => {
            let receiver = env::var("RECEIVER_URL")?;
            let jobs = (1..=jobs.parse()?).map(|id| Job::new(id, &receiver)).collect();
            match *peer {
                "graphile_worker" => graphile::fill(&url, jobs).await,
                "awa" => awa_queue::fill(&url, jobs).await,
                _ => Err(format!("no peer {peer}").into()),
            }
        }
        [peer, "run", jobs, log] => {
            let (jobs, mode) =
                (jobs.parse()?, log::mode(log).ok_or("the log is written in batches or alone")?);
            let settings = match *peer {
                "graphile_worker" => graphile::SETTINGS,
                "awa" => awa_queue::SETTINGS,
                _ => return Err(format!("no peer {peer}").into()),
            };
            let caller = Caller::new()?;
            let mut sessions = Vec::new();
            for _ in 0..mode.0 {
                sessions.push(connect(&url).await?);
            }
            let (log, writers) = log::open(sessions, mode.1);
            let session = connect(&url).await?;
            let mut writing = JoinSet::new();
            for writer in writers {
                writing.spawn(writer.run());
            }
            let working = async {
                match *peer {
                    "awa" => awa_queue::run(&url, jobs, caller, log).await,
                    _ => graphile::run(&url, jobs, caller, log, &session).await,
                }
            };
            tokio::select! {
                worked = working => worked?,
                written = writing.join_next() => return Err(format!("the log ended early: {written:?}").into()),
            }
            let line = serde_json::json!({
                "peer": peer, "version": version(peer), "settings": settings, "jobs": jobs,
                "seconds": start.elapsed().as_secs_f64(), "cpu_seconds": cpu()?,
            });
            println!("{line}");
            Ok(())
        }
        _ => Err("usage: peers PEER fill JOBS, or peers PEER run JOBS batches|alone".into()),
    }
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn until(session: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    while !session.query_one(sql, &[]).await?.get::<_, bool>(0) {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Of a package in the lock file.
fn version(name: &str) -> Option<&'static str> {
    let (_, rest) = include_str!("../Cargo.lock").split_once(&format!("name = \"{name}\"\nversion = \""))?;
    rest.split('"').next()
}

/// CPU seconds of this process so far.
fn cpu() -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(')').ok_or("no /proc/self/stat")?;
    let ticks: f64 =
        rest.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    // Always 100 on Linux: USER_HZ is part of its interface.
    Ok(ticks / 100.0)
}
