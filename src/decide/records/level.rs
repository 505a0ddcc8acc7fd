//! The records of `runwarden.policy-level`: how a tenant stands, and what is to be done about it (L1, L3).

use serde::{Deserialize, Serialize};

use crate::clock::Micros;
use crate::decide::id::time;

/// The policy level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// All is well.
    Green,
    /// Watch.
    Yellow,
    /// Critical.
    Red,
    /// No input, or none that is recent.
    Unknown,
}

impl Level {
    /// Every level, worst first. UNKNOWN hides neither RED nor YELLOW, and GREEN does not hide it.
    pub const ALL: [Self; 4] = [Self::Red, Self::Yellow, Self::Unknown, Self::Green];

    /// The JSON name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Green => "GREEN",
            Self::Yellow => "YELLOW",
            Self::Red => "RED",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// Reads the JSON name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str().eq_ignore_ascii_case(name))
    }

    /// 0 is the worst.
    pub fn rank(self) -> usize {
        Self::ALL.into_iter().position(|level| level == self).unwrap_or_default()
    }
}

/// The six inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LevelInputs {
    /// Whether trust is locked.
    pub trust_locked: bool,
    /// 0 to 100.
    pub integrity_score: f64,
    /// 0 to 100.
    pub consensus_pct: f64,
    /// 0 to 100.
    pub reputation_score: f64,
    /// low medium high
    pub forecast_risk: String,
    /// Responses of others lately; ours are not among them.
    pub recent_responses: i64,
}

/// What stands for an input that is missing.
impl Default for LevelInputs {
    fn default() -> Self {
        Self {
            trust_locked: false,
            integrity_score: 100.0,
            consensus_pct: 100.0,
            reputation_score: 100.0,
            forecast_risk: "low".to_owned(),
            recent_responses: 0,
        }
    }
}

/// The seven thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LevelThresholds {
    /// RED below.
    pub red_integrity: f64,
    /// RED below.
    pub red_consensus: f64,
    /// RED from here on.
    pub red_responses: i64,
    /// YELLOW below.
    pub yellow_integrity: f64,
    /// YELLOW below.
    pub yellow_consensus: f64,
    /// YELLOW below.
    pub yellow_reputation: f64,
    /// YELLOW from here on.
    pub yellow_responses: i64,
}

impl Default for LevelThresholds {
    fn default() -> Self {
        Self {
            red_integrity: 90.0,
            red_consensus: 85.0,
            red_responses: 8,
            yellow_integrity: 95.0,
            yellow_consensus: 90.0,
            yellow_reputation: 80.0,
            yellow_responses: 4,
        }
    }
}

/// How a tenant stands; of tenant `*`: all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyLevel {
    /// GREEN YELLOW RED UNKNOWN
    pub policy: Level,
    /// The step's clock.
    #[serde(with = "time")]
    pub evaluated_at: Micros,
    /// Tenant.
    pub tenant_id: String,
    /// The six inputs, defaults in place of those that are missing.
    pub inputs: LevelInputs,
    /// The seven thresholds.
    pub thresholds: LevelThresholds,
    /// Every reason that holds, the RED ones first.
    pub reasons: Vec<String>,
    /// The inputs that are missing, or too old.
    pub missing: Vec<String>,
    /// 1, 2, 3 …
    pub revision: u64,
}

/// What becomes of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ResponseOutcome {
    /// Its actions are to be executed.
    Apply,
    /// It is only shown what would be done.
    Preview,
    /// A gate is closed.
    Blocked,
    /// There is nothing to do at this level.
    Nothing,
}

/// What is to be done about the level of all, or why it is not (L3): the latest is kept on the topic under the key `*/response`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponsePlan {
    /// UUIDv5 of its cause.
    pub response_id: String,
    /// 1, 2, 3 …
    pub revision: u64,
    /// APPLY PREVIEW BLOCKED NOTHING
    pub outcome: ResponseOutcome,
    /// The level it answers.
    pub level: Level,
    /// Whether it was to be applied.
    pub apply: bool,
    /// The actions, in order.
    pub actions: Vec<String>,
    /// The gates that are closed, in the order in which they are looked at.
    pub blocked_by: Vec<String>,
    /// The step's clock.
    #[serde(with = "time")]
    pub planned_at: Micros,
    /// Who asked; `system:core` at a change of level.
    pub principal: String,
    /// Why.
    pub reason: String,
    /// How the level came about.
    pub reasons: Vec<String>,
}
