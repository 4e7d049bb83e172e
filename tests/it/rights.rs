//! No role gains a right by the relay: each test attempts the attack, and delivers beside it.
//!
//! Roles belong to a whole server, so each test that makes some has a server of its own.

use std::time::{Duration, Instant};

use promptpal_relay::inside::demo::Cluster;
use promptpal_relay::inside::outbox::Role;
use tokio_postgres::Client;

use crate::promptpal::{TABLES, script};
use crate::support::scrape::get;
use crate::support::{Database, Receiver, Relay, as_user, connect, outcome, program};

/// The attacker's code: it takes what it can, and notes whose rights it ran with. `stolen` reads the notes.
const LOOT: &str = "
    CREATE SCHEMA loot AUTHORIZATION mallory;
    SET ROLE mallory;
    CREATE TABLE loot.stolen (by name);
    GRANT USAGE ON SCHEMA loot TO PUBLIC;
    GRANT INSERT ON loot.stolen TO PUBLIC;
    CREATE FUNCTION loot.take() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO loot.stolen VALUES (current_user);
        ALTER ROLE mallory SUPERUSER;
    EXCEPTION WHEN insufficient_privilege THEN NULL;
    END $$;
    CREATE FUNCTION loot.note() RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO loot.stolen VALUES (current_user);
        PERFORM loot.take();
        RETURN '';
    END $$;
    CREATE FUNCTION loot.trigger() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM loot.note();
        RETURN NULL;
    END $$;
    RESET ROLE;";

/// A server with the schema, mallory, and the daemon's user, and the URL of the latter.
async fn server() -> (Cluster, Database, String) {
    let cluster = Cluster::start(&[]).unwrap();
    let database = Database::on(&cluster.url("postgres")).await;
    run(
        &database,
        "CREATE ROLE mallory LOGIN PASSWORD 'x';
         CREATE ROLE relay_run LOGIN PASSWORD 'x' IN ROLE relay_daemon",
    )
    .await;
    run(&database, LOOT).await;
    let daemon = as_user(&database.url, "relay_run", "x");
    (cluster, database, daemon)
}

async fn run(database: &Database, sql: &str) {
    database.client.batch_execute(sql).await.unwrap();
}

