//! What mutes an alert (A3): silences, and inhibition by the alerts of a parent run. A muted alert is still kept and published.
//!
//! That a BREACH mutes the NEAR of its limit needs no rule here: both are members of one alert, told once, at the higher level.

use std::collections::{BTreeMap, BTreeSet};

use crate::decide::records::Alert;

use super::{Open, View};

/// Which open alerts concern which runs.
#[derive(Debug, Default)]
pub(super) struct Mutes {
    /// (tenant, run) → ids of alerts.
    runs: BTreeMap<(String, String), BTreeSet<String>>,
}

/// Whether anything could mute this alert, or does.
pub(super) fn may_change(alert: &Open, view: &View<'_>) -> bool {
    let record = &alert.record;
    let muted = !record.silenced_by.is_empty() || !record.inhibited_by.is_empty();
    // what was not told yet is told with its mutes
    record.revision > 0 && (muted || !view.silences.is_empty() || !alert.ancestors.is_empty())
}

impl Mutes {
    /// An open alert concerns a run.
    pub fn covers(&mut self, tenant: &str, run: &str, alert: &str) {
        self.runs.entry((tenant.to_owned(), run.to_owned())).or_default().insert(alert.to_owned());
    }

    /// An alert is resolved.
    pub fn ended(&mut self, alert: &Alert) {
        for run in &alert.runs {
            let key = (alert.tenant_id.clone(), run.clone());
            if let Some(alerts) = self.runs.get_mut(&key) {
                alerts.remove(&alert.alert_id);
                if alerts.is_empty() {
                    self.runs.remove(&key);
                }
            }
        }
    }

    /// The silences, and the alerts, that mute an alert.
    pub fn of(&self, alert: &Open, view: &View<'_>) -> (Vec<String>, Vec<String>) {
        let silences = view.silences.iter().filter(|s| s.holds(view.now.0) && silences(s, alert));
        (silences.map(|s| s.silence_id.clone()).collect(), self.inhibited(alert))
    }

    /// The alerts of parents: all members must be of runs whose parents, or theirs, have an alert that is open.
    fn inhibited(&self, alert: &Open) -> Vec<String> {
        if alert.stands_alone {
            return Vec::new();
        }
        let mut by = BTreeSet::new();
        for ancestors in alert.ancestors.values() {
            let open = ancestors.iter().filter_map(|run| self.runs.get(&(alert.record.tenant_id.clone(), run.clone())));
            let mut open = open.flatten().filter(|id| **id != alert.record.alert_id).peekable();
            if open.peek().is_none() {
                return Vec::new();
            }
            by.extend(open.cloned());
        }
        by.into_iter().collect()
    }
}

fn silences(silence: &crate::policy::Silence, alert: &Open) -> bool {
    let record = &alert.record;
    silence.is_for(&record.tenant_id)
        && silence.matches(&|name| match name {
            "correlation_key" => vec![record.correlation_key.as_str()],
            "fingerprint" => vec![record.fingerprint.as_str()],
            "severity" => vec![record.severity.as_str()],
            "title" => vec![record.title.as_str()],
            "source" => record.sources.iter().map(String::as_str).collect(),
            "metric" => record.metrics.iter().map(String::as_str).collect(),
            "agent" => record.agents.iter().map(String::as_str).collect(),
            "run" => record.runs.iter().map(String::as_str).collect(),
            "policy" => alert.policies.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        })
}
