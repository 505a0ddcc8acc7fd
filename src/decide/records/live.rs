//! What the live topic says: windows on their way to a limit, and agents and tasks as they last were.

use serde::{Deserialize, Serialize};

use super::{Kind, Subject};
use crate::clock::Micros;
use crate::decide::id::time;
use crate::policy::Amount;

/// One key of the live topic: `tenant/kind/id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Whose.
    pub tenant_id: String,
    /// window, agent or task
    pub kind: &'static str,
    /// The parts of its id.
    pub id: Vec<String>,
    /// The record; `None`: it is over.
    pub record: Option<String>,
}

/// A window that has reached half of a limit. Of several limits the one that is nearest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveWindow {
    /// Whose.
    pub tenant_id: String,
    /// Metric name.
    pub metric: String,
    /// Whom it is about.
    pub scope: Subject,
    /// Set when the scope is a run.
    pub run_id: Option<String>,
    /// Begin of the window.
    #[serde(with = "time")]
    pub window_start: Micros,
    /// End of the window; of a session as far as it has come.
    #[serde(with = "time")]
    pub window_end: Micros,
    /// Value now.
    pub value: Amount,
    /// The limit that it is nearest to.
    pub policy_id: String,
    /// Version of the policy.
    pub policy_version: u32,
    /// Its limit.
    pub limit_id: String,
    /// TOKENS_PER_RUN …
    pub limit_type: String,
    /// BLOCK WARN AUDIT
    pub mode: String,
    /// The maximum.
    pub limit: Amount,
    /// The NEAR ratio.
    pub near: Amount,
    /// value ÷ limit
    pub utilization: Amount,
    /// Until the limit is reached at the rate so far; null: nothing can be said.
    pub minutes_to_limit: Option<f64>,
    /// NEAR BREACH; null below.
    pub level: Option<Kind>,
    /// BLOCK REJECT QUEUE DEGRADE WARN ALERT
    pub enforcement: String,
    /// PAUSE STOP KILL none
    pub on_breach: String,
    /// The step's clock.
    #[serde(with = "time")]
    pub updated_at: Micros,
}

/// An agent as it last said it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveAgent {
    /// Its id.
    pub agent_id: String,
    /// Whose.
    pub tenant_id: String,
    /// Its team.
    pub team_id: Option<String>,
    /// healthy degraded failed unknown
    pub health_status: Option<String>,
    /// 0 to 1
    pub anomaly_score: Option<f64>,
    /// How many in a row.
    pub consecutive_anomalous_readings: Option<i64>,
    /// What it can do at once.
    pub capacity: Option<i64>,
    /// Tasks of its that are not done.
    pub open_tasks: usize,
    /// Event time of its last event.
    #[serde(with = "time")]
    pub last_seen: Micros,
    /// The step's clock.
    #[serde(with = "time")]
    pub updated_at: Micros,
}

/// A task as it was last said to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveTask {
    /// Its id.
    pub task_id: String,
    /// Whose.
    pub tenant_id: String,
    /// The run named beside it.
    pub run_id: Option<String>,
    /// The agent named beside it.
    pub agent_id: Option<String>,
    /// pending running completed failed cancelled
    pub task_status: Option<String>,
    /// CRITICAL HIGH MEDIUM LOW
    pub priority: Option<String>,
    /// Seconds.
    pub running_duration_seconds: Option<f64>,
    /// Seconds.
    pub timeout_seconds: Option<f64>,
    /// It is not done.
    pub open: bool,
    /// Event time of its last event.
    #[serde(with = "time")]
    pub last_seen: Micros,
    /// The step's clock.
    #[serde(with = "time")]
    pub updated_at: Micros,
}