/// The roles whose rights mallory's code ran with; "SUPERUSER" when mallory became one.
async fn stolen(database: &Database) -> String {
    let sql = "SELECT coalesce(string_agg(DISTINCT by::text, ' '), '')
                      || CASE WHEN (SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory') THEN ' SUPERUSER' ELSE '' END
                 FROM loot.stolen WHERE by <> 'mallory'";
    database.client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The program refuses, with the exit code for that, and says why in one line.
fn refused(command: &[&str], url: &str, says: &[&str]) {
    let (code, out, err) = outcome(program(command, url));
    // The session of the migrate before may be there for a moment, which is told.
    let lines = err.lines().filter(|line| !line.contains(" INFO ")).count();
    assert_eq!((code, lines), (78, 1), "{command:?}: {out}{err}");
    assert!(says.iter().all(|text| err.contains(text)), "{command:?}: {err}");
}

#[tokio::test]
async fn the_owner_of_promptpals_tables_gains_nothing_by_mirror_or_feed() {
    let (_cluster, database, daemon) = server().await;
    let tables = TABLES.replace("HEADERS", "jsonb").replace("NULLABLE", "");
    run(
        &database,
        &format!("GRANT CREATE ON SCHEMA public TO mallory; SET ROLE mallory; {tables}; RESET ROLE"),
    )
    .await;
    let receiver = Receiver::good();
    let sql = "INSERT INTO webhooks (name, url, webhook_project) VALUES ('w', $1::text, 1)";
    database.client.execute(sql, &[&receiver.url("/")]).await.unwrap();
    assert_eq!(script(&database, "install", &["feed=on"]), (0, String::new()));
    let relay = Relay::spawn(&daemon, &[]).ready();
    let owner = connect(&as_user(&database.url, "mallory", "x")).await;
    let prompt = "INSERT INTO prompt_calls (prompt_calls, project_calls, user_id, duration, result, prompt_call_provider)
                  VALUES (1, 1, 'u', 1, 0, 1)";
    owner.batch_execute(prompt).await.unwrap();
    database.all_done().await;
    assert_eq!(database.number("SELECT count(*) FROM webhook_calls").await, 1, "the mirror works");
    receiver.wait_for(1);

    // One trigger runs at once. The other runs at the end of the transaction, when the function lends its rights no more.
    for timing in ["", "DEFERRABLE INITIALLY DEFERRED"] {
        let constraint = if timing.is_empty() { "" } else { "CONSTRAINT" };
        let sql = format!(
            "CREATE {constraint} TRIGGER loot AFTER INSERT ON webhook_calls {timing} FOR EACH ROW EXECUTE FUNCTION loot.trigger()"
        );
        owner.batch_execute(&sql).await.unwrap();
        owner.batch_execute(prompt).await.unwrap();
        database.all_done().await;
        assert_eq!(stolen(&database).await, "", "{timing}");
        owner.batch_execute("DROP TRIGGER loot ON webhook_calls").await.unwrap();
    }
    // The operator reads whose code would have run.
    relay.until_told("a warning of Postgres'", |line| {
        let text = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && line["role"] == "finish" && text.contains("loot.trigger() of mallory")
    });
    // A default, which is as good as a trigger.
    owner.batch_execute("ALTER TABLE webhook_calls ADD COLUMN more text DEFAULT loot.note()").await.unwrap();
    run(&database, "TRUNCATE loot.stolen").await;
    owner.batch_execute(prompt).await.unwrap();
    database.all_done().await;
    assert_eq!(stolen(&database).await, "");
    owner.batch_execute("ALTER TABLE webhook_calls DROP COLUMN more").await.unwrap();

    // A view in the place of a table that the feed reads.
    let sql = "ALTER TABLE providers RENAME TO providers_;
               CREATE VIEW providers AS SELECT id, name, default_model || loot.note() AS default_model FROM providers_";
    owner.batch_execute(sql).await.unwrap();
    owner.batch_execute(prompt).await.unwrap();
    database.all_done().await;
    assert_eq!(stolen(&database).await, "");
    assert_eq!(database.number("SELECT count(*) FROM loot.stolen").await, 1, "the owner's own rights");
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls WHERE succeeded").await, 5);
    assert_eq!(receiver.requests().len(), 5);
    assert_eq!(
        database.number("SELECT count(*) FROM webhook_calls").await,
        2,
        "again mirrored, without the code"
    );
    // Uninstalling takes back the rights that the installation gave.
    assert_eq!(script(&database, "uninstall", &[]), (0, String::new()));
    let left = "SELECT count(*) FROM pg_class c WHERE c.relacl::text ~ 'relay_owner=' AND c.relnamespace = 'public'::regnamespace";
    assert_eq!(database.number(left).await, 0);
    let left = "SELECT (has_schema_privilege('mallory', 'relay', 'USAGE') OR has_schema_privilege('mallory', 'relay', 'CREATE')
                        OR has_any_column_privilege('mallory', 'relay.outbox', 'INSERT'))::integer::bigint";
    assert_eq!(database.number(left).await, 0);
}

#[tokio::test]
async fn a_trigger_of_a_superusers_on_promptpals_table_is_no_hindrance_to_the_mirror() {
    let (_cluster, database, daemon) = server().await;
    let tables = TABLES.replace("HEADERS", "jsonb").replace("NULLABLE", "");
    run(
        &database,
        &format!("GRANT CREATE ON SCHEMA public TO mallory; SET ROLE mallory; {tables}; RESET ROLE"),
    )
    .await;
    let sql = "CREATE FUNCTION fine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.ip := ''seen''; RETURN NEW; END';
               CREATE TRIGGER fine BEFORE INSERT ON webhook_calls FOR EACH ROW EXECUTE FUNCTION fine()";
    run(&database, sql).await;
    let receiver = Receiver::good();
    let sql = "INSERT INTO webhooks (name, url, webhook_project) VALUES ('w', $1::text, 1)";
    database.client.execute(sql, &[&receiver.url("/")]).await.unwrap();
    assert_eq!(script(&database, "install", &[]), (0, String::new()));
    let _relay = Relay::spawn(&daemon, &[]).ready();
    database.events(1, 1).await;
    database.all_done().await;
    assert_eq!(database.number("SELECT count(*) FROM webhook_calls WHERE ip = 'seen'").await, 1);
    // The installation says so where such code is there already.
    run(&database, "ALTER FUNCTION fine() OWNER TO mallory").await;
    let (code, said) = script(&database, "install", &[]);
    assert!(
        code != 0 && said.contains("webhook_calls runs function public.fine() of mallory"),
        "{code} {said}"
    );
}

#[tokio::test]
async fn a_view_in_the_place_of_the_webhooks_lends_nobody_the_relays_rights() {
    let (_cluster, database, daemon) = server().await;
    let receiver = Receiver::good();
    let id = database.webhook(1, &receiver.url("/")).await;
    let relay = Relay::spawn(&daemon, &[]).ready();
    database.events(1, 1).await;
    database.all_done().await;
    drop(relay);
    // A view of a DBA's over that of another role, which may change its own at any time.
    let columns =
        "id, project_id, name, description, url, event, enabled, signing_secret, created_at, updated_at";
    let sql = format!(
        "ALTER TABLE relay.webhooks RENAME TO kept; GRANT SELECT ON relay.kept TO mallory; GRANT USAGE ON SCHEMA relay TO mallory;
         SET ROLE mallory;
         CREATE VIEW loot.hooks AS SELECT id, project_id, name, description, url || loot.note() AS url, event, enabled,
                                          NULL::text AS signing_secret, created_at, updated_at FROM relay.kept;
         GRANT SELECT ON loot.hooks TO PUBLIC;
         RESET ROLE;
         CREATE VIEW relay.webhooks AS SELECT {columns} FROM loot.hooks;
         GRANT SELECT ON relay.webhooks TO relay_owner, relay_daemon, relay_app"
    );
    run(&database, &sql).await;
    let foreign = ["loot.hooks is a view of mallory", "code of others"];
    refused(&["run"], &daemon, &foreign);
    refused(&["check"], &daemon, &foreign);
    // Also as a superuser, and by the functions that operators use.
    refused(&["check"], &database.url, &foreign);
    for call in [
        format!("SELECT relay.send_test({id})"),
        "SELECT relay.replay(max(id)) FROM relay.webhook_calls".into(),
        "SELECT relay.replay_failed(ARRAY(SELECT id FROM relay.webhook_calls))".into(),
        format!("SELECT relay.callable_for({id})"),
    ] {
        let refused = database.client.query(call.as_str(), &[]).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{call}: {refused:?}");
    }
    // Those who read the log do without the names.
    for command in [&["calls"][..], &["call", "1"], &["status"]] {
        let (_, out, err) = outcome(database.command(command));
        assert!(out.contains('1') && !out.contains("1 test"), "{command:?}: {out}{err}");
    }
    assert_eq!(stolen(&database).await, "");
    // Over a table there is nothing to fear, and a superuser's view goes on being one; its function is one of ours.
    let sql = format!(
        "CREATE OR REPLACE VIEW relay.webhooks AS SELECT {} FROM relay.kept",
        columns.replace("url,", "url || '' AS url,")
    );
    run(&database, &sql).await;
    let (code, _, err) = outcome(database.command(&["migrate"]));
    assert_eq!(code, 0, "{err}");
    let _relay = Relay::spawn(&daemon, &[]).ready();
    run(&database, &format!("SELECT relay.send_test({id})")).await;
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 2);
    // A user who writes through a view writes with the rights of its owner.
    assert_eq!(
        database
            .number("SELECT has_table_privilege('relay_app', 'relay.webhooks', 'SELECT')::integer::bigint")
            .await,
        1
    );
}

