//! Alertmanager v2: what fires is posted again and again, each time a little longer; what has ended is posted again for a while.
//!
//! Labels are identity: tenant, fingerprint and severity, nothing that changes otherwise. When the severity rises, the alert with the
//! old one ends and another fires. This keeps what fires; the worker posts [`Firing::due`] when it is time.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Texts, field};
use crate::clock::{Micros, SECOND, Wall, rfc3339};
use crate::decide::records::{Alert, AlertStatus, Severity};

/// The path of alerts under an Alertmanager's address.
pub const PATH: &str = "/api/v2/alerts";
/// Between two posts of what fires.
pub const REFRESH: Micros = 60 * SECOND;
/// How long what fires does so without another post: as long as Alertmanager's own `resolve_timeout`.
const LASTS: Micros = 300 * SECOND;
/// How long an end is posted again.
const ENDS_FOR: Micros = 300 * SECOND;
/// Alerts that fire and are posted again; the oldest are left to end by themselves.
pub const MOST: usize = 10_000;
/// Alerts of one post.
const BATCH: usize = 500;
const TITLE: usize = 1_024;
const TEXT: usize = 8_192;

#[derive(Debug, Clone)]
struct One {
    partition: i32,
    severity: Severity,
    starts: Micros,
    /// `None`: it fires.
    ended: Option<Wall>,
    /// Everything but `endsAt`.
    body: Value,
}

/// What fires, or has just ended, by alert and severity.
#[derive(Debug, Default)]
pub struct Firing {
    alerts: BTreeMap<(String, Severity), One>,
    posted: Wall,
}

impl Firing {
    /// Takes the state of an alert.
    pub fn take(&mut self, partition: i32, alert: &Alert, texts: &Texts, now: Wall) {
        let ends = alert.status == AlertStatus::Resolved;
        let id = &alert.alert_id;
        for other in Severity::ALL.into_iter().filter(|severity| *severity != alert.severity) {
            if let Some(one) = self.alerts.get_mut(&(id.clone(), other)) {
                one.ended.get_or_insert(now);
            }
        }
        let one = One {
            partition,
            severity: alert.severity,
            starts: alert.first_seen,
            ended: ends.then_some(now),
            body: body(alert, texts),
        };
        self.alerts.insert((id.clone(), one.severity), one);
        while self.alerts.len() > MOST {
            let oldest = self.alerts.iter().min_by_key(|(_, one)| (one.ended.is_none(), one.starts));
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { break };
            self.alerts.remove(&key);
        }
    }

    /// A partition is another's, and so is what fires of it.
    pub fn forget(&mut self, partition: i32) {
        self.alerts.retain(|_, one| one.partition != partition);
    }

    /// What concerns one alert, to be posted now.
    pub fn of(&self, alert_id: &str, now: Wall) -> Value {
        let ours = self.alerts.iter().filter(|((id, _), _)| id == alert_id);
        ours.map(|(_, one)| one.at(now)).collect()
    }

    /// What is to be posted again, if it is time, in batches; what ended long ago is forgotten.
    pub fn due(&mut self, now: Wall) -> Vec<Value> {
        if now.0 < self.posted.0.saturating_add(REFRESH) {
            return Vec::new();
        }
        self.posted = now;
        self.alerts.retain(|_, one| one.ended.is_none_or(|at| now.0.saturating_sub(at.0) <= ENDS_FOR));
        let all: Vec<Value> = self.alerts.values().map(|one| one.at(now)).collect();
        all.chunks(BATCH).map(|batch| Value::Array(batch.to_vec())).collect()
    }

    /// Alerts that fire.
    pub fn len(&self) -> usize {
        self.alerts.values().filter(|one| one.ended.is_none()).count()
    }

    /// Whether nothing fires.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl One {
    fn at(&self, now: Wall) -> Value {
        let mut body = self.body.clone();
        // an end before the begin is refused: event time may be ahead of this host's
        let ends = self.ended.map_or(now.0.saturating_add(LASTS), |at| at.0).max(self.starts.saturating_add(1_000));
        body["endsAt"] = json!(rfc3339(ends));
        body
    }
}

