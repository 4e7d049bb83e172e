//! No input stops the relay or makes it grow without bound: neither long answers, long texts and many webhooks, nor
//! records that Postgres refuses.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use promptpal_relay::inside::outbox::Role;

use crate::support::{Database, Gate, Receiver, Relay, Reply};

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;
/// What the daemon may take at most, whatever the input.
pub const PEAK: usize = 160 * MIB;

fn url_on(url: &str, port: u16) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (authority, path) = rest.split_once('/').expect("a URL with a database name");
    let user = authority.rsplit_once('@').map(|(user, _)| format!("{user}@")).unwrap_or_default();
    format!("{scheme}://{user}127.0.0.1:{port}/{path}")
}

/// Adds so many webhooks with these paths.
async fn webhooks(database: &Database, project_id: i64, receiver: &Receiver, count: i64) {
    let sql = "INSERT INTO relay.webhooks (project_id, url) SELECT $1, $2 || n FROM generate_series(1, $3::bigint) AS n";
    database.client.execute(sql, &[&project_id, &receiver.url("/"), &count]).await.unwrap();
}

/// Adds events whose user_agent is this SQL expression.
async fn events(database: &Database, project_id: i64, count: i64, user_agent: &str) {
    let sql = format!(
        "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens,
                                   user_agent)
         SELECT $1::bigint, n, 'user', 0, 1, 1, 1, {user_agent} FROM generate_series(1, $2::bigint) AS n"
    );
    database.client.execute(&sql, &[&project_id, &count]).await.unwrap();
}

#[tokio::test]
async fn a_quick_webhook_with_long_answers_beside_a_slow_one_stops_nobody() {
    let database = Database::new().await;
    let quick = Receiver::forgetful(|_| Reply::full(200, &[], &vec![b'x'; 64 * KIB]));
    let slow = Receiver::forgetful(|_| {
        thread::sleep(Duration::from_millis(200));
        Reply::status(200)
    });
    database.webhook(1, &quick.url("/")).await;
    database.webhook(1, &slow.url("/")).await;
    database.webhook(2, &slow.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 66).await;
    database.events(2, 1).await;
    database.all_done().await;
    let sql = "SELECT count(*) FROM relay.webhook_calls WHERE succeeded AND NOT response_truncated AND NOT repeated";
    assert_eq!(database.number(sql).await, 2 * 66 + 1);
    assert!(relay.memory_peak() < PEAK);
}

#[tokio::test]
async fn a_row_with_hundreds_of_long_answers_is_recorded_whole() {
    let database = Database::new().await;
    let receiver = Receiver::forgetful(|_| Reply::full(200, &[], &vec![b'x'; 64 * KIB]));
    webhooks(&database, 1, &receiver, 300).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    database.all_done().await;
    // Most of them have all of it: a quarter of the memory is for 256 such answers.
    let sql = "SELECT count(*) FROM relay.webhook_calls WHERE succeeded AND length(response_body) > 50000";
    assert_eq!(database.number(sql).await, 300);
    assert!(relay.memory_peak() < PEAK);
}

#[tokio::test]
async fn answers_that_are_more_than_the_memory_are_cut_and_marked() {
    let database = Database::new().await;
    let answer = Arc::new(vec![0xff; 16 * MIB]);
    let receiver = Receiver::forgetful(move |_| Reply::full(200, &[], &answer));
    webhooks(&database, 1, &receiver, 24).await;
    let small = Receiver::good();
    database.webhook(2, &small.url("/")).await;
    let relay = Relay::start(&database, &["--max-response-body", "16MiB"]);
    database.events(1, 1).await;
    database.events(2, 50).await;
    database.all_done().await;
    let sql =
        "SELECT count(*) FROM relay.webhook_calls WHERE project_id = 1 AND succeeded AND response_truncated
               AND length(response_body) > 10000";
    assert_eq!(database.number(sql).await, 24);
    let sql = "SELECT count(*) FROM relay.webhook_calls WHERE project_id = 2 AND succeeded AND NOT response_truncated";
    assert_eq!(database.number(sql).await, 50);
    let peak = relay.memory_peak();
    println!("memory: {} MiB at most", peak / MIB);
    assert!(peak < PEAK, "{} MiB", peak / MIB);
}