#[tokio::test]
async fn who_may_put_a_trigger_or_a_foreign_key_on_the_relays_tables_runs_nothing_in_the_daemon() {
    let (_cluster, database, daemon) = server().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    run(
        &database,
        "GRANT USAGE ON SCHEMA relay TO mallory; GRANT ALL ON ALL TABLES IN SCHEMA relay TO mallory",
    )
    .await;
    let other = connect(&as_user(&database.url, "mallory", "x")).await;
    let attacks = [
        (
            "CREATE TRIGGER loot AFTER UPDATE ON relay.outbox FOR EACH ROW EXECUTE FUNCTION loot.trigger()",
            "DROP TRIGGER loot ON relay.outbox",
            "loot.trigger() of mallory",
        ),
        (
            "CREATE TRIGGER loot AFTER INSERT ON relay.webhook_calls_default FOR EACH ROW EXECUTE FUNCTION loot.trigger()",
            "DROP TRIGGER loot ON relay.webhook_calls_default",
            "loot.trigger() of mallory",
        ),
        (
            "CREATE TABLE loot.refers (id bigint REFERENCES relay.outbox ON DELETE CASCADE)",
            "DROP TABLE loot.refers",
            "a foreign key of table loot.refers of mallory",
        ),
    ];
    for (attack, end, says) in attacks {
        other.batch_execute(attack).await.unwrap();
        database.events(1, 1).await;
        refused(&["run"], &daemon, &[says]);
        refused(&["check"], &daemon, &[says]);
        run(&database, end).await;
    }
    assert_eq!(stolen(&database).await, "");
    let _relay = Relay::spawn(&daemon, &[]).ready();
    database.all_done().await;
    assert_eq!(receiver.requests().len(), 3);
}

