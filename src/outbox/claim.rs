//! Rows in hand: claims them, gives them back, adopts them. Never decides which rows to claim, nor when: the
//! caller names the cursor, the projects to park and the dead.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::error::Result;
use crate::model::event::{Event, Secret, Webhook};
use crate::model::row::{Claimed, Owned, Paused, Unmet};
use crate::model::snapshot::Snapshot;
use crate::model::trace_context::TraceParent;
use crate::outbox::Store;

/// What is delivered and logged of each text of an event, as documented for users. `claim.sql` fetches one character
/// more, so that a longer text is seen, and `relay.cut_text` cuts at the same length what is logged.
const EVENT_TEXT_BYTES_MAX: usize = 8192;

/// 9999-12-31 23:59:59 UTC: the last second that a payload's timestamp can say. The trigger `outbox_valid` refuses later ones,
/// but who updates a row by hand passes it by.
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

/// What a claim returned.
#[derive(Debug, Default)]
pub struct Claim {
    /// In order of id.
    pub rows: Vec<Claimed>,
    /// There may be more: the texts of these rows were as much as one claim takes.
    pub more: bool,
}

impl Store {
    /// Claims up to `limit` rows with ids above `cursor`, in order of id. The texts of the rows have at most
    /// `text_bytes_max` bytes, but for one row that alone has more. Rows of the projects in `park` are parked
    /// instead, and rows of the `dead` epochs are taken over. See `claim.sql`.
    pub async fn claim(
        &self,
        cursor: i64,
        dead: &[i64],
        limit: usize,
        epoch: i64,
        park: &[i64],
        text_bytes_max: i64,
    ) -> Result<Claim> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = include_str!("../../sql/queries/claim/claim.sql");
        let rows = self
            .rows("claiming rows", sql, &[&cursor, &dead, &limit, &epoch, &park, &text_bytes_max])
            .await?;
        Ok(gather(&rows, epoch, text_bytes_max))
    }

    /// The id of the first row above `cursor` that a claim would find, if there is one. See `head.sql`.
    pub async fn head(&self, cursor: i64, dead: &[i64]) -> Result<Option<i64>> {
        let sql = include_str!("../../sql/queries/claim/head.sql");
        let rows = self.rows("looking at the head of the queue", sql, &[&cursor, &dead]).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    /// Claims the oldest parked rows of each project, at most as many as the project's number in `capacities`. The
    /// bound of the texts is that of [`Store::claim`]. See `claim_parked.sql`.
    pub async fn claim_parked(
        &self,
        projects: &[i64],
        capacities: &[i64],
        dead: &[i64],
        epoch: i64,
        text_bytes_max: i64,
    ) -> Result<Claim> {
        let sql = include_str!("../../sql/queries/claim/claim_parked.sql");
        let rows = self
            .rows("claiming parked rows", sql, &[&projects, &capacities, &dead, &epoch, &text_bytes_max])
            .await?;
        Ok(gather(&rows, epoch, text_bytes_max))
    }

    /// Projects that have parked rows, at most `limit`, in order.
    pub async fn parked_projects(&self, limit: i64) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/claim/parked_projects.sql");
        let rows = self.rows("finding parked rows", sql, &[&limit]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Gives back claimed rows whose calls have not begun, and wakes a sleeping peer. A dead instance had the
    /// `repeated` ones in hand before; with `park` the rows are parked. Returns how many were still ours.
    pub async fn give_back(&self, epoch: i64, ids: &[i64], repeated: &[i64], park: bool) -> Result<i64> {
        let sql = include_str!("../../sql/queries/claim/give_back.sql");
        Ok(self.one("giving rows back", sql, &[&ids, &epoch, &repeated, &park]).await?.get(0))
    }

    /// Adopts rows in hand: stamps those of our `older` epochs with `new`. Returns the ids of the rows that are still ours.
    pub async fn adopt(&self, claims: &[Owned], older: &[i64], new: i64) -> Result<Vec<i64>> {
        let sql = include_str!("../../sql/queries/claim/adopt.sql");
        let ids: Vec<i64> = claims.iter().map(|claim| claim.id).collect();
        let event_ids: Vec<Uuid> = claims.iter().map(|claim| claim.event_id).collect();
        let previous: Vec<Option<i64>> = claims.iter().map(|claim| claim.previous).collect();
        let parameters: &[&(dyn ToSql + Sync)] = &[&ids, &event_ids, &previous, &older, &new];
        let rows = self.rows("taking over our own rows", sql, parameters).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Which transactions are running.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let row =
            self.one("taking a snapshot", include_str!("../../sql/queries/claim/snapshot.sql"), &[]).await?;
        Ok(Snapshot { xmin: row.get("xmin"), xmax: row.get("xmax") })
    }
}

/// Makes one value of each outbox row that a claim returned. Rows of a project share its webhooks. Takes columns by
/// position, as `claim.sql` and `claim_parked.sql` have them, because finding them by name takes longer than reading
/// them.
fn gather(rows: &[Row], epoch: i64, text_bytes_max: i64) -> Claim {
    let mut webhooks: HashMap<(i64, &str), Vec<Met>> = HashMap::new();
    for row in rows {
        // A view over other tables may have nulls: a webhook without an id is no webhook.
        if row.get::<_, &str>(0) == "webhook"
            && let Some(id) = row.get::<_, Option<i64>>(1)
        {
            let event = (row.get(4), row.get(3));
            webhooks.entry(event).or_default().push((Arc::new(webhook(id, row, 21)), row.get(26)));
        }
    }
    let none = Targets::default();
    let mut messages = Messages::default();
    let targets: HashMap<(i64, &str), Targets> = webhooks
        .into_iter()
        .map(|(event, mut webhooks)| {
            webhooks.sort_unstable_by_key(|(webhook, _)| webhook.id);
            (event, Targets::new(webhooks, &mut messages))
        })
        .collect();
    let of = |row: &Row| {
        let all = targets.get(&(row.get(4), row.get(3))).unwrap_or(&none);
        match row.get::<_, Option<i64>>(18) {
            None => all.clone(),
            Some(only) => all.only(only),
        }
    };
    // Enabled webhooks, each by its project alone and with its id. Made only when a row meets none: that costs the others
    // nothing.
    let mut enabled: Option<HashSet<(i64, Option<i64>)>> = None;
    let mut text_bytes = 0;
    let mut claimed: Vec<Claimed> = Vec::with_capacity(rows.len());
    for row in rows.iter().filter(|row| row.get::<_, &str>(0) == "row") {
        let (id, parked) = (row.get(1), row.get(2));
        let mut event = event(row);
        let (is_longer, bytes) = event.cut_texts(EVENT_TEXT_BYTES_MAX);
        text_bytes += bytes;
        let met = if parked { none.clone() } else { of(row) };
        let unmet = (met.is_empty() && !parked).then(|| {
            let of_project = |((project, _), all): (&(i64, &str), &Targets)| {
                let ids: Vec<_> = all.ids().map(|id| (*project, Some(id))).collect();
                ids.into_iter().chain([(*project, None)])
            };
            let enabled = enabled.get_or_insert_with(|| targets.iter().flat_map(of_project).collect());
            let only: Option<i64> = row.get(18);
            Unmet::new(only, enabled.contains(&(event.project_id, only)))
        });
        claimed.push(Claimed {
            id,
            epoch,
            parked,
            previous: row.get(20),
            event,
            cut: is_longer || row.get(19),
            webhooks: met.webhooks,
            paused: met.paused,
            unmet,
        });
    }
    claimed.sort_unstable_by_key(|row| row.id);
    Claim { rows: claimed, more: i64::try_from(text_bytes).unwrap_or(i64::MAX) > text_bytes_max }
}

/// An enabled webhook, and the pause that keeps it from being called, as `claim.sql` returns it.
type Met<'rows> = (Arc<Webhook>, Option<&'rows str>);