fn body(alert: &Alert, texts: &Texts) -> Value {
    let mut annotations = json!({
        "summary": texts.title(alert, TITLE),
        "description": texts.text(alert, TEXT),
        "alert_id": alert.alert_id,
        "revision": alert.revision.to_string(),
    });
    for name in [
        "correlation_key",
        "metrics",
        "runs",
        "agents",
        "sources",
        "current_value",
        "minutes_to_limit",
        "resolve_reason",
    ] {
        let value = field(alert, name);
        if !value.is_empty() {
            annotations[name] = json!(value);
        }
    }
    json!({
        "labels": {
            "alertname": "RunwardenAlert",
            "tenant_id": alert.tenant_id,
            "fingerprint": alert.fingerprint,
            "severity": alert.severity.as_str().to_lowercase(),
        },
        "annotations": annotations,
        "startsAt": rfc3339(alert.first_seen),
    })
}

#[cfg(test)]
mod tests {
    use super::super::texts;
    use super::*;
    use crate::channels::examples::alert;

    const NOW: Wall = Wall(1_767_571_320 * SECOND);

    fn labels(severity: &str) -> Value {
        json!({"alertname": "RunwardenAlert", "tenant_id": "acme", "fingerprint": "f-1", "severity": severity})
    }

    #[test]
    fn what_fires_ends_later_than_the_next_post_and_what_ended_has_ended() {
        let mut firing = Firing::default();
        firing.take(0, &alert("a", 1, "OPEN", "HIGH"), &texts(), NOW);
        assert_eq!(
            firing.of("a", NOW),
            json!([{
                "labels": labels("high"),
                "annotations": {
                    "summary": "[OPEN] HIGH: run_tokens of RUN r-1 is over its limit", "description": "120 of <100> & more",
                    "alert_id": "a", "revision": "1", "correlation_key": "RUN:r-1", "metrics": "run_tokens", "runs": "r-1", "agents": "a-1",
                    "sources": "signal", "current_value": "120",
                },
                "startsAt": "2026-01-05T00:00:00.000000Z", "endsAt": "2026-01-05T00:07:00.000000Z",
            }])
        );
        firing.take(0, &alert("a", 2, "RESOLVED", "HIGH"), &texts(), NOW);
        let ended = firing.of("a", Wall(NOW.0 + 10 * SECOND));
        assert_eq!(ended[0]["endsAt"], "2026-01-05T00:02:00.000000Z");
        assert_eq!(ended[0]["labels"], labels("high"), "the same alert");
        assert!(firing.is_empty());
    }

    #[test]
    fn a_higher_severity_is_another_alert_and_ends_the_first() {
        let mut firing = Firing::default();
        firing.take(0, &alert("a", 1, "OPEN", "MEDIUM"), &texts(), NOW);
        firing.take(0, &alert("a", 2, "UPDATED", "HIGH"), &texts(), Wall(NOW.0 + SECOND));
        let posted = firing.of("a", Wall(NOW.0 + SECOND));
        assert_eq!((&posted[0]["labels"], &posted[1]["labels"]), (&labels("medium"), &labels("high")));
        assert_eq!(posted[0]["endsAt"], "2026-01-05T00:02:01.000000Z");
        assert_eq!(firing.len(), 1);
    }

    #[test]
    fn what_fires_is_posted_every_minute_and_an_end_for_five() {
        let mut firing = Firing::default();
        firing.take(0, &alert("a", 1, "OPEN", "HIGH"), &texts(), NOW);
        firing.take(1, &alert("b", 1, "RESOLVED", "HIGH"), &texts(), NOW);
        let mut counts = Vec::new();
        for second in 0..=400 {
            let posted = firing.due(Wall(NOW.0 + second * SECOND));
            counts.extend(posted.iter().map(|batch| batch.as_array().unwrap().len()));
        }
        assert_eq!(counts, [2, 2, 2, 2, 2, 2, 1]);
        firing.forget(0);
        assert!(firing.due(Wall(NOW.0 + 1_000 * SECOND)).is_empty());
    }

    #[test]
    fn an_end_is_never_before_the_begin() {
        let mut firing = Firing::default();
        firing.take(0, &alert("a", 1, "RESOLVED", "HIGH"), &texts(), Wall(0));
        assert_eq!(firing.of("a", Wall(0))[0]["endsAt"], "2026-01-05T00:00:00.001000Z");
    }
}