#[tokio::test]
async fn a_function_in_public_is_not_found_instead_of_postgres_own() {
    // As on Postgres 14, and on databases that come from there: anybody makes functions in public.
    let cluster = Cluster::start(&[]).unwrap();
    let database = Database::at(&cluster.url("postgres")).await;
    run(&database, "GRANT CREATE ON SCHEMA public TO PUBLIC; CREATE ROLE mallory LOGIN PASSWORD 'x'").await;
    run(&database, LOOT).await;
    let other = connect(&as_user(&database.url, "mallory", "x")).await;
    // Each takes its arguments as they are, which the ones of Postgres do not.
    let sql = "CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE sql AS
                   'SELECT pg_catalog.format($1, VARIADIC ARRAY[$2]) || loot.note()';
               CREATE FUNCTION public.format(text, text, text) RETURNS text LANGUAGE sql AS
                   'SELECT pg_catalog.format($1, VARIADIC ARRAY[$2, $3]) || loot.note()';
               CREATE FUNCTION public.unnest(integer[]) RETURNS SETOF integer LANGUAGE sql AS
                   'SELECT * FROM pg_catalog.unnest($1) WHERE loot.note() IS NOT NULL';
               CREATE FUNCTION public.unnest(bigint[]) RETURNS SETOF bigint LANGUAGE sql AS
                   'SELECT * FROM pg_catalog.unnest($1) WHERE loot.note() IS NOT NULL'";
    other.batch_execute(sql).await.unwrap();
    // The attack works in a session that looks there: else the test would show nothing.
    run(&database, "SELECT format('%s'::text, 'a'::text)").await;
    assert_eq!(stolen(&database).await, "postgres SUPERUSER");
    run(&database, "ALTER ROLE mallory NOSUPERUSER; TRUNCATE loot.stolen").await;

    let (_, printed, _) = outcome(database.command(&["migrate", "--print"]));
    run(&database, &printed).await;
    assert_eq!(stolen(&database).await, "", "migrate --print");
    let own = "SELECT current_setting('search_path') LIKE '%public%'";
    assert!(database.client.query_one(own, &[]).await.unwrap().get::<_, bool>(0), "it is put back");
    run(&database, "DROP SCHEMA relay CASCADE; DROP ROLE relay_app, relay_daemon, relay_reader, relay_owner")
        .await;
    let (code, _, err) = outcome(database.command(&["migrate"]));
    assert_eq!(code, 0, "{err}");
    assert_eq!(stolen(&database).await, "", "migrate");

    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    run(&database, "UPDATE relay.webhooks SET signing_secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'")
        .await;
    run(&database, "CREATE ROLE relay_run LOGIN PASSWORD 'x' IN ROLE relay_daemon").await;
    let daemon = as_user(&database.url, "relay_run", "x");
    let _relay = Relay::spawn(&daemon, &[]).ready();
    database.events(1, 1).await;
    database.all_done().await;
    // What it asks when a session is silent.
    Database::at(&daemon).await.session(Role::Listen).await.not_at_work(&[1]).await.unwrap();
    for command in [
        &["check"][..],
        &["status"],
        &["calls"],
        &["call", "1"],
        &["replay", "--webhook", "1", "--since", "1h", "--yes"],
        &["send-test", "--webhook", "1"],
    ] {
        let (code, out, err) = outcome(database.command(command));
        assert_eq!(code, 0, "{command:?}: {out}{err}");
    }
    database.all_done().await;
    assert_eq!(stolen(&database).await, "", "the daemon and the commands");
    run(&database, &TABLES.replace("HEADERS", "jsonb").replace("NULLABLE", "")).await;
    run(&database, "DELETE FROM relay.webhooks").await;
    assert_eq!(script(&database, "install", &["feed=on"]), (0, String::new()));
    assert_eq!(script(&database, "uninstall", &[]), (0, String::new()));
    assert_eq!(stolen(&database).await, "", "the scripts");
    assert_eq!(receiver.requests().len(), 3);
}

