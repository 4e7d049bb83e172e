//! The queries of the pages run, as the role that each names in its first line.

use super::{Block, all};
use crate::support::{Database, Receiver, Relay, Reply};

/// What the pages' examples are about: webhook 1 of project 1, call 1, which failed, a user of the application, and
/// PromptPal's tables.
pub async fn scene(receiver: &Receiver) -> Database {
    let database = Database::new().await;
    assert_eq!(database.webhook(1, &receiver.url("/")).await, 1);
    database
        .client
        .batch_execute(&crate::promptpal::TABLES.replace("HEADERS", "jsonb").replace("NULLABLE", ""))
        .await
        .unwrap();
    let _relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(database.number("SELECT min(id) FROM relay.webhook_calls").await, 1);
    database
}

/// As whom a block says that it runs: group roles, or a superuser.
fn roles(block: &Block<'_>) -> Vec<String> {
    let first = block.code.lines().next().unwrap_or_default();
    let who =
        first.strip_prefix("-- as ").unwrap_or_else(|| panic!("{}: as which role does it run?", block.at));
    let superusers = ["the administrator", "your own database", "the owner of PromptPal's tables"];
    if superusers.contains(&who) {
        return Vec::new();
    }
    let roles: Vec<String> = who.split(" and ").map(str::to_owned).collect();
    for role in &roles {
        let known = ["relay_app", "relay_reader", "relay_daemon", "relay_owner"];
        assert!(known.contains(&role.as_str()), "{}: who is {role}?", block.at);
    }
    roles
}

/// Begins a transaction as a member of these roles.
async fn begin_as(database: &Database, roles: &[String]) {
    database.client.batch_execute("BEGIN").await.unwrap();
    if !roles.is_empty() {
        let name = format!("reader_of_pages_{}", std::process::id());
        let sql = format!("CREATE ROLE {name} IN ROLE {}; SET LOCAL ROLE {name}", roles.join(", "));
        database.client.batch_execute(&sql).await.unwrap();
    }
}

/// The statement in a program's text, as Postgres numbers its parameters.
fn statement(code: &str) -> Option<String> {
    let begin = code.find("INSERT INTO relay.outbox")?;
    let end = code[begin..].find(['`', '"'])?;
    let mut number = 0;
    let parts: Vec<&str> = code[begin..begin + end].split("%s").collect();
    Some(parts.iter().fold(String::new(), |mut text, part| {
        if number > 0 {
            text.push_str(&format!("${number}"));
        }
        number += 1;
        text + part
    }))
}

#[tokio::test]
async fn each_query_of_the_pages_runs_as_the_role_that_it_names() {
    let receiver = Receiver::start(|_| Reply::status(500));
    let database = scene(&receiver).await;
    let pages = all();
    let (mut queries, mut statements) = (0, 0);
    for block in pages.iter().flat_map(super::Page::blocks) {
        if block.language == "sql" {
            begin_as(&database, &roles(&block)).await;
            let outcome = database.client.batch_execute(&block.code).await;
            database.client.batch_execute("ROLLBACK").await.unwrap();
            outcome.unwrap_or_else(|error| panic!("{}: {error:?}\n{}", block.at, block.code));
            queries += 1;
        } else if let Some(statement) =
            ["js", "python", "go"].contains(&block.language).then(|| statement(&block.code)).flatten()
        {
            begin_as(&database, &["relay_app".into()]).await;
            let outcome = database.client.prepare(&statement).await;
            database.client.batch_execute("ROLLBACK").await.unwrap();
            let prepared = outcome.unwrap_or_else(|error| panic!("{}: {error:?}\n{statement}", block.at));
            assert_eq!(prepared.params().len(), 7, "{}", block.at);
            statements += 1;
        }
    }
    assert!(queries > 35 && statements == 3, "{queries} {statements}");
}

/// The traps of the developer's page.
#[tokio::test]
async fn what_the_page_says_of_an_insert_is_so() {
    let database = Database::new().await;
    let insert = async |columns: &str, values: &str| {
        let sql = format!(
            "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens{columns})
             VALUES (1, 1, 'u', 0, 1, 1, 1{values}) RETURNING total_tokens, duration_ms"
        );
        let answer = database.client.query_one(&sql, &[]).await;
        answer.map_err(|error| {
            error
                .as_db_error()
                .unwrap()
                .constraint()
                .map_or(error.code().unwrap().code().into(), str::to_owned)
        })
    };
    for column in ["created_at", "event", "event_id", "finished_at", "cached", "ip", "user_agent"] {
        assert_eq!(insert(&format!(", {column}"), ", NULL").await.unwrap_err(), "23502", "{column}");
        insert(&format!(", {column}"), ", DEFAULT").await.unwrap();
    }
    for (column, zero, refusal) in [
        ("finished_at", "'0001-01-01T00:00:00Z'", "outbox_finished_at_has_four_digit_year"),
        ("created_at", "'0001-01-01T00:00:00Z'", "outbox_created_at_has_four_digit_year"),
        ("event", "''", "outbox_event_known"),
        ("webhook_id", "0", "outbox_webhook_id_positive"),
        ("event_id", "'00000000-0000-0000-0000-000000000000'", "outbox_event_id_not_zero"),
    ] {
        assert_eq!(insert(&format!(", {column}"), &format!(", {zero}")).await.unwrap_err(), refusal);
    }
    for (column, zero) in [("total_tokens", "0"), ("provider_default_model", "''")] {
        insert(&format!(", {column}"), &format!(", {zero}")).await.unwrap();
    }
    // A fraction: a number is rounded, a text is refused.
    let number = "SELECT 1250.7::double precision";
    let sql = format!("INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
                       SELECT 1, 1, 'u', 0, ({number}), 1, 1 RETURNING duration_ms");
    assert_eq!(database.number(&sql).await, 1251);
    let text = sql.replace(&format!("({number})"), "'1250.7'");
    assert_eq!(database.client.query_one(&text, &[]).await.unwrap_err().code().unwrap().code(), "22P02");
}
