//! What the topics said so far, kept small enough for a screen.
//!
//! Reads the sidecar's output records as any consumer would (fields as in `contracts.md`, unknown ones ignored) and turns them
//! into [`Line`]s and per-limit rows. A record that cannot be read is counted, never shown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use prometheus::Histogram;
use prometheus::core::Metric as _;
use serde_json::Value;

use crate::clock::Wall;
use crate::metrics::Metrics;
use crate::metrics::labels::{AlertStatus, Effect, Input, SignalKind, TransactionOutcome};

use super::screen::{Counts, Kind, LimitRow, Line, View};

/// Lines kept of each kind.
const KEPT: usize = 100;
/// Limits shown; those highest in utilisation win.
const LIMITS: usize = 12;
/// Runs and alerts whose life is tracked at once; beyond it they are counted as started only.
const TRACKED: usize = 10_000;

/// Where a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `runs.telemetry`
    Telemetry,
    /// `runwarden.signals`
    Signals,
    /// `runwarden.alerts`
    Alerts,
    /// `runwarden.interventions`
    Interventions,
    /// `runwarden.dead-letter`: counted by the metrics, shown as a line
    DeadLetter,
}

/// Collects what the demo shows.
#[derive(Debug)]
pub struct Feed {
    started: Wall,
    lines: VecDeque<Line>,
    sequence: u64,
    limits: BTreeMap<String, LimitRow>,
    runs: BTreeSet<String>,
    runs_started: u64,
    runs_ended: u64,
    alerts_open: BTreeSet<String>,
    unreadable: u64,
    /// (time, telemetry records in) of recent views, for the pace.
    pace: VecDeque<(Wall, u64)>,
}

impl Feed {
    /// An empty feed of a demo that started at `started`.
    pub fn new(started: Wall) -> Self {
        Self {
            started,
            lines: VecDeque::new(),
            sequence: 0,
            limits: BTreeMap::new(),
            runs: BTreeSet::new(),
            runs_started: 0,
            runs_ended: 0,
            alerts_open: BTreeSet::new(),
            unreadable: 0,
            pace: VecDeque::new(),
        }
    }

    /// Takes one record, received at `at`. `note` is used for dead letters: their `runwarden-reason` header.
    pub fn record(&mut self, source: Source, payload: &[u8], note: Option<&str>, at: Wall) {
        if source == Source::DeadLetter {
            let reason = note.unwrap_or("unknown");
            self.line(at, Kind::DeadLetter, "runs.telemetry", &format!("kept on runwarden.dead-letter: {reason}"));
            return;
        }
        let Ok(value) = serde_json::from_slice::<Value>(payload) else {
            self.unreadable += 1;
            return;
        };
        match source {
            Source::Telemetry => self.telemetry(&value),
            Source::Signals => self.signal(&value, at),
            Source::Alerts => self.alert(&value, at),
            Source::Interventions => self.intervention(&value, at),
            Source::DeadLetter => {}
        }
    }

    fn telemetry(&mut self, event: &Value) {
        let run = text(event, "run_id").to_owned();
        match text(event, "event_type") {
            "run.started" => {
                self.runs_started += 1;
                if self.runs.len() < TRACKED {
                    self.runs.insert(run);
                }
            }
            "run.completed" | "run.failed" if self.runs.remove(&run) => self.runs_ended += 1,
            _ => {}
        }
    }