#[tokio::test]
async fn one_long_answer_is_kept_whole() {
    let database = Database::new().await;
    let receiver = Receiver::forgetful(|_| Reply::full(200, &[], &vec![b'x'; 15 * MIB]));
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &["--max-response-body", "16MiB"]);
    database.events(1, 1).await;
    database.all_done().await;
    let sql = "SELECT length(response_body)::bigint FROM relay.webhook_calls WHERE NOT response_truncated";
    assert_eq!(database.number(sql).await, 15 * MIB as i64);
    assert!(relay.memory_peak() < PEAK, "{} MiB", relay.memory_peak() / MIB);
}

#[tokio::test]
async fn a_text_of_hundreds_of_megabytes_is_delivered_and_logged_cut() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    // The place to cut is within a character.
    events(&database, 1, 1, "'x' || repeat('é', 100000000)").await;
    database.all_done().await;
    let requests = receiver.wait_for(2);
    let sent = requests[0].json()["userAgent"].as_str().unwrap().to_owned();
    assert_eq!((sent.len(), sent.chars().last()), (8191, Some('é')));
    let sql = "SELECT count(*) FROM relay.webhook_calls
                WHERE succeeded AND octet_length(user_agent) = 8191 AND error_message LIKE '%8 KiB%'";
    assert_eq!(database.number(sql).await, 2);
    assert!(relay.memory_peak() < PEAK, "{} MiB", relay.memory_peak() / MIB);
}

#[tokio::test]
async fn every_text_is_cut_and_what_is_not_too_long_is_left_alone() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    for length in [8192, 8193] {
        let sql = format!(
            "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens,
                 user_agent, ip, trace_id, provider_default_model)
             VALUES (1, {length}, repeat('u', {length}), 0, 1, 1, 1, repeat('a', {length}), repeat('i', {length}),
                     repeat('t', {length}), repeat('m', {length}))"
        );
        database.client.batch_execute(&sql).await.unwrap();
    }
    database.all_done().await;
    for request in receiver.wait_for(2) {
        let json = request.json();
        for key in ["userId", "userAgent", "ip", "providerDefaultModel"] {
            assert_eq!(json[key].as_str().unwrap().len(), 8192, "{key}");
        }
    }
    let sql = "SELECT count(*) FROM relay.webhook_calls
                WHERE length(user_agent) = 8192 AND length(ip) = 8192 AND length(trace_id) = 8192
                  AND (error_message IS NULL) = (request_body::jsonb ->> 'promptId' = '8192')";
    assert_eq!(database.number(sql).await, 2);
}

