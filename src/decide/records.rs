//! What the core can say: the records of `contracts.md`, *Outputs*, as Rust types.
//!
//! Field names are the JSON names. Times are µs inside and RFC 3339 with six decimals outside; money and every other limited
//! quantity is an exact [`Amount`] and a JSON number outside.

mod evaluation;
mod level;
mod live;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use self::evaluation::Evaluation;
pub use self::level::{Level, LevelInputs, LevelThresholds, PolicyLevel, ResponseOutcome, ResponsePlan};
pub use self::live::{Live, LiveAgent, LiveTask, LiveWindow};
use crate::clock::Micros;
use crate::decide::id::time;
use crate::decide::lessons::Lesson;
use crate::policy::Amount;

/// Level of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    /// At or past the NEAR line (80 % by default).
    Near,
    /// At or past the limit.
    Breach,
    /// The level ended.
    Resolved,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Near, Self::Breach, Self::Resolved];

    /// The JSON name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Near => "NEAR",
            Self::Breach => "BREACH",
            Self::Resolved => "RESOLVED",
        }
    }
}

/// Why a level ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// A final result fell below NEAR.
    Fixed,
    /// Its window closed.
    WindowReset,
    /// Its run ended.
    RunEnded,
    /// The limit is no longer in force.
    PolicyChanged,
}

/// Whom a signal or an intervention is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// RUN AGENT API_KEY HUMAN_ACTOR TASK PROJECT PROVIDER TENANT
    pub kind: String,
    /// Its id.
    pub id: String,
}

/// Where a record lies on its topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Topic (or file).
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset (or line).
    pub offset: i64,
}

/// The records a decision rests on: all of them lie between these two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// First record of the window.
    pub first: Option<Place>,
    /// Last record of the window at the decision.
    pub last: Option<Place>,
}

/// Which policy gave which part of an arbitrated limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gave {
    /// Policy id.
    pub policy_id: String,
    /// `max`, `near`, `action`.
    pub gave: Vec<String>,
}

/// How a signal counts in the violations views.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Violation {
    /// cost rate quota temporal safety ethical
    pub violation_type: String,
    /// cost sim guard runtime
    pub source: String,
    /// 1.0 KILL, 0.8 BREACH, 0.5 NEAR
    pub severity: f64,
    /// ANOMALY DIVERGENCE STANDARD
    pub violation_kind: String,
}

/// An immutable evidence record: a limit's level rose or ended (S1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// UUIDv5 of tenant, policy tenant, policy, limit, version, scope, window and kind.
    pub signal_id: String,
    /// NEAR BREACH RESOLVED
    pub kind: Kind,
    /// BLOCK WARN AUDIT
    pub mode: String,
    /// Tenant the scope belongs to.
    pub tenant_id: String,
    /// Where `limit` came from.
    pub policy_id: String,
    /// Its version.
    pub policy_version: u32,
    /// The snapshot it was judged under.
    pub snapshot_id: String,
    /// Who gave what.
    pub contributors: Vec<Gave>,
    /// Limit id.
    pub limit_id: String,
    /// TOKENS_PER_RUN …
    pub limit_type: String,
    /// BUDGET RATE THRESHOLD
    pub category: String,
    /// Metric name.
    pub metric: String,
    /// Whom it is about.
    pub scope: Subject,
    /// Set when the scope is a run.
    pub run_id: Option<String>,
    /// Window as at the crossing row.
    #[serde(with = "time")]
    pub window_start: Micros,
    /// Exclusive, except for a run window that ended at its marker.
    #[serde(with = "time")]
    pub window_end: Micros,
    /// Value of the row that crossed; RESOLVED: the final value, null when the window ran empty.
    pub value: Option<Amount>,
    /// The maximum.
    pub limit: Amount,
    /// The NEAR ratio.
    pub near: Amount,
    /// value ÷ limit
    pub utilization: Option<Amount>,
    /// value − limit when positive (X1).
    pub overshoot: Option<Amount>,
    /// Forecast; null without one.
    pub minutes_to_limit: Option<f64>,
    /// value or forecast
    pub raised_by: String,
    /// BLOCK REJECT QUEUE DEGRADE WARN ALERT
    pub enforcement: String,
    /// PAUSE STOP KILL none
    pub on_breach: String,
    /// Event time of the row that crossed; of a raise at close and of RESOLVED the window's end.
    #[serde(with = "time")]
    pub event_time: Micros,
    /// The step's clock.
    #[serde(with = "time")]
    pub decided_at: Micros,
    /// decided_at − event_time.
    pub lag_ms: i64,
    /// reported, table, unknown; null when the metric has no cost.
    pub cost_provenance: Option<String>,
    /// For DEGRADE.
    pub fallback_model: Option<String>,
    /// REJECT QUEUE DEGRADE: until when new work of the scope is held back.
    #[serde(with = "time::option")]
    pub reject_until: Option<Micros>,
    /// How it counts.
    pub violation: Violation,
    /// What it rests on.
    pub evidence: Evidence,
    /// False when the window began before the metric did, or its history was lost.
    pub complete: bool,
    /// The crossing row was synthetic.
    pub is_synthetic: bool,
    /// RESOLVED: why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<Ended>,
    /// RESOLVED: the highest value while the level was up.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peak_utilization: Option<Amount>,
    /// RESOLVED: the final value.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub final_value: Option<Amount>,
}

