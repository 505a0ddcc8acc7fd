//! The tables: which topic each is read from, and its columns (`contracts.md`, *HTTP*; topics.md of the manual has the records).
//!
//! A record becomes a row by the paths of the columns, and a row a record again ([`super::rows`]). What is an object or a list in a
//! record is text in JSON in a row, so every column is of a type that Postgres clients and Grafana know.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A point in time: µs, UTC.
    Time,
    /// A number with a fraction.
    Number,
    /// A whole number.
    Count,
    /// True or false.
    Flag,
    /// An object or a list, as text in JSON.
    Json,
}

impl Kind {
    /// Its Arrow type.
    pub fn data_type(self) -> DataType {
        match self {
            Self::Text | Self::Json => DataType::Utf8,
            Self::Time => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
            Self::Number => DataType::Float64,
            Self::Count => DataType::Int64,
            Self::Flag => DataType::Boolean,
        }
    }
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name in SQL.
    pub name: &'static str,
    /// Where its value is in a record: names joined by dots.
    pub path: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// For people.
    pub about: &'static str,
}

impl Column {
    const fn at(self, path: &'static str) -> Self {
        Self { path, ..self }
    }
}

const fn column(name: &'static str, kind: Kind, about: &'static str) -> Column {
    Column { name, path: name, kind, about }
}
const fn text(name: &'static str, about: &'static str) -> Column {
    column(name, Kind::Text, about)
}
const fn time(name: &'static str, about: &'static str) -> Column {
    column(name, Kind::Time, about)
}
const fn number(name: &'static str, about: &'static str) -> Column {
    column(name, Kind::Number, about)
}
const fn count(name: &'static str, about: &'static str) -> Column {
    column(name, Kind::Count, about)
}
const fn flag(name: &'static str, about: &'static str) -> Column {
    column(name, Kind::Flag, about)
}
const fn json(name: &'static str, about: &'static str) -> Column {
    column(name, Kind::Json, about)
}

/// Which topic a table is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the topic of its name")]
pub enum Source {
    Signals,
    Alerts,
    Interventions,
    Runs,
    Lessons,
    Policies,
    PolicyLevel,
    Evaluations,
    Audit,
    Live,
}

impl Source {
    /// Every topic that tables are read from.
    pub const ALL: [Self; 10] = [
        Self::Signals,
        Self::Alerts,
        Self::Interventions,
        Self::Runs,
        Self::Lessons,
        Self::Policies,
        Self::PolicyLevel,
        Self::Evaluations,
        Self::Audit,
        Self::Live,
    ];

    /// Its name in the configuration, and of its folder.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signals => "signals",
            Self::Alerts => "alerts",
            Self::Interventions => "interventions",
            Self::Runs => "runs",
            Self::Lessons => "lessons",
            Self::Policies => "policies",
            Self::PolicyLevel => "policy-level",
            Self::Evaluations => "evaluations",
            Self::Audit => "audit",
            Self::Live => "live",
        }
    }

    /// The latest of each key stays: such a topic is read whole at each start, and nothing of it is sealed.
    pub fn is_compacted(self) -> bool {
        matches!(self, Self::Lessons | Self::Policies | Self::PolicyLevel | Self::Live)
    }
}

/// What of a topic is a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Each record.
    Every,
    /// The newest of each id: the one of the highest revision.
    Latest,
}

/// A table.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its name in SQL.
    pub name: &'static str,
    /// Where its records are.
    pub source: Source,
    /// Of the policies and the live topic: the middle part of the key.
    pub part: Option<&'static str>,
    /// What is a row.
    pub keeps: Keeps,
    /// The columns that identify a row, beside `tenant_id`.
    pub id: &'static [&'static str],
    /// When it happened: rows are kept by it, and lists are ordered by it.
    pub time: Option<&'static str>,
    /// Rows of tenant `*` concern every tenant, and every tenant sees them.
    pub shared: bool,
    /// For people.
    pub about: &'static str,
    /// Its columns.
    pub columns: &'static [Column],
}

