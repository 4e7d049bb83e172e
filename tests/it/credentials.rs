//! A password is changed while the daemon runs: it reads the file with the new one at its next connection, without a restart.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use promptpal_relay::inside::demo::Cluster;

use crate::monitoring::told;
use crate::scenes::terminate;
use crate::support::{Clock, Database, Receiver, Relay, as_user, program};

/// A server that wants passwords of the roles `relay_one` and `relay_two`, which are `old`. Its database has one webhook.
async fn server(receiver: &Receiver) -> (Cluster, Database) {
    let cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    let sql = "CREATE ROLE relay_one LOGIN PASSWORD 'old' IN ROLE relay_daemon;
               CREATE ROLE relay_two LOGIN PASSWORD 'old' IN ROLE relay_daemon";
    database.client.batch_execute(sql).await.unwrap();
    let path: String = database.client.query_one("SHOW hba_file", &[]).await.unwrap().get(0);
    let rules = fs::read_to_string(&path).unwrap();
    let wanted =
        "local all relay_one,relay_two scram-sha-256\nhost all relay_one,relay_two all scram-sha-256\n";
    fs::write(&path, format!("{wanted}{rules}")).unwrap();
    database.client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let loaded = "SELECT EXISTS (SELECT FROM pg_hba_file_rules WHERE auth_method = 'scram-sha-256')
                     AND pg_conf_load_time() > pg_postmaster_start_time()";
    database.eventually(loaded).await;
    database.webhook(1, &receiver.url("/")).await;
    (cluster, database)
}

/// Writes a file that only its owner may read.
fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Changes the password of a role in Postgres, ends the daemon's sessions, and writes the file. The daemon reconnects.
async fn rotate(database: &Database, relay: &Relay, role: &str, times: u32, write_file: impl FnOnce()) {
    database.client.batch_execute(&format!("ALTER ROLE {role} PASSWORD 'new'")).await.unwrap();
    terminate(database, "relay_%", "promptpal-relay %").await;
    relay.until_refused(1);
    write_file();
    relay.until_reconnected(times);
    database.events(1, 1).await;
    database.all_done().await;
}

#[tokio::test]
async fn a_rewritten_file_with_the_url_is_read_at_the_next_connection() {
    let receiver = Receiver::good();
    let (_cluster, database) = server(&receiver).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("database-url");
    write(&path, &as_user(&database.url, "relay_one", "old"));
    for by_credential in [false, true] {
        let sql = "ALTER ROLE relay_one PASSWORD 'old'";
        database.client.batch_execute(sql).await.unwrap();
        write(&path, &as_user(&database.url, "relay_one", "old"));
        let mut command = program(&["run", "--allow-net", "127.0.0.0/8"], "");
        if by_credential {
            command.env("CREDENTIALS_DIRECTORY", folder.path());
        } else {
            command.arg("--database-url-file").arg(&path);
        }
        let relay = Relay::spawn_by(command).ready();
        rotate(&database, &relay, "relay_one", 1, || {
            // For a moment there is no file, and then another role's.
            fs::remove_file(&path).unwrap();
            write(&path, &as_user(&database.url, "relay_one", "new"));
        })
        .await;
        // Another role: some rotate between two.
        write(&path, &as_user(&database.url, "relay_two", "old"));
        terminate(&database, "relay_one", "promptpal-relay %").await;
        relay.until_reconnected(2);
        let logins = "SELECT count(*) > 0 AND bool_and(usename = 'relay_two') FROM pg_stat_activity
                      WHERE datname = current_database() AND application_name LIKE 'promptpal-relay %'";
        database.eventually(logins).await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_leaves_the_password_that_worked() {
    let receiver = Receiver::good();
    let (_cluster, database) = server(&receiver).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("database-url");
    write(&path, &as_user(&database.url, "relay_one", "old"));
    let mut command = program(&["run", "--allow-net", "127.0.0.0/8"], "");
    command.arg("--database-url-file").arg(&path);
    let relay = Relay::spawn_by(command).ready();
    write(&path, "");
    terminate(&database, "relay_one", "promptpal-relay %").await;
    relay.until_reconnected(1);
    relay.until_told("that the file is empty", |line| {
        line["level"] == "WARN" && line["error"].as_str().is_some_and(|why| why.contains("the file is empty"))
    });
}

#[tokio::test]
async fn a_rewritten_password_file_is_read_at_the_next_connection() {
    let receiver = Receiver::good();
    let (_cluster, database) = server(&receiver).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pgpass");
    write(&path, "*:*:*:relay_one:old\n");
    let without_password = as_user(&database.url, "relay_one", "").replace(":@", "@");
    let mut command = program(&["run", "--allow-net", "127.0.0.0/8"], &without_password);
    command.env("PGPASSFILE", &path);
    let relay = Relay::spawn_by(command).ready();
    rotate(&database, &relay, "relay_one", 1, || write(&path, "*:*:*:relay_one:new\n")).await;
}

#[tokio::test]
async fn a_wrong_password_is_an_error_after_minutes_and_says_what_to_do() {
    let receiver = Receiver::good();
    let (_cluster, database) = server(&receiver).await;
    let clock = Clock::new();
    let relay = Relay::start_by(&clock, &as_user(&database.url, "relay_one", "old"), &[]);
    database.client.batch_execute("ALTER ROLE relay_one PASSWORD 'new'").await.unwrap();
    terminate(&database, "relay_one", "promptpal-relay %").await;
    told(&clock, &relay, ["waiting for Postgres", "a variable needs a restart"]);
}
