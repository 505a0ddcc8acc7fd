//! Alerts for tests.

use super::Message;
use crate::decide::records::Alert;

/// An alert of `acme` in this state.
pub(crate) fn alert(id: &str, revision: u64, status: &str, severity: &str) -> Alert {
    let alert = serde_json::json!({
        "alert_id": id, "revision": revision, "status": status, "tenant_id": "acme", "correlation_key": "RUN:r-1",
        "severity": severity, "title": "run_tokens of RUN r-1 is over its limit", "description": "120 of <100> & more",
        "first_seen": "2026-01-05T00:00:00.000000Z", "last_seen": "2026-01-05T00:01:00.000000Z", "alert_count": 2,
        "suppressed_count": 0, "members": ["m-1", "m-2"], "members_total": 2, "runs": ["r-1"], "agents": ["a-1"],
        "metrics": ["run_tokens"], "sources": ["signal"], "fingerprint": "f-1",
        "resolve_reason": if status == "RESOLVED" { Some("fixed") } else { None }, "current_value": 120,
        "minutes_to_limit": null, "channels": ["ui", "slack"], "silenced_by": [], "inhibited_by": [], "is_synthetic": false,
    });
    serde_json::from_str(&alert.to_string()).unwrap()
}

/// The record of it.
pub(crate) fn message(id: &str, revision: u64, status: &str, severity: &str) -> Message {
    let alert = alert(id, revision, status, severity);
    Message { id: format!("{id}/{revision}"), at: alert.last_seen, alert }
}
