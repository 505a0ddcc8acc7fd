//! A policy as it is written: every field of the file, typed, with the defaults filled in.
//!
//! Values of these types that come from [`super::parse`] are valid one by one: `near` in (0, 1], `max` above 0, ids
//! unique within their policy. How they behave together is [`super::check`]'s.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::active::Active;
use super::amount::Amount;
use super::condition::{Action, Condition};
use super::names::names;
use super::scope::Selector;

names! {
    /// Whether a policy counts.
    Status {
        /// It does.
        Active = "ACTIVE",
        /// It no longer does.
        Retired = "RETIRED",
    }
}
names! {
    /// What kind of rule it is.
    #[allow(missing_docs, reason = "the text says it")]
    RuleType { System = "SYSTEM", Safety = "SAFETY", Ethical = "ETHICAL", Temporal = "TEMPORAL" }
}
names! {
    /// Where a policy came from.
    #[allow(missing_docs, reason = "the text says it")]
    Source { Manual = "MANUAL", System = "SYSTEM", Learned = "LEARNED" }
}
names! {
    /// How far a policy may go.
    Mode {
        /// Enforced.
        Block = "BLOCK",
        /// Signals and alerts only.
        Warn = "WARN",
        /// Shadow: says what it would have done.
        Audit = "AUDIT",
        /// Not evaluated.
        Disabled = "DISABLED",
    }
}
names! {
    /// How limits that compete are arbitrated.
    Strategy {
        /// Smallest limit, harshest action.
        MostRestrictive = "MOST_RESTRICTIVE",
        /// Lowest precedence number wins whole.
        ExplicitPriority = "EXPLICIT_PRIORITY",
        /// As EXPLICIT_PRIORITY, but ambiguity stops.
        FailClosed = "FAIL_CLOSED",
    }
}
names! {
    /// When a run takes a policy's terms.
    Binding {
        /// When it starts.
        RunStart = "RUN_START",
        /// At its first token.
        FirstToken = "FIRST_TOKEN",
        /// At every step anew.
        EachStep = "EACH_STEP",
    }
}
names! {
    /// What counts when inputs are missing or a query fails.
    OnFailure {
        /// Nothing is done.
        Open = "fail_open",
        /// As if breached.
        Closed = "fail_closed",
    }
}
names! {
    /// What kind of limit it is.
    #[allow(missing_docs, reason = "the text says it")]
    Category { Budget = "BUDGET", Rate = "RATE", Threshold = "THRESHOLD" }
}
names! {
    /// Whether a limit counts.
    #[allow(missing_docs, reason = "the text says it")]
    LimitStatus { Active = "ACTIVE", Disabled = "DISABLED" }
}
names! {
    /// What a breach leads to.
    Enforcement {
        /// An intervention on running work.
        Block = "BLOCK",
        /// New work is refused.
        Reject = "REJECT",
        /// New work waits.
        Queue = "QUEUE",
        /// New work uses the fallback model.
        Degrade = "DEGRADE",
        /// Signal and alert.
        Warn = "WARN",
        /// Signal and alert.
        Alert = "ALERT",
    }
}
names! {
    /// The intervention at BREACH; later is harsher.
    OnBreach {
        /// No intervention.
        None = "none",
        /// PAUSE.
        Pause = "PAUSE",
        /// STOP.
        Stop = "STOP",
        /// KILL.
        Kill = "KILL",
    }
}

/// A place in a file, from 1; 0 when unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Column in characters.
    pub column: u64,
}

impl Place {
    /// Whether nothing is known of it.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

/// One limit of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Unique within the policy.
    pub id: Arc<str>,
    /// `RUNS_* TOKENS_* COST_* RISK_CEILING COOLDOWN` or the user's own name.
    pub limit_type: Arc<str>,
    /// What kind of limit.
    pub category: Category,
    /// Name of a metric query.
    pub metric: Arc<str>,
    /// BREACH at `value ≥ max`; above 0, in the metric's unit.
    pub max: Amount,
    /// NEAR at `value ≥ near × max`; a ratio in (0, 1].
    pub near: Amount,
    /// NEAR also when the forecast reaches `max` within so many minutes.
    pub near_forecast_minutes: Option<u32>,
    /// Whether it counts.
    pub status: LimitStatus,
    /// What a breach leads to.
    pub enforcement: Enforcement,
    /// The intervention, under BLOCK only.
    pub on_breach: OnBreach,
    /// After a breach the scope stays rejected so long.
    pub cooldown_seconds: u64,
    /// For DEGRADE.
    pub fallback_model: Option<Arc<str>>,
    /// Where it is written.
    #[serde(default)]
    pub place: Place,
}

