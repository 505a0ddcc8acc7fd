//! Conditions and actions as written: kept with the policy, checked in structure.

use serde::{Deserialize, Serialize};

use super::model::Place;
use super::names::names;

mod compile;
mod fields;
mod matches;
mod planned;
pub(super) mod sql;

pub use compile::{Compiled, Conditions, Truth};
pub use fields::{Entity, Fields, Input, Origin};

names! {
    /// How a composite condition joins its parts.
    Junction {
        /// All.
        And = "AND",
        /// Any.
        Or = "OR",
        /// None of exactly one.
        Not = "NOT",
    }
}

names! {
    /// How a field is compared.
    #[allow(missing_docs, reason = "the text says it")]
    Comparison {
        Eq = "==",
        Ne = "!=",
        Lt = "<",
        Le = "<=",
        Gt = ">",
        Ge = ">=",
        In = "in",
        Contains = "contains",
        Matches = "matches",
        Exists = "exists",
    }
}

/// The `condition` of a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Condition {
    /// AND, OR, NOT over others.
    Composite {
        /// How they are joined.
        operator: Junction,
        /// The parts: exactly one under NOT.
        conditions: Vec<Condition>,
    },
    /// One field against a value.
    FieldComparison {
        /// `run.…`, `agent.…` or `task.…`.
        field: String,
        /// The comparison.
        operator: Comparison,
        /// What it is compared with; null for `exists`.
        #[serde(default)]
        value: serde_json::Value,
        /// Where the field is written.
        #[serde(default, skip_serializing_if = "Place::is_unknown")]
        place: Place,
    },
    /// A boolean SQL expression over `run.* agent.* task.*`.
    Sql {
        /// The expression as written.
        expression: String,
        /// The trigger's `type` in a guardian file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
        /// Where the expression is written.
        #[serde(default, skip_serializing_if = "Place::is_unknown")]
        place: Place,
    },
}

impl Condition {
    /// Where it is written: the first of its parts.
    pub(super) fn place(&self) -> Place {
        match self {
            Self::Composite { conditions, .. } => conditions.first().map_or(Place::default(), Self::place),
            Self::FieldComparison { place, .. } | Self::Sql { place, .. } => *place,
        }
    }

    /// Forgets where it was written.
    pub(super) fn forget_places(&mut self) {
        match self {
            Self::Composite { conditions, .. } => conditions.iter_mut().for_each(Self::forget_places),
            Self::FieldComparison { place, .. } | Self::Sql { place, .. } => *place = Place::default(),
        }
    }
}

/// One of a policy's `actions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// One of [`ACTIONS`].
    #[serde(rename = "type")]
    pub action: String,
    /// Template of the target's id, as `${agent.id}`; `None`: what the event names.
    pub target: Option<String>,
    /// Why, for the audit.
    pub reason: Option<String>,
    /// Whether a person must approve first.
    pub approval_required: bool,
    /// Parameters of the action.
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

/// What a field that reads the utilization of a metric begins with.
pub(super) const UTILIZATION: &str = "run.utilization.";

/// Other names of fields, as the seeds write them: (alias, field).
pub(super) const ALIASES: &[(&str, &str)] = &[
    ("run.id", "run.run_id"),
    ("agent.id", "agent.agent_id"),
    ("task.id", "task.task_id"),
    ("task.status", "task.task_status"),
    ("task.running_duration", "task.running_duration_seconds"),
];

/// The field that a name stands for.
pub(super) fn canonical(field: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == field).map_or(field, |(_, field)| field)
}

/// Names of actions, as in policies and guardian routes (`contracts.md`, *Intervention*).
pub(super) const ACTIONS: &[&str] = &[
    "pause_run",
    "resume_run",
    "stop_run",
    "kill_run",
    "restart_agent",
    "quarantine_agent",
    "restart_team",
    "reassign_task",
    "override_priority",
    "cancel_task",
    "reallocate_capacity",
    "notify",
];

#[cfg(test)]
mod tests;