    fn signal(&mut self, signal: &Value, at: Wall) {
        let kind = match text(signal, "kind") {
            "NEAR" => Kind::Near,
            "BREACH" => Kind::Breach,
            "RESOLVED" => Kind::Resolved,
            _ => {
                self.unreadable += 1;
                return;
            }
        };
        let number = |field: &str| signal[field].as_f64().unwrap_or_default();
        let metric = text(signal, "metric");
        let who = text(&signal["scope"], "id");
        let (value, limit) = (number("value"), number("limit"));
        let utilization = if limit > 0.0 { value / limit } else { number("utilization") };
        let mode = text(signal, "mode");
        let detail = match kind {
            Kind::Resolved => format!("{metric} {}", text(signal, "reason")),
            _ => format!("{metric} {} of {} ({:.0} %) {mode}", amount(value), amount(limit), utilization * 100.0),
        };
        self.line(at, kind, who, &detail);
        let key = format!("{}/{}/{who}", text(signal, "policy_id"), text(signal, "limit_id"));
        if kind == Kind::Resolved {
            self.limits.remove(&key);
            return;
        }
        let row =
            LimitRow { metric: clean(metric), who: clean(who), kind, mode: clean(mode), value, limit, utilization };
        self.limits.insert(key, row);
        if self.limits.len() > LIMITS {
            let lowest = self.limits.iter().min_by(|a, b| a.1.utilization.total_cmp(&b.1.utilization));
            if let Some(key) = lowest.map(|(key, _)| key.clone()) {
                self.limits.remove(&key);
            }
        }
    }

    fn alert(&mut self, alert: &Value, at: Wall) {
        let id = text(alert, "alert_id").to_owned();
        let detail = format!("{} {}", text(alert, "severity"), text(alert, "title"));
        match text(alert, "status") {
            "OPEN" => {
                if self.alerts_open.len() < TRACKED {
                    self.alerts_open.insert(id);
                }
                self.line(at, Kind::AlertOpen, text(alert, "tenant_id"), &detail);
            }
            "RESOLVED" => {
                self.alerts_open.remove(&id);
                self.line(at, Kind::AlertResolved, text(alert, "tenant_id"), &detail);
            }
            _ => {}
        }
    }

    fn intervention(&mut self, order: &Value, at: Wall) {
        let state = text(order, "state");
        if text(order, "type").is_empty() {
            return; // a guardian event or something newer than this screen
        }
        let detail = format!("{} {state}: {}", text(order, "type"), text(order, "reason"));
        self.line(at, Kind::Intervention, text(&order["target"], "id"), &detail);
    }

    fn line(&mut self, at: Wall, kind: Kind, who: &str, detail: &str) {
        self.sequence += 1;
        let elapsed = at.0.saturating_sub(self.started.0).max(0);
        self.lines.push_back(Line { sequence: self.sequence, elapsed, kind, who: clean(who), detail: clean(detail) });
        // each kind has its own bound, so a flood of one cannot push out the others
        if self.lines.iter().filter(|l| l.kind == kind).count() > KEPT
            && let Some(oldest) = self.lines.iter().position(|l| l.kind == kind)
        {
            self.lines.remove(oldest);
        }
    }