impl Table {
    /// Its schema.
    pub fn schema(&self) -> SchemaRef {
        let fields = self.columns.iter().map(|c| Field::new(c.name, c.kind.data_type(), c.name != "tenant_id"));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// Where a column stands.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

/// The table of a name.
pub fn table(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name)
}

const TENANT: Column = text("tenant_id", "whose");
const REVISION: Column = count("revision", "1, 2, 3 … with each change");
const SYNTHETIC: Column = flag("is_synthetic", "made up for a test");

/// Every table that is read from a topic.
pub static TABLES: [Table; 17] = [
    Table {
        name: "signals",
        source: Source::Signals,
        part: None,
        keeps: Keeps::Every,
        id: &["signal_id"],
        time: Some("event_time"),
        shared: false,
        about: "limits that were neared, breached, and no longer are (S1)",
        columns: &[
            text("signal_id", "unique"),
            text("kind", "NEAR BREACH RESOLVED"),
            text("mode", "BLOCK WARN AUDIT"),
            TENANT,
            text("policy_id", "where the limit came from"),
            count("policy_version", "its version"),
            text("snapshot_id", "the terms it was judged under"),
            json("contributors", "which policy gave what"),
            text("limit_id", "which limit"),
            text("limit_type", "TOKENS_PER_RUN …"),
            text("category", "BUDGET RATE THRESHOLD"),
            text("metric", "which metric"),
            text("scope_kind", "RUN AGENT API_KEY HUMAN_ACTOR TASK PROJECT PROVIDER TENANT").at("scope.kind"),
            text("scope_id", "whom it is about").at("scope.id"),
            text("run_id", "the run, when the scope is one"),
            time("window_start", "begin of the window"),
            time("window_end", "end of the window"),
            number("value", "value of the row that crossed"),
            number("limit_value", "the maximum").at("limit"),
            number("near", "the NEAR ratio"),
            number("utilization", "value ÷ limit"),
            number("overshoot", "value − limit when positive"),
            number("minutes_to_limit", "forecast"),
            text("raised_by", "value forecast"),
            text("enforcement", "BLOCK REJECT QUEUE DEGRADE WARN ALERT"),
            text("on_breach", "PAUSE STOP KILL none"),
            time("event_time", "of the row that crossed"),
            time("decided_at", "when it was decided"),
            count("lag_ms", "decided_at − event_time"),
            text("cost_provenance", "reported table unknown"),
            text("fallback_model", "for DEGRADE"),
            time("reject_until", "until when new work is held back"),
            text("violation_type", "cost rate quota temporal safety ethical").at("violation.violation_type"),
            text("source", "cost sim guard runtime").at("violation.source"),
            number("severity", "1.0 KILL, 0.8 BREACH, 0.5 NEAR").at("violation.severity"),
            text("violation_kind", "STANDARD ANOMALY DIVERGENCE").at("violation.violation_kind"),
            json("evidence", "the records it rests on"),
            flag("complete", "no row of the window is missing"),
            SYNTHETIC,
            text("reason", "of RESOLVED: fixed window_reset run_ended policy_changed"),
            number("peak_utilization", "of RESOLVED: the highest while it was up"),
            number("final_value", "of RESOLVED"),
        ],
    },
    Table {
        name: "alerts",
        source: Source::Alerts,
        part: None,
        keeps: Keeps::Latest,
        id: &["alert_id"],
        time: Some("last_seen"),
        shared: false,
        about: "correlated alerts as they stand (A1)",
        columns: &[
            text("alert_id", "unique"),
            REVISION,
            text("status", "OPEN UPDATED RESOLVED"),
            TENANT,
            text("correlation_key", "what its members have in common"),
            text("severity", "CRITICAL HIGH MEDIUM LOW"),
            text("title", "one line"),
            text("description", "the latest member in words"),
            time("first_seen", "first member"),
            time("last_seen", "last member"),
            count("alert_count", "members"),
            count("suppressed_count", "members without a record of their own"),
            json("members", "their ids, at most 100"),
            count("members_total", "how many there are"),
            json("runs", "runs concerned"),
            json("agents", "agents concerned"),
            json("metrics", "metrics concerned"),
            json("sources", "signal failure external panel level intervention breaker blindness"),
            text("fingerprint", "the same for alerts of one cause"),
            text("resolve_reason", "why it ended"),
            number("current_value", "of the latest member"),
            number("minutes_to_limit", "forecast of the latest member"),
            json("channels", "where it is told"),
            json("silenced_by", "silences that mute it"),
            json("inhibited_by", "alerts that mute it"),
            SYNTHETIC,
        ],
    },
    Table {
        name: "interventions",
        source: Source::Interventions,
        part: None,
        keeps: Keeps::Latest,
        id: &["intervention_id"],
        time: Some("created_at"),
        shared: false,
        about: "interventions as they stand (I1, I4, I5)",
        columns: &[
            text("intervention_id", "unique"),
            REVISION,
            text(
                "state",
                "PROPOSED ISSUED ACKNOWLEDGED SUCCEEDED FAILED TIMED_OUT REJECTED EXPIRED SUPERSEDED REVERTED",
            ),
            text("mode", "enforced"),
            text("type", "PAUSE RESUME STOP KILL AGENT_RESTART …"),
            text("target_kind", "what it concerns").at("target.kind"),
            text("target_id", "whom it concerns").at("target.id"),
            json("parameters", "of the type"),
            TENANT,
            text("run_id", "the run, when the target is one"),
            text("policy_id", "which policy asked for it"),
            text("signal_id", "the BREACH that caused it"),
            text("reason", "why"),
            count("authority_level", "1 to 5"),
            text("initiated_by", "policy:… or who asked"),
            text("principal", "who acted"),
            flag("approval_required", "a person must agree first"),
            text("approved_by", "who agreed"),
            time("created_at", "when it was made"),
            time("issued_at", "when it went out"),
            time("deadline", "by when the next step must come"),
            time("executed_at", "when it was done"),
            time("reverted_at", "when it was taken back"),
            text("reverted_by", "by whom"),
            text("supersedes", "the one it replaces"),
            text("parent_intervention_id", "the one on the parent run"),
            json("audit_log", "before, after, parameters, results"),
        ],
    },
    Table {
        name: "runs",
        source: Source::Runs,
        part: None,
        keeps: Keeps::Every,
        id: &["run_id"],
        time: Some("ended_at"),
        shared: false,
        about: "runs that have ended",
        columns: &[
            text("run_id", "the run"),
            TENANT,
            text("parent_run_id", "the run that started it"),
            text("agent_id", "its agent"),
            text("project_id", "its project"),
            text("api_key_id", "its API key"),
            text("human_actor_id", "the person behind it"),
            text("provider", "its provider"),
            text("status", "COMPLETED FAILED SILENT"),
            time("started_at", "first event"),
            time("ended_at", "its end"),
            count("duration_ms", "from start to end"),
            number("tokens", "final"),
            number("cost_usd", "final"),
            number("steps", "final"),
            json("metrics", "final value of every metric of runs"),
            json("signals", "how many, by kind"),
            json("interventions", "ids"),
            text("snapshot_id", "the terms it was bound to"),
            flag("complete", "no row is missing"),
            SYNTHETIC,
        ],
    },
    Table {
        name: "lessons",
        source: Source::Lessons,
        part: None,
        keeps: Keeps::Latest,
        id: &["id"],
        time: Some("created_at"),
        shared: false,
        about: "lessons learned as they stand (E1, E3)",
        columns: &[
            text("id", "unique"),
            REVISION,
            TENANT,
            text("lesson_type", "failure near_threshold critical_success"),
            text("severity", "CRITICAL HIGH MEDIUM LOW NONE"),
            text("source_event_id", "what it was learned from"),
            text("source_event_type", "run signal incident"),
            text("source_run_id", "the run"),
            text("title", "one line"),
            text("description", "in words"),
            text("proposed_action", "what could be done"),
            json("detected_pattern", "the figures"),
            text("status", "pending converted_to_draft deferred dismissed"),
            text("draft_proposal_id", "the proposal that was made of it"),
            time("created_at", "when it was learned"),
            time("converted_at", "when a proposal was made of it"),
            time("deferred_until", "until when it is put off"),
            time("dismissed_at", "when it was dismissed"),
            text("dismissed_by", "by whom"),
            text("dismissed_reason", "why"),
            SYNTHETIC,
            text("synthetic_scenario_id", "of which scenario"),
        ],
    },
    Table {
        name: "policies",
        source: Source::Policies,
        part: Some("policy"),
        keeps: Keeps::Latest,
        id: &["policy_id"],
        time: Some("changed_at"),
        shared: true,
        about: "policies of the register, each in the version that counts (P8)",
        columns: &[
            text("policy_id", "unique within its tenant"),
            text("name", "for people"),
            TENANT,
            REVISION,
            count("version", "counts up with each change"),
            text("status", "ACTIVE RETIRED"),
            text("rule_type", "SYSTEM SAFETY ETHICAL TEMPORAL"),
            text("source", "MANUAL SYSTEM LEARNED"),
            text("enforcement_mode", "BLOCK WARN AUDIT DISABLED"),
            text("scope_level", "GLOBAL TENANT PROJECT AGENT PROVIDER").at("scope.level"),
            text("scope_subject", "ALL_RUNS AGENT API_KEY HUMAN_ACTOR").at("scope.who"),
            json("scope_level_ids", "ids at its level").at("scope.level_ids"),
            json("scope_ids", "ids of its subject").at("scope.ids"),
            count("precedence", "lower wins"),
            text("conflict_strategy", "MOST_RESTRICTIVE EXPLICIT_PRIORITY FAIL_CLOSED"),
            text("binding", "RUN_START FIRST_TOKEN EACH_STEP"),
            text("on_failure", "fail_open fail_closed"),
            json("depends_on", "policies it needs"),
            json("active", "when it is in force; null: always"),
            json("limits", "its limits"),
            json("condition", "when its actions are taken"),
            json("actions", "what is then done"),
            count("min_authority", "least authority of who acts for it"),
            json("monitor", "what may be collected"),
            json("alerts", "where alerts go, and how many"),
            json("override_rule", "who may override it").at("override"),
            json("rollback", "whether it is undone by itself"),
            text("origin", "SET PROPOSAL"),
            text("proposal_id", "the proposal that put it in force"),
            time("changed_at", "when this version came in force"),
            text("changed_by", "by whom"),
        ],
    },
    Table {
        name: "limits",
        source: Source::Policies,
        part: Some("limit"),
        keeps: Keeps::Latest,
        id: &["policy_id", "limit_id"],
        time: None,
        shared: true,
        about: "the limits of policies (P3)",
        columns: &[
            text("limit_id", "unique within its policy"),
            text("policy_id", "its policy"),
            TENANT,
            REVISION,
            text("limit_type", "RUNS_* TOKENS_* COST_* RISK_CEILING COOLDOWN …"),
            text("category", "BUDGET RATE THRESHOLD"),
            text("metric", "which metric"),
            number("max", "BREACH from here on"),
            number("near", "NEAR from near × max on"),
            count("near_forecast_minutes", "NEAR also when the forecast reaches max within so many minutes"),
            text("status", "ACTIVE DISABLED"),
            text("enforcement", "BLOCK REJECT QUEUE DEGRADE WARN ALERT"),
            text("on_breach", "PAUSE STOP KILL none"),
            count("cooldown_seconds", "how long new work is refused after a breach"),
            text("fallback_model", "for DEGRADE"),
            text("changed_by", "who enabled or disabled it last"),
            text("reason", "why"),
        ],
    },
    Table {
        name: "proposals",
        source: Source::Policies,
        part: Some("proposal"),
        keeps: Keeps::Latest,
        id: &["proposal_id"],
        time: Some("created_at"),
        shared: true,
        about: "proposals of policies (P8)",
        columns: &[
            text("proposal_id", "unique"),
            REVISION,
            TENANT,
            text("policy_id", "the policy"),
            text("status", "DRAFT ACTIVE REJECTED RETIRED"),
            text("rationale", "why it was proposed"),
            time("created_at", "when"),
            text("created_by", "by whom"),
            time("decided_at", "when a person last decided on it"),
            text("decided_by", "who"),
            text("decision_reason", "why"),
            count("draft_version", "the version that waits for a person"),
            count("current_version", "the version that counts"),
            count("versions", "how many there are"),
        ],
    },
    Table {
        name: "policy_versions",
        source: Source::Policies,
        part: Some("version"),
        keeps: Keeps::Latest,
        id: &["proposal_id", "version"],
        time: Some("created_at"),
        shared: true,
        about: "versions of proposals",
        columns: &[
            text("proposal_id", "of which proposal"),
            TENANT.at("policy.tenant"),
            count("version", "1, 2, 3 …"),
            flag("is_current", "exactly one of a proposal is"),
            text("status", "DRAFT ACTIVE REJECTED RETIRED"),
            time("created_at", "when"),
            text("created_by", "by whom"),
            text("policy_id", "the policy").at("policy.id"),
            json("policy", "what is proposed"),
        ],
    },
    Table {
        name: "overrides",
        source: Source::Policies,
        part: Some("override"),
        keeps: Keeps::Latest,
        id: &["override_id"],
        time: Some("granted_at"),
        shared: true,
        about: "overrides: policies out of force for a while (P7)",
        columns: &[
            text("override_id", "unique"),
            REVISION,
            TENANT,
            text("policy_tenant", "tenant of the policy"),
            text("policy_id", "the policy"),
            text("status", "ACTIVE EXPIRED REVOKED"),
            text("reason", "why"),
            text("granted_by", "by whom"),
            count("authority", "with which authority"),
            time("granted_at", "when"),
            time("expires_at", "until when"),
            time("ended_at", "when it ended"),
            text("ended_by", "who ended it"),
        ],
    },
    Table {
        name: "silences",
        source: Source::Policies,
        part: Some("silence"),
        keeps: Keeps::Latest,
        id: &["silence_id"],
        time: Some("starts_at"),
        shared: true,
        about: "silences of alerts (A3)",
        columns: &[
            text("silence_id", "unique"),
            REVISION,
            TENANT,
            text("status", "ACTIVE EXPIRED"),
            json("matchers", "what it mutes"),
            text("author", "who made it"),
            text("comment", "why"),
            time("starts_at", "from when"),
            time("ends_at", "until when"),
            text("ended_by", "who ended it"),
        ],
    },
    Table {
        name: "policy_level",
        source: Source::PolicyLevel,
        part: None,
        keeps: Keeps::Latest,
        id: &[],
        time: Some("evaluated_at"),
        shared: false,
        about: "how each tenant stands; * is all of them (L1)",
        columns: &[
            text("policy", "GREEN YELLOW RED UNKNOWN"),
            time("evaluated_at", "when"),
            TENANT,
            flag("trust_locked", "input").at("inputs.trust_locked"),
            number("integrity_score", "input").at("inputs.integrity_score"),
            number("consensus_pct", "input").at("inputs.consensus_pct"),
            number("reputation_score", "input").at("inputs.reputation_score"),
            text("forecast_risk", "input: low medium high").at("inputs.forecast_risk"),
            count("recent_responses", "input").at("inputs.recent_responses"),
            json("thresholds", "the seven"),
            json("reasons", "why"),
            json("missing", "inputs that are missing or too old"),
            REVISION,
        ],
    },
    Table {
        name: "audit",
        source: Source::Audit,
        part: None,
        keeps: Keeps::Every,
        id: &["audit_id"],
        time: Some("at"),
        shared: false,
        about: "what was done, by whom, and why; refusals too",
        columns: &[
            text("audit_id", "unique"),
            time("at", "when"),
            text("kind", "shadow_decision proposal.approved command.refused …"),
            TENANT,
            text("principal", "who"),
            count("authority", "with which authority"),
            text("subject_kind", "on what").at("subject.kind"),
            text("subject_id", "on which").at("subject.id"),
            json("before", "state before"),
            json("after", "state after"),
            text("reason", "why"),
            flag("refused", "it was refused"),
        ],
    },
    Table {
        name: "evaluations",
        source: Source::Evaluations,
        part: None,
        keeps: Keeps::Every,
        id: &["minute"],
        time: Some("minute"),
        shared: false,
        about: "what policies made of a tenant's events, by minute",
        columns: &[
            TENANT,
            time("minute", "begin of the minute"),
            count("evaluations", "events that a policy covers"),
            count("blocks", "times that something was held back or ended"),
            count("allows", "evaluations that led to no block"),
            json("by_action", "what was done, by action"),
            count("uncovered", "events that no policy covers"),
            count("time_spent_us", "time of the steps, shared among tenants by rows"),
        ],
    },
    Table {
        name: "live_windows",
        source: Source::Live,
        part: Some("window"),
        keeps: Keeps::Latest,
        id: &["metric", "scope_id"],
        time: Some("updated_at"),
        shared: false,
        about: "windows that have reached half of a limit, each with the limit it is nearest to (X6)",
        columns: &[
            text("metric", "which metric"),
            TENANT,
            text("scope_kind", "RUN AGENT API_KEY HUMAN_ACTOR TASK PROJECT PROVIDER TENANT").at("scope.kind"),
            text("scope_id", "whom it is about").at("scope.id"),
            text("run_id", "the run, when it is about one"),
            time("window_start", "begin of the window"),
            time("window_end", "its end; of a session as far as it has come"),
            number("value", "now"),
            number("limit_value", "the maximum").at("limit"),
            number("near", "NEAR from near × limit on"),
            number("utilization", "value ÷ limit"),
            number("minutes_to_limit", "forecast; null: nothing can be said"),
            text("level", "NEAR BREACH; null below"),
            text("mode", "BLOCK WARN AUDIT"),
            text("policy_id", "whose limit"),
            count("policy_version", "its version"),
            text("limit_id", "which limit"),
            text("limit_type", "RUNS_* TOKENS_* COST_* RISK_CEILING COOLDOWN …"),
            text("enforcement", "BLOCK REJECT QUEUE DEGRADE WARN ALERT"),
            text("on_breach", "PAUSE STOP KILL none"),
            time("updated_at", "when it was looked at"),
        ],
    },
    Table {
        name: "agents",
        source: Source::Live,
        part: Some("agent"),
        keeps: Keeps::Latest,
        id: &["agent_id"],
        time: Some("updated_at"),
        shared: false,
        about: "agents as they last said they were, within a day",
        columns: &[
            text("agent_id", "unique within its tenant"),
            TENANT,
            text("team_id", "its team"),
            text("health_status", "healthy degraded failed unknown"),
            number("anomaly_score", "0 to 1"),
            count("consecutive_anomalous_readings", "how many in a row"),
            count("capacity", "what it can do at once"),
            count("open_tasks", "tasks of its that are not done"),
            time("last_seen", "its last event"),
            time("updated_at", "when it was looked at"),
        ],
    },
    Table {
        name: "tasks",
        source: Source::Live,
        part: Some("task"),
        keeps: Keeps::Latest,
        id: &["task_id"],
        time: Some("updated_at"),
        shared: false,
        about: "tasks as they were last said to be, within a day",
        columns: &[
            text("task_id", "unique within its tenant"),
            TENANT,
            text("run_id", "the run named beside it"),
            text("agent_id", "the agent named beside it"),
            text("task_status", "pending running completed failed cancelled"),
            text("priority", "CRITICAL HIGH MEDIUM LOW"),
            number("running_duration_seconds", "how long it has run"),
            number("timeout_seconds", "how long it may"),
            flag("open", "it is not done"),
            time("last_seen", "its last event"),
            time("updated_at", "when it was looked at"),
        ],
    },
];
