//! Endpoints and addresses that mean harm, as far as Postgres and the whole daemon have a part in it. Cases are a low limit
//! of file descriptors, many endpoints that drip, secrets, and the SQL function that checks URLs.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use promptpal_relay::inside::delivery::{Caller, Settings, Sources};
use promptpal_relay::inside::demo::Cluster;
use promptpal_relay::inside::model::Reached;
use promptpal_relay::inside::model::{Secret, Webhook};

use crate::support::{Database, Receiver, Relay, Reply, outcome, program};

fn strict() -> Caller {
    Caller::new(Settings {
        timeout: Duration::from_secs(1),
        response_body_bytes_max: 1024,
        allow_net: Vec::new(),
        https_only: false,
        ca_file: None,
        sources: Sources::default(),
        proxy: None,
        user_agent_version: "1".into(),
        refused: Vec::new(),
        reached: Reached::default(),
        metrics_port: None,
        second_chance: true,
    })
    .unwrap()
}

#[tokio::test]
async fn the_sql_function_says_of_a_url_what_the_daemon_says() {
    let database = Database::new().await;
    let caller = strict();
    let long = format!("http://a.example/{}", "x".repeat(9000));
    let nearly_long = format!("http://a.example/{}", "x".repeat(8000));
    let (grows, query_grows) =
        (format!("http://a.example/{}", "é".repeat(1500)), format!("http://a.example?{}", "é'".repeat(1000)));
    // "http://a.example:81/" are 20 bytes, a space becomes three.
    let fits = format!("http://a.example:81/{}xx#{}", " ".repeat(2723) + "x", "é".repeat(500));
    let just_grows = format!("http://a.example:81/{}xxxx", " ".repeat(2723));
    let urls = [
        // Fine.
        "http://a.example",
        "https://a.example/",
        "HTTPS://A.Example/path?query#fragment",
        "https://a.example:8443/",
        "https://a.example:/",
        "https://a.example:0443/",
        "https://user:password@a.example/",
        "https://user@a.example",
        "https://@a.example/",
        "https://us@er:pass@a.example/",
        "  https://a.example/\n",
        "ht\ntps://a.exa\tmple/",
        "https:a.example",
        "https:/a.example",
        "https:\\\\a.example\\path",
        "https:////a.example/",
        "https://a.example?a=b",
        "https://a.example#a",
        "https://a_b.example/",
        "https://-a-.example/",
        "https://a.example./",
        "https://8.8.8.8/",
        "https://8.8.8.8.:80/",
        "https://134744072/",
        "https://0x08080808",
        "https://8.8.2056",
        "https://010.8.8.8/",
        "https://8.8.8.8.example/",
        "https://8.example/",
        "https://a.8a/",
        "https://%61.example/",
        "https://a.example/%",
        "https://a.example/a b",
        "https://[2606:4700::1111]/",
        "https://[2606:4700::1111]:80/x",
        "https://[::ffff:8.8.8.8]/",
        "https://[64:ff9b::808:808]/",
        "https://[2002:808:808::1]/",
        "https://bücher.example/",
        "https://８.8.8.8/",
        "https://8。8。8。8/",
        "https://例え.テスト/",
        "https://%E4%BE%8B.example/",
        "http://a.example:65535/",
        "http://a.example:443/",
        "https://a.example:80/",
        "http://a.example:24/",
        "https://user:22@a.example/22?22#22",
        "https://168.63.129.15/",
        "https://166.12.0.0/",
        "https://a$&'()*+,;=~!.example/",
        "https://a..example/",
        "https://a.0x8g/",
        "https://\u{1}a.example/",
        &nearly_long,
        &fits,
        "https://localhost.example/",
        "https://notlocalhost/",
        "https://a\u{ad}b\u{200b}.example/",
        // No URL, or none to call.
        "",
        " ",
        "\t\n",
        "nonsense",
        "//a.example/",
        "/path",
        "a.example",
        "http:",
        "http://",
        "https:///",
        "http://:80/",
        "http://?a",
        "http://user@/",
        "http://user:password@:80/",
        "ftp://a.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "mailto:a@a.example",
        "localhost:8080",
        "ws://a.example",
        "1http://a/",
        "http://a.example:65536/",
        "http://a.example:99999999999/",
        "http://a.example:-1/",
        "http://a.example:0/",
        "http://a.example:000/",
        "http://a.example:22/",
        "https://a.example:00025/",
        "https://8.8.8.8:6000/",
        "http://127.0.0.1:6379/",
        "https://user:password@[2606:4700::1111]:10080/",
        "http://a.example:http/",
        "http://a.example:8 0/",
        "http://a.example:80:80/",
        "http://a b/",
        "http://a<b/",
        "http://a^b/",
        "http://a|b/",
        "http://a%20b/",
        "http://a%00b/",
        "http://a%ffb/",
        "http://a%/",
        "http://[a.example]/",
        "http://[::1",
        "http://[::1%25eth0]/",
        "http://[::1/64]/",
        "http://[1.2.3.4]/",
        "http://[]/",
        "http://[::1]a/",
        "http://a[b/",
        "http://256.1.1.1/",
        "http://1.2.3.256/",
        "http://1.2.3.4.5/",
        "http://4294967296/",
        "http://0x100000000/",
        "http://09.1.1.1/",
        "http://1.2.65536/",
        "http://a.1/",
        "http://1..1/",
        "http://.1/",
        "http://0x/g",
        "http://a\"b/",
        "http://a`b/",
        "http://a{b}/",
        "http://99999999999999999999999999999999/",
        &long,
        &grows,
        &query_grows,
        &just_grows,
        "us3r:p4ssw0rd@127.0.0.1/x",
        "http://a\u{200d}.example/",
        "http://127.0.0.1\u{200e}/",
        // Addresses that may not be called.
        "http://0/",
        "http://0x/",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://017700000001/",
        "http://127.0.0.1./",
        "http://%31%32%37.0.0.1/",
        "http://１２７.0.0.1/",
        "http://10.0.0.1:80/",
        "http://user:password@10.1/",
        "http://100.64.0.1/",
        "http://169.254.169.254/latest",
        "http://168.63.129.16/machine?comp=goalstate",
        "http://[64:ff9b::168.63.129.16]/",
        "http://161.26.0.6/",
        "http://166.11.255.255/",
        "http://172.31.255.255/",
        "http://172.32.0.0/",
        "http://192.0.0.192/",
        "http://192.0.2.1/",
        "http://192.88.99.1/",
        "http://192.168.1.1/",
        "http://198.19.255.255/",
        "http://198.51.100.1/",
        "http://203.0.113.255/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://[::]/",
        "http://[::1]/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://[ff02::1]/",
        "http://[2001:db8::1]/",
        "http://[2001::1]/",
        "http://[3fff::1]/",
        "http://[100::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::ffff:0:127.0.0.1]/",
        "http://[64:ff9b::10.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b:1::808:808]/",
        "http://1.1.1.1\\@127.0.0.1/",
        "http://127.0.0.1\\@1.1.1.1/",
        "http://1.1.1.1#@127.0.0.1/",
        "http://a@127.0.0.1#@1.1.1.1/",
        "http://localhost/",
        "https://LOCALHOST.:8443/",
        "http://a.b.localhost/",
        "http://localho\u{ad}st/",
        "http://127.0.0.1\u{ad}/",
        "http://127.0\u{200b}.0.1/",
        "http://127.0.0.1\u{feff}/",
        "http://127.0.0.1%C2%AD/",
        "http://10.0\u{2060}.0.1\u{fe0f}/",
        "http://\u{e0100}192.168.1.1/",
    ];
    let mut problems = 0;
    for url in urls {
        let webhook = Webhook { id: 1, url: url.into(), signing_secret: None };
        let daemon = caller.problem(&webhook);
        let sql: Option<String> =
            database.client.query_one("SELECT relay.url_problem($1)", &[&url]).await.unwrap().get(0);
        assert_eq!(sql.is_some(), daemon.is_some(), "{url:?}: SQL {sql:?}, daemon {daemon:?}");
        // Both name the fault of an address in the same words, but for networks that no registry has given out.
        let shown = format!("{sql:?} {daemon:?}");
        assert!(!shown.contains("p4ssw0rd") && !shown.contains("us3r"), "{shown}");
        if let (Some(sql), Some(daemon)) = (&sql, &daemon)
            && let (Some((_, sql)), Some((_, daemon))) =
                (sql.split_once(" may not be called: "), daemon.split_once(" may not be called: "))
        {
            assert!(sql == daemon || sql == "not for global use", "{url:?}: SQL {sql:?}, daemon {daemon:?}");
        }
        problems += usize::from(sql.is_some());
    }
    println!("{} URLs, {problems} with a problem", urls.len());
    let null: Option<String> =
        database.client.query_one("SELECT relay.url_problem(NULL)", &[]).await.unwrap().get(0);
    assert!(null.is_some());
    // Names that are no names in punycode are only known to the daemon.
    let bad = "http://xn--a.example/";
    let webhook = Webhook { id: 1, url: bad.into(), signing_secret: None };
    let sql: Option<String> =
        database.client.query_one("SELECT relay.url_problem($1)", &[&bad]).await.unwrap().get(0);
    assert!(sql.is_none() && caller.problem(&webhook).is_some());
}

