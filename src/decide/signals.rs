//! From a change of a level to its evidence record (S1, X1).

use crate::clock::{Micros, Wall};
use crate::decide::id;
use crate::decide::levels::{Line, Up};
use crate::decide::records::{Ended, Evidence, Gave, Kind, Signal, Subject, Violation};
use crate::policy::{Amount, EffectiveLimit, Scope};

/// What a signal says beyond its limit: the row that crossed, or the window that ended.
#[derive(Debug, Clone)]
pub struct Circumstance {
    /// Scope of the metric.
    pub scope: Scope,
    /// Window at the crossing row.
    pub window: (Micros, Micros),
    /// Event time of the row that crossed; the window's end for what is decided at close.
    pub event_time: Micros,
    /// The step's clock.
    pub now: Wall,
    /// What it rests on.
    pub evidence: Evidence,
    /// reported, table, unknown.
    pub cost_provenance: Option<String>,
    /// Whether the window is whole.
    pub complete: bool,
    /// The row was synthetic.
    pub is_synthetic: bool,
    /// The metric is over anomaly scores.
    pub anomaly: bool,
    /// In shadow: the enforced limits of the metric stand at another level.
    pub diverges: bool,
}

/// The figures of a signal.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Null when the window ran empty.
    pub value: Option<Amount>,
    /// value ÷ max
    pub utilization: Option<Amount>,
    /// value − max when positive
    pub overshoot: Option<Amount>,
    /// At the rate so far (X6).
    pub minutes_to_limit: Option<f64>,
    /// The forecast raised the level, not the value.
    pub forecast: bool,
}

/// A NEAR or BREACH.
pub fn raised(line: &Line, kind: Kind, limit: &EffectiveLimit, figures: Figures, at: &Circumstance) -> Signal {
    build(line, kind, limit, figures, at)
}

/// A RESOLVED.
pub fn resolved(line: &Line, up: &Up, reason: Ended, figures: Figures, at: &Circumstance) -> Signal {
    let mut signal = build(line, Kind::Resolved, &up.limit, figures, at);
    signal.reason = Some(reason);
    signal.peak_utilization = up.peak.ratio(up.limit.max);
    signal.final_value = figures.value;
    signal.is_synthetic = up.is_synthetic;
    signal
}

fn build(line: &Line, kind: Kind, limit: &EffectiveLimit, figures: Figures, at: &Circumstance) -> Signal {
    let scope_kind = at.scope.as_str();
    let holds_back = kind == Kind::Breach && limit.holds_back();
    Signal {
        signal_id: id::of(&[
            &line.tenant,
            &line.policy_tenant,
            &line.policy_id,
            &line.limit_id,
            &line.policy_version.to_string(),
            scope_kind,
            &line.scope_id,
            &id::rfc3339(at.window.0),
            &id::rfc3339(at.window.1),
            kind.as_str(),
        ]),
        kind,
        mode: limit.mode.as_str().into(),
        tenant_id: line.tenant.clone(),
        policy_id: line.policy_id.clone(),
        policy_version: line.policy_version,
        snapshot_id: limit.snapshot_id.to_string(),
        contributors: limit
            .contributors
            .iter()
            .map(|c| Gave {
                policy_id: c.policy_id.to_string(),
                gave: c.gave.iter().map(|g| (*g).to_owned()).collect(),
            })
            .collect(),
        limit_id: line.limit_id.clone(),
        limit_type: limit.limit_type.to_string(),
        category: limit.category.as_str().into(),
        metric: line.metric.clone(),
        scope: Subject { kind: scope_kind.into(), id: line.scope_id.clone() },
        run_id: (at.scope == Scope::Run).then(|| line.scope_id.clone()),
        window_start: at.window.0,
        window_end: at.window.1,
        value: figures.value,
        limit: limit.max,
        near: limit.near,
        utilization: figures.utilization,
        overshoot: figures.overshoot,
        minutes_to_limit: figures.minutes_to_limit.map(|minutes| (minutes * 10.0).round() / 10.0),
        raised_by: if figures.forecast && kind == Kind::Near { "forecast" } else { "value" }.into(),
        enforcement: limit.enforcement.as_str().into(),
        on_breach: limit.on_breach.as_str().into(),
        event_time: at.event_time,
        decided_at: at.now.0,
        lag_ms: at.now.0.saturating_sub(at.event_time) / 1000,
        cost_provenance: at.cost_provenance.clone(),
        fallback_model: limit.fallback_model.as_deref().map(Into::into),
        reject_until: holds_back.then(|| {
            let cooldown = i64::try_from(limit.cooldown_seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
            at.window.1.max(at.event_time.saturating_add(cooldown))
        }),
        violation: violation(kind, limit, at),
        evidence: at.evidence.clone(),
        complete: at.complete,
        is_synthetic: at.is_synthetic,
        reason: None,
        peak_utilization: None,
        final_value: None,
    }
}

/// `violation_type`, `source`, `severity` and `violation_kind` as `contracts.md` derives them.
fn violation(kind: Kind, limit: &EffectiveLimit, at: &Circumstance) -> Violation {
    let limit_type = &*limit.limit_type;
    let violation_type = if limit.category.as_str() == "BUDGET" || limit_type.starts_with("COST_") {
        "cost"
    } else if limit.category.as_str() == "RATE" {
        "rate"
    } else if limit_type.starts_with("RUNS_") || limit_type.starts_with("TOKENS_") {
        "quota"
    } else {
        match limit.rule_type.as_str() {
            "TEMPORAL" => "temporal",
            "ETHICAL" => "ethical",
            _ => "safety",
        }
    };
    let source = if at.is_synthetic || limit.mode.as_str() == "AUDIT" {
        "sim"
    } else if violation_type == "cost" {
        "cost"
    } else {
        "runtime"
    };
    let severity = match kind {
        Kind::Breach if limit.on_breach.as_str() == "KILL" => 1.0,
        Kind::Breach => 0.8,
        Kind::Near | Kind::Resolved => 0.5,
    };
    Violation {
        violation_type: violation_type.into(),
        source: source.into(),
        severity,
        violation_kind: match (at.anomaly, at.diverges) {
            (true, _) => "ANOMALY",
            (false, true) => "DIVERGENCE",
            (false, false) => "STANDARD",
        }
        .into(),
    }
}
