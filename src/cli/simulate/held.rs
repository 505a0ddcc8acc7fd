//! What the orders of a simulation would have held back: what their targets went on to use.
//!
//! An order (PAUSE, STOP, KILL) stands from the event that crossed the limit: for a run for good, for anything wider until its
//! level is resolved. Every later `run.step` of the target, as recorded, is what it would have held back. A step under several
//! orders counts for the one that came first. This is what the recording used after the order, not a prediction of what a
//! paused agent would have done otherwise.

use std::collections::HashMap;

use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::datatypes::{Decimal128Type, Int64Type};
use serde::Serialize;

use crate::clock::Micros;
use crate::decide::records::{Decision, InterventionState, Kind, Signal, Subject};
use crate::pipeline::intake::{Rows, get};
use crate::policy::Amount;
use crate::telemetry::Batch;
use crate::telemetry::schema::col;

/// Orders that hold a target back.
const HOLDING: [&str; 3] = ["PAUSE", "STOP", "KILL"];

/// Kinds of targets, and the column with their id.
const TARGETS: [(&str, usize); 8] = [
    ("RUN", col::RUN_ID),
    ("AGENT", col::AGENT_ID),
    ("API_KEY", col::API_KEY_ID),
    ("HUMAN_ACTOR", col::HUMAN_ACTOR_ID),
    ("TASK", col::TASK_ID),
    ("PROJECT", col::PROJECT_ID),
    ("PROVIDER", col::PROVIDER),
    ("TENANT", col::TENANT_ID),
];

/// What some steps used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    /// `run.step` events.
    pub events: u64,
    /// Sum of `total_tokens`.
    pub tokens: i64,
    /// Sum of known costs, US dollars.
    pub cost_usd: Amount,
    /// Events whose cost is unknown.
    pub cost_unknown: u64,
}

impl Usage {
    pub(super) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.cost_usd = Amount(self.cost_usd.0.saturating_add(other.cost_usd.0));
        self.cost_unknown += other.cost_unknown;
    }
}

/// Whether an order would be given, or only if its policy were in BLOCK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    /// On the interventions topic.
    Enforced,
    /// A shadow decision.
    Shadow,
}

/// One order, and what it would have held back.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Standing {
    pub mode: Order,
    #[serde(rename = "type")]
    pub kind: String,
    pub tenant_id: String,
    pub policy_id: String,
    pub target: Subject,
    #[serde(with = "crate::decide::id::time")]
    pub at: Micros,
    /// `None`: for good.
    #[serde(with = "crate::decide::id::time::option")]
    pub until: Option<Micros>,
    pub reason: String,
    /// What the target used while the order stood.
    pub held_back: Usage,
}

/// The orders of a report.
#[derive(Debug, Default)]
pub(super) struct Orders {
    all: Vec<Standing>,
    by_target: HashMap<(usize, String, String), Vec<usize>>,
}

/// A level: policy, limit, tenant, scope.
type Level<'a> = (&'a str, &'a str, &'a str, &'a Subject);

fn level(signal: &Signal) -> Level<'_> {
    (&signal.policy_id, &signal.limit_id, &signal.tenant_id, &signal.scope)
}

fn text<'a>(value: &'a serde_json::Value, name: &str) -> &'a str {
    value.get(name).and_then(serde_json::Value::as_str).unwrap_or_default()
}

