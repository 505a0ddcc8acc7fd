//! Which records of alerts a channel tells. Pure.
//!
//! An alert is a channel's when a policy concerned names the channel or its type, or when the channel takes all; and when severity and
//! matchers say so. Its first record is told, its end, and of what lies between what says something new: a higher severity, another kind
//! of source. What is silenced or inhibited is not told; that an alert has ended which *was* told, always.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::config::{Channel, ChannelKind, Matcher, Updates};
use crate::decide::records::{Alert, AlertStatus, Severity};

/// Alerts of which it is known what was told.
const KNOWN: usize = 10_000;

/// What becomes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// It is told.
    Tell,
    /// It is none of the channel's.
    Other,
    /// It is, and muted.
    Muted,
    /// It says nothing new.
    Old,
}

#[derive(Debug, Clone)]
struct Known {
    /// `None`: nothing was told.
    told: Option<(Severity, BTreeSet<String>)>,
}

/// Decides for one channel.
#[derive(Debug)]
pub struct Router {
    name: String,
    kind: ChannelKind,
    takes_all: bool,
    floor: Severity,
    matchers: Vec<Matcher>,
    send_resolved: bool,
    updates: Updates,
    synthetic: bool,
    known: BTreeMap<String, Known>,
    order: VecDeque<String>,
}

