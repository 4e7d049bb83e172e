//! Three relays and a writer work while the test kills, freezes, cuts off and restarts things at random. Afterwards the
//! books must be right. A few of the rows have hundreds of webhooks, long answers or long texts, and no relay may
//! take more memory than is promised.
//!
//! `CHAOS_SECONDS` makes it longer, `CHAOS_SEED` repeats a schedule: what is done when, and what the writer writes.

use std::collections::HashMap;
use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use promptpal_relay::inside::demo::{Cluster, Stop};
use tokio_postgres::{Client, NoTls};

use crate::memory::{KIB, MIB, PEAK};
use crate::support::{Database, Receiver, Relay, Reply, connect, memory_peak};

const RELAYS: usize = 3;
/// Prompt ids of transactions that roll back begin here.
const ROLLED_BACK: i64 = 1_000_000_000;
/// Projects with many webhooks, and how many.
const WIDE: [(i64, i64); 2] = [(5, 40), (6, 300)];
/// How much of an answer a relay keeps (`--max-response-body`), and of a row that is slow while memory is short.
const KEPT: usize = 64 * KIB;
const KEPT_WHILE_SHORT: usize = KIB;

// ---- the schedule -------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
enum Action {
    /// SIGKILL; it is started again at once.
    Kill(usize),
    /// SIGTERM; it is started again when it has drained.
    Drain(usize),
    /// SIGSTOP for a time. With `cut` its sessions are ended meanwhile, so that a peer takes its rows.
    Freeze { slot: usize, millis: u64, cut: bool },
    /// SIGCONT of a frozen one.
    Thaw(usize),
    /// Ends one session of each relay.
    Terminate(&'static str),
    /// Restarts Postgres.
    Restart(Stop),
}

/// Draws the schedule from the seed alone.
fn schedule(rng: &mut Rng, length: Duration) -> Vec<(Duration, Action)> {
    let sessions = ["promptpal-relay listen", "promptpal-relay claim", "promptpal-relay finish"];
    let mut actions = Vec::new();
    let mut at = Duration::from_millis(500);
    while at < length {
        let slot = rng.usize(..RELAYS);
        let action = match rng.u8(..100) {
            0..30 => Action::Kill(slot),
            30..45 => Action::Drain(slot),
            45..65 => Action::Freeze { slot, millis: rng.u64(50..3000), cut: rng.bool() },
            65..85 => Action::Terminate(sessions[rng.usize(..sessions.len())]),
            85..93 => Action::Restart(Stop::Fast),
            _ => Action::Restart(Stop::Immediate),
        };
        actions.push((at, action));
        if let Action::Freeze { slot, millis, .. } = action {
            actions.push((at + Duration::from_millis(millis), Action::Thaw(slot)));
        }
        at += Duration::from_millis(rng.u64(50..1000));
    }
    actions.sort_by_key(|(at, _)| *at);
    actions
}

// ---- the writer ---------------------------------------------------------------------------------------------------

/// Inserts until told to stop: transactions of one to forty rows, one in ten of which rolls back. Those for the projects
/// with many webhooks are few and small: their calls are about a third of all. The writer gives up a transaction that the
/// end of Postgres interrupts; only the database knows whether it was committed.
async fn write(url: String, mut rng: Rng, stop: Arc<AtomicBool>) {
    let mut prompt_id = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            if transaction(&client, &mut rng, &mut prompt_id).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(0..30))).await;
        }
    }
}

async fn transaction(
    client: &Client,
    rng: &mut Rng,
    prompt_id: &mut i64,
) -> Result<(), tokio_postgres::Error> {
    let rolls_back = rng.u8(..10) == 0;
    let (project, rows) = match rng.u8(..100) {
        0..3 => (WIDE[0].0, rng.i64(1..=3)),
        3..6 => (WIDE[1].0, 1),
        _ => (rng.i64(1..=4), rng.i64(1..=40)),
    };
    let hold = rng.u64(0..20);
    let first = *prompt_id + if rolls_back { ROLLED_BACK } else { 0 };
    *prompt_id += rows;
    client.batch_execute("BEGIN").await?;
    let sql = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens,
                                         user_agent)
               SELECT $1::bigint, n, 'user', 0, 1, 1, 1,
                      CASE WHEN n % 300 = 17 THEN repeat('u', 2000000) WHEN n % 40 = 11 THEN repeat('u', 100000) ELSE 'u' END
                 FROM generate_series($2::bigint, $3::bigint) AS n";
    client.execute(sql, &[&project, &first, &(first + rows - 1)]).await?;
    tokio::time::sleep(Duration::from_millis(hold)).await;
    client.batch_execute(if rolls_back { "ROLLBACK" } else { "COMMIT" }).await
}

