//! What all calls of an event have in common, whichever webhook they go to: its identity, payload and trace context.

use std::sync::Arc;

use uuid::Uuid;

use crate::model::trace_context::TraceParent;

/// What is sent to each webhook of a row.
#[derive(Clone, Debug)]
pub struct Message {
    /// `relay.outbox.event_id`: who the event is, for ever.
    pub event_id: Uuid,
    /// The payload.
    pub body: Arc<str>,
    /// The execution's trace context, if the application gave a valid one.
    pub traceparent: Option<TraceParent>,
}

impl Message {
    /// The `webhook-id` of its call to a webhook: the same for every repeat and replay, and never that of another event.
    pub fn id(&self, webhook_id: i64) -> String {
        id(self.event_id, webhook_id)
    }
}

/// The `webhook-id` of an event's call to a webhook.
pub(crate) fn id(event_id: Uuid, webhook_id: i64) -> String {
    format!("msg_{}_{webhook_id}", event_id.simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_has_the_events_32_digits_and_the_webhooks_number() {
        let message = Message { event_id: Uuid::from_u128(0xab), body: "{}".into(), traceparent: None };
        assert_eq!(message.id(7), "msg_000000000000000000000000000000ab_7");
    }
}