/// State of a correlated alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AlertStatus {
    /// First member.
    Open,
    /// More members, or another severity.
    Updated,
    /// Its window is over and no member's level is up.
    Resolved,
}

impl AlertStatus {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Open, Self::Updated, Self::Resolved];

    /// The JSON name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Updated => "UPDATED",
            Self::Resolved => "RESOLVED",
        }
    }
}

/// Severity of an alert; the order is the order of concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// Informational.
    Low,
    /// NEAR.
    Medium,
    /// BREACH.
    High,
    /// KILL, or fail-closed.
    Critical,
}

impl Severity {
    /// Every severity.
    pub const ALL: [Self; 4] = [Self::Low, Self::Medium, Self::High, Self::Critical];

    /// The JSON name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "LOW",
            Self::Medium => "MEDIUM",
            Self::High => "HIGH",
            Self::Critical => "CRITICAL",
        }
    }

    /// Reads the JSON name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str().eq_ignore_ascii_case(name))
    }
}

/// A correlated alert (A1): what belongs together, as one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// UUIDv5 of (tenant, correlation key, first member).
    pub alert_id: String,
    /// 1, 2, 3 …
    pub revision: u64,
    /// OPEN UPDATED RESOLVED
    pub status: AlertStatus,
    /// Tenant.
    pub tenant_id: String,
    /// Given by `queries/decide/correlation.sql`.
    pub correlation_key: String,
    /// CRITICAL HIGH MEDIUM LOW
    pub severity: Severity,
    /// One line for people.
    pub title: String,
    /// The latest member in words.
    pub description: String,
    /// Event time of the first member.
    #[serde(with = "time")]
    pub first_seen: Micros,
    /// Event time of the last member.
    #[serde(with = "time")]
    pub last_seen: Micros,
    /// Members so far.
    pub alert_count: u64,
    /// Members whose update was not sent on its own (A2).
    pub suppressed_count: u64,
    /// Ids of the first 100 members.
    pub members: Vec<String>,
    /// All members.
    pub members_total: u64,
    /// Runs concerned (at most 100).
    pub runs: BTreeSet<String>,
    /// Agents concerned (at most 100).
    pub agents: BTreeSet<String>,
    /// Metrics concerned.
    pub metrics: BTreeSet<String>,
    /// signal, failure, external …
    pub sources: BTreeSet<String>,
    /// Stable over alerts of the same cause: UUIDv5 of (tenant, correlation key).
    pub fingerprint: String,
    /// Why it ended.
    pub resolve_reason: Option<String>,
    /// Value of the latest member.
    pub current_value: Option<Amount>,
    /// Forecast of the latest member.
    pub minutes_to_limit: Option<f64>,
    /// Channels of the policies concerned.
    pub channels: BTreeSet<String>,
    /// Silences that mute it.
    pub silenced_by: Vec<String>,
    /// Alerts that mute it.
    pub inhibited_by: Vec<String>,
    /// All members are synthetic.
    pub is_synthetic: bool,
}

/// State of an intervention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InterventionState {
    /// A person must approve it first.
    Proposed,
    /// An executor is to do it.
    Issued,
    /// An executor has said that it will.
    Acknowledged,
    /// An executor has done it.
    Succeeded,
    /// An executor could not do it.
    Failed,
    /// Nobody acknowledged it, or reported its end, in time.
    TimedOut,
    /// A person refused it.
    Rejected,
    /// No person approved it in time.
    Expired,
    /// Another, or the run's own end, made it needless before anyone acknowledged it.
    Superseded,
    /// It was taken back.
    Reverted,
}