#[tokio::test]
async fn every_function_of_the_relay_pins_its_settings_or_is_bound_when_it_is_made() {
    let database = Database::new().await;
    run(&database, &TABLES.replace("HEADERS", "jsonb").replace("NULLABLE", "")).await;
    assert_eq!(script(&database, "install", &["feed=on"]), (0, String::new()));
    let sql = "SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p
                WHERE p.pronamespace = 'relay'::regnamespace AND p.prosqlbody IS NULL
                  -- Each row would pay for it: it names the schema of all that it uses (see outbox_constraints).
                  AND p.proname <> 'refuse_invalid_event'
                  AND NOT coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp', 'row_security=off'], false)";
    assert_eq!(database.client.query_one(sql, &[]).await.unwrap().get::<_, String>(0), "");
    let sql = "SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner
                WHERE p.pronamespace = 'relay'::regnamespace AND (p.prosecdef AND r.rolsuper OR r.rolname <> 'relay_owner')";
    assert_eq!(database.client.query_one(sql, &[]).await.unwrap().get::<_, String>(0), "");
}

#[tokio::test]
async fn migrate_hands_over_what_was_ours_and_not_what_somebody_else_made() {
    let (_cluster, database, _) = server().await;
    let not_ours = "SELECT count(*) FROM (
            SELECT c.relowner AS owner FROM pg_class c WHERE c.relnamespace = 'relay'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
            UNION ALL SELECT p.proowner FROM pg_proc p WHERE p.pronamespace = 'relay'::regnamespace
            UNION ALL SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = 'relay') AS things
         WHERE owner <> 'relay_owner'::regrole";
    assert_eq!(database.number(not_ours).await, 0);
    // As it was before, and with a function in it that reads the secrets as its owner.
    let sql = "REASSIGN OWNED BY relay_owner TO postgres;
               GRANT CREATE, USAGE ON SCHEMA relay TO mallory;
               SET ROLE mallory;
               CREATE FUNCTION relay.secrets() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER AS
                   'SELECT signing_secret FROM relay.webhooks';
               RESET ROLE";
    database.client.batch_execute("SET check_function_bodies = off").await.unwrap();
    run(&database, sql).await;
    assert!(database.number(not_ours).await > 20);
    let (code, _, err) = outcome(database.command(&["migrate"]));
    assert_eq!(code, 0, "{err}");
    assert_eq!(database.number(not_ours).await, 1);
    let theirs = database.client.batch_execute("SET ROLE mallory; SELECT relay.secrets()").await.unwrap_err();
    assert_eq!(theirs.code().unwrap().code(), "42501");
    // migrate gives nothing to a role that may log in.
    run(&database, "RESET ROLE; REASSIGN OWNED BY relay_owner TO postgres; ALTER ROLE relay_owner LOGIN")
        .await;
    let (code, _, err) = outcome(database.command(&["migrate"]));
    assert!(code == 0 && err.contains("ALTER ROLE relay_owner NOLOGIN"), "{code} {err}");
    assert!(err.contains("run with the rights of a superuser: relay.callable_for"), "{err}");
}

