//! The DBA's ten questions (docs/dba.md): the roles that they are for can ask each as it stands there, and none reads a whole table.

use std::collections::BTreeSet;

use promptpal_relay::inside::demo::Cluster;

use crate::support::{Database, as_user, connect, repository_file};

fn questions(page: &str) -> Vec<&str> {
    let (_, questions) = page.split_once("\n## Ten questions").unwrap();
    let questions = questions.split_once("\n## ").unwrap().0;
    questions
        .split("```sql\n")
        .skip(1)
        .map(|part| part.split_once("```").unwrap().0)
        // The first line says as whom.
        .map(|part| part.split_once('\n').unwrap().1)
        .collect()
}

#[tokio::test]
async fn the_ten_questions_are_answered_without_reading_whole_tables() {
    let database = Database::new().await;
    let run = async |sql: &str| database.client.batch_execute(sql).await.unwrap();
    run("SELECT relay.make_call_partition((now() AT TIME ZONE 'UTC')::date - n) FROM generate_series(1, 7) AS n").await;
    run("INSERT INTO relay.webhooks (project_id, url) SELECT n, 'http://a.example' FROM generate_series(1, 100) AS n").await;
    run("INSERT INTO relay.webhook_calls (outbox_id, webhook_id, project_id, trace_id, url, request_headers, request_body, status_code,
             response_headers, response_body, response_bytes, response_truncated, start_time, end_time, is_timeout, error_kind, succeeded,
             repeated, user_agent, ip, event_id)
         SELECT n, 1 + n % 100, 1, md5(n::text), 'http://a.example', '{}',
                '{\"event\":\"onPromptFinished\",\"projectId\":1,\"promptId\":1,\"userId\":\"u\",\"result\":0,\"timestamp\":\"2026-01-01T00:00:00Z\",\"duration\":1,\"tokens\":{\"prompt\":1,\"completion\":1,\"total\":2},\"cached\":false,\"ip\":\"\",\"userAgent\":\"\"}',
                200, '{}', repeat('x', 200), 200, false, t, t + interval '1 ms', false, CASE WHEN n % 50 = 0 THEN 'connect' END, n % 50 <> 0,
                false, '', '', gen_random_uuid()
           FROM (SELECT n, now() - interval '7 days' + n * interval '3 s' AS t FROM generate_series(1, 201600) AS n) AS times").await;
    run("INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens, done_at)
         SELECT 1, 1, 'u', 0, 1, 1, 1, CASE WHEN n <= 50000 THEN now() END FROM generate_series(1, 50500) AS n").await;
    run("VACUUM ANALYZE relay.webhook_calls").await;
    run("VACUUM ANALYZE relay.outbox").await;

    // A query may read a whole table where that is small: a day to come, a day that has just begun, the oldest day.
    let large = "SELECT relname FROM pg_class WHERE relnamespace = 'relay'::regnamespace AND relkind = 'r' AND reltuples > 5000";
    let large: BTreeSet<String> =
        database.client.query(large, &[]).await.unwrap().iter().map(|row| row.get::<_, String>(0)).collect();
    assert!(large.contains("outbox") && large.len() > 6, "{large:?}");
    let page = repository_file("docs/dba.md");
    let questions = questions(&page);
    assert_eq!(questions.len(), 10);
    let role = format!("asker_{}", std::process::id());
    run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x' IN ROLE relay_reader, relay_app")).await;
    let asker = connect(&as_user(&database.url, &role, "x")).await;
    for question in questions {
        asker.batch_execute("BEGIN").await.unwrap();
        let plan = asker.query(&format!("EXPLAIN (ANALYZE) {question}"), &[]).await;
        let plan = plan.unwrap_or_else(|error| panic!("{question}: {error:?}"));
        let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        let plan = plan.join("\n");
        let reads_all = |line: &&str| {
            let table =
                line.split("Seq Scan on ").nth(1).unwrap_or_default().split(' ').next().unwrap_or_default();
            !line.contains("never executed") && large.contains(table)
        };
        assert!(!plan.lines().any(|line| reads_all(&line)), "{question}\n{plan}");
        asker.batch_execute("ROLLBACK").await.unwrap();
    }
    drop(asker);
    database.eventually(&format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = '{role}'")).await;
    run(&format!("DROP ROLE {role}")).await;
}

#[tokio::test]
async fn whoever_keeps_vacuum_from_cleaning_up_is_found_also_by_who_may_not_see_all() {
    let mut primary = Cluster::start(&[]).unwrap();
    let standby = crate::standby::standby_of(&mut primary);
    let database = Database::on(&primary.url("postgres")).await;
    let on_standby = connect(&standby.url("postgres")).await;
    for setting in ["hot_standby_feedback = on", "wal_receiver_status_interval = 1"] {
        on_standby.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    }
    on_standby.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    // This session has written, and stays in its transaction.
    let idle = connect(&database.url).await;
    idle.batch_execute("BEGIN; CREATE TABLE of_a_session ()").await.unwrap();
    database.client.batch_execute("CREATE ROLE reader LOGIN IN ROLE relay_reader").await.unwrap();
    let feeds = "SELECT count(*) > 0 FROM pg_stat_replication WHERE backend_xmin IS NOT NULL";
    database.eventually(feeds).await;
    let page = repository_file("docs/dba.md");
    let question = questions(&page)[8];
    let session = async |condition: &str| {
        let sql = format!("SELECT 'session ' || pid FROM pg_stat_activity WHERE {condition}");
        database.client.query_one(&sql, &[]).await.unwrap().get::<_, String>(0)
    };
    let wanted =
        [session("backend_type = 'walsender'").await, session("state = 'idle in transaction'").await];
    for asker in
        [connect(&database.url).await, connect(&database.url.replacen("postgres@", "reader@", 1)).await]
    {
        let answer = asker.query(question, &[]).await.unwrap();
        let who: Vec<&str> = answer.iter().map(|row| row.get(0)).collect();
        assert!(wanted.iter().all(|session| who.contains(&session.as_str())), "{who:?} {wanted:?}");
        assert!(answer.iter().all(|row| row.get::<_, Option<&str>>(1).is_some_and(|what| !what.is_empty())));
    }
}
