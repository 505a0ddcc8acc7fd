//! The model: what a policy file may say, typed (`policies.md`, *Policy files*).

use serde::{Deserialize, Serialize};

use super::active::Active;
use super::amount::Amount;
use super::names::names;
use super::scope::Selector;

/// Where something stands in a file: line and column from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

names! {
    /// What a policy may do (X8).
    Mode { Block = "BLOCK", Warn = "WARN", Audit = "AUDIT", Disabled = "DISABLED" }
}
names! {
    /// Life of a policy in force.
    Status { Active = "ACTIVE", Retired = "RETIRED" }
}
names! {
    /// Life of a limit.
    LimitStatus { Active = "ACTIVE", Disabled = "DISABLED" }
}
names! {
    /// Why the rule exists.
    RuleType { System = "SYSTEM", Safety = "SAFETY", Ethical = "ETHICAL", Temporal = "TEMPORAL" }
}
names! {
    /// Who wrote the policy.
    Source { Manual = "MANUAL", System = "SYSTEM", Learned = "LEARNED" }
}
names! {
    /// How competing limits are ordered (P4).
    Strategy { MostRestrictive = "MOST_RESTRICTIVE", ExplicitPriority = "EXPLICIT_PRIORITY", FailClosed = "FAIL_CLOSED" }
}
names! {
    /// When a run binds the policy (P5).
    Binding { RunStart = "RUN_START", FirstToken = "FIRST_TOKEN", EachStep = "EACH_STEP" }
}
names! {
    /// What to do when inputs are missing (P6).
    OnFailure { Open = "fail_open", Closed = "fail_closed" }
}
names! {
    /// What a limit counts.
    Category { Budget = "BUDGET", Rate = "RATE", Threshold = "THRESHOLD" }
}
names! {
    /// What a breach does (P3).
    Enforcement { Block = "BLOCK", Reject = "REJECT", Queue = "QUEUE", Degrade = "DEGRADE", Warn = "WARN", Alert = "ALERT" }
}
names! {
    /// The intervention of a breach; later is harsher.
    OnBreach { None = "none", Pause = "PAUSE", Stop = "STOP", Kill = "KILL" }
}

/// Where and how often alerts of a policy go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alerts {
    /// Channel names.
    pub channels: Vec<String>,
    /// Most alerts of one run.
    pub max_alerts_per_run: u64,
    /// Least seconds between two updates of one alert.
    pub min_alert_interval_seconds: u64,
}

impl Default for Alerts {
    fn default() -> Self {
        Self { channels: vec!["ui".into()], max_alerts_per_run: 20, min_alert_interval_seconds: 30 }
    }
}

/// What may be observed of the runs a policy governs (T5).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Monitor {
    /// Signals of interest.
    pub signals: Vec<String>,
    /// Keep prompt text.
    pub allow_prompt_logging: bool,
    /// Keep personal data.
    pub allow_pii_capture: bool,
}

/// Who may override, for how long (P7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverrideRule {
    /// Least authority, 1 to 5.
    pub min_authority: u8,
    /// Longest override.
    pub max_minutes: u64,
}

impl Default for OverrideRule {
    fn default() -> Self {
        Self { min_authority: 4, max_minutes: 60 }
    }
}

/// Whether interventions revert themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// Whether at all.
    pub enabled: bool,
    /// After how long.
    pub auto_rollback_after_minutes: u64,
}

impl Default for Rollback {
    fn default() -> Self {
        Self { enabled: false, auto_rollback_after_minutes: 60 }
    }
}

/// One limit: a metric and its maximum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Unique within the policy.
    pub id: String,
    /// `TOKENS_PER_RUN` and the like.
    pub limit_type: String,
    /// What it counts.
    pub category: Category,
    /// Name of a metric query.
    pub metric: String,
    /// The maximum.
    pub max: Amount,
    /// NEAR from this share of the maximum on.
    pub near: Amount,
    /// NEAR also when the forecast reaches the maximum within so many minutes.
    pub near_forecast_minutes: Option<u64>,
    /// Whether it holds.
    pub status: LimitStatus,
    /// What a breach does.
    pub enforcement: Enforcement,
    /// The intervention of a breach.
    pub on_breach: OnBreach,
    /// After a breach the scope stays rejected so long.
    pub cooldown_seconds: u64,
    /// For DEGRADE.
    pub fallback_model: Option<String>,
    /// Where it stands.
    #[serde(skip)]
    pub place: Place,
}

/// A policy: a versioned, scoped, runtime-bound control contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Unique within the tenant.
    pub id: String,
    /// For people.
    pub name: String,
    /// Its tenant; `*` is every tenant separately.
    pub tenant: String,
    /// Counts up by itself.
    pub version: u32,
    /// ACTIVE RETIRED
    pub status: Status,
    /// Why it exists.
    pub rule_type: RuleType,
    /// Who wrote it.
    pub source: Source,
    /// What it may do.
    pub enforcement_mode: Mode,
    /// What it matches.
    pub scope: Selector,
    /// Lower wins under EXPLICIT_PRIORITY.
    pub precedence: i64,
    /// How competing limits are ordered.
    pub conflict_strategy: Strategy,
    /// When a run binds it.
    pub binding: Binding,
    /// What to do when inputs are missing.
    pub on_failure: OnFailure,
    /// Policies it needs.
    pub depends_on: Vec<String>,
    /// When it holds; `None`: always.
    pub active: Option<Active>,
    /// Its limits.
    pub limits: Vec<Limit>,
    /// Its condition as written; read, not evaluated yet.
    pub condition: Option<serde_json::Value>,
    /// Its actions as written; read, not taken yet.
    pub actions: Vec<serde_json::Value>,
    /// Authority its actions need.
    pub min_authority: u8,
    /// What may be observed.
    pub monitor: Monitor,
    /// Where alerts go.
    pub alerts: Alerts,
    /// Who may override.
    pub overrides: OverrideRule,
    /// Whether interventions revert.
    pub rollback: Rollback,
    /// File it came from.
    #[serde(skip)]
    pub file: String,
    /// Where its document begins.
    #[serde(skip)]
    pub place: Place,
}
