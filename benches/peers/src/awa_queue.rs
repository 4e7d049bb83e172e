//! awa. A worker claims jobs in batches and completes them in batches. It completes a job after its handler has returned, in a
//! transaction of its own; 0.6 has no completion within the caller's transaction. So the handler waits for its log row first.

use std::error::Error;
use std::time::Duration;

use awa::{
    Client, InsertOpts, InsertParams, JobArgs, JobContext, JobError, JobResult, QueueConfig, QueueStorage,
    QueueStorageConfig,
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::call::{Caller, Job};
use crate::log::Log;

pub const SETTINGS: &str =
    "queue storage, 1 queue, 256 workers, no deadline, claims of 512, completions of 512 each 1 ms";
const QUEUE: &str = "calls";
/// 64 and 128 made less, 512 and 1,024 no more. Nor did two claimers, or two shards of completions.
const WORKERS: u32 = 256;
/// Sessions of the pool at most.
const SESSIONS: u32 = 20;

#[derive(Deserialize, Serialize)]
struct Post(Job);

impl JobArgs for Post {
    fn kind() -> &'static str {
        "post"
    }
}

async fn pool(url: &str) -> Result<PgPool, sqlx::Error> {
    PgPoolOptions::new().max_connections(SESSIONS).connect(url).await
}

pub async fn fill(url: &str, jobs: Vec<Job>) -> Result<(), Box<dyn Error>> {
    let pool = pool(url).await?;
    awa::migrations::run(&pool).await?;
    let store = QueueStorage::new(QueueStorageConfig::default())?;
    let opts = InsertOpts { queue: QUEUE.to_owned(), ..InsertOpts::default() };
    let mut params = Vec::with_capacity(jobs.len());
    for job in jobs {
        params.push(InsertParams {
            kind: Post::kind().to_owned(),
            args: Post(job).to_args()?,
            opts: opts.clone(),
        });
    }
    for params in params.chunks(5000) {
        store.enqueue_params_copy(&pool, params).await?;
    }
    Ok(())
}

/// Runs until the log has a row of each job and the queue is empty.
pub async fn run(url: &str, jobs: u64, caller: Caller, mut log: Log) -> Result<(), Box<dyn Error>> {
    let pool = pool(url).await?;
    let config = QueueConfig {
        max_workers: WORKERS,
        // Its compact way of claiming and completing is for jobs without a deadline of their own; the call has one.
        deadline_duration: Duration::ZERO,
        ..QueueConfig::default()
    };
    let ours = log.clone();
    let handler = move |post: Post, _: &JobContext| {
        let (caller, log) = (caller.clone(), ours.clone());
        async move {
            let call = caller.call(post.0).await.map_err(JobError::Retryable)?;
            log.write(call).await.map_err(|error| JobError::Retryable(error.into()))?;
            Ok(JobResult::Completed)
        }
    };
    let client =
        Client::builder(pool.clone()).queue(QUEUE, config).register::<Post, _, _>(handler).build()?;
    client.start().await?;
    log.until(jobs).await?;
    let store = QueueStorage::new(QueueStorageConfig::default())?;
    loop {
        let counts = store.queue_counts(&pool, QUEUE).await?;
        if counts.available == 0 && counts.running == 0 {
            break;
        }
        tokio::time::sleep(crate::POLL).await;
    }
    client.shutdown(Duration::from_secs(10)).await;
    Ok(())
}