impl InterventionState {
    /// Every state.
    pub const ALL: [Self; 10] = [
        Self::Proposed,
        Self::Issued,
        Self::Acknowledged,
        Self::Succeeded,
        Self::Failed,
        Self::TimedOut,
        Self::Rejected,
        Self::Expired,
        Self::Superseded,
        Self::Reverted,
    ];

    /// The JSON name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proposed => "PROPOSED",
            Self::Issued => "ISSUED",
            Self::Acknowledged => "ACKNOWLEDGED",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::Rejected => "REJECTED",
            Self::Expired => "EXPIRED",
            Self::Superseded => "SUPERSEDED",
            Self::Reverted => "REVERTED",
        }
    }
}

/// Before, after and what led to it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AuditLog {
    /// State before.
    pub before: serde_json::Value,
    /// State after.
    pub after: serde_json::Value,
    /// Parameters.
    pub parameters: serde_json::Value,
    /// What the executor reported.
    pub results: serde_json::Value,
}

/// What an executor must do, and each change of its state (I1, I4, I5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intervention {
    /// UUIDv5 of (tenant, type, target, cause).
    pub intervention_id: String,
    /// 1, 2, 3 …
    pub revision: u64,
    /// PROPOSED ISSUED ACKNOWLEDGED SUCCEEDED FAILED TIMED_OUT REJECTED EXPIRED SUPERSEDED REVERTED
    pub state: InterventionState,
    /// Always `enforced` here: nothing in shadow is ever on this topic.
    pub mode: String,
    /// PAUSE STOP KILL
    #[serde(rename = "type")]
    pub kind: String,
    /// Whom it concerns.
    pub target: Subject,
    /// Parameters of the type.
    pub parameters: serde_json::Value,
    /// Tenant.
    pub tenant_id: String,
    /// Set when the target is a run.
    pub run_id: Option<String>,
    /// Policy that asked for it.
    pub policy_id: String,
    /// The BREACH that caused it; null when the run's terms are ambiguous.
    pub signal_id: Option<String>,
    /// In words, with the figures.
    pub reason: String,
    /// 5: what a policy raises acts as SYSTEM (I2).
    pub authority_level: u8,
    /// `policy:<id>`
    pub initiated_by: String,
    /// `runwarden`
    pub principal: String,
    /// Whether a human had to agree first.
    pub approval_required: bool,
    /// Who agreed.
    pub approved_by: Option<String>,
    /// The step's clock.
    #[serde(with = "time")]
    pub created_at: Micros,
    /// When it went out.
    #[serde(with = "time::option")]
    pub issued_at: Option<Micros>,
    /// By when it must be approved, acknowledged or ended, whichever is next.
    #[serde(with = "time::option")]
    pub deadline: Option<Micros>,
    /// When an executor did it.
    #[serde(with = "time::option")]
    pub executed_at: Option<Micros>,
    /// When it was taken back.
    #[serde(with = "time::option")]
    pub reverted_at: Option<Micros>,
    /// By whom.
    pub reverted_by: Option<String>,
    /// The intervention it replaces.
    pub supersedes: Option<String>,
    /// The intervention on the parent run.
    pub parent_intervention_id: Option<String>,
    /// Before, after, parameters, results.
    pub audit_log: AuditLog,
}

/// One line of the append-only audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// UUIDv5 of (tenant, kind, subject, cause).
    pub audit_id: String,
    /// The step's clock.
    #[serde(with = "time")]
    pub at: Micros,
    /// shadow_decision outcome refusal …
    pub kind: String,
    /// Tenant.
    pub tenant_id: String,
    /// Who acted.
    pub principal: String,
    /// With which authority (1–5).
    pub authority: u8,
    /// On what.
    pub subject: Subject,
    /// State before.
    pub before: serde_json::Value,
    /// State after.
    pub after: serde_json::Value,
    /// Why.
    pub reason: String,
    /// True for a refusal.
    pub refused: bool,
}

