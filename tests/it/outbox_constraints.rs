//! The outbox refuses an insert that is no event, and the error names the constraint.

use std::time::SystemTime;

use promptpal_relay::inside::outbox::Role;

use crate::support::{Database, Receiver, Relay};

/// An insert of an event that is good but for this column.
fn insert_of(column: &str, value: &str) -> String {
    let good = [
        ("project_id", "1"),
        ("prompt_id", "1"),
        ("user_id", "'u'"),
        ("result", "0"),
        ("duration_ms", "1"),
        ("prompt_tokens", "1"),
        ("completion_tokens", "1"),
    ];
    let (columns, values): (Vec<_>, Vec<_>) =
        good.into_iter().filter(|(name, _)| *name != column).chain([(column, value)]).unzip();
    format!("INSERT INTO relay.outbox ({}) VALUES ({})", columns.join(", "), values.join(", "))
}

#[tokio::test]
async fn what_is_not_an_event_fails_the_insert_with_the_constraints_name() {
    let database = Database::new().await;
    let cases = [
        ("event", "'onPromptStarted'", "outbox_event_known"),
        ("result", "2", "outbox_result_known"),
        ("result", "-1", "outbox_result_known"),
        ("duration_ms", "-1", "outbox_duration_not_negative"),
        ("prompt_tokens", "-1", "outbox_prompt_tokens_not_negative"),
        ("completion_tokens", "-1", "outbox_completion_tokens_not_negative"),
        ("total_tokens", "-1", "outbox_total_tokens_not_negative"),
        ("created_at", "'infinity'", "outbox_created_at_has_four_digit_year"),
        ("created_at", "'-infinity'", "outbox_created_at_has_four_digit_year"),
        ("created_at", "'1969-12-31 23:59:59+00'", "outbox_created_at_has_four_digit_year"),
        ("created_at", "'10000-01-01 00:00:00+00'", "outbox_created_at_has_four_digit_year"),
        ("webhook_id", "0", "outbox_webhook_id_positive"),
        ("webhook_id", "-1", "outbox_webhook_id_positive"),
        ("finished_at", "'infinity'", "outbox_finished_at_has_four_digit_year"),
        ("finished_at", "'20000-01-01'", "outbox_finished_at_has_four_digit_year"),
        ("event_id", "'00000000-0000-0000-0000-000000000000'", "outbox_event_id_not_zero"),
    ];
    for (column, value, constraint) in cases {
        let sql = insert_of(column, value);
        let error = database.client.execute(&sql, &[]).await.unwrap_err();
        let error = error.as_db_error().expect("from the server");
        assert_eq!(error.constraint(), Some(constraint), "{column} = {value}");
    }
}

#[tokio::test]
async fn operators_in_the_search_path_get_no_row_past_the_rules() {
    let database = Database::new().await;
    let mut sql = String::from("CREATE SCHEMA mine; GRANT USAGE ON SCHEMA mine TO relay_app;");
    for (operator, left, right) in [
        ("<>", "text", "text"),
        ("<", "smallint", "integer"),
        (">", "smallint", "integer"),
        ("<", "bigint", "integer"),
        (">", "bigint", "bigint"),
        ("<", "integer", "integer"),
        ("<", "timestamptz", "timestamptz"),
        (">=", "timestamptz", "timestamptz"),
    ] {
        let name = format!(
            "never_{left}_{right}_{}",
            operator.replace('<', "lt").replace('>', "gt").replace('=', "eq")
        );
        sql += &format!(
            "CREATE FUNCTION mine.{name}({left}, {right}) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN false;
             CREATE OPERATOR mine.{operator} (FUNCTION = mine.{name}, LEFTARG = {left}, RIGHTARG = {right});"
        );
    }
    database.client.batch_execute(&sql).await.unwrap();
    let path = "SET search_path = mine, pg_catalog; SET ROLE relay_app";
    database.client.batch_execute(path).await.unwrap();
    let fooled = database.client.query_one("SELECT -1::bigint < 0", &[]).await.unwrap();
    assert!(!fooled.get::<_, bool>(0), "the session itself is fooled");
    for (column, value) in [
        ("event", "'x'"),
        ("result", "7"),
        ("duration_ms", "-1"),
        ("prompt_tokens", "-1"),
        ("webhook_id", "-1"),
        ("finished_at", "'infinity'"),
    ] {
        let sql = insert_of(column, value);
        let refused = database.client.execute(&sql, &[]).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "23514", "{column} = {value}: {refused:?}");
    }
}

/// Whatever a row holds that came past the trigger: it is delivered, and the rows after it are.
#[tokio::test]
async fn a_row_that_was_changed_by_hand_stops_nobody() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    database.events(1, 5).await;
    for (id, change) in [
        (1, "finished_at = 'infinity'"),
        (2, "finished_at = '-infinity'"),
        (3, "event = 'onPromptStarted'"),
        (4, "result = 9, duration_ms = -1, prompt_tokens = -2147483648, completion_tokens = -2147483648"),
    ] {
        let sql = format!("UPDATE relay.outbox SET {change} WHERE id = {id}");
        database.client.batch_execute(&sql).await.unwrap();
    }
    let _relay = Relay::start(&database, &[]);
    database.all_done().await;
    let bodies: Vec<String> =
        receiver.requests().iter().map(|request| String::from_utf8(request.body.clone()).unwrap()).collect();
    assert_eq!(bodies.len(), 4, "{bodies:?}");
    assert!(bodies.iter().any(|body| body.contains("9999-12-31T23:59:59Z")), "{bodies:?}");
    assert!(bodies.iter().any(|body| body.contains("1970-01-01T00:00:00Z")), "{bodies:?}");
}

