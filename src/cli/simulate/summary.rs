//! `summary.json`: what a policy set would have done.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::decide::records::{Decision, Kind, Signal};

use super::Done;
use super::held::{Order, Standing, Usage};

/// What `summary.json` says (P12).
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// Records that became events.
    pub events: u64,
    pub duplicates: u64,
    /// By reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Final results, by metric.
    pub windows: BTreeMap<String, u64>,
    /// Rows late for at least one window, by metric.
    pub late: BTreeMap<String, u64>,
    /// By kind.
    pub signals: BTreeMap<String, u64>,
    /// By type.
    pub interventions: BTreeMap<String, u64>,
    /// Shadow decisions, by what they would have done.
    pub shadow: BTreeMap<String, u64>,
    /// Alert records, by status.
    pub alerts: BTreeMap<String, u64>,
    /// Lessons, by type.
    pub lessons: BTreeMap<String, u64>,
    /// Events that no policy covers.
    pub uncovered_events: u64,
    /// Policies in force that no event met; `tenant/id` where not for all tenants.
    pub unmatched_policies: Vec<String>,
    pub policies: BTreeMap<String, PolicySummary>,
    /// Runs that would have been stopped or paused, each counted once.
    pub held_runs: u64,
    /// What the orders would have held back.
    pub held_back: Usage,
    /// What the orders of policies in AUDIT would have held back, had they been in BLOCK.
    pub shadow_held_back: Usage,
    /// The orders, in order.
    pub orders: Vec<Standing>,
}

/// What one policy did.
#[derive(Debug, Default, Serialize)]
pub(super) struct PolicySummary {
    pub near: u64,
    pub breach: u64,
    pub resolved: u64,
    pub interventions: u64,
    pub shadow: u64,
    /// From NEAR to BREACH of one level; null without a pair.
    pub lead_seconds: Option<Lead>,
    pub held_back: Usage,
    pub shadow_held_back: Usage,
}

/// Lead time of NEAR before BREACH, seconds of event time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Lead {
    /// Levels that went through both.
    pub levels: u64,
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Summary {
    pub(super) fn of(done: &Done) -> Self {
        let report = &done.report;
        let mut counts: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
        let mut policies: BTreeMap<String, PolicySummary> = BTreeMap::new();
        for decision in &report.decisions {
            let (file, kind) = match decision {
                Decision::Signal(s) => {
                    let policy = policies.entry(s.policy_id.clone()).or_default();
                    match s.kind {
                        Kind::Near => policy.near += 1,
                        Kind::Breach => policy.breach += 1,
                        Kind::Resolved => policy.resolved += 1,
                    }
                    ("signals", s.kind.as_str().to_owned())
                }
                Decision::Alert(a) => ("alerts", a.status.as_str().to_owned()),
                // what followed it is no further one
                Decision::Intervention(i) if i.revision > 1 => continue,
                Decision::Intervention(i) => {
                    policies.entry(i.policy_id.clone()).or_default().interventions += 1;
                    ("interventions", i.kind.clone())
                }
                Decision::Audit(a) if a.kind.starts_with("intervention.") => continue,
                Decision::Audit(a) => {
                    if let Some(policy) = a.principal.strip_prefix("policy:") {
                        policies.entry(policy.to_owned()).or_default().shadow += 1;
                    }
                    ("shadow", a.after.get("would").and_then(Value::as_str).unwrap_or(&a.kind).to_owned())
                }
                Decision::Lesson(l) => ("lessons", l.lesson_type.as_str().to_owned()),
                Decision::Command(_)
                | Decision::CommandResult(_)
                | Decision::Guardian(_)
                | Decision::Policy(_)
                | Decision::Run(_)
                | Decision::Level(_)
                | Decision::Response(_)
                | Decision::Evaluation(_) => continue,
            };
            *counts.entry(file).or_default().entry(kind).or_default() += 1;
        }
        let mut dead_letters = BTreeMap::new();
        for letter in &report.dead {
            *dead_letters.entry(letter.reason.as_str().to_owned()).or_default() += 1;
        }
        let mut windows = BTreeMap::new();
        for window in &report.windows {
            *windows.entry(window.metric.clone()).or_default() += 1;
        }
        for (policy, lead) in leads(report.decisions.iter()) {
            policies.entry(policy).or_default().lead_seconds = Some(lead);
        }
        let (mut held_back, mut shadow_held_back) = (Usage::default(), Usage::default());
        for order in &done.orders {
            let policy = policies.entry(order.policy_id.clone()).or_default();
            let (all, own) = match order.mode {
                Order::Enforced => (&mut held_back, &mut policy.held_back),
                Order::Shadow => (&mut shadow_held_back, &mut policy.shadow_held_back),
            };
            all.add(&order.held_back);
            own.add(&order.held_back);
        }
        let enforced = done.orders.iter().filter(|o| o.mode == Order::Enforced && o.target.kind == "RUN");
        let runs: std::collections::BTreeSet<_> = enforced.map(|o| (&o.tenant_id, &o.target.id)).collect();
        let name = |(tenant, id): &(_, std::sync::Arc<str>)| {
            let tenant: &std::sync::Arc<str> = tenant;
            if &**tenant == "*" { id.to_string() } else { format!("{tenant}/{id}") }
        };
        let late = done.metrics.iter().cloned().zip(report.counts.late.iter().copied());
        let mut take = |name: &str| counts.remove(name).unwrap_or_default();
        Self {
            events: report.counts.decoded,
            duplicates: report.counts.duplicates,
            dead_letters,
            windows,
            late: late.filter(|(_, n)| *n > 0).collect(),
            signals: take("signals"),
            interventions: take("interventions"),
            shadow: take("shadow"),
            alerts: take("alerts"),
            lessons: take("lessons"),
            uncovered_events: report.counts.uncovered,
            unmatched_policies: done.unmatched.iter().map(name).collect(),
            policies,
            held_runs: runs.len() as u64,
            held_back,
            shadow_held_back,
            orders: done.orders.clone(),
        }
    }
}

/// By how much NEAR came before BREACH, per policy.
fn leads<'a>(decisions: impl Iterator<Item = &'a Decision>) -> BTreeMap<String, Lead> {
    let level = |s: &Signal| (s.policy_id.clone(), s.limit_id.clone(), s.tenant_id.clone(), s.scope.clone());
    let mut near = BTreeMap::new();
    let mut leads: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for decision in decisions {
        let Decision::Signal(s) = decision else { continue };
        match s.kind {
            Kind::Near => {
                near.insert(level(s), s.event_time);
            }
            Kind::Breach => {
                if let Some(at) = near.remove(&level(s)) {
                    leads.entry(s.policy_id.clone()).or_default().push(s.event_time - at);
                }
            }
            Kind::Resolved => {}
        }
    }
    let lead = |(policy, mut all): (String, Vec<i64>)| {
        all.sort_unstable();
        let seconds = |at: Option<&i64>| at.map(|m| *m as f64 / 1e6);
        let (min, median, max) = (seconds(all.first())?, seconds(all.get(all.len() / 2))?, seconds(all.last())?);
        Some((policy, Lead { levels: all.len() as u64, min, median, max }))
    };
    leads.into_iter().filter_map(lead).collect()
}
