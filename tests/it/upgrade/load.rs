//! Several sessions that insert for as long as a test wants, and the books of what became of the rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use test_support::http::Message;

use crate::support::{Database, Reply, connect};

/// Sessions that insert.
const SESSIONS: usize = 4;
/// The pause of a session after each insert: a load that two daemons carry on a busy machine.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a call takes: so there are calls in flight when a daemon is killed.
const CALL: Duration = Duration::from_millis(20);

/// The receiver's answer.
pub fn answer(_: &Message) -> Reply {
    thread::sleep(CALL);
    Reply::status(200)
}

/// Sessions that insert. No insert may fail.
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Inserted>>,
}

/// What a session, or all of them, have inserted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inserted {
    pub rows: i64,
    /// How long the longest transaction took.
    pub longest: Duration,
}

impl Writers {
    /// Starts the sessions, on threads of their own: the test waits on its thread.
    pub fn start(url: &str) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |_| {
            let (url, stop) = (url.to_owned(), stop.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            thread::spawn(move || runtime.block_on(insert(&url, &stop)))
        };
        Writers { threads: (0..SESSIONS).map(start).collect(), stop }
    }

    /// Waits until each row that is committed by now, and some more, are done.
    pub async fn delivered(&self, database: &Database) {
        let last = database.number("SELECT coalesce(max(id), 0) FROM relay.outbox").await + 100;
        assert!(self.threads.iter().all(|thread| !thread.is_finished()), "an insert failed");
        database.eventually(&format!("SELECT count(*) > 0 FROM relay.outbox WHERE id > {last}")).await;
        database
            .eventually(&format!(
                "SELECT NOT EXISTS (SELECT FROM relay.outbox WHERE id <= {last} AND done_at IS NULL)"
            ))
            .await;
    }

    /// Ends the sessions after their transactions.
    pub fn stop(self) -> Inserted {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.threads.into_iter().map(|thread| thread.join().expect("no insert fails"));
        all.fold(Inserted::default(), |sum, one| Inserted {
            rows: sum.rows + one.rows,
            longest: sum.longest.max(one.longest),
        })
    }
}

async fn insert(url: &str, stop: &AtomicBool) -> Inserted {
    let client = connect(url).await;
    let sql = "INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, duration_ms, prompt_tokens, completion_tokens)
               VALUES (1, 1, 'user', 0, 1, 1, 1), (2, 1, 'user', 0, 1, 1, 1)";
    let mut inserted = Inserted::default();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        inserted.rows += i64::try_from(client.execute(sql, &[]).await.unwrap()).unwrap();
        inserted.longest = inserted.longest.max(start.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    inserted
}

/// What the database has of rows and calls, and the receiver of POSTs.
pub struct Books {
    rows: i64,
    /// Rows whose calls on record are not one for each webhook.
    wrong: i64,
    /// Whether a call is marked as repeated, by its `webhook-id`.
    records: HashMap<String, bool>,
    /// Which daemons posted, by `webhook-id`, in order.
    posts: HashMap<String, Vec<String>>,
}

impl Books {
    pub async fn of(database: &Database, requests: &[Message]) -> Books {
        let wrong = "SELECT count(*) FROM relay.outbox o
                      WHERE (SELECT array_agg(c.webhook_id ORDER BY c.webhook_id) FROM relay.webhook_calls c
                              WHERE c.outbox_id = o.id AND c.event_id = o.event_id)
                            IS DISTINCT FROM
                            (SELECT array_agg(w.id ORDER BY w.id) FROM relay.webhooks w WHERE w.project_id = o.project_id)";
        let records = "SELECT format('msg_%s_%s', replace(event_id::text, '-', ''), webhook_id), repeated FROM relay.webhook_calls";
        let records = database.client.query(records, &[]).await.unwrap();
        let mut posts: HashMap<String, Vec<String>> = HashMap::new();
        for request in requests {
            let agent = request.header("user-agent").unwrap();
            let daemon = agent.strip_prefix("PromptPal-Webhook@").unwrap().to_owned();
            posts.entry(request.header("webhook-id").unwrap().to_owned()).or_default().push(daemon);
        }
        Books {
            rows: database.number("SELECT count(*) FROM relay.outbox").await,
            wrong: database.number(wrong).await,
            records: records.iter().map(|row| (row.get(0), row.get(1))).collect(),
            posts,
        }
    }

    /// Each row was delivered, once; or twice, if one of these daemons was killed with it in hand, and then marked.
    pub fn require_right(&self, inserted: Inserted, killed: &[&str]) {
        assert_eq!(
            (self.rows, self.wrong),
            (inserted.rows, 0),
            "rows, and those with another number of records"
        );
        assert_eq!(self.records.len(), self.posts.len(), "calls on record, and calls that were received");
        let mut repeats = 0;
        for (id, daemons) in &self.posts {
            let repeated =
                *self.records.get(id).unwrap_or_else(|| panic!("{id} was posted and is not on record"));
            let before = &daemons[..daemons.len() - 1];
            assert!(before.iter().all(|daemon| killed.contains(&daemon.as_str())), "{id}: {daemons:?}");
            assert!(before.is_empty() || repeated, "{id} was posted by {daemons:?}, and is not marked");
            repeats += before.len();
        }
        let by = |part: &str| self.posts.values().flatten().filter(|daemon| daemon.contains(part)).count();
        println!(
            "{} rows, {} calls ({} by old daemons, {} by new ones), {repeats} repeated and marked; the longest insert took {:?}",
            self.rows,
            self.records.len(),
            by("old"),
            by("new"),
            inserted.longest
        );
        assert!(by("old") > 0 && by("new") > 0);
    }
}
