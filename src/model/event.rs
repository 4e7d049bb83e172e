//! What the application puts into the outbox, and what the receivers get: the event and its payload.
//!
//! Plain data; knows neither HTTP nor Postgres. The payload is the specification of the webhook guide
//! (`docs/receivers.md`): the same keys in the same order.

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;
use uuid::Uuid;

use crate::model::text::cut;
use crate::model::trace_context::TraceParent;

/// The events that there are: constraints of `relay.outbox` and `relay.webhooks` take these names only.
pub(crate) const EVENTS: [&str; 1] = ["onPromptFinished"];

/// A row of `relay.outbox`, as far as its calls need it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Who the event is, for ever.
    pub event_id: Uuid,
    /// The event's name, `onPromptFinished`.
    pub event: String,
    /// Ties the calls of one execution together; the beginning of a long one.
    pub trace_id: String,
    /// The execution's trace context, if the application gave a valid one.
    pub traceparent: Option<TraceParent>,
    /// Project of the prompt.
    pub project_id: i64,
    /// The prompt that ran.
    pub prompt_id: i64,
    /// Who ran it.
    pub user_id: String,
    /// 0 success, 1 failure.
    pub result: i16,
    /// When the execution finished.
    pub finished_at: SystemTime,
    /// How long it took, in milliseconds.
    pub duration_ms: i64,
    /// Tokens of the prompt.
    pub prompt_tokens: i32,
    /// Tokens of the answer.
    pub completion_tokens: i32,
    /// Tokens in all; none is the sum.
    pub total_tokens: Option<i32>,
    /// Whether the answer came from the cache.
    pub cached: bool,
    /// Of the client that ran the prompt; free text.
    pub ip: String,
    /// Of the client that ran the prompt; free text.
    pub user_agent: String,
    /// The AI provider, when known.
    pub provider_id: Option<i64>,
    /// Its default model, when known.
    pub provider_default_model: Option<String>,
}

/// The guide's JSON object; serde writes the fields in this order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'a> {
    event: &'a str,
    project_id: i64,
    prompt_id: i64,
    user_id: &'a str,
    result: i16,
    timestamp: String,
    duration: i64,
    tokens: Tokens,
    cached: bool,
    ip: &'a str,
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_default_model: Option<&'a str>,
}

#[derive(Serialize)]
struct Tokens {
    prompt: i32,
    completion: i32,
    total: i64,
}

impl Event {
    /// The body of the POST: compact JSON, keys in the guide's order, `timestamp` in UTC with whole seconds.
    pub fn payload(&self) -> String {
        let payload = Payload {
            event: &self.event,
            project_id: self.project_id,
            prompt_id: self.prompt_id,
            user_id: &self.user_id,
            result: self.result,
            timestamp: humantime::format_rfc3339_seconds(self.finished_at).to_string(),
            duration: self.duration_ms,
            tokens: Tokens {
                prompt: self.prompt_tokens,
                completion: self.completion_tokens,
                total: self.total_tokens.map_or_else(
                    || i64::from(self.prompt_tokens) + i64::from(self.completion_tokens),
                    i64::from,
                ),
            },
            cached: self.cached,
            ip: &self.ip,
            user_agent: &self.user_agent,
            provider_id: self.provider_id,
            provider_default_model: self.provider_default_model.as_deref(),
        };
        serde_json::to_string(&payload).expect("a struct of numbers and strings has a JSON form")
    }

    /// Cuts each free text to `most` bytes at most, between two characters. Returns whether one was longer, and at
    /// most how many bytes they have then.
    pub fn cut_texts(&mut self, most: usize) -> (bool, usize) {
        let texts = [&mut self.user_id, &mut self.ip, &mut self.user_agent];
        let (mut is_longer, mut bytes) = (false, 0);
        for text in texts.into_iter().chain(&mut self.provider_default_model) {
            bytes += text.len().min(most);
            is_longer |= cut(text, most);
        }
        (is_longer, bytes)
    }
}

/// A webhook to call, as the claim found it.
#[derive(Clone)]
pub struct Webhook {
    /// `relay.webhooks.id`.
    pub id: i64,
    /// The URL, as the customer typed it.
    pub url: String,
    /// Signs the calls when set.
    pub signing_secret: Option<Secret>,
}

impl fmt::Debug for Webhook {
    /// Shows no URL, which may have a password in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A text that never shows itself in logs and errors.
#[derive(Clone)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// The event of the guide's example.
    fn example() -> Event {
        Event {
            event_id: Uuid::nil(),
            event: "onPromptFinished".into(),
            trace_id: "t".into(),
            traceparent: None,
            project_id: 123,
            prompt_id: 456,
            user_id: "user-123".into(),
            result: 0,
            finished_at: UNIX_EPOCH + Duration::from_millis(1_705_314_600_999),
            duration_ms: 1250,
            prompt_tokens: 150,
            completion_tokens: 300,
            total_tokens: None,
            cached: false,
            ip: "192.168.1.1".into(),
            user_agent: "Mozilla/5.0...".into(),
            provider_id: Some(789),
            provider_default_model: Some("gpt-4".into()),
        }
    }

    #[test]
    fn the_payload_is_the_guides_example() {
        assert_eq!(
            example().payload(),
            concat!(
                r#"{"event":"onPromptFinished","projectId":123,"promptId":456,"userId":"user-123","result":0,"#,
                r#""timestamp":"2024-01-15T10:30:00Z","duration":1250,"#,
                r#""tokens":{"prompt":150,"completion":300,"total":450},"cached":false,"ip":"192.168.1.1","#,
                r#""userAgent":"Mozilla/5.0...","providerId":789,"providerDefaultModel":"gpt-4"}"#
            )
        );
    }

    #[test]
    fn an_unknown_provider_is_left_out() {
        let event = Event { provider_id: None, provider_default_model: None, ..example() };
        assert!(event.payload().ends_with(r#""userAgent":"Mozilla/5.0..."}"#));
    }

    #[test]
    fn totals_beyond_an_integer_are_still_sums() {
        let event = Event { prompt_tokens: i32::MAX, completion_tokens: i32::MAX, ..example() };
        assert!(event.payload().contains(r#""total":4294967294"#));
        let event = Event { total_tokens: Some(7), ..example() };
        assert!(event.payload().contains(r#""total":7"#));
    }

    #[test]
    fn a_secret_does_not_show() {
        let url = "http://user:p4ss@a/".into();
        let shown = format!("{:?}", Webhook { id: 1, url, signing_secret: Some(Secret("s3cr3t".into())) });
        assert!(!shown.contains("s3cr3t") && !shown.contains("p4ss"), "{shown}");
    }
}