#[tokio::test]
async fn the_sql_function_and_the_daemon_refuse_the_same_ports() {
    let database = Database::new().await;
    // Those of other protocols end long before this.
    let sql = "SELECT port, relay.url_problem('https://a.example:' || port || '/')
                 FROM generate_series(0, 12000) AS port
                UNION ALL
               VALUES (49152, relay.url_problem('https://a.example:49152/'))";
    let caller = strict();
    let mut refused = 0;
    for row in database.client.query(sql, &[]).await.unwrap() {
        let (port, sql): (i32, Option<String>) = (row.get(0), row.get(1));
        let webhook = Webhook { id: 1, url: format!("https://a.example:{port}/"), signing_secret: None };
        assert_eq!(sql, caller.problem(&webhook));
        refused += usize::from(sql.is_some());
    }
    // 83 of the fetch standard, and Redis'.
    assert_eq!(refused, 84);
}

#[tokio::test]
async fn the_application_and_readers_may_ask_what_is_wrong_with_a_url_and_nobody_else() {
    let database = Database::new().await;
    for (role, may) in [("relay_app", true), ("relay_reader", true), ("relay_daemon", false)] {
        let sql = format!("BEGIN; SET LOCAL ROLE {role}; SELECT relay.url_problem('http://a/')");
        let result = database.client.batch_execute(&sql).await;
        database.client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(result.is_ok(), may, "{role}: {result:?}");
    }
    let sql = "SELECT has_function_privilege('public', 'relay.url_problem(text)', 'EXECUTE')";
    assert!(!database.client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0));
}

