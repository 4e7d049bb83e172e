//! Inserts an event in the transaction that records the execution, with tokio-postgres.
//!
//!     DATABASE_URL=postgres://… cargo run --locked --manifest-path examples/rust/Cargo.toml [rollback]
//!
//! With `rollback` the application fails before its commit: nothing is recorded, and nothing is sent.

use std::env;
use std::error::Error;
use std::time::{Duration, SystemTime};

use tokio_postgres::NoTls;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let took = Duration::from_micros(1_250_400);
    // Over a network, use TLS: tokio-postgres-rustls.
    let (mut client, connection) = tokio_postgres::connect(&env::var("DATABASE_URL")?, NoTls).await?;
    let connection = tokio::spawn(connection);

    // A transaction that is dropped rolls back: each `?` below does so.
    let transaction = client.transaction().await?;
    transaction.execute("INSERT INTO executions (user_id) VALUES ($1)", &[&"user-123"]).await?;
    // Leave out each column that you have no value for. `None` is an explicit NULL: it replaces the column's default, and columns
    // such as ip, user_agent, cached and event_id refuse it.
    let insert = "
        INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, finished_at, duration_ms, prompt_tokens,
                                  completion_tokens)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    // The types are the columns': i64 for bigint, i32 for integer, i16 for smallint. A SystemTime is an instant, without a time zone
    // that could be wrong. The milliseconds are an integer: tokio-postgres refuses a float.
    let duration_ms = i64::try_from(took.as_millis())?;
    let (project_id, prompt_id, user_id, result) = (123_i64, 456_i64, "user-123", 0_i16);
    let (finished_at, prompt_tokens, completion_tokens) = (SystemTime::now(), 150_i32, 300_i32);
    transaction
        .execute(
            insert,
            &[
                &project_id,
                &prompt_id,
                &user_id,
                &result,
                &finished_at,
                &duration_ms,
                &prompt_tokens,
                &completion_tokens,
            ],
        )
        .await?;
    if env::args().any(|argument| argument == "rollback") {
        return Err("the application fails before its commit".into());
    }
    transaction.commit().await?;
    drop(client);
    connection.await??;
    Ok(())
}