    /// What to show at `now`. Call it regularly: the pace is that of the last few seconds.
    pub fn view(&mut self, now: Wall, metrics: &Metrics) -> View {
        let telemetry = metrics.input_records.get(Input::Telemetry).get();
        self.pace.push_back((now, telemetry));
        while self.pace.len() > 2 && self.pace.front().is_some_and(|(t, _)| now.0 - t.0 > 3 * crate::clock::SECOND) {
            self.pace.pop_front();
        }
        let m = metrics;
        View {
            elapsed: now.0.saturating_sub(self.started.0).max(0),
            events_per_second: pace(&self.pace),
            runs_live: self.runs.len() as u64,
            runs_started: self.runs_started,
            runs_ended: self.runs_ended,
            alerts_open: self.alerts_open.len() as u64,
            decision_ms: quantiles(&m.event_to_decision),
            commit_ms: quantiles(&m.event_to_commit),
            counts: Counts {
                telemetry,
                decoded: m.decoded.get(),
                dead_letters: m.dead_letters.total(),
                duplicates: m.duplicates.get(),
                near: m.signals.total_of(SignalKind::Near),
                breach: m.signals.total_of(SignalKind::Breach),
                resolved: m.signals.total_of(SignalKind::Resolved),
                enforced: m.interventions.total_by(Effect::Enforced),
                shadow: m.interventions.total_by(Effect::Shadow),
                alerts_opened: m.alerts.get(AlertStatus::Open).get(),
                transactions: m.transactions.get(TransactionOutcome::Committed).get(),
                unreadable: self.unreadable,
            },
            limits: {
                let mut rows: Vec<LimitRow> = self.limits.values().cloned().collect();
                rows.sort_by(|a, b| b.utilization.total_cmp(&a.utilization).then_with(|| a.who.cmp(&b.who)));
                rows
            },
            lines: self.lines.iter().cloned().collect(),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a count of a few seconds")]
fn pace(seen: &VecDeque<(Wall, u64)>) -> f64 {
    match (seen.front(), seen.back()) {
        (Some((from, before)), Some((to, after))) if to > from => {
            (after.saturating_sub(*before)) as f64 * 1e6 / (to.0 - from.0) as f64
        }
        _ => 0.0,
    }
}

/// Median and 99th percentile in milliseconds: the upper bound of the bucket that holds the rank. `None` without samples.
fn quantiles(histogram: &Histogram) -> Option<(f64, f64)> {
    let proto = histogram.metric();
    let h = proto.get_histogram();
    let count = h.get_sample_count();
    if count == 0 {
        return None;
    }
    let at = |percent: u64| {
        let rank = (count * percent).div_ceil(100).max(1);
        let bucket = h.get_bucket().iter().find(|b| b.cumulative_count() >= rank);
        bucket.map_or(f64::INFINITY, |b| b.upper_bound() * 1_000.0)
    };
    Some((at(50), at(99)))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// Ids come from producers: no control characters reach the terminal, and no text is long.
fn clean(text: &str) -> String {
    const LONGEST: usize = 120;
    let mut out: String = text.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        out.push('…');
    }
    out
}

/// A value as a reader wants it: 120,000 or 4.07.
pub(super) fn amount(value: f64) -> String {
    if value.abs() < 1_000.0 {
        let text = format!("{value:.2}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |d| ("-", d));
    let mut out = String::from(sign);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use serde_json::json;

    use crate::clock::SECOND;

    use super::*;

    const T0: Wall = Wall(1_000 * SECOND);

    fn feed() -> (Feed, Metrics) {
        (Feed::new(T0), Metrics::register(&Registry::new(), &[]).unwrap())
    }

    fn at(seconds: i64) -> Wall {
        Wall(T0.0 + seconds * SECOND)
    }

    fn signal(kind: &str, who: &str, value: f64) -> Vec<u8> {
        json!({"kind": kind, "mode": "BLOCK", "policy_id": "p", "limit_id": "l", "metric": "run_tokens", "reason": "run_ended",
            "scope": {"kind": "RUN", "id": who}, "value": value, "limit": 120_000, "utilization": value / 120_000.0})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn a_signal_becomes_a_line_and_a_limit_row_until_it_is_resolved() {
        let (mut feed, metrics) = feed();
        feed.record(Source::Signals, &signal("NEAR", "r1", 97_600.0), None, at(2));
        feed.record(Source::Signals, &signal("BREACH", "r1", 121_000.0), None, at(3));
        let view = feed.view(at(3), &metrics);
        let lines: Vec<String> = view.lines.iter().map(|l| format!("{:?} {} {}", l.kind, l.who, l.detail)).collect();
        assert_eq!(
            lines,
            [
                "Near r1 run_tokens 97,600 of 120,000 (81 %) BLOCK",
                "Breach r1 run_tokens 121,000 of 120,000 (101 %) BLOCK"
            ]
        );
        assert_eq!(view.limits.len(), 1, "one row a limit and scope");
        assert_eq!(view.limits[0].kind, Kind::Breach);
        feed.record(Source::Signals, &signal("RESOLVED", "r1", 121_000.0), None, at(4));
        let view = feed.view(at(4), &metrics);
        assert!(view.limits.is_empty());
        assert_eq!(view.lines[2].detail, "run_tokens run_ended");
    }

    #[test]
    fn runs_and_alerts_are_counted_while_they_live() {
        let (mut feed, metrics) = feed();
        for (kind, run) in [("run.started", "a"), ("run.started", "b"), ("run.failed", "a"), ("run.completed", "other")]
        {
            let event = json!({"event_type": kind, "run_id": run}).to_string();
            feed.record(Source::Telemetry, event.as_bytes(), None, at(1));
        }
        for (status, id) in [("OPEN", "x"), ("UPDATED", "x"), ("OPEN", "y"), ("RESOLVED", "x")] {
            let alert =
                json!({"status": status, "alert_id": id, "tenant_id": "acme", "severity": "HIGH", "title": "t"});
            feed.record(Source::Alerts, alert.to_string().as_bytes(), None, at(1));
        }
        let view = feed.view(at(1), &metrics);
        assert_eq!((view.runs_started, view.runs_live, view.runs_ended, view.alerts_open), (2, 1, 1, 1));
    }

    #[test]
    fn what_cannot_be_read_is_counted_and_not_shown() {
        let (mut feed, metrics) = feed();
        feed.record(Source::Signals, b"\xff{", None, at(1));
        feed.record(Source::Signals, br#"{"kind":"SOMETHING_NEW"}"#, None, at(1));
        feed.record(Source::Interventions, br#"{"data":"guardian event"}"#, None, at(1));
        let view = feed.view(at(1), &metrics);
        assert!(view.lines.is_empty());
        assert_eq!(view.counts.unreadable, 2);
    }

    #[test]
    fn producers_cannot_write_to_the_terminal() {
        let (mut feed, metrics) = feed();
        feed.record(
            Source::Signals,
            &signal("NEAR", &format!("\u{1b}[2J\u{9b}H{}", "x".repeat(500)), 1.0),
            None,
            at(1),
        );
        let view = feed.view(at(1), &metrics);
        assert!(view.lines[0].who.starts_with("?[2J?Hxxx"));
        assert!(view.lines[0].who.chars().count() <= 121);
        assert_eq!(view.limits[0].who, view.lines[0].who);
    }

    #[test]
    fn a_flood_of_one_kind_leaves_the_others_and_stays_bounded() {
        let (mut feed, metrics) = feed();
        let order =
            json!({"type": "STOP", "state": "ISSUED", "reason": "run_tokens", "target": {"kind": "RUN", "id": "r"}});
        feed.record(Source::Interventions, order.to_string().as_bytes(), None, at(0));
        for i in 0..1_000 {
            feed.record(Source::Signals, &signal("NEAR", &format!("r{i}"), f64::from(i)), None, at(1));
        }
        let view = feed.view(at(1), &metrics);
        assert_eq!(view.lines.len(), KEPT + 1);
        assert_eq!(view.lines[0].detail, "STOP ISSUED: run_tokens");
        assert_eq!(view.limits.len(), LIMITS);
        assert_eq!(view.limits[0].who, "r999", "the highest stay");
    }

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let (mut feed, metrics) = feed();
        assert_eq!(feed.view(at(0), &metrics).events_per_second, 0.0);
        metrics.input_records.get(Input::Telemetry).inc_by(1_000);
        for second in 1..=10 {
            metrics.input_records.get(Input::Telemetry).inc_by(80);
            feed.view(at(second), &metrics);
        }
        metrics.input_records.get(Input::Telemetry).inc_by(80);
        assert_eq!(feed.view(at(11), &metrics).events_per_second, 80.0);
    }

    #[test]
    fn quantiles_name_the_bucket_that_holds_the_rank() {
        let (_, metrics) = feed();
        assert_eq!(quantiles(&metrics.event_to_decision), None);
        for _ in 0..98 {
            Metrics::observe(&metrics.event_to_decision, 4_500);
        }
        Metrics::observe(&metrics.event_to_decision, 90_000);
        Metrics::observe(&metrics.event_to_decision, 20 * SECOND);
        assert_eq!(quantiles(&metrics.event_to_decision), Some((5.0, 100.0)));
    }

    #[test]
    fn amounts_read_well() {
        let shown: Vec<String> = [0.0, 4.0, 4.07, 0.8, 999.0, 1_000.0, 120_000.0, -1_234_567.0].map(amount).into();
        assert_eq!(shown, ["0", "4", "4.07", "0.8", "999", "1,000", "120,000", "-1,234,567"]);
    }
}
