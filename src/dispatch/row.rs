//! A row in hand, and its calls as jobs.
//!
//! While a row waits or has calls to make, it changes under the pool's lock only. The locks and atomics here let the jobs
//! share it. Records of calls that are not made are made without the pool's lock: nothing else reaches their row any more.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::call::{Call, ErrorKind};
use crate::model::event::Webhook;
use crate::model::memory::{Held, Memory, Room, Share};
use crate::model::message::Message;
use crate::model::row::{ClaimKey, Claimed, Finished, Paused};

/// Memory of a row in hand, besides its payload: the row itself, what the queues keep of it, and the daemon's entry for it.
const ROW_BYTES: usize = 512;
/// Memory of a call, besides its URL and its answer: the job, the record, the request's headers.
pub(super) const CALL_BYTES: usize = size_of::<Job>() + size_of::<Call>() + 512;
/// While others need memory, a row that began longer ago keeps less of its answers. Most calls end much sooner.
pub(super) const OLD: Duration = Duration::from_millis(500);

/// Why the calls of a row are not made.
pub(super) type Skipped = (ErrorKind, &'static str);

/// A row in hand.
pub(super) struct Row {
    pub(super) id: i64,
    /// The epoch that it was claimed under.
    pub(super) epoch: i64,
    pub(super) project_id: i64,
    trace_id: String,
    pub(super) repeated: bool,
    /// The event's texts were cut.
    cut: bool,
    /// Its calls are not made; their records say this.
    pub(super) skipped: Option<Skipped>,
    pub(super) message: Message,
    /// The webhooks to call.
    pub(super) webhooks: Arc<[Arc<Webhook>]>,
    /// Webhooks that are not called; their records say why.
    paused: Arc<[Paused]>,
    /// Written as the calls end; the last one takes all of it along.
    unfinished: Mutex<Unfinished>,
    /// Calls that have started and were not requeued.
    started: AtomicUsize,
    /// The row is not ours any more: it never goes out.
    abandoned: AtomicBool,
}

/// What there is of a row that has not ended.
pub(super) struct Unfinished {
    pub(super) calls: Vec<Call>,
    /// The row's memory, but for that of calls that have not ended.
    pub(super) held: Held,
    /// When it was admitted.
    pub(super) since: Option<Instant>,
    /// What it was admitted with.
    pub(super) admitted_bytes: usize,
}

impl Row {
    /// A row that was claimed. Makes the payload, and holds the memory for it.
    pub(super) fn new(claimed: Claimed, skipped: Option<Skipped>, memory: &Arc<Memory>) -> Row {
        let repeated = claimed.repeated();
        let event = claimed.event;
        let body: Arc<str> = event.payload().into();
        let held = memory.hold(ROW_BYTES + body.len());
        Row {
            id: claimed.id,
            epoch: claimed.epoch,
            project_id: event.project_id,
            trace_id: event.trace_id,
            repeated,
            cut: claimed.cut,
            skipped,
            message: Message { event_id: event.event_id, body, traceparent: event.traceparent },
            webhooks: claimed.webhooks,
            paused: claimed.paused,
            unfinished: Mutex::new(Unfinished { calls: Vec::new(), held, since: None, admitted_bytes: 0 }),
            started: AtomicUsize::new(0),
            abandoned: AtomicBool::new(false),
        }
    }

    /// Which claim of which row.
    pub(super) fn key(&self) -> ClaimKey {
        ClaimKey { id: self.id, epoch: self.epoch, event_id: self.message.event_id }
    }

    pub(super) fn unfinished(&self) -> MutexGuard<'_, Unfinished> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the calls and the memory out: the row goes out, or is given up.
    pub(super) fn finished(&self) -> Finished {
        let mut unfinished = self.unfinished();
        Finished {
            id: self.id,
            epoch: self.epoch,
            event_id: self.message.event_id,
            project_id: self.project_id,
            trace_id: self.trace_id.clone(),
            repeated: self.repeated,
            calls: std::mem::take(&mut unfinished.calls),
            held: unfinished.held.take(),
            aside: false,
        }
    }

    /// As [`Row::finished`], with the records of the calls that are not made. Takes time, so not under the pool's lock.
    pub(super) fn finished_with_unmade(&self) -> Finished {
        let mut finished = self.finished();
        let call = |webhook: &Arc<Webhook>, kind, message: &str| {
            self.logged(Call::unanswered(webhook, &self.message.body, kind, message))
        };
        let paused = self.paused.iter();
        match self.skipped {
            Some((kind, message)) => {
                let webhooks = self.webhooks.iter().chain(paused.map(|paused| &paused.webhook));
                finished.calls.extend(webhooks.map(|webhook| call(webhook, kind, message)));
            }
            None => finished
                .calls
                .extend(paused.map(|paused| call(&paused.webhook, ErrorKind::Paused, &paused.message))),
        }
        finished
    }

    /// Whether no webhook is to be called: it goes out as soon as there is memory for its records.
    pub(super) fn makes_no_calls(&self) -> bool {
        self.skipped.is_some() || self.webhooks.is_empty()
    }

    /// Whether it has no webhook at all, and so no record.
    pub(super) fn has_no_webhook(&self) -> bool {
        self.webhooks.is_empty() && self.paused.is_empty()
    }

    /// What its calls need, besides the payload; never more than `most`, even for tens of thousands of calls. A row that needs
    /// all of the memory would begin alone, and the others would wait for minutes.
    pub(super) fn need(&self, share: Share, most: usize) -> usize {
        let urls: usize = self.webhooks.iter().map(|webhook| 2 * webhook.url.len()).sum();
        let answer = if self.skipped.is_some() { 0 } else { share.sure };
        let unmade = |paused: &Paused| 2 * paused.webhook.url.len() + paused.message.len() + CALL_BYTES;
        let paused: usize = self.paused.iter().map(unmade).sum();
        (urls + paused + self.webhooks.len() * (CALL_BYTES + answer)).min(most)
    }

    /// A call as its log has it.
    pub(super) fn logged(&self, mut call: Call) -> Call {
        if self.cut {
            call.note("texts of the event are longer than 8 KiB and were cut");
        }
        call
    }

    /// Whether it was admitted so long ago that it keeps less of its answers when memory is short.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        self.unfinished().since.is_some_and(|since| now.saturating_duration_since(since) > OLD)
    }

    /// One of its calls starts.
    pub(super) fn note_start(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// A call of it that had started was not made.
    pub(super) fn take_back_start(&self) {
        self.started.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether one of its calls has started.
    pub(super) fn has_begun(&self) -> bool {
        self.started.load(Ordering::Relaxed) > 0
    }

    /// Gives the row up. False: it was given up before.
    pub(super) fn abandon(&self) -> bool {
        !self.abandoned.swap(true, Ordering::Relaxed)
    }

    /// Whether the row was given up.
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

/// One call of a row.
pub(super) struct Job {
    pub(super) row: Arc<Row>,
    pub(super) webhook: Arc<Webhook>,
    pub(super) room: Room,
}

/// The claim of the row that [`claimed`] makes.
#[cfg(test)]
pub(super) fn key(id: i64) -> ClaimKey {
    ClaimKey { id, epoch: 1, event_id: event_id(id) }
}

#[cfg(test)]
fn event_id(id: i64) -> uuid::Uuid {
    uuid::Uuid::from_u128(u128::try_from(id).expect("tests count from 1"))
}

/// A row of project 1 as a claim returns it, for tests.
#[cfg(test)]
pub(super) fn claimed(id: i64, webhooks: &[i64]) -> Claimed {
    let event = crate::model::event::Event {
        event_id: event_id(id),
        trace_id: "t".into(),
        traceparent: None,
        event: "onPromptFinished".into(),
        project_id: 1,
        prompt_id: 1,
        user_id: "u".into(),
        result: 0,
        finished_at: std::time::SystemTime::now(),
        duration_ms: 1,
        prompt_tokens: 1,
        completion_tokens: 1,
        total_tokens: None,
        cached: false,
        ip: String::new(),
        user_agent: String::new(),
        provider_id: None,
        provider_default_model: None,
    };
    let webhook = |id: &i64| Arc::new(Webhook { id: *id, url: "http://a/".into(), signing_secret: None });
    Claimed {
        id,
        epoch: 1,
        parked: false,
        previous: None,
        event,
        cut: false,
        webhooks: webhooks.iter().map(webhook).collect(),
        paused: Arc::default(),
        unmet: None,
    }
}

/// A row that has paused webhooks besides, for tests.
#[cfg(test)]
pub(super) fn with_paused(row: Claimed, paused: &[i64]) -> Claimed {
    let paused = claimed(row.id, paused).webhooks;
    let pause = |webhook: &Arc<Webhook>| Paused { webhook: webhook.clone(), message: "paused".into() };
    Claimed { paused: paused.iter().map(pause).collect(), ..row }
}