/// The webhooks of a project for an event: those to call, and those that are paused.
#[derive(Clone, Default)]
struct Targets {
    webhooks: Arc<[Arc<Webhook>]>,
    paused: Arc<[Paused]>,
}

impl Targets {
    /// Tells the webhooks that are to be called from those with a pause.
    fn new<'rows>(
        webhooks: Vec<(Arc<Webhook>, Option<&'rows str>)>,
        messages: &mut Messages<'rows>,
    ) -> Targets {
        let (mut to_call, mut paused) = (Vec::with_capacity(webhooks.len()), Vec::new());
        for (webhook, pause) in webhooks {
            match pause {
                Some(pause) => paused.push(Paused { webhook, message: messages.of(pause) }),
                None => to_call.push(webhook),
            }
        }
        Targets { webhooks: to_call.into(), paused: paused.into() }
    }

    fn is_empty(&self) -> bool {
        self.webhooks.is_empty() && self.paused.is_empty()
    }

    /// The ids of all of them.
    fn ids(&self) -> impl Iterator<Item = i64> {
        self.webhooks.iter().chain(self.paused.iter().map(|paused| &paused.webhook)).map(|webhook| webhook.id)
    }

    /// The one of this id, if it is there.
    fn only(&self, id: i64) -> Targets {
        Targets {
            webhooks: self.webhooks.iter().filter(|webhook| webhook.id == id).cloned().collect(),
            paused: self.paused.iter().filter(|paused| paused.webhook.id == id).cloned().collect(),
        }
    }
}