/// An insert of the application's, with an id, as the application's role. The transaction is left open.
fn with_id(id: &str, overriding: &str) -> String {
    format!(
        "BEGIN; SET LOCAL ROLE relay_app;
         INSERT INTO relay.outbox (id, project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
         {overriding} VALUES ({id}, 1, 1, 'u', 0, 1, 1, 1)"
    )
}

#[tokio::test]
async fn the_application_may_say_default_for_the_id_and_names_none_of_its_own() {
    let database = Database::new().await;
    // As Sequelize and others write it.
    database.client.batch_execute(&with_id("DEFAULT", "")).await.unwrap();
    database.client.batch_execute("COMMIT").await.unwrap();
    // The value is not used.
    database.client.batch_execute(&with_id("77", "OVERRIDING USER VALUE")).await.unwrap();
    database.client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(database.number("SELECT sum(id)::bigint FROM relay.outbox").await, 1 + 2);
    for id in ["77", "NULL", "3"] {
        let refused = database.client.batch_execute(&with_id(id, "")).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "428C9", "{id}: generated always: {refused:?}");
        database.client.batch_execute("ROLLBACK").await.unwrap();
    }
}

#[tokio::test]
async fn an_id_that_the_application_forces_does_no_harm() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let force = async |id: i64| {
        let result =
            database.client.batch_execute(&with_id(&id.to_string(), "OVERRIDING SYSTEM VALUE")).await;
        database.client.batch_execute(if result.is_ok() { "COMMIT" } else { "ROLLBACK" }).await.unwrap();
        result.map_err(|error| error.as_db_error().unwrap().constraint().unwrap().to_owned())
    };
    // The claim would find none of these, or no program could print it.
    const GREATEST: i64 = (1 << 53) - 1;
    for id in [0, -1, i64::MIN, GREATEST + 1, i64::MAX] {
        assert_eq!(force(id).await, Err("outbox_id_in_range".into()), "{id}");
    }
    database.client.batch_execute("ALTER SEQUENCE relay.outbox_id_seq RESTART 1000").await.unwrap();
    let relay = Relay::start(&database, &[]);
    let mut rows = 0;
    let mut insert = async |id: Option<i64>| {
        match id {
            Some(id) => assert_eq!(force(id).await, Ok(()), "{id}"),
            None => _ = database.events(1, 1).await,
        }
        rows += 1;
        database.all_done().await;
    };
    // Ids that the sequence has passed, and those that the daemon's cursor has; then one that is above all others.
    for id in [None, Some(5), None, Some(GREATEST), None, Some(6), Some(GREATEST - 1), None] {
        insert(id).await;
    }
    assert_eq!(force(5).await, Err("outbox_pkey".into()));
    assert_eq!(receiver.requests().len(), rows);
    assert_eq!(
        database.number("SELECT count(*) FROM relay.webhook_calls WHERE succeeded").await,
        rows as i64
    );
    // The next start, and what is thrown away, go by the same ids.
    drop(relay);
    let sql = "UPDATE relay.outbox SET done_at = done_at - interval '2 days', created_at = created_at - interval '2 days'";
    database.client.batch_execute(sql).await.unwrap();
    let session = database.session(Role::Retention).await;
    let now = SystemTime::now();
    let (mut next, mut deleted, mut windows) = (session.lowest_id().await.unwrap(), 0, 0);
    while let Some(first) = next {
        let in_window;
        (in_window, next) = session.delete_done(first, first + 5000, now, now).await.unwrap();
        (deleted, windows) = (deleted + in_window, windows + 1);
        assert!(windows <= 2, "gaps are jumped over, however wide they are");
    }
    assert_eq!(deleted, rows as i64);
    let _relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    database.all_done().await;
}

#[tokio::test]
async fn a_webhook_that_no_event_can_meet_is_refused_with_the_constraints_name() {
    let database = Database::new().await;
    for (column, value, constraint) in [
        ("event", "'onPromptStarted'", "webhooks_event_known"),
        ("event", "'onpromptfinished'", "webhooks_event_known"),
        ("event", "''", "webhooks_event_known"),
        ("id", "0", "webhooks_id_positive"),
        ("id", "-1", "webhooks_id_positive"),
    ] {
        let sql = format!(
            "INSERT INTO relay.webhooks (project_id, url, {column}) VALUES (1, 'http://a/', {value})"
        );
        let error = database.client.execute(&sql, &[]).await.unwrap_err();
        let error = error.as_db_error().expect("from the server");
        assert_eq!(error.constraint(), Some(constraint), "{column} = {value}");
    }
}