/// What an agent of the guardian publishes (I6), beside the record of the intervention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardianEvent {
    /// `guardian.intervention.started|completed|reverted`, `guardian.resource.reallocated`
    pub event_type: String,
    /// Unique.
    pub event_id: String,
    /// Tenant.
    pub tenant_id: String,
    /// The step's clock.
    #[serde(with = "time")]
    pub at: Micros,
    /// As the seed has it.
    pub payload: serde_json::Value,
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommandResult {
    /// The command's id.
    pub command_id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub command: String,
    /// ACCEPTED REFUSED
    pub status: String,
    /// Machine-readable reason.
    pub code: String,
    /// In words.
    pub reason: String,
    /// What was made or changed, by type; null when refused.
    pub result: serde_json::Value,
    /// The BLOCKING conflicts that forbid it (GOV-POL-001).
    pub conflicts: serde_json::Value,
    /// The dependencies that forbid it (GOV-POL-002).
    pub dependents: serde_json::Value,
    /// The authority it takes, when that is what was missing.
    pub required_authority: Option<u8>,
    /// The authority it had: the lower of the command's and its key's; 1 without a valid signature.
    pub given_authority: u8,
    /// Offset of the command.
    pub offset: i64,
    /// Its tenant: the record's key.
    pub tenant_id: String,
}

/// The latest state of something on the policies topic, keyed `tenant/kind/id`.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyRecord {
    /// Whose; `*`: everyone's.
    pub tenant_id: String,
    /// `policy proposal version limit override set snapshot in-force`
    pub kind: String,
    /// What, in parts.
    pub id: Vec<String>,
    /// Its revision; 0 where it has none.
    pub revision: u64,
    /// Its state as JSON; `None`: gone.
    pub record: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RunStatus {
    /// `run.completed`
    Completed,
    /// `run.failed`
    Failed,
    /// It said nothing for as long as its window may stay open.
    Silent,
}

/// What became of a run, said once at its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// The run.
    pub run_id: String,
    /// Its tenant.
    pub tenant_id: String,
    /// The run that started it.
    pub parent_run_id: Option<String>,
    /// Its agent, as last named.
    pub agent_id: Option<String>,
    /// Its project.
    pub project_id: Option<String>,
    /// Its API key.
    pub api_key_id: Option<String>,
    /// The person behind it.
    pub human_actor_id: Option<String>,
    /// Its provider.
    pub provider: Option<String>,
    /// COMPLETED FAILED SILENT
    pub status: RunStatus,
    /// Event time of its first event.
    #[serde(with = "time")]
    pub started_at: Micros,
    /// Event time of its end.
    #[serde(with = "time")]
    pub ended_at: Micros,
    /// From its first event to its end.
    pub duration_ms: i64,
    /// Final value of `run_tokens`; null without that metric.
    pub tokens: Option<Amount>,
    /// Final value of `run_cost_usd`.
    pub cost_usd: Option<Amount>,
    /// Final value of `run_steps`.
    pub steps: Option<Amount>,
    /// Final value of every metric of runs, by name.
    pub metrics: BTreeMap<String, Option<Amount>>,
    /// Signals about it, by kind.
    pub signals: BTreeMap<String, u32>,
    /// Interventions on it: the first 16.
    pub interventions: Vec<String>,
    /// The snapshot it was bound to at its start.
    pub snapshot_id: String,
    /// False when its end came too late for its figures, or some rows are missing.
    pub complete: bool,
    /// Made up for a test.
    pub is_synthetic: bool,
}

/// Everything the core can say.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// On `runwarden.signals`.
    Signal(Box<Signal>),
    /// On `runwarden.alerts`.
    Alert(Box<Alert>),
    /// On `runwarden.interventions`.
    Intervention(Box<Intervention>),
    /// On `runwarden.interventions`.
    Guardian(Box<GuardianEvent>),
    /// On `runwarden.lessons`.
    Lesson(Box<Lesson>),
    /// On `runwarden.runs`.
    Run(Box<RunSummary>),
    /// On `runwarden.commands`: to the one writer, or to another partition (tasks talk only by commands).
    Command(Box<crate::decide::commands::Command>),
    /// On `runwarden.audit`.
    Audit(Box<Audit>),
    /// On `runwarden.command-results`.
    CommandResult(Box<CommandResult>),
    /// On `runwarden.policies`.
    Policy(Box<PolicyRecord>),
    /// On `runwarden.policy-level`.
    Level(Box<PolicyLevel>),
    /// On `runwarden.policy-level`, under the key `*/response`.
    Response(Box<ResponsePlan>),
    /// On `runwarden.evaluations`.
    Evaluation(Box<Evaluation>),
}
