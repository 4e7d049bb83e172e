//! graphile_worker. A worker takes a batch of jobs into a local queue and completes them in batches. It completes a job after its
//! handler has returned, in a transaction of its own, so the handler waits for its log row first.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, TaskHandler, WorkerContext, WorkerOptions,
};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::call::{Caller, Job};
use crate::log::Log;

pub const SETTINGS: &str = "driver sqlx, concurrency 256, local queue 500, completions in batches each 5 ms";
/// 128 and 512 made no difference beyond the noise, nor did several local queues or larger ones.
const CONCURRENCY: usize = 256;
const LOCAL_QUEUE: usize = 500;
/// The most that its documentation recommends; its own benchmark has the same.
const COMPLETE_DELAY: Duration = Duration::from_millis(5);
/// Before the next fetch, when a fetch has found less than the local queue takes.
const POLL: Duration = Duration::from_millis(50);
/// Sessions of the pool at most. The local queue and the completions use one each at a time.
const SESSIONS: u32 = 20;

#[derive(Deserialize, Serialize)]
struct Post(Job);

impl TaskHandler for Post {
    const IDENTIFIER: &'static str = "post";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let caller = context.get_ext::<Caller>().ok_or("no caller")?;
        let log = context.get_ext::<Log>().ok_or("no log")?;
        let call = caller.call(self.0).await.map_err(|error| error.to_string())?;
        log.write(call).await
    }
}

fn options(url: &str) -> WorkerOptions {
    WorkerOptions::default()
        .database_url(url)
        .max_pg_conn(SESSIONS)
        .schema("graphile_worker")
        .concurrency(CONCURRENCY)
        .poll_interval(POLL)
        .complete_job_batch_delay(COMPLETE_DELAY)
        .local_queue(LocalQueueConfig::default().with_size(LOCAL_QUEUE))
        .listen_os_shutdown_signals(false)
        .define_job::<Post>()
}

pub async fn fill(url: &str, jobs: Vec<Job>) -> Result<(), Box<dyn Error>> {
    let utils = options(url).init().await?.create_utils();
    let mut specs = Vec::with_capacity(jobs.len());
    for job in jobs {
        let payload = serde_json::to_value(Post(job))?;
        specs.push(RawJobSpec { identifier: Post::IDENTIFIER.to_owned(), payload, spec: JobSpec::default() });
    }
    for specs in specs.chunks(5000) {
        utils.add_raw_jobs(specs).await?;
    }
    Ok(())
}

/// Runs until the log has a row of each job and the queue is empty.
pub async fn run(
    url: &str,
    jobs: u64,
    caller: Caller,
    mut log: Log,
    session: &Client,
) -> Result<(), Box<dyn Error>> {
    let worker = Arc::new(options(url).add_extension(caller).add_extension(log.clone()).init().await?);
    let running = tokio::spawn({
        let worker = worker.clone();
        async move { worker.run().await }
    });
    log.until(jobs).await?;
    crate::until(session, "SELECT NOT EXISTS (SELECT FROM graphile_worker._private_jobs)").await?;
    worker.request_shutdown();
    running.await??;
    Ok(())
}