impl Orders {
    /// Those among the decisions, in order.
    pub(super) fn of(decisions: &[Decision]) -> Self {
        let mut breaches: HashMap<&str, &Signal> = HashMap::new();
        let mut ends: HashMap<Level<'_>, Vec<Micros>> = HashMap::new();
        for decision in decisions {
            let Decision::Signal(signal) = decision else { continue };
            match signal.kind {
                Kind::Breach => drop(breaches.insert(&signal.signal_id, signal)),
                Kind::Resolved => ends.entry(level(signal)).or_default().push(signal.event_time),
                Kind::Near => {}
            }
        }
        let mut orders = Self::default();
        for decision in decisions {
            let order = match decision {
                Decision::Intervention(i) if i.revision == 1 && i.state == InterventionState::Issued => Standing {
                    mode: Order::Enforced,
                    kind: i.kind.clone(),
                    tenant_id: i.tenant_id.clone(),
                    policy_id: i.policy_id.clone(),
                    target: i.target.clone(),
                    at: i.created_at,
                    until: None,
                    reason: i.reason.clone(),
                    held_back: Usage::default(),
                },
                Decision::Audit(a) if a.kind == "shadow_decision" => Standing {
                    mode: Order::Shadow,
                    kind: text(&a.after, "would").to_owned(),
                    tenant_id: a.tenant_id.clone(),
                    policy_id: a.principal.strip_prefix("policy:").unwrap_or(&a.principal).to_owned(),
                    target: a.subject.clone(),
                    at: a.at,
                    until: None,
                    reason: a.reason.clone(),
                    held_back: Usage::default(),
                },
                _ => continue,
            };
            let cause = match decision {
                Decision::Intervention(i) => i.signal_id.as_deref(),
                Decision::Audit(a) => Some(text(&a.after, "signal_id")),
                _ => None,
            };
            if HOLDING.contains(&order.kind.as_str()) {
                orders.stand(order, cause.and_then(|id| breaches.get(id)).copied(), &ends);
            }
        }
        orders
    }

    /// Takes an order; `breach` is what caused it, if a level did.
    fn stand(&mut self, mut order: Standing, breach: Option<&Signal>, ends: &HashMap<Level<'_>, Vec<Micros>>) {
        let Some(target) = TARGETS.iter().position(|(kind, _)| *kind == order.target.kind) else { return };
        if let Some(signal) = breach {
            order.at = signal.event_time;
            let ends = ends.get(&level(signal)).filter(|_| order.target.kind != "RUN");
            order.until = ends.and_then(|all| all.iter().copied().filter(|end| *end > order.at).min());
        }
        let key = (target, order.tenant_id.clone(), order.target.id.clone());
        self.by_target.entry(key).or_default().push(self.all.len());
        self.all.push(order);
    }

    /// Whether there is anything to hold back.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Takes decoded rows: those that come after an order on their run, agent … count for it.
    pub(super) fn observe(&mut self, batch: &Batch) {
        let rows = Rows::new(&batch.rows);
        let kinds = rows.text(col::EVENT_TYPE);
        let ids = TARGETS.map(|(_, column)| rows.text(column));
        let tokens = batch.rows.column(col::TOTAL_TOKENS).as_primitive::<Int64Type>();
        let costs = batch.rows.column(col::COST_USD).as_primitive::<Decimal128Type>();
        for row in (0..batch.rows.num_rows()).filter(|row| get(kinds, *row) == Some("run.step")) {
            let (tenant, time) = (rows.tenant.value(row), rows.time.value(row));
            let mut first: [Option<usize>; 2] = [None, None];
            for (target, column) in ids.iter().enumerate() {
                let Some(id) = get(column, row) else { continue };
                let Some(list) = self.by_target.get(&(target, tenant.to_owned(), id.to_owned())) else { continue };
                for n in list {
                    let order = &self.all[*n];
                    if order.at >= time || order.until.is_some_and(|until| time >= until) {
                        continue;
                    }
                    let slot = &mut first[usize::from(order.mode == Order::Shadow)];
                    if slot.is_none_or(|other| self.all[other].at > order.at) {
                        *slot = Some(*n);
                    }
                }
            }
            let cost = costs.is_valid(row).then(|| Amount(costs.value(row)));
            let used = Usage {
                events: 1,
                tokens: if tokens.is_valid(row) { tokens.value(row) } else { 0 },
                cost_usd: cost.unwrap_or(Amount::ZERO),
                cost_unknown: u64::from(cost.is_none()),
            };
            for n in first.into_iter().flatten() {
                self.all[n].held_back.add(&used);
            }
        }
    }

    /// The orders with what they held back.
    pub(super) fn into_all(self) -> Vec<Standing> {
        self.all
    }
}
