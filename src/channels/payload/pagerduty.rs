//! PagerDuty Events v2: OPEN and UPDATED trigger, RESOLVED resolves what has the same `dedup_key`.

use serde_json::json;

use super::Texts;
use crate::clock::rfc3339;
use crate::config::{Secret, cut};
use crate::decide::records::{Alert, AlertStatus, Severity};

const SUMMARY: usize = 1_024;
const KEY: usize = 255;

/// Where events go unless the configuration says otherwise.
pub const URL: &str = "https://events.pagerduty.com";
/// The path of events under a base address.
pub const PATH: &str = "/v2/enqueue";

/// The body.
pub fn body(alert: &Alert, texts: &Texts, routing_key: &Secret) -> Vec<u8> {
    let severity = match alert.severity {
        Severity::Critical => "critical",
        Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low => "info",
    };
    let resolved = alert.status == AlertStatus::Resolved;
    let mut event = json!({
        "routing_key": routing_key.expose(),
        "event_action": if resolved { "resolve" } else { "trigger" },
        "dedup_key": cut(&alert.alert_id, KEY),
    });
    if !resolved {
        event["client"] = json!("runwarden");
        event["payload"] = json!({
            "summary": texts.title(alert, SUMMARY),
            "source": cut(&alert.tenant_id, SUMMARY),
            "severity": severity,
            "timestamp": rfc3339(alert.last_seen),
            "component": "runwarden",
            "class": super::field(alert, "sources"),
            "group": cut(&alert.correlation_key, SUMMARY),
            "custom_details": {
                "text": texts.text(alert, 8_192),
                "metrics": super::field(alert, "metrics"),
                "runs": super::field(alert, "runs"),
                "agents": super::field(alert, "agents"),
                "current_value": alert.current_value,
                "minutes_to_limit": alert.minutes_to_limit,
                "alert_count": alert.alert_count,
                "revision": alert.revision,
            },
        });
    }
    event.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::texts;
    use super::*;
    use crate::channels::examples::alert;

    fn event(status: &str, severity: &str) -> serde_json::Value {
        let key = Secret::new("R".repeat(32));
        serde_json::from_slice(&body(&alert("a", 2, status, severity), &texts(), &key)).unwrap()
    }

    #[test]
    fn begin_and_update_trigger_and_the_end_resolves_under_one_key() {
        let key = "R".repeat(32);
        for status in ["OPEN", "UPDATED"] {
            assert_eq!(
                event(status, "HIGH"),
                json!({
                    "routing_key": key, "event_action": "trigger", "dedup_key": "a", "client": "runwarden",
                    "payload": {
                        "summary": format!("[{status}] HIGH: run_tokens of RUN r-1 is over its limit"), "source": "acme", "severity": "error",
                        "timestamp": "2026-01-05T00:01:00.000000Z", "component": "runwarden", "class": "signal", "group": "RUN:r-1",
                        "custom_details": {
                            "text": "120 of <100> & more", "metrics": "run_tokens", "runs": "r-1", "agents": "a-1", "current_value": 120,
                            "minutes_to_limit": null, "alert_count": 2, "revision": 2,
                        },
                    },
                })
            );
        }
        assert_eq!(event("RESOLVED", "HIGH"), json!({"routing_key": key, "event_action": "resolve", "dedup_key": "a"}));
    }

    #[test]
    fn severities_are_theirs() {
        for (ours, theirs) in [("CRITICAL", "critical"), ("HIGH", "error"), ("MEDIUM", "warning"), ("LOW", "info")] {
            assert_eq!(event("OPEN", ours)["payload"]["severity"], theirs);
        }
    }
}