/// What the records of calls say that are not made for a pause, each text once: a project may have thousands of webhooks.
#[derive(Default)]
struct Messages<'rows>(HashMap<&'rows str, Arc<str>>);

impl<'rows> Messages<'rows> {
    /// Of a pause as `claim.sql` returns it.
    fn of(&mut self, pause: &'rows str) -> Arc<str> {
        self.0.entry(pause).or_insert_with(|| message(pause).into()).clone()
    }
}

fn message(pause: &str) -> String {
    match pause.split_once(": ").unwrap_or((pause, "")) {
        (whose, "") => format!("the {whose} is paused: nothing was sent"),
        (whose, reason) => format!("the {whose} is paused, nothing was sent: {reason}"),
    }
}

fn event(row: &Row) -> Event {
    let event_id: Uuid = row.get(23);
    let trace_id = row.get::<_, Option<String>>(24);
    Event {
        event_id,
        trace_id: trace_id.unwrap_or_else(|| event_id.simple().to_string()),
        traceparent: row.get::<_, Option<&str>>(25).and_then(TraceParent::parse),
        event: row.get(3),
        project_id: row.get(4),
        prompt_id: row.get(5),
        user_id: row.get(6),
        result: row.get(7),
        finished_at: row.get::<_, SystemTime>(8).clamp(UNIX_EPOCH, UNIX_EPOCH + LAST_SECOND),
        duration_ms: row.get(9),
        prompt_tokens: row.get(10),
        completion_tokens: row.get(11),
        total_tokens: row.get(12),
        cached: row.get(13),
        ip: row.get(14),
        user_agent: row.get(15),
        provider_id: row.get(16),
        provider_default_model: row.get(17),
    }
}

/// A webhook from a row with its URL in the column `url` and its secret in the next.
pub(super) fn webhook(id: i64, row: &Row, url: usize) -> Webhook {
    Webhook {
        id,
        // A view over other tables may have nulls here; an empty URL becomes a logged bad_url.
        url: row.get::<_, Option<String>>(url).unwrap_or_default(),
        signing_secret: row.get::<_, Option<String>>(url + 1).map(Secret),
    }
}