#[tokio::test]
async fn long_payloads_for_many_webhooks_hold_nobody_up() {
    let database = Database::new().await;
    let receiver = Receiver::forgetful(|_| Reply::status(200));
    webhooks(&database, 1, &receiver, 560).await;
    database.webhook(2, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    events(&database, 1, 1, "repeat('\"', 1000000)").await;
    events(&database, 2, 50, "''").await;
    // Rows whose texts are more than one claim takes.
    events(&database, 2, 300, "repeat(chr(1), 500000)").await;
    database.all_done().await;
    let sql = "SELECT count(*) FROM relay.webhook_calls WHERE succeeded AND length(request_body) < 60000";
    assert_eq!(database.number(sql).await, 560 + 350);
    assert!(relay.memory_peak() < PEAK, "{} MiB", relay.memory_peak() / MIB);
}

#[tokio::test]
async fn rows_of_a_project_with_ten_thousand_webhooks_delay_nobody_else() {
    let database = Database::new().await;
    let receiver = Receiver::forgetful(|_| Reply::status(200));
    let good = Receiver::good();
    webhooks(&database, 1, &receiver, 10_000).await;
    database.webhook(2, &good.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 3).await;
    database.events(2, 20).await;
    good.wait_for(20);
    database
        .eventually("SELECT count(*) = 30020 FROM relay.webhook_calls WHERE succeeded AND NOT repeated")
        .await;
    assert!(relay.memory_peak() < PEAK, "{} MiB", relay.memory_peak() / MIB);
}

#[tokio::test]
async fn a_url_and_a_secret_that_are_far_too_long_are_refused_calls() {
    let database = Database::new().await;
    // No constraint keeps the secret out of a view.
    let sql = "ALTER TABLE relay.webhooks DROP CONSTRAINT webhooks_signing_secret_can_sign;
               INSERT INTO relay.webhooks (project_id, url, signing_secret)
               VALUES (1, 'http://127.0.0.1/' || repeat('x', 50000000), NULL),
                      (1, 'http://127.0.0.1:2/', repeat('AAAA', 10000000))";
    database.client.batch_execute(sql).await.unwrap();
    let relay = Relay::start(&database, &[]);
    database.events(1, 20).await;
    database.all_done().await;
    let sql = "SELECT count(*) FROM relay.webhook_calls
                WHERE (error_kind = 'bad_url' AND length(url) < 10000) OR (error_kind = 'internal' AND error_message LIKE '%longer%')";
    assert_eq!(database.number(sql).await, 40);
    assert!(relay.memory_peak() < PEAK, "{} MiB", relay.memory_peak() / MIB);
}

#[tokio::test]
async fn a_record_that_is_too_large_for_postgres_is_written_shorter() {
    let database = Database::new().await;
    // As Postgres itself says of a value that is too large.
    let sql = "CREATE FUNCTION public.too_large() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN
                   IF length(NEW.response_body) > 5000 THEN
                       RAISE program_limit_exceeded USING MESSAGE = 'string too long';
                   END IF;
                   RETURN NEW;
               END $$;
               CREATE TRIGGER too_large BEFORE INSERT ON relay.webhook_calls FOR EACH ROW EXECUTE FUNCTION public.too_large()";
    database.client.batch_execute(sql).await.unwrap();
    let receiver = Receiver::forgetful(|request| match request.path() {
        "/long" => Reply::full(200, &[], &vec![b'x'; 10_000]),
        _ => Reply::status(200),
    });
    database.webhook(1, &receiver.url("/long")).await;
    database.webhook(2, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    database.events(2, 20).await;
    database.events(1, 2).await;
    database.events(2, 20).await;
    database.all_done().await;
    let sql =
        "SELECT count(*) FROM relay.webhook_calls WHERE project_id = 1 AND succeeded AND response_truncated
               AND length(response_body) = 1024 AND error_message LIKE '%SQLSTATE 54000%'
               AND error_message NOT LIKE '%string too long%'";
    assert_eq!(database.number(sql).await, 2);
    let sql = "SELECT count(*) FROM relay.webhook_calls WHERE project_id = 2 AND succeeded AND NOT response_truncated";
    assert_eq!(database.number(sql).await, 40);
}

#[tokio::test]
async fn a_row_whose_record_is_refused_in_any_form_holds_up_no_other() {
    let database = Database::new().await;
    let sql = "ALTER TABLE relay.webhook_calls ADD CONSTRAINT of_a_dba CHECK (project_id <> 1)";
    database.client.batch_execute(sql).await.unwrap();
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    database.webhook(2, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    receiver.wait_for(1);
    for _ in 0..3 {
        database.events(2, 10).await;
        database
            .eventually(
                "SELECT NOT EXISTS (SELECT FROM relay.outbox WHERE project_id = 2 AND done_at IS NULL)",
            )
            .await;
    }
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls").await, 30);
    database.client.batch_execute("ALTER TABLE relay.webhook_calls DROP CONSTRAINT of_a_dba").await.unwrap();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 31, "once each\n{}", relay.log());
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls WHERE project_id = 1").await, 1);
}

/// Forwards to a server over TCP, and ends a connection over which the client has sent more than `most` bytes. Returns
/// the port, and the count of connections that it ended.
fn narrow_way(server: u16, most: usize) -> (u16, Arc<AtomicUsize>) {
    fn carry(mut from: TcpStream, mut to: TcpStream, most: usize, ended: &AtomicUsize) {
        let (mut buffer, mut sum) = (vec![0; 16 * KIB], 0);
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            sum += length;
            if sum > most {
                ended.fetch_add(1, Ordering::SeqCst);
                break;
            }
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        // One of them may be closed already.
        from.shutdown(std::net::Shutdown::Both).ok();
        to.shutdown(std::net::Shutdown::Both).ok();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
            let (back, there) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let (count, unused) = (count.clone(), AtomicUsize::new(0));
            thread::spawn(move || carry(client, server, most, &count));
            thread::spawn(move || carry(there, back, usize::MAX, &unused));
        }
    });
    (port, ended)
}

