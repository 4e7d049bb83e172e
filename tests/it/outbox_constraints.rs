//! The outbox refuses an insert that is no event, and the error names the constraint.

use crate::support::Database;

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
    ];
    for (column, value, constraint) in cases {
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
        let sql = format!("INSERT INTO relay.outbox ({}) VALUES ({})", columns.join(", "), values.join(", "));
        let error = database.client.execute(&sql, &[]).await.unwrap_err();
        let error = error.as_db_error().expect("from the server");
        assert_eq!(error.constraint(), Some(constraint), "{column} = {value}");
    }
}

#[tokio::test]
async fn ids_cannot_be_written_by_the_application() {
    let database = Database::new().await;
    let sql = "INSERT INTO relay.outbox (id, project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
               VALUES (1, 1, 1, 'u', 0, 1, 1, 1)";
    assert!(database.client.execute(sql, &[]).await.is_err());
}