#[tokio::test]
async fn migrate_works_in_no_schema_of_somebody_elses() {
    let cluster = Cluster::start(&[]).unwrap();
    let database = Database::at(&cluster.url("postgres")).await;
    run(&database, "CREATE ROLE mallory LOGIN PASSWORD 'x'; GRANT CREATE ON DATABASE postgres TO mallory")
        .await;
    run(&database, LOOT).await;
    let sql = "CREATE SCHEMA relay;
               CREATE TABLE relay.migrations (version integer, name text, checksum text, applied_at timestamptz DEFAULT now());
               CREATE TRIGGER loot AFTER INSERT ON relay.migrations FOR EACH ROW EXECUTE FUNCTION loot.trigger();
               GRANT ALL ON SCHEMA relay TO PUBLIC; GRANT ALL ON relay.migrations TO PUBLIC";
    connect(&as_user(&database.url, "mallory", "x")).await.batch_execute(sql).await.unwrap();
    let (_, printed, _) = outcome(database.command(&["migrate", "--print"]));
    refused(&["migrate"], &database.url, &["the schema relay belongs to mallory"]);
    assert!(database.client.batch_execute(&printed).await.is_err());
    run(&database, "ROLLBACK; ALTER SCHEMA relay OWNER TO postgres").await;
    refused(
        &["migrate"],
        &database.url,
        &["relay.migrations is not as migrate made it: it belongs to mallory"],
    );
    run(&database, "ALTER TABLE relay.migrations OWNER TO postgres").await;
    refused(&["migrate"], &database.url, &["it has a trigger or a rule"]);
    assert_eq!(stolen(&database).await, "");
}