/// For each signing secret: the fault that the SQL function names, the fault that the daemon names, and whether the table
/// takes it.
async fn verdicts(database: &Database, secrets: &[String]) -> Vec<(Option<String>, Option<String>, bool)> {
    let caller = strict();
    let sql = "SELECT relay.secret_problem(secret) FROM unnest($1::text[]) WITH ORDINALITY AS list(secret, at) ORDER BY at";
    let told = database.client.query(sql, &[&secrets]).await.unwrap();
    let mut verdicts = Vec::new();
    for (secret, row) in secrets.iter().zip(told) {
        let signing_secret = Some(Secret(secret.clone()));
        let daemon = caller.problem(&Webhook { id: 1, url: "https://a.example/".into(), signing_secret });
        let sql = "INSERT INTO relay.webhooks (project_id, url, signing_secret) VALUES (1, '', $1)";
        let taken = database.client.execute(sql, &[&secret]).await;
        if let Err(error) = &taken {
            let constraint = error.as_db_error().and_then(|error| error.constraint());
            assert_eq!(constraint, Some("webhooks_signing_secret_can_sign"), "{error:?}");
        }
        verdicts.push((row.get(0), daemon, taken.is_ok()));
    }
    verdicts
}

#[tokio::test]
async fn keys_that_cannot_sign_are_refused_by_the_table_the_function_and_the_daemon_alike() {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    let key = |bytes: usize| STANDARD.encode(vec![0xfb; bytes]);
    let (good, other) = (key(32), STANDARD.encode([7; 24]));
    let mut cases: Vec<(String, bool)> =
        (0..100).map(|bytes| (key(bytes), (24..=64).contains(&bytes))).collect();
    cases.extend((0..100).map(|bytes| (format!("whsec_{}", key(bytes)), (24..=64).contains(&bytes))));
    for (secret, can_sign) in [
        // What signed before: no bytes, one, and one of two.
        ("whsec_".into(), false),
        ("AA==".into(), false),
        (format!("whsec_ whsec_{good}"), false),
        (format!("{good} AA=="), false),
        (String::new(), false),
        (" \t\n".into(), false),
        // Several.
        (format!("{good} {other}"), true),
        (format!("\n whsec_{good}\t\r\n\u{c}{other} "), true),
        (format!("{good}\u{b}{other}"), false),
        (format!("{good}\u{a0}{other}"), false),
        (format!("{good},{other}"), false),
        (format!("{good}{other}"), false),
        // Other forms of base64, of which receivers make another key, or none.
        (URL_SAFE.encode([0xfb; 32]), false),
        (good.trim_end_matches('=').into(), false),
        (format!("{good}="), false),
        (format!("={good}"), false),
        (good.replacen('=', "A=", 1), false),
        // Bits too many in the last character: another form of the same key.
        (good.replace("s=", "t="), false),
        (good.replacen('v', "v\n", 1), false),
        (good.replacen('v', "é", 1), false),
        // Other prefixes.
        (format!("whsec_whsec_{good}"), false),
        (format!("WHSEC_{good}"), false),
        (format!("whsk_{good}"), false),
        (format!("whsec_ {good}"), false),
        // Long.
        (vec![good.clone(); 180].join(" "), true),
        (vec![good.clone(); 200].join(" "), false),
        (" ".repeat(8192 - good.len()) + &good, true),
        (" ".repeat(8193 - good.len()) + &good, false),
    ] {
        cases.push((secret, can_sign));
    }
    let database = Database::new().await;
    let secrets: Vec<String> = cases.iter().map(|(secret, _)| secret.clone()).collect();
    for ((secret, can_sign), verdict) in cases.iter().zip(verdicts(&database, &secrets).await) {
        let (sql, daemon, taken) = verdict;
        assert_eq!((daemon.is_none(), taken), (*can_sign, *can_sign), "{secret:?}: {daemon:?}");
        // In the same words.
        assert_eq!(sql, daemon, "{secret:?}");
    }
    let null: Option<String> =
        database.client.query_one("SELECT relay.secret_problem(NULL)", &[]).await.unwrap().get(0);
    assert_eq!(null, None);
    for (role, may) in [("relay_app", true), ("relay_reader", false), ("relay_daemon", false)] {
        let sql = format!("BEGIN; SET LOCAL ROLE {role}; SELECT relay.secret_problem('')");
        let result = database.client.batch_execute(&sql).await;
        database.client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(result.is_ok(), may, "{role}: {result:?}");
    }
}