impl Limit {
    /// Whether a breach does something beyond signal and alert, given a policy in BLOCK mode.
    pub fn has_effect(&self) -> bool {
        match self.enforcement {
            Enforcement::Block => self.on_breach != OnBreach::None,
            Enforcement::Reject | Enforcement::Queue | Enforcement::Degrade => true,
            Enforcement::Warn | Enforcement::Alert => false,
        }
    }
}

/// What may be collected for a policy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Monitor {
    /// Signals it watches.
    pub signals: Vec<String>,
    /// Whether prompt text may pass the edge.
    pub allow_prompt_logging: bool,
    /// Whether personal data may pass the edge.
    pub allow_pii_capture: bool,
}

/// Where a policy's alerts go, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alerts {
    /// Names of channels.
    pub channels: Vec<String>,
    /// Most alerts one run may cause.
    pub max_alerts_per_run: u32,
    /// Least seconds between two.
    pub min_alert_interval_seconds: u32,
}

impl Default for Alerts {
    fn default() -> Self {
        Self { channels: vec!["ui".to_owned()], max_alerts_per_run: 20, min_alert_interval_seconds: 30 }
    }
}

/// Who may override a policy, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverrideRule {
    /// Least authority, 1 to 5.
    pub min_authority: u8,
    /// Longest override.
    pub max_minutes: u32,
}

impl Default for OverrideRule {
    fn default() -> Self {
        Self { min_authority: 4, max_minutes: 60 }
    }
}

/// Whether interventions of a policy are reverted by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// Whether they are.
    pub enabled: bool,
    /// After how long.
    pub auto_rollback_after_minutes: u32,
}

impl Default for Rollback {
    fn default() -> Self {
        Self { enabled: false, auto_rollback_after_minutes: 60 }
    }
}

/// A policy. JSON has the names of the file's keys, and `version`, `file`, `place`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Unique within its tenant.
    pub id: Arc<str>,
    /// For people.
    pub name: String,
    /// A tenant, or `*`: every tenant separately.
    pub tenant: Arc<str>,
    /// Counts up by itself with each change; 1 when read from a file.
    pub version: u32,
    /// Whether it counts.
    pub status: Status,
    /// What kind of rule.
    pub rule_type: RuleType,
    /// Where it came from.
    pub source: Source,
    /// How far it may go.
    pub enforcement_mode: Mode,
    /// Who it is for.
    pub scope: Selector,
    /// Lower wins.
    pub precedence: i64,
    /// How its limits are arbitrated with others'.
    pub conflict_strategy: Strategy,
    /// When runs take its terms.
    pub binding: Binding,
    /// What counts when inputs are missing.
    pub on_failure: OnFailure,
    /// Ids of policies it needs.
    pub depends_on: Vec<String>,
    /// When it is in force; `None`: always.
    pub active: Option<Active>,
    /// Its limits.
    pub limits: Vec<Limit>,
    /// When its actions are taken.
    pub condition: Option<Condition>,
    /// What is then done.
    pub actions: Vec<Action>,
    /// Least authority of those who act for it, 1 to 5.
    pub min_authority: u8,
    /// What may be collected.
    pub monitor: Monitor,
    /// Where alerts go.
    pub alerts: Alerts,
    /// Who may override it.
    #[serde(rename = "override")]
    pub override_rule: OverrideRule,
    /// Whether it is undone by itself.
    pub rollback: Rollback,
    /// The file it was read from.
    #[serde(default)]
    pub file: Arc<str>,
    /// Where its document begins.
    #[serde(default)]
    pub place: Place,
}

impl Policy {
    /// Whether it is evaluated at all: ACTIVE and not DISABLED.
    pub fn counts(&self) -> bool {
        self.status == Status::Active && self.enforcement_mode != Mode::Disabled
    }

    /// Whether the policy is for this tenant.
    pub fn is_for_tenant(&self, tenant: &str) -> bool {
        &*self.tenant == "*" || &*self.tenant == tenant
    }

    /// Whether a limit of it takes part in arbitration.
    pub fn enforces(&self, limit: &Limit) -> bool {
        self.enforcement_mode == Mode::Block && limit.has_effect()
    }

    /// The same policy without where it was read: what its content is.
    pub(super) fn content(&self) -> Self {
        let mut content = self.clone();
        content.file = Arc::from("");
        content.place = Place::default();
        for limit in &mut content.limits {
            limit.place = Place::default();
        }
        if let Some(condition) = &mut content.condition {
            condition.forget_places();
        }
        content
    }
}