#[tokio::test]
async fn a_dba_who_is_no_superuser_migrates_with_roles_and_without() {
    let cluster = Cluster::start(&[]).unwrap();
    let admin = Database::at(&cluster.url("postgres")).await;
    for (name, rights) in [("plain", ""), ("dba", "CREATEROLE")] {
        run(&admin, &format!("CREATE ROLE {name} LOGIN PASSWORD 'x' {rights}")).await;
        run(&admin, &format!("CREATE DATABASE {name} OWNER {name}")).await;
    }
    let owners = "SELECT string_agg(DISTINCT owner::regrole::text, ' ') FROM (
            SELECT c.relowner AS owner FROM pg_class c WHERE c.relnamespace = 'relay'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
            UNION ALL SELECT p.proowner FROM pg_proc p WHERE p.pronamespace = 'relay'::regnamespace
            UNION ALL SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = 'relay') AS things";
    let owners = async |client: &Client| -> String { client.query_one(owners, &[]).await.unwrap().get(0) };
    let receiver = Receiver::good();

    // No roles may be made: it says so, and all works without.
    let url = as_user(&cluster.url("plain"), "plain", "x");
    for _ in 0..2 {
        let (code, _, err) = outcome(program(&["migrate"], &url));
        assert!(
            code == 0 && err.contains("role relay_owner is missing and plain may not create it"),
            "{err}"
        );
    }
    let plain = Database::at(&url).await;
    assert_eq!(owners(&plain.client).await, "plain");
    plain.webhook(1, &receiver.url("/")).await;
    let relay = Relay::spawn(&url, &[]).ready();
    plain.events(1, 1).await;
    plain.all_done().await;
    drop(relay);

    // Roles may be made: they are, and the maker needs no help of others, the second time too.
    let url = as_user(&cluster.url("dba"), "dba", "x");
    for _ in 0..2 {
        let (code, _, err) = outcome(program(&["migrate"], &url));
        assert!(code == 0 && !err.contains("WARN"), "{err}");
    }
    let dba = Database::at(&url).await;
    assert_eq!(owners(&dba.client).await, "relay_owner");
    run(&dba, "CREATE ROLE relay_run LOGIN PASSWORD 'x'; GRANT relay_daemon TO relay_run").await;
    dba.webhook(1, &receiver.url("/")).await;
    let daemon = as_user(&cluster.url("dba"), "relay_run", "x");
    let (code, out, err) = outcome(program(&["check"], &daemon));
    assert_eq!(code, 0, "{out}{err}");
    let _relay = Relay::spawn(&daemon, &[]).ready();
    dba.events(1, 1).await;
    dba.all_done().await;
    assert_eq!(receiver.requests().len(), 2);

    // Now there are roles, which the first one may not hand to.
    let url = as_user(&cluster.url("plain"), "plain", "x");
    let (code, _, err) = outcome(program(&["migrate"], &url));
    assert!(code == 0 && err.contains("the schema relay and its functions stay with plain"), "{err}");
    assert_eq!(owners(&plain.client).await, "plain");
}