#[tokio::test]
async fn the_table_the_function_and_the_daemon_agree_on_thousands_of_near_secrets() {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let part = prop_oneof![
        4 => "[A-Za-z0-9+/]{32,88}",
        1 => "[A-Za-z0-9+/]{0,4}",
        1 => "[A-Za-z0-9+/]{30,86}[AEIMQUYcgkosw048]=",
        1 => "[A-Za-z0-9+/]{30,86}[AQgw]==",
        1 => "={1,3}",
        2 => Just("whsec_".to_owned()),
        2 => "[ \t\n\x0b\x0c\r]{1,2}",
        1 => "[!-~]{1,2}",
        1 => "\\PC{1,2}",
    ];
    let secret = prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat());
    let more = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let mut runner = if more.is_some() { TestRunner::default() } else { TestRunner::deterministic() };
    let secrets: Vec<String> =
        (0..more.unwrap_or(5000)).map(|_| secret.new_tree(&mut runner).unwrap().current()).collect();
    let database = Database::new().await;
    let verdicts = verdicts(&database, &secrets).await;
    for (secret, (sql, daemon, taken)) in secrets.iter().zip(&verdicts) {
        assert_eq!(sql, daemon, "{secret:?}");
        assert_eq!(*taken, daemon.is_none(), "{secret:?}: {daemon:?}");
    }
    let good = verdicts.iter().filter(|(.., taken)| *taken).count();
    println!("{good} of {} can sign", secrets.len());
    assert!(good > secrets.len() / 50, "{good}: too few to say anything");
}