/// Keeps a history of each row, for the report when the books are wrong.
const HISTORY: &str = "
    CREATE TABLE public.history (at timestamptz, who text, id bigint, was bigint, became bigint, parked boolean, done boolean);
    CREATE FUNCTION public.write_history() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.history
        SELECT clock_timestamp(), current_setting('application_name') || ' ' || pg_backend_pid(), n.id, o.claimed_by,
               n.claimed_by, n.parked, n.done_at IS NOT NULL
          FROM was o JOIN became n USING (id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER history AFTER UPDATE ON relay.outbox REFERENCING OLD TABLE AS was NEW TABLE AS became
        FOR EACH STATEMENT EXECUTE FUNCTION public.write_history()";

/// The history of a prompt's row, and what the relays that posted it logged.
async fn story(database: &Database, slots: &[Slot], prompt_id: i64, posts: &[Post]) -> String {
    let sql = "SELECT h::text FROM public.history h JOIN relay.outbox o USING (id) WHERE o.prompt_id = $1 ORDER BY h.at";
    let rows = database.client.query(sql, &[&prompt_id]).await.unwrap();
    let mut story: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let instances =
        database.client.query("SELECT i::text FROM relay.instances i ORDER BY epoch", &[]).await.unwrap();
    story.extend(instances.iter().map(|row| row.get(0)));
    for (name, log) in
        slots.iter().flat_map(|slot| slot.logs.iter().cloned().chain([(slot.name(), slot.relay.log())]))
    {
        if posts.iter().any(|post| post.relay == name) {
            story.push(format!("---- {name}\n{log}"));
        }
    }
    story.join("\n")
}

// ---- what was seen ------------------------------------------------------------------------------------------------

/// A POST as the receiver saw it. `relay` names the process that made it.
#[derive(Clone, Debug)]
struct Post {
    at: Instant,
    relay: String,
}

/// What was done to a process that may make a peer repeat its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Harm {
    Killed,
    Frozen,
}

type Posts = HashMap<(i64, String), Vec<Post>>;

/// What the receiver answers: the status, nine times of ten 200, and how long the body is. Some rows get an answer as
/// long as it may be from each webhook; some calls get one that is far too long.
fn script(prompt_id: i64, path: &str) -> (u16, usize) {
    let number = path.rsplit_once('-').map_or(0, |(_, number)| number.parse().unwrap());
    let length = match (prompt_id % 25, (prompt_id + number) % 200) {
        (_, 7) => MIB,
        (3, _) => KEPT,
        _ => 20,
    };
    (if prompt_id % 10 == 0 { 500 } else { 200 }, length)
}

/// A receiver that answers by the script within 100 ms, and notes which relay called.
fn receiver(posts: Arc<Mutex<Posts>>) -> Receiver {
    Receiver::forgetful(move |request| {
        let at = Instant::now();
        let agent = request.header("user-agent").unwrap();
        let relay = agent.rsplit_once('@').unwrap().1.to_owned();
        let prompt_id = request.json()["promptId"].as_i64().unwrap();
        let key = (prompt_id, request.path().to_owned());
        posts.lock().unwrap().entry(key).or_default().push(Post { at, relay });
        thread::sleep(Duration::from_millis(u64::try_from(prompt_id).unwrap() * 7 % 100));
        let (status, length) = script(prompt_id, request.path());
        Reply::full(status, &[], &vec![b'x'; length])
    })
}

// ---- the relays ---------------------------------------------------------------------------------------------------

/// A place for a relay, and the process that is in it now.
struct Slot {
    number: usize,
    generation: usize,
    relay: Relay,
    frozen: bool,
    draining: bool,
    // How many rows its predecessors found to be another instance's.
    fenced: u64,
    // What its predecessors logged, by name.
    logs: Vec<(String, String)>,
    // Most memory that it or one of them took, and whose that was.
    peak: (usize, String),
}

impl Slot {
    fn start(url: &str, number: usize, generation: usize) -> Slot {
        let name = Slot::name_of(number, generation);
        let relay = Relay::spawn(url, &["--user-agent-version", &name]);
        let peak = (0, String::new());
        Slot { number, generation, relay, frozen: false, draining: false, fenced: 0, logs: Vec::new(), peak }
    }