#[tokio::test]
async fn a_record_for_which_the_session_is_lost_again_and_again_is_written_shorter() {
    let database = Database::new().await;
    let port: i64 = database.number("SELECT current_setting('port')::bigint").await;
    let (port, ended) = narrow_way(u16::try_from(port).unwrap(), 800 * KIB);
    let receiver = Receiver::start(|_| Reply::full(200, &[], &vec![b'x'; MIB]));
    database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::spawn(&url_on(&database.url, port), &["--max-response-body", "1MiB"]).ready();
    database.events(1, 1).await;
    database.all_done().await;
    assert!(ended.load(Ordering::SeqCst) >= 3, "it is tried as it is at first");
    let sql = "SELECT count(*) FROM relay.webhook_calls WHERE succeeded AND response_truncated AND length(response_body) = 1024";
    assert_eq!(database.number(sql).await, 1);
    assert_eq!(receiver.requests().len(), 1, "the call was made once");
}

#[tokio::test]
async fn long_answers_beside_a_call_that_hangs_keep_no_other_project_waiting() {
    let database = Database::new().await;
    let gate = Gate::default();
    let door = gate.clone();
    let quick = Receiver::forgetful(|_| Reply::full(200, &[], &vec![b'x'; 64 * KIB]));
    let hanging = Receiver::start(move |_| {
        door.pass();
        Reply::status(200)
    });
    let good = Receiver::good();
    // Four hostile projects: what they hold is more than the memory.
    for project in 1..=4 {
        database.webhook(project, &quick.url("/")).await;
        database.webhook(project, &hanging.url("/")).await;
    }
    database.webhook(9, &good.url("/")).await;
    let relay = Relay::start(&database, &["--memory", "16MiB"]);
    for project in 1..=4 {
        database.events(project, 200).await;
    }
    hanging.wait_for(4);
    for done in 1..=5 {
        database.events(9, 10).await;
        good.wait_for(10 * done);
    }
    gate.open();
    database.all_done().await;
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls WHERE succeeded").await, 1650);
    assert!(relay.memory_peak() < PEAK, "{} MiB", relay.memory_peak() / MIB);
}

/// Sets the limit of open files of a process that runs.
fn limit_files(relay: &Relay, files: &str) {
    let set = std::process::Command::new("prlimit")
        .args(["--pid", &relay.pid().to_string(), &format!("--nofile={files}:")])
        .status();
    assert!(set.unwrap().success());
}

