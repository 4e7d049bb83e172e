//! migrate, and what the roles may do.

use std::process::Stdio;

use promptpal_relay::inside::outbox::MIGRATIONS;

use crate::support::{Database, as_user, connect, outcome, program};

#[tokio::test]
async fn migrate_can_be_repeated() {
    let database = Database::new().await;
    let (code, _, stderr) = outcome(database.command(&["migrate"]));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(database.number("SELECT count(*) FROM relay.migrations").await, MIGRATIONS.len() as i64);
}

#[tokio::test]
async fn two_migrates_at_once_make_one_schema() {
    let database = Database::empty().await;
    let children: Vec<_> =
        (0..4).map(|_| database.command(&["migrate"]).stderr(Stdio::piped()).spawn().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(database.number("SELECT count(*) FROM relay.migrations").await, MIGRATIONS.len() as i64);
}

#[tokio::test]
async fn an_interrupted_migrate_goes_on_where_it_stopped_and_leaves_no_function_to_everybody() {
    let database = Database::empty().await;
    let planted = "CREATE SCHEMA relay;
                   CREATE FUNCTION relay.wake() RETURNS integer LANGUAGE sql AS 'SELECT 1'";
    database.client.batch_execute(planted).await.unwrap();
    let (code, _, stderr) = outcome(database.command(&["migrate"]));
    assert_ne!(code, 0, "{stderr}");
    let failed = MIGRATIONS.iter().find(|migration| migration.sql.contains("relay.wake()")).unwrap();
    assert!(stderr.contains(&format!("applying migration {} (wake_up)", failed.version)), "{stderr}");
    let applied = "SELECT count(*) FROM relay.migrations";
    assert_eq!(database.number(applied).await, i64::from(failed.version) - 1);
    let everybodys =
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'relay'::regnamespace AND proname <> 'wake'
                      AND has_function_privilege('public', oid, 'EXECUTE')";
    assert_eq!(database.number(everybodys).await, 0);
    let (code, _, stderr) = outcome(database.command(&["run"]));
    assert_eq!(code, 78, "{stderr}");
    assert!(stderr.contains(&format!("migration {} is missing", failed.version)), "{stderr}");

    database.client.batch_execute("DROP FUNCTION relay.wake()").await.unwrap();
    let (code, _, stderr) = outcome(database.command(&["migrate"]));
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = outcome(database.command(&["check"]));
    assert_eq!(code, 0, "{stderr}");
}

#[tokio::test]
async fn the_printed_sql_makes_the_same_schema_and_can_be_repeated() {
    let printed = Database::empty().await;
    let (code, sql, _) = outcome(printed.command(&["migrate", "--print"]));
    assert_eq!(code, 0);
    printed.client.batch_execute(&sql).await.unwrap();
    printed.client.batch_execute(&sql).await.unwrap();
    let (code, _, stderr) = outcome(printed.command(&["check"]));
    assert_eq!(code, 0, "{stderr}");

    let migrated = Database::new().await;
    // Every table, column, constraint, index, function and comment.
    let everything = "
        SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
            SELECT format('%s.%s %s %s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull,
                          col_description(attrelid, attnum)) AS line
              FROM pg_attribute WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'relay'::regnamespace)
               AND attnum > 0
            UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'relay'::regnamespace
            UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'relay'
            UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'relay'::regnamespace
            UNION ALL SELECT format('%s %s %s', oid::regclass, relacl, obj_description(oid)) FROM pg_class WHERE relnamespace = 'relay'::regnamespace
            UNION ALL SELECT format('%s %s', version, checksum) FROM relay.migrations
        ) AS lines";
    let of = async |database: &Database| -> String {
        database.client.query_one(everything, &[]).await.unwrap().get(0)
    };
    assert_eq!(of(&printed).await, of(&migrated).await);
}

#[tokio::test]
async fn run_refuses_a_schema_that_is_not_its_own() {
    let database = Database::empty().await;
    let (code, _, stderr) = outcome(database.command(&["run"]));
    assert_eq!((code, stderr.lines().count()), (78, 1), "{stderr}");
    assert!(stderr.contains("run promptpal-relay migrate"), "{stderr}");

    let database = Database::new().await;
    database.client.batch_execute("INSERT INTO relay.migrations VALUES (999, 'future', '')").await.unwrap();
    let (code, _, stderr) = outcome(database.command(&["run"]));
    assert_eq!((code, stderr.lines().count()), (78, 1), "{stderr}");
    assert!(stderr.contains("newer"), "{stderr}");
    let (code, _, _) = outcome(database.command(&["migrate"]));
    assert_eq!(code, 78);

    let sql = "DELETE FROM relay.migrations WHERE version = 999; UPDATE relay.migrations SET checksum = 'x' WHERE version = 1";
    database.client.batch_execute(sql).await.unwrap();
    for command in ["run", "migrate", "check"] {
        let (code, _, stderr) = outcome(database.command(&[command]));
        assert_eq!(code, 78, "{command}: {stderr}");
        assert!(stderr.contains("checksum"), "{command}: {stderr}");
    }
}

#[tokio::test]
async fn the_printed_sql_refuses_a_schema_that_is_not_its_own() {
    let database = Database::new().await;
    let (_, script, _) = outcome(database.command(&["migrate", "--print"]));
    for (change, says) in [
        ("INSERT INTO relay.migrations VALUES (999, 'future', '')", "newer"),
        (
            "DELETE FROM relay.migrations WHERE version = 999; UPDATE relay.migrations SET checksum = 'x'",
            "checksum",
        ),
    ] {
        database.client.batch_execute(change).await.unwrap();
        let refused = database.client.batch_execute(&script).await.unwrap_err();
        assert!(refused.as_db_error().unwrap().message().contains(says), "{refused:?}");
        database.client.batch_execute("ROLLBACK").await.unwrap();
    }
}