    fn name_of(number: usize, generation: usize) -> String {
        format!("relay{number}.{generation}")
    }

    fn fenced(&self) -> u64 {
        let fenced = self.relay.journal().iter().filter_map(|line| line["fenced"].as_u64()).sum::<u64>();
        self.fenced + fenced
    }

    fn name(&self) -> String {
        Slot::name_of(self.number, self.generation)
    }

    /// Notes how much memory it takes, while it lives.
    fn measure(&mut self) {
        if self.relay.ended().is_none()
            && let Some(bytes) = memory_peak(self.relay.pid())
            && bytes > self.peak.0
        {
            self.peak = (bytes, self.name());
        }
    }

    /// Starts it again when it has ended, as systemd would.
    fn keep_alive(&mut self, url: &str) {
        self.measure();
        if let Some(status) = self.relay.ended() {
            let code = status.code();
            // 1: Postgres was away at the start or at the end of a drain. None: the test killed it.
            assert!(
                matches!(code, Some(0 | 1) | None),
                "{} ended with {status}: {}",
                self.name(),
                self.relay.log()
            );
            // Rust writes this word; a panic of a thread does not end the process.
            assert!(!self.relay.log().contains("panicked"), "{}", self.relay.log());
            let fenced = self.fenced();
            let mut logs = std::mem::take(&mut self.logs);
            logs.push((self.name(), self.relay.log()));
            let peak = std::mem::take(&mut self.peak);
            *self = Slot { fenced, logs, peak, ..Slot::start(url, self.number, self.generation + 1) };
        }
    }
}