#[tokio::test]
async fn a_key_that_cannot_sign_makes_a_record_and_no_call_and_check_names_the_webhook() {
    let database = Database::new().await;
    let receiver = Receiver::good();
    // A view, as beside the tables of another application: no constraint keeps anything out.
    let view = format!(
        "DROP TABLE relay.webhooks;
         CREATE VIEW relay.webhooks AS
         SELECT id::bigint, 1::bigint AS project_id, 'onPromptFinished' AS event, '{}' AS url, true AS enabled, secret AS signing_secret
           FROM (VALUES (11, 'whsec_'),
                        (12, 'AA=='),
                        (13, 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw whsec_'),
                        (14, 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')) AS w(id, secret)",
        receiver.url("/hook")
    );
    database.client.batch_execute(&view).await.unwrap();
    let _relay = Relay::start(&database, &[]);
    database.events(1, 1).await;
    database.all_done().await;
    let calls = database.calls().await;
    assert_eq!(calls.len(), 4);
    for call in &calls[..3] {
        assert_eq!(call.get::<_, Option<&str>>("error_kind"), Some("internal"));
        let told: &str = call.get("error_message");
        assert!(told.contains("less than 24 or more than 64 bytes") && !told.contains("MfKQ9r8"), "{told}");
        assert_eq!(call.get::<_, &str>("request_headers_text"), "{}");
    }
    assert!(calls[3].get::<_, bool>("succeeded"));
    assert_eq!(receiver.requests().len(), 1, "nothing goes out unsigned, nor with an empty key");
    let (_, stdout, stderr) = outcome(database.command(&["check", "--allow-net", "127.0.0.0/8"]));
    for id in [11, 12, 13] {
        assert!(
            stdout.contains(&format!("{id} can never work: a key in the webhook's signing_secret")),
            "{stdout}{stderr}"
        );
    }
    assert!(stdout.contains("3 of 4 enabled ones can never work"), "{stdout}{stderr}");
}

#[tokio::test]
async fn the_sql_function_and_the_daemon_agree_on_thousands_of_near_urls() {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let part = prop_oneof![
        Just("http://".to_owned()),
        Just("user:pass@".to_owned()),
        Just("a.example".to_owned()),
        Just("8.8.8.8".to_owned()),
        Just("[2606::1]".to_owned()),
        Just(":80".to_owned()),
        Just("/path?query#fragment".to_owned()),
        "[0-9x.]{1,6}",
        "\\[[0-9a-f:.]{2,12}\\]",
        "[!-~]{0,3}",
        "[ -~]",
        "%[0-9a-f]{2}",
    ];
    let url = (
        prop_oneof![Just("http://"), Just("https:"), Just("https://"), Just("")],
        prop::collection::vec(part, 0..6),
    )
        .prop_map(|(start, parts)| format!("{start}{}", parts.concat()));
    let more = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let mut runner = if more.is_some() { TestRunner::default() } else { TestRunner::deterministic() };
    let urls: Vec<String> =
        (0..more.unwrap_or(5000)).map(|_| url.new_tree(&mut runner).unwrap().current()).collect();
    let database = Database::new().await;
    let sql =
        "SELECT relay.url_problem(url) FROM unnest($1::text[]) WITH ORDINALITY AS list(url, at) ORDER BY at";
    let rows = database.client.query(sql, &[&urls]).await.unwrap();
    let caller = strict();
    for (url, row) in urls.iter().zip(rows) {
        let sql: Option<String> = row.get(0);
        let webhook = Webhook { id: 1, url: url.clone(), signing_secret: None };
        let daemon = caller.problem(&webhook);
        // Only the daemon looks into labels that begin with xn-- or are in other scripts.
        let lower = url.to_lowercase();
        let unknown = lower.contains("xn--")
            || lower.split('%').skip(1).any(|hex| hex.starts_with(['8', '9', 'a', 'b', 'c', 'd', 'e', 'f']));
        assert!(unknown || sql.is_some() == daemon.is_some(), "{url:?}: SQL {sql:?}, daemon {daemon:?}");
    }
}

#[tokio::test]
async fn the_relays_own_metrics_are_read_by_no_customer() {
    // A server of its own: only a socket in the file system is reached from another network.
    let cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    for (project, host) in [(1, "8.8.4.4"), (2, "127.0.0.1"), (3, "localhost")] {
        database.webhook(project, &format!("http://{host}:9464/metrics")).await;
    }
    // In a network of the relay's own any port is free.
    let flags = ["--metrics-listen", "0.0.0.0:9464", "--log-level", "debug"];
    for allowed in [&[][..], &["--allow-net", "8.8.4.0/24"]] {
        let flags = [&flags[..], allowed].concat();
        let Some(relay) = Relay::start_apart(&database, "ip addr add 8.8.4.4/32 dev lo", &flags) else {
            println!("skipped: this machine makes no network for a test (unshare, ip)");
            return;
        };
        for project in [1, 2, 3] {
            database.events(project, 1).await;
        }
        database.all_done().await;
        for call in database.calls().await {
            let told: Option<&str> = call.get("error_message");
            assert_eq!(call.get::<_, Option<&str>>("error_kind"), Some("blocked_address"), "{told:?}");
            assert!(
                told.is_some_and(|told| told.ends_with(" may not be called: the relay's own")),
                "{told:?}"
            );
            for column in ["response_body", "remote_addr"] {
                assert_eq!(call.get::<_, Option<&str>>(column), None, "{column}");
            }
        }
        // The operator reads which.
        relay.until_told("why an address is refused", |line| line["why"] == "the relay's metrics");
    }
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls").await, 6);
}

#[tokio::test]
async fn a_low_limit_of_open_files_fails_no_call() {
    let database = Database::new().await;
    // More endpoints than files, each with a connection that rests after its calls; and each by two URLs.
    let receivers: Vec<Receiver> = (0..80)
        .map(|_| {
            Receiver::start(|_| {
                // Long enough that many are under way at once.
                thread::sleep(Duration::from_millis(20));
                Reply::status(200)
            })
        })
        .collect();
    let mut project = 0;
    for receiver in &receivers {
        for url in [receiver.url("/"), receiver.url("/").replace("127.0.0.1", "localhost")] {
            project += 1;
            database.webhook(project, &url).await;
            database.events(project, 10).await;
        }
    }
    let relay = Relay::start_with_few_files(&database, &["--allow-net", "::1/128"], 64);
    database.all_done().await;
    let failed = database
        .client
        .query("SELECT error_kind, error_message, count(*) FROM relay.webhook_calls WHERE NOT succeeded GROUP BY 1, 2", &[])
        .await
        .unwrap();
    assert!(failed.is_empty(), "{failed:?}\n{}", relay.log());
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls").await, 10 * project);
    let posted: usize = receivers.iter().map(|receiver| receiver.requests().len()).sum();
    assert_eq!(i64::try_from(posted).unwrap(), 10 * project, "once each");
}

/// Starts a server that answers each request with a byte now and then, without an end; returns its URL.
fn dripping(stop: &Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let stop = stop.clone();
    thread::spawn(move || {
        let mut streams = Vec::new();
        listener.set_nonblocking(true).unwrap();
        while !stop.load(Ordering::Relaxed) {
            while let Ok((mut stream, _)) = listener.accept() {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                streams.push(stream);
            }
            streams.retain_mut(|stream| stream.write_all(b"x").is_ok());
            thread::sleep(Duration::from_millis(50));
        }
    });
    url
}

#[tokio::test]
async fn with_fifty_endpoints_that_drip_a_good_one_keeps_its_pace() {
    let database = Database::new().await;
    let good = Receiver::good();
    database.webhook(1, &good.url("/")).await;
    // The drips end with the test: no call of theirs ever does.
    let _relay = Relay::start(&database, &["--timeout", "1h"]);
    let mut posted = 0;
    let pace = async |posted: &mut usize| {
        let mut took = Vec::new();
        for _ in 0..60 {
            let start = Instant::now();
            database.events(1, 1).await;
            *posted += 1;
            good.wait_for(*posted);
            took.push(start.elapsed());
        }
        took.sort();
        (took[30], took[59])
    };
    let alone = pace(&mut posted).await;

    let stop = Arc::new(AtomicBool::new(false));
    for project in 100..150 {
        database.webhook(project, &dripping(&stop)).await;
        database.events(project, 200).await;
    }
    // The endpoints that drip have all the calls that they can have, and the relay has claimed or parked many more rows.
    database
        .eventually("SELECT count(*) >= 1000 FROM relay.outbox WHERE project_id >= 100 AND (claimed_by IS NOT NULL OR parked)")
        .await;
    let beside = pace(&mut posted).await;
    println!(
        "from insert to POST, median and worst of 60: alone {alone:?}, beside fifty that drip {beside:?}"
    );
    // A drip that held a thread of the good one's would hold it for an hour; a pace is not measured to the
    // millisecond on a busy machine.
    assert!(beside.0 < alone.0 + Duration::from_millis(250), "alone {alone:?}, beside {beside:?}");
    database.events(1, 1000).await;
    good.wait_for(posted + 1000);
    database
        .eventually("SELECT NOT EXISTS (SELECT FROM relay.outbox WHERE project_id = 1 AND done_at IS NULL)")
        .await;
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls WHERE NOT succeeded").await, 0);
    stop.store(true, Ordering::Relaxed);
}

#[tokio::test]
async fn secrets_are_neither_logged_nor_recorded() {
    let database = Database::new().await;
    let receiver = Receiver::start(|request| match request.path() {
        "/500" => Reply::status(500),
        "/close" => Reply::Close,
        _ => Reply::status(200),
    });
    let own = receiver.url("").replace("http://", "http://us3r:p4ssw0rd@");
    let refused = "http://us3r:p4ssw0rd@127.0.0.1:2/";
    let bad = "http://us3r:p4ssw0rd@ho st/";
    let typed = "us3r:p4ssw0rd@127.0.0.1/x";
    let urls = [
        format!("{own}/ok?x=1"),
        format!("{own}/500"),
        format!("{own}/close"),
        refused.into(),
        bad.into(),
        typed.into(),
    ];
    for url in &urls {
        let id = database.webhook(1, url).await;
        let sql = "UPDATE relay.webhooks SET signing_secret = 'whsec_bjBib2R5LWtub3dzIG4wYm9keS1rbm93cyBuMGJvZHkta25vd3M=' WHERE id = $1";
        database.client.execute(sql, &[&id]).await.unwrap();
    }
    let broken = database.webhook(1, &receiver.url("/never")).await;
    // No constraint keeps it out of a view.
    let sql = "ALTER TABLE relay.webhooks DROP CONSTRAINT webhooks_signing_secret_can_sign";
    database.client.batch_execute(sql).await.unwrap();
    let sql = "UPDATE relay.webhooks SET signing_secret = 'whsec_n0t-b4se64!' WHERE id = $1";
    database.client.execute(sql, &[&broken]).await.unwrap();
    database.events(1, 3).await;
    let log_dir = tempfile::tempdir().unwrap();
    let relay = Relay::start(&database, &["--log-level", "trace"]);
    database.all_done().await;
    // The failures are in the journal within a second or so; stopping writes the last of them.
    let mut relay = relay;
    relay.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(0), "{}", relay.log());
    let mut texts = HashMap::from([("log", relay.log())]);
    let sql = "SELECT string_agg(c::text, ' ') FROM relay.webhook_calls c";
    texts.insert("call log", database.client.query_one(sql, &[]).await.unwrap().get(0));
    let mut check = program(&["check"], &database.url);
    check.stderr(File::create(log_dir.path().join("stderr")).unwrap());
    let output = check.output().unwrap();
    texts.insert("check", String::from_utf8(output.stdout).unwrap());
    texts.insert("check's errors", std::fs::read_to_string(log_dir.path().join("stderr")).unwrap());
    for (name, text) in texts {
        for secret in ["us3r", "p4ssw0rd", "dXMzcjpwNHNzdzByZA", "bjBib2R5", "n0t-b4se64"] {
            assert!(!text.contains(secret), "{secret} in the {name}: {text}");
        }
    }
    // They were used.
    let requests = receiver.requests();
    let ok = requests.iter().find(|request| request.path() == "/ok?x=1").unwrap();
    assert_eq!(ok.header("authorization"), Some("Basic dXMzcjpwNHNzdzByZA=="));
    assert!(ok.header("webhook-signature").is_some_and(|signature| signature.starts_with("v1,")));
    assert!(requests.iter().all(|request| request.path() != "/never"), "nothing goes out unsigned");
}