#[tokio::test]
async fn calls_that_wait_while_nothing_moves_are_told() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::start(&database, &[]);
    // No call gets a file any more.
    limit_files(&relay, "3");
    database.events(1, 3).await;
    // No scrape gets a file either, so the journal has to say it.
    relay.until_told("that nothing moves", |line| line["level"] == "ERROR" && line["rows"] == 3);
    limit_files(&relay, "1024");
    relay.until("promptpal_relay_healthy", |healthy| healthy == 1.0);
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 3);
}

#[tokio::test]
async fn a_project_with_hundreds_of_hanging_webhooks_keeps_no_other_project_waiting() {
    let database = Database::new().await;
    let gate = Gate::default();
    let door = gate.clone();
    let hanging = Receiver::start(move |_| {
        door.pass();
        Reply::status(200)
    });
    let good = Receiver::good();
    // What each row needs is a part of the memory, and together they need much more than there is.
    webhooks(&database, 1, &hanging, 200).await;
    database.webhook(2, &good.url("/")).await;
    let relay = Relay::start(&database, &[]);
    // The relay knows this webhook to be quick.
    database.events(2, 1).await;
    good.wait_for(1);
    database.events(1, 200).await;
    hanging.wait_for(10);
    // Rows whose webhooks have no free slot are parked.
    database.eventually("SELECT count(*) > 100 FROM relay.outbox WHERE parked AND claimed_by IS NULL").await;
    for done in 1..=5 {
        database.events(2, 10).await;
        good.wait_for(10 * done);
    }
    gate.open();
    database
        .eventually("SELECT count(*) = 40051 FROM relay.webhook_calls WHERE succeeded AND NOT repeated")
        .await;
    assert!(relay.memory_peak() < PEAK, "{} MiB", relay.memory_peak() / MIB);
}

#[tokio::test]
async fn texts_of_more_than_two_gigabytes_in_one_row_are_cut() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    let _relay = Relay::start(&database, &[]);
    let sql = "CREATE TEMP TABLE text AS SELECT repeat('x', 800000000) AS t;
               INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens,
                                         completion_tokens, user_agent, ip)
               SELECT 1, 1, t, 0, 1, 1, 1, t, t FROM text";
    database.client.batch_execute(sql).await.unwrap();
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(receiver.wait_for(2).iter().filter(|request| request.body.len() > 3 * 8192).count(), 1);
}

#[tokio::test]
async fn rows_that_a_claim_leaves_for_their_texts_are_told_of_whatever_is_null() {
    let database = Database::new().await;
    let session = database.session(Role::Claim).await;
    // Only an instance that is listed claims.
    let listed = "INSERT INTO relay.instances (epoch, locks, host, pid, version) VALUES (77, '{77}', 'test', 1, 'test')";
    database.client.batch_execute(listed).await.unwrap();
    for (model, parked) in
        [("NULL", false), ("''", false), ("repeat('m', 9000)", false), ("NULL", true), ("''", true)]
    {
        let sql = format!(
            "DELETE FROM relay.outbox;
             INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens,
                                       user_agent, provider_default_model, parked)
             SELECT 1, 1, 'u', 0, 1, 1, 1, repeat('a', 300), {model}, {parked} FROM generate_series(1, 40)"
        );
        database.client.batch_execute(&sql).await.unwrap();
        let (mut seen, mut claims) = (0, 0);
        loop {
            let claim = match parked {
                false => session.claim(0, &[], 40, 77, &[], 3000).await,
                true => session.claim_parked(&[1], &[40], &[], 77, 3000).await,
            };
            let claim = claim.unwrap();
            assert!(!claim.rows.is_empty() || seen == 40, "model {model}: {seen}");
            (seen, claims) = (seen + claim.rows.len(), claims + 1);
            if seen == 40 {
                break;
            }
            assert!(
                claim.more,
                "model {model}, parked {parked}: {seen} of 40 rows, and nobody says that there are more"
            );
        }
        let few = if model.contains("9000") { 40 } else { 4 };
        assert!(claims <= few, "model {model}: {claims} claims");
    }
}