#[tokio::test]
async fn whatever_is_killed_the_books_are_right() {
    let length = Duration::from_secs(env::var("CHAOS_SECONDS").map_or(8, |text| text.parse().unwrap()));
    let seed = env::var("CHAOS_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().unwrap());
    println!("CHAOS_SEED={seed} CHAOS_SECONDS={}", length.as_secs());
    let mut rng = Rng::with_seed(seed);
    let schedule = schedule(&mut rng, length);

    let mut cluster = Cluster::start(&[]).unwrap();
    let url = cluster.url("postgres");
    let posts = Arc::new(Mutex::new(Posts::new()));
    let receiver = receiver(posts.clone());
    let database = Database::on(&url).await;
    database.client.batch_execute(HISTORY).await.unwrap();
    // Project 1 has one webhook, 2 has three, 3 has none that is enabled, 4 has one of two.
    for (project, path) in [(1, "/a"), (2, "/b"), (2, "/c"), (2, "/d"), (3, "/off"), (4, "/e"), (4, "/off")] {
        database.webhook(project, &receiver.url(path)).await;
    }
    for (project, webhooks) in WIDE {
        for number in 1..=webhooks {
            database.webhook(project, &receiver.url(&format!("/{project}-{number}"))).await;
        }
    }
    database
        .client
        .batch_execute("UPDATE relay.webhooks SET enabled = false WHERE url LIKE '%/off'")
        .await
        .unwrap();

    let mut slots: Vec<Slot> = (0..RELAYS).map(|number| Slot::start(&url, number, 0)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    // On a thread of its own: restarting Postgres holds this one up.
    let writer = thread::spawn({
        let (url, rng, stop) = (url.clone(), rng.fork(), stop.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        move || runtime.block_on(write(url, rng, stop))
    });
    let mut harmed: HashMap<String, Vec<(Harm, Instant)>> = HashMap::new();
    let mut crashes: Vec<Instant> = Vec::new();
    let mut done: HashMap<&str, usize> = HashMap::new();

    let start = Instant::now();
    for (at, action) in schedule {
        while start.elapsed() < at {
            slots.iter_mut().for_each(|slot| slot.keep_alive(&url));
            tokio::time::sleep((at - start.elapsed().min(at)).min(Duration::from_millis(20))).await;
        }
        slots.iter_mut().for_each(Slot::measure);
        let mut harm =
            |slot: &Slot, harm| harmed.entry(slot.name()).or_default().push((harm, Instant::now()));
        let name = match action {
            Action::Kill(slot) => {
                harm(&slots[slot], Harm::Killed);
                slots[slot].relay.signal(Signal::SIGKILL);
                "kill"
            }
            Action::Drain(slot) => {
                if slots[slot].relay.ended().is_none() {
                    if std::mem::replace(&mut slots[slot].draining, true) {
                        // The second signal: it leaves at once.
                        harm(&slots[slot], Harm::Killed);
                    }
                    slots[slot].relay.signal(Signal::SIGTERM);
                }
                "drain"
            }
            Action::Freeze { slot, cut, .. } => {
                if slots[slot].relay.ended().is_none() {
                    slots[slot].frozen = true;
                    slots[slot].relay.signal(Signal::SIGSTOP);
                    harm(&slots[slot], Harm::Frozen);
                }
                if cut {
                    cut_off(&url, slots[slot].relay.pid().as_raw()).await;
                }
                "freeze"
            }
            Action::Thaw(slot) => {
                if std::mem::take(&mut slots[slot].frozen) && slots[slot].relay.ended().is_none() {
                    slots[slot].relay.signal(Signal::SIGCONT);
                }
                "thaw"
            }
            Action::Terminate(session) => {
                let sql =
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
                connect(&url).await.execute(sql, &[&session]).await.unwrap();
                "terminate"
            }
            Action::Restart(how) => {
                if how == Stop::Immediate {
                    crashes.push(Instant::now());
                }
                cluster.halt(how);
                cluster.boot().unwrap();
                if how == Stop::Immediate { "crash" } else { "restart" }
            }
        };
        *done.entry(name).or_default() += 1;
        println!("{:?} {action:?}", Instant::now());
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    for slot in &mut slots {
        slot.relay.ended().is_none().then(|| slot.relay.signal(Signal::SIGCONT));
    }
    let database = database.reconnect().await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while database.number("SELECT count(*) FROM relay.outbox WHERE done_at IS NULL").await > 0 {
        slots.iter_mut().for_each(|slot| slot.keep_alive(&url));
        let logs: String = slots.iter().map(|slot| slot.relay.log()).collect();
        assert!(Instant::now() < deadline, "rows are left\n{logs}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // Each done row has exactly one record for each enabled webhook, and there are no others.
    let rows = database.number("SELECT count(*) FROM relay.outbox").await;
    assert!(rows > 0);
    let wrong = "WITH recorded AS (
                     SELECT outbox_id, array_agg(webhook_id ORDER BY webhook_id) AS webhooks
                     FROM relay.webhook_calls GROUP BY outbox_id
                 ), wanted AS (
                     SELECT project_id, array_agg(id ORDER BY id) AS webhooks
                     FROM relay.webhooks WHERE enabled GROUP BY project_id
                 )
                 SELECT count(*) FROM relay.outbox o
                     LEFT JOIN recorded r ON r.outbox_id = o.id
                     LEFT JOIN wanted w ON w.project_id = o.project_id
                 WHERE r.webhooks IS DISTINCT FROM w.webhooks";
    assert_eq!(database.number(wrong).await, 0, "rows with records that are missing or too many");
    let strangers = "SELECT count(*) FROM relay.webhook_calls c
                     WHERE NOT EXISTS (SELECT FROM relay.outbox o WHERE o.id = c.outbox_id)";
    assert_eq!(database.number(strangers).await, 0);
    let unexpected = "SELECT (to_jsonb(c) - 'request_body' - 'response_body' - 'user_agent')::text FROM relay.webhook_calls c
                          JOIN relay.outbox o ON o.id = c.outbox_id WHERE c.succeeded <> (o.prompt_id % 10 <> 0)";
    let unexpected = database.client.query(unexpected, &[]).await.unwrap();
    let unexpected: Vec<&str> = unexpected.iter().map(|row| row.get(0)).collect();
    assert_eq!(unexpected, [""; 0], "calls with another outcome than the receiver gave");

    let cut = "SELECT count(*) FROM relay.webhook_calls c JOIN relay.outbox o ON o.id = c.outbox_id
               WHERE c.user_agent <> left(o.user_agent, 8192) OR c.request_body::jsonb ->> 'userAgent' IS DISTINCT FROM c.user_agent
                  OR (coalesce(c.error_message, '') LIKE '%8 KiB%') <> (length(o.user_agent) > 8192)";
    assert_eq!(database.number(cut).await, 0, "calls whose long text was not cut, or not marked");

    // What was posted was committed, and what was posted twice was in the hands of an instance that was harmed.
    let sql = "SELECT o.prompt_id, c.repeated, '/' || substring(c.url from '[^/]*$') AS path, c.status_code,
                      c.response_truncated, length(c.response_body) AS kept,
                      c.response_body = repeat('x', length(c.response_body)) AS right
                 FROM relay.webhook_calls c JOIN relay.outbox o ON o.id = c.outbox_id";
    let mut records: HashMap<(i64, String), bool> = HashMap::new();
    let (mut long, mut shortened) = (0, 0);
    for row in database.client.query(sql, &[]).await.unwrap() {
        let (prompt_id, path): (i64, String) = (row.get("prompt_id"), row.get("path"));
        let (status, length) = script(prompt_id, &path);
        assert_eq!(row.get::<_, i32>("status_code"), i32::from(status), "{prompt_id} {path}");
        // As much as there was, or less and marked: at the limit, for a share of the row's, or while memory is short.
        let kept = usize::try_from(row.get::<_, i32>("kept")).unwrap();
        let fits = (length.min(KEPT_WHILE_SHORT)..=length.min(KEPT)).contains(&kept);
        let told = row.get::<_, bool>("response_truncated") == (kept < length);
        assert!(fits && told && row.get("right"), "{prompt_id} {path}: {kept} of {length} are kept");
        long += usize::from(length >= KEPT);
        shortened += usize::from(kept < length.min(KEPT));
        assert!(records.insert((prompt_id, path), row.get("repeated")).is_none());
    }
    let slowest = database
        .number("SELECT extract(epoch FROM max(done_at - created_at))::bigint FROM relay.outbox")
        .await;
    let posts = std::mem::take(&mut *posts.lock().unwrap());
    let mut repeats: HashMap<Harm, usize> = HashMap::new();
    let (mut unmarked, mut longest) = (0, Duration::ZERO);
    for (key, posts) in &posts {
        let repeated = *records.get(key).unwrap_or_else(|| panic!("{key:?} was posted and is not on record"));
        for pair in posts.windows(2) {
            let last_harm = |relay: &str, before: Instant, which: &[Harm]| {
                let harms = harmed.get(relay)?.iter();
                harms.filter(|(harm, at)| which.contains(harm) && *at < before).max_by_key(|(_, at)| *at)
            };
            // A frozen process may have been cut off at any time until it was thawed. Or it was frozen with the call begun
            // and not sent, and sent it when it was thawed, after the one that took the row over.
            let cause = last_harm(&pair[0].relay, pair[1].at, &[Harm::Killed, Harm::Frozen])
                .or_else(|| last_harm(&pair[1].relay, pair[0].at, &[Harm::Frozen]));
            let Some((harm, at)) = cause else {
                let story = story(&database, &slots, key.0, posts).await;
                panic!(
                    "{key:?} was posted twice although nothing happened to either process: {posts:?}\n{story}"
                )
            };
            *repeats.entry(*harm).or_default() += 1;
            longest = longest.max(at.saturating_duration_since(pair[0].at));
            // Claims are not flushed: after a crash of the server a dead instance's last ones may be forgotten.
            let forgotten = crashes
                .iter()
                .any(|crash| pair[0].at < *crash + Duration::from_secs(5) && *crash < pair[1].at);
            if !repeated && !forgotten {
                let story = story(&database, &slots, key.0, posts).await;
                panic!("{key:?} was posted twice and is not marked: {posts:?}\n{story}");
            }
            unmarked += usize::from(!repeated);
        }
    }
    assert_eq!(records.len(), posts.len(), "calls on record that nobody received");
    assert!(records.keys().all(|(prompt_id, _)| *prompt_id < ROLLED_BACK));
    slots.iter_mut().for_each(Slot::measure);
    let (peak, name) = slots.iter().map(|slot| &slot.peak).max().unwrap();
    let fenced: u64 = slots.iter().map(Slot::fenced).sum();
    println!(
        "{rows} rows, {} calls, {done:?}; repeated after {repeats:?}, at most {longest:?} after the POST; {unmarked} of \
         them unmarked after a crash of the server; fenced {fenced}; the slowest row took {slowest} s; {long} long answers, \
         {shortened} of them kept shorter; memory: {} MiB at most ({name})",
        records.len(),
        peak / MIB
    );
    assert!(*peak < PEAK, "{name} took {} MiB", peak / MIB);
}

/// Ends the sessions of a process.
async fn cut_off(url: &str, pid: i32) {
    let sql = "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN relay.instances i ON (l.classid::bigint << 32 | l.objid::bigint) = ANY (i.locks)
               WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND i.pid = $1 AND i.dead_at IS NULL";
    connect(url).await.execute(sql, &[&pid]).await.unwrap();
}