impl Router {
    /// Of a channel.
    pub fn new(channel: &Channel) -> Self {
        Self {
            name: channel.name.clone(),
            kind: channel.kind,
            takes_all: channel.takes_all,
            floor: Severity::parse(channel.min_severity).unwrap_or(Severity::Low),
            matchers: channel.matchers.clone(),
            send_resolved: channel.send_resolved,
            updates: channel.send_updates,
            synthetic: channel.synthetic,
            known: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Whether an alert is the channel's, muted or not.
    pub fn is_ours(&self, alert: &Alert) -> bool {
        let named = |name: &String| names(name, &self.name, self.kind);
        (self.takes_all || alert.channels.iter().any(named))
            && alert.severity >= self.floor
            && (self.synthetic || !alert.is_synthetic)
            && self.matchers.iter().all(|matcher| holds(matcher, alert))
    }

    /// What becomes of a record; what is to be told counts as told.
    pub fn route(&mut self, alert: &Alert) -> Route {
        if !self.is_ours(alert) {
            return Route::Other;
        }
        let muted = is_muted(alert);
        let known = self.known.get(&alert.alert_id);
        let route = match (alert.status, known.map(|known| &known.told)) {
            (AlertStatus::Resolved, _) if !self.send_resolved => Route::Old,
            // to end what may never have begun does no harm where ends are by name
            (AlertStatus::Resolved, None) if muted && !self.is_stateful() => Route::Muted,
            (AlertStatus::Resolved, Some(None)) => Route::Muted,
            (AlertStatus::Resolved, _) => Route::Tell,
            _ if muted => Route::Muted,
            (_, Some(Some((severity, sources)))) => match self.updates {
                // a record that comes again is told again
                _ if alert.status == AlertStatus::Open => Route::Tell,
                Updates::All => Route::Tell,
                Updates::Escalations if alert.severity > *severity || !alert.sources.is_subset(sources) => Route::Tell,
                Updates::Escalations | Updates::None => Route::Old,
            },
            // nothing of it was told here, or it is not known any more
            _ => Route::Tell,
        };
        self.remember(alert, route);
        route
    }

    /// What an alert's end means there does not depend on what was told before.
    fn is_stateful(&self) -> bool {
        matches!(self.kind, ChannelKind::Pagerduty | ChannelKind::Alertmanager)
    }

    fn remember(&mut self, alert: &Alert, route: Route) {
        if alert.status == AlertStatus::Resolved {
            self.known.remove(&alert.alert_id);
            return;
        }
        let before = self.known.get(&alert.alert_id);
        let told = match route {
            Route::Tell => Some((alert.severity, alert.sources.clone())),
            _ => before.and_then(|known| known.told.clone()),
        };
        if before.is_none() {
            self.order.push_back(alert.alert_id.clone());
        }
        self.known.insert(alert.alert_id.clone(), Known { told });
        while self.known.len() > KNOWN || self.order.len() > 2 * KNOWN {
            let Some(oldest) = self.order.pop_front() else { break };
            self.known.remove(&oldest);
        }
    }
}

/// Whether a policy's word for a channel means this one.
pub fn names(said: &str, name: &str, kind: ChannelKind) -> bool {
    said.eq_ignore_ascii_case(name) || said.eq_ignore_ascii_case(kind.as_str())
}

/// Whether the core says that nobody is to be told.
pub fn is_muted(alert: &Alert) -> bool {
    !alert.silenced_by.is_empty() || !alert.inhibited_by.is_empty()
}

fn holds(matcher: &Matcher, alert: &Alert) -> bool {
    let one = |text: &str| matcher.holds(std::iter::once(text));
    match matcher.field {
        "agent" => matcher.holds(alert.agents.iter().map(String::as_str)),
        "metric" => matcher.holds(alert.metrics.iter().map(String::as_str)),
        "source" => matcher.holds(alert.sources.iter().map(String::as_str)),
        "severity" => one(alert.severity.as_str()),
        "correlation_key" => one(&alert.correlation_key),
        _ => one(&alert.tenant_id),
    }
}

#[cfg(test)]
mod tests {
    use crate::channels::examples::alert;
    use crate::config::Config;

    use super::*;

    fn router(settings: &str) -> Router {
        let text = format!("[[channels.to]]\nname = \"ops\"\ntype = \"slack\"\nurl = \"https://e.com\"\n{settings}");
        Router::new(&Config::from_toml(&text, "c.toml", []).unwrap().channels.to[0])
    }

    #[test]
    fn a_policy_names_a_channel_or_its_type_in_any_case() {
        let mut a = alert("a", 1, "OPEN", "HIGH");
        for (channels, is_ours) in [(&["ui"][..], false), (&["SLACK"], true), (&["ops"], true), (&["email"], false)] {
            a.channels = channels.iter().map(ToString::to_string).collect();
            assert_eq!(router("").is_ours(&a), is_ours, "{channels:?}");
            assert!(router("takes = \"all\"").is_ours(&a));
        }
    }

    #[test]
    fn severity_matchers_and_made_up_data_narrow_it() {
        let mut a = alert("a", 1, "OPEN", "HIGH");
        assert!(!router("min-severity = \"CRITICAL\"").is_ours(&a));
        assert!(router("match = [\"metric=run_tokens\", \"tenant_id=~ac.*\"]").is_ours(&a));
        assert!(!router("match = [\"metric=run_tokens\", \"source!=signal\"]").is_ours(&a));
        a.is_synthetic = true;
        assert!(!router("").is_ours(&a) && router("synthetic = true").is_ours(&a));
    }

    #[test]
    fn of_updates_only_what_is_new_is_told() {
        let mut r = router("");
        assert_eq!(r.route(&alert("a", 1, "OPEN", "MEDIUM")), Route::Tell);
        assert_eq!(r.route(&alert("a", 2, "UPDATED", "MEDIUM")), Route::Old);
        assert_eq!(r.route(&alert("a", 3, "UPDATED", "HIGH")), Route::Tell);
        let mut other = alert("a", 4, "UPDATED", "HIGH");
        other.sources.insert("failure".into());
        assert_eq!((r.route(&other), r.route(&other)), (Route::Tell, Route::Old));
        assert_eq!(r.route(&alert("a", 5, "RESOLVED", "HIGH")), Route::Tell);
        let mut all = router("send-updates = \"all\"\nsend-resolved = false");
        for (revision, status, route) in
            [(1, "OPEN", Route::Tell), (2, "UPDATED", Route::Tell), (3, "RESOLVED", Route::Old)]
        {
            assert_eq!(all.route(&alert("a", revision, status, "LOW")), route);
        }
        assert_eq!(
            router("send-updates = \"none\"").route(&alert("b", 7, "UPDATED", "LOW")),
            Route::Tell,
            "unheard of"
        );
    }

    #[test]
    fn what_is_muted_is_not_told_and_the_end_of_what_was_told_is() {
        let mute = |mut a: Alert| {
            a.silenced_by = vec!["s-1".into()];
            a
        };
        let mut r = router("");
        assert_eq!(r.route(&mute(alert("a", 1, "OPEN", "HIGH"))), Route::Muted);
        assert_eq!(r.route(&mute(alert("a", 2, "RESOLVED", "HIGH"))), Route::Muted);
        assert_eq!(r.route(&mute(alert("b", 1, "OPEN", "HIGH"))), Route::Muted);
        assert_eq!(r.route(&alert("b", 2, "UPDATED", "HIGH")), Route::Tell, "the silence is over");
        assert_eq!(r.route(&mute(alert("b", 3, "RESOLVED", "HIGH"))), Route::Tell);
        assert_eq!(r.route(&alert("c", 1, "OPEN", "HIGH")), Route::Tell);
        assert_eq!(r.route(&mute(alert("c", 2, "RESOLVED", "HIGH"))), Route::Tell);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let mut r = router("");
        let (mut open, mut ended) = (alert("a", 1, "OPEN", "LOW"), alert("a", 2, "RESOLVED", "LOW"));
        for n in 0..KNOWN + 10 {
            open.alert_id = n.to_string();
            r.route(&open);
        }
        assert_eq!(r.known.len(), KNOWN);
        for n in 0..3 * KNOWN {
            open.alert_id = format!("x{n}");
            ended.alert_id.clone_from(&open.alert_id);
            r.route(&open);
            r.route(&ended);
        }
        assert!(r.order.len() <= 2 * KNOWN);
    }
}
