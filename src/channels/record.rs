//! What became of a message, as a line of the audit (kind `delivery`).

use serde_json::json;

use super::queue::Item;
use super::status;
use crate::clock::{Wall, rfc3339};
use crate::decide::id;
use crate::decide::records::{Audit, Subject};

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The receiver took it.
    Delivered,
    /// It never will, or not in time.
    GaveUp,
    /// A later record of the same alert took its place.
    Suppressed,
}

impl Outcome {
    /// The value in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "DELIVERED",
            Self::GaveUp => "GAVE_UP",
            Self::Suppressed => "SUPPRESSED",
        }
    }
}

/// The line about one message. Repeated, it has the same id.
pub fn audit(channel: &str, kind: &str, item: &Item, outcome: Outcome, now: Wall) -> Audit {
    let alert = &item.message.alert;
    let revision = alert.revision.to_string();
    let latency = now.0.saturating_sub(item.message.at).max(0) / 1_000;
    let error = item.last_error.as_deref().filter(|_| outcome != Outcome::Suppressed);
    let reason = match outcome {
        Outcome::Delivered => format!("{channel} took it"),
        Outcome::GaveUp => format!("{channel} did not take it: {}", error.unwrap_or("no reason")),
        Outcome::Suppressed => format!("a later state of the alert came before {channel} could be told of this one"),
    };
    Audit {
        audit_id: id::of(&[&alert.tenant_id, "delivery", channel, &alert.alert_id, &revision, outcome.as_str()]),
        at: now.0,
        kind: "delivery".to_owned(),
        tenant_id: alert.tenant_id.clone(),
        principal: format!("channel:{channel}"),
        authority: 5,
        subject: Subject { kind: "ALERT".to_owned(), id: alert.alert_id.clone() },
        before: serde_json::Value::Null,
        after: json!({
            "channel": channel, "type": kind, "alert_id": alert.alert_id, "revision": alert.revision, "status": status(alert.status),
            "outcome": outcome.as_str(), "attempts": item.attempts, "latency_ms": latency, "error": error,
        }),
        reason,
        refused: false,
    }
}

/// The headers of the line, those of a CloudEvent in binary mode.
pub fn headers(audit: &Audit, source: &str) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("ce_id", audit.audit_id.clone().into_bytes()),
        ("ce_source", source.as_bytes().to_vec()),
        ("ce_type", format!("runwarden.audit.{}", audit.kind).into_bytes()),
        ("ce_specversion", b"1.0".to_vec()),
        ("ce_time", rfc3339(audit.at).into_bytes()),
        ("ce_subject", id::part(&audit.subject.id).into_bytes()),
        ("content-type", b"application/json".to_vec()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::examples::message;

    #[test]
    fn a_delivery_says_who_was_told_what_and_how_it_went() {
        let message = message("a", 2, "UPDATED", "HIGH");
        let now = Wall(message.at + 1_500_000);
        let mut item =
            Item { partition: 0, offset: 4, message, since: now, attempts: 3, last_error: Some("status 500".into()) };
        let line = audit("ops", "webhook", &item, Outcome::GaveUp, now);
        assert_eq!(
            line.after,
            json!({
                "channel": "ops", "type": "webhook", "alert_id": "a", "revision": 2, "status": "UPDATED", "outcome": "GAVE_UP", "attempts": 3,
                "latency_ms": 1500, "error": "status 500",
            })
        );
        assert_eq!(
            (line.kind.as_str(), line.principal.as_str(), line.tenant_id.as_str()),
            ("delivery", "channel:ops", "acme")
        );
        assert!(line.reason.contains("status 500"));
        item.attempts += 1;
        let again = audit("ops", "webhook", &item, Outcome::GaveUp, Wall(now.0 + 1));
        assert_eq!(again.audit_id, line.audit_id);
        assert_ne!(audit("ops", "webhook", &item, Outcome::Delivered, now).audit_id, line.audit_id);
    }
}