#[tokio::test]
async fn row_level_security_is_refused_and_told_with_the_statement_that_helps() {
    let (_cluster, database, daemon) = server().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    for table in ["outbox", "webhooks", "webhook_calls", "instances", "migrations"] {
        run(&database, &format!("ALTER TABLE relay.{table} ENABLE ROW LEVEL SECURITY")).await;
        let says = format!("run ALTER TABLE relay.{table} DISABLE ROW LEVEL SECURITY");
        refused(&["run"], &daemon, &[&says]);
        refused(&["check"], &daemon, &[&says]);
        run(&database, &format!("ALTER TABLE relay.{table} DISABLE ROW LEVEL SECURITY")).await;
    }
    // The owner is not exempt from this kind, and its functions read with the owner's rights.
    run(&database, "ALTER TABLE relay.outbox ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY").await;
    refused(&["check"], &daemon, &["ALTER TABLE relay.outbox DISABLE"]);
    run(&database, "ALTER TABLE relay.outbox DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY").await;
    // A table behind a view.
    let sql =
        "CREATE TABLE hooks AS SELECT * FROM relay.webhooks; ALTER TABLE hooks ENABLE ROW LEVEL SECURITY;
               ALTER TABLE relay.webhooks RENAME TO kept; CREATE VIEW relay.webhooks AS SELECT * FROM hooks;
               ALTER VIEW relay.webhooks OWNER TO relay_owner; GRANT SELECT ON hooks TO relay_owner;
               GRANT SELECT ON relay.webhooks TO relay_daemon";
    run(&database, sql).await;
    refused(&["run"], &daemon, &["ALTER TABLE public.hooks DISABLE ROW LEVEL SECURITY", "relay_owner"]);
    run(&database, "DROP VIEW relay.webhooks; ALTER TABLE relay.kept RENAME TO webhooks").await;

    // While it runs: no row is done without its call, and /healthz says what to do.
    let relay = Relay::spawn(&daemon, &[]).ready();
    database.events(1, 1).await;
    database.all_done().await;
    run(&database, "ALTER TABLE relay.webhooks ENABLE ROW LEVEL SECURITY").await;
    database.events(1, 1).await;
    let port = relay.port();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !get(port, "/healthz").1.contains("DISABLE ROW LEVEL SECURITY") {
        assert!(Instant::now() < deadline, "{:?}", get(port, "/healthz"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!get(port, "/healthz").1.contains("GRANT relay_daemon"));
    assert_eq!(database.number("SELECT count(*) FROM relay.outbox WHERE done_at IS NULL").await, 1);
    run(&database, "ALTER TABLE relay.webhooks DISABLE ROW LEVEL SECURITY").await;
    database.all_done().await;
    assert_eq!(database.number("SELECT count(*) FROM relay.webhook_calls WHERE succeeded").await, 2);
    assert_eq!(receiver.requests().len(), 2);
}

#[tokio::test]
async fn the_daemons_role_throws_away_nothing_of_today_and_makes_no_partition_of_any_year() {
    let (_cluster, database, daemon) = server().await;
    let receiver = Receiver::good();
    database.webhook(1, &receiver.url("/")).await;
    // Calls of today that are in the default partition.
    run(&database, "DO $$ BEGIN EXECUTE 'DROP TABLE relay.webhook_calls_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD'); END $$").await;
    let relay = Relay::spawn(&daemon, &[]).ready();
    database.events(1, 3).await;
    database.all_done().await;
    // Its retention may be moving them to a partition that it makes. Nothing of that goes on below.
    relay.kill();
    database.eventually("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'relay_run')").await;
    run(&database, "CREATE TEMP TABLE log AS TABLE relay.webhook_calls").await;
    let lost =
        "SELECT count(*) FROM log l WHERE NOT EXISTS (SELECT FROM relay.webhook_calls c WHERE c.id = l.id)";
    let stray = "INSERT INTO relay.webhook_calls_default
                 SELECT (jsonb_populate_record(c, jsonb_build_object('id', 1000, 'start_time', now() + interval '20 days'))).*
                   FROM relay.webhook_calls c LIMIT 1; INSERT INTO log SELECT * FROM relay.webhook_calls_default";
    run(&database, stray).await;
    let session = connect(&daemon).await;
    let partitions = database.number("SELECT count(*) FROM pg_inherits").await;
    session.batch_execute("SELECT relay.delete_stray_calls('infinity', 10000)").await.unwrap();
    for call in [
        "delete_stray_calls('infinity', NULL)",
        "delete_stray_calls('infinity', 0)",
        "delete_stray_calls('infinity', -1)",
        "delete_stray_calls('infinity', 2147483647)",
        "delete_stray_calls(NULL, 1)",
        "drop_call_partition(NULL, 'infinity')",
        "drop_call_partition('webhook_calls_20200101', NULL)",
        "make_call_partition('infinity')",
        "make_call_partition('-infinity')",
        "make_call_partition('1999-01-01')",
        "make_call_partition('5874897-12-31')",
        "make_call_partition((now() AT TIME ZONE 'UTC')::date + 8)",
        "make_call_partition((now() AT TIME ZONE 'UTC')::date - 401)",
        "make_call_partition(NULL)",
    ] {
        let refused = session.batch_execute(&format!("SELECT relay.{call}")).await.unwrap_err();
        assert_eq!(&refused.code().unwrap().code()[..2], "22", "{call}: {refused:?}");
    }
    for day in -1..=7 {
        let sql = format!(
            "SELECT relay.drop_call_partition('webhook_calls_' || to_char((now() AT TIME ZONE 'UTC')::date + {day}, 'YYYYMMDD'), 'infinity')"
        );
        session.batch_execute(&sql).await.unwrap();
    }
    assert_eq!(database.number(lost).await, 0);
    assert!(database.number("SELECT count(*) FROM pg_inherits").await >= partitions);
    // What it is for.
    run(
        &database,
        "UPDATE relay.webhook_calls_default SET start_time = now() - interval '3 days' WHERE id = 1000",
    )
    .await;
    let deleted = session.query_one("SELECT relay.delete_stray_calls('infinity', 10)", &[]).await.unwrap();
    assert_eq!(deleted.get::<_, i64>(0), 1);
}