#[tokio::test]
async fn migrate_tells_what_it_waits_for() {
    let database = Database::empty().await;
    let other = connect(&database.url).await;
    database.client.batch_execute("CREATE SCHEMA relay").await.unwrap();
    other.batch_execute("BEGIN; CREATE TABLE relay.outbox ()").await.unwrap();
    let child = database.command(&["migrate"]).stderr(Stdio::piped()).spawn().unwrap();
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                 AND application_name = 'promptpal-relay command' AND now() > backend_start + interval '2 s'";
    database.eventually(waits).await;
    other.batch_execute("ROLLBACK").await.unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("applying migration 1 (outbox): not done after "), "{told}");
    assert!(output.status.success(), "{told}");
}

#[tokio::test]
async fn every_table_view_column_function_and_role_has_a_comment() {
    let database = Database::new().await;
    let sql = "
        SELECT coalesce(string_agg(thing, ', '), '') FROM (
            SELECT c.oid::regclass::text AS thing FROM pg_class c
             WHERE c.relnamespace = 'relay'::regnamespace AND c.relkind IN ('r', 'p', 'v')
               AND obj_description(c.oid) IS NULL
            UNION ALL
            SELECT c.oid::regclass || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
             WHERE c.relnamespace = 'relay'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND a.attnum > 0
               AND NOT c.relispartition AND col_description(c.oid, a.attnum) IS NULL
            UNION ALL
            SELECT p.oid::regprocedure::text FROM pg_proc p
             WHERE p.pronamespace = 'relay'::regnamespace AND obj_description(p.oid) IS NULL
            UNION ALL
            SELECT r.rolname::text FROM pg_roles r
             WHERE r.rolname IN ('relay_owner', 'relay_app', 'relay_daemon', 'relay_reader') AND shobj_description(r.oid, 'pg_authid') IS NULL
        ) AS bare";
    let bare: String = database.client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(bare, "");
}

#[tokio::test]
async fn the_daemons_role_may_do_what_run_needs_and_the_others_what_is_theirs() {
    let database = Database::new().await;
    let may = async |role: &str, sql: &str| {
        let result = database.client.batch_execute(&format!("BEGIN; SET LOCAL ROLE {role}; {sql}")).await;
        database.client.batch_execute("ROLLBACK").await.unwrap();
        match result {
            Ok(()) => true,
            Err(error) => {
                let code = error.code().expect("from the server").code().to_owned();
                assert_eq!(code, "42501", "{role}: {sql}: {error:?}");
                false
            }
        }
    };
    let insert = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
                  VALUES (1, 1, 'u', 0, 1, 1, 1) RETURNING id";
    assert!(may("relay_app", insert).await);
    assert!(may("relay_app", "INSERT INTO relay.webhooks (project_id, url) VALUES (1, 'http://a/')").await);
    assert!(!may("relay_app", "UPDATE relay.outbox SET done_at = now()").await);
    assert!(!may("relay_app", "INSERT INTO relay.outbox (project_id, claimed_by) VALUES (1, 1)").await);
    assert!(!may("relay_daemon", insert).await);
    assert!(may("relay_daemon", "UPDATE relay.outbox SET done_at = now()").await);
    assert!(!may("relay_daemon", "UPDATE relay.outbox SET user_id = 'x'").await);
    assert!(!may("relay_daemon", "UPDATE relay.webhooks SET url = 'x'").await);
    assert!(may("relay_daemon", "UPDATE relay.retention SET next_at = now()").await);
    assert!(!may("relay_daemon", "UPDATE relay.retention SET dropped = 'x'").await);
    assert!(!may("relay_daemon", "DELETE FROM relay.retention").await);
    assert!(may("relay_reader", "SELECT url FROM relay.webhooks; SELECT * FROM relay.webhook_health").await);
    assert!(
        may("relay_reader", "SELECT * FROM relay.recent_failures; SELECT * FROM relay.call_by_id(1)").await
    );
    assert!(may("relay_reader", "SELECT * FROM relay.retention").await);
    assert!(!may("relay_reader", "UPDATE relay.retention SET next_at = now()").await);
    assert!(!may("relay_app", "SELECT * FROM relay.call_by_id(1)").await);
    assert!(!may("relay_reader", "SELECT signing_secret FROM relay.webhooks").await);
    assert!(!may("relay_reader", insert).await);
}

#[tokio::test]
async fn check_as_a_member_of_relay_daemon_finds_all_it_needs_and_names_what_is_missing() {
    let database = Database::new().await;
    let user = format!(
        "{}_user",
        database.client.query_one("SELECT current_database()::text", &[]).await.unwrap().get::<_, String>(0)
    );
    database.client.batch_execute(&format!("CREATE ROLE {user} LOGIN PASSWORD 'x'")).await.unwrap();
    let url = as_user(&database.url, &user, "x");
    let (code, stdout, stderr) = outcome(program(&["check"], &url));
    assert_eq!(code, 78, "{stdout}{stderr}");
    database.client.batch_execute(&format!("GRANT relay_daemon TO {user}")).await.unwrap();
    let (code, stdout, stderr) = outcome(program(&["check"], &url));
    assert_eq!(code, 0, "{stdout}{stderr}");
    database.client.batch_execute("REVOKE UPDATE (parked) ON relay.outbox FROM relay_daemon").await.unwrap();
    let (code, stdout, _) = outcome(program(&["check"], &url));
    assert_eq!(code, 78);
    assert!(stdout.contains("FAILED   privileges") && stdout.contains("parked"), "{stdout}");
    database
        .client
        .batch_execute(&format!("REVOKE relay_daemon FROM {user}; DROP ROLE {user}"))
        .await
        .unwrap();
}
