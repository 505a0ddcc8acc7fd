//! Every list below `/api/v1` (V2: one endpoint a resource, panels are filters on it): what it reads, in which order, and its filters with
//! their words and defaults (seed 003 §4, §11, §12, §14). The routes, the questions and the description of the API are all made from here.

/// What a filter lets through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum How {
    /// One of these words, in any case.
    Word(&'static [&'static str]),
    /// One of these words in any case, or a beginning of a word followed by `*`.
    Prefix,
    /// This text.
    Text,
    /// At this time or later.
    After,
    /// Before this time.
    Before,
    /// This number or more, of 0 to 1.
    Least,
    /// The last so many hours, of 1 to 720; without it, so many.
    Hours(Option<u32>),
    /// What is made up is left out unless this is true.
    Synthetic,
    /// True or false.
    Flag,
    /// Words that stand for a condition.
    Condition(&'static [(&'static str, &'static str)]),
}

/// A filter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filter {
    /// Its parameter.
    pub name: &'static str,
    /// The column it looks at.
    pub column: &'static str,
    /// How.
    pub how: How,
    /// The word that counts when none is given.
    pub default: Option<&'static str>,
}

impl Filter {
    const fn of(self, column: &'static str) -> Self {
        Self { column, ..self }
    }

    const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }
}

const fn filter(name: &'static str, how: How) -> Filter {
    Filter { name, column: name, how, default: None }
}
const fn word(name: &'static str, words: &'static [&'static str]) -> Filter {
    filter(name, How::Word(words))
}
const fn text(name: &'static str) -> Filter {
    filter(name, How::Text)
}

/// How rows become items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As the records of this table.
    Record(&'static str),
    /// As they are.
    Flat,
}

/// A list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct List {
    /// Its paths: the first is its own, the others are other names of it.
    pub paths: &'static [&'static str],
    /// The table or view.
    pub from: &'static str,
    /// How rows become items.
    pub shape: Shape,
    /// Which rows; empty: all.
    pub only: &'static str,
    /// In which order.
    pub order: &'static str,
    /// Items of a page when none is asked for.
    pub limit: u32,
    /// Its filters.
    pub filters: &'static [Filter],
    /// The column that one item is known by; empty: items have no page of their own.
    pub id: &'static str,
    /// For people.
    pub about: &'static str,
}

const MODES: &[&str] = &["BLOCK", "WARN", "AUDIT", "DISABLED"];
const SCOPES: &[&str] = &["GLOBAL", "TENANT", "PROJECT", "AGENT", "PROVIDER"];
const SOURCES: &[&str] = &["MANUAL", "SYSTEM", "LEARNED"];
const RULES: &[&str] = &["SYSTEM", "SAFETY", "ETHICAL", "TEMPORAL"];
const ENFORCEMENTS: &[&str] = &["BLOCK", "WARN", "REJECT", "QUEUE", "DEGRADE", "ALERT"];
const CATEGORIES: &[&str] = &["BUDGET", "RATE", "THRESHOLD"];
const PROPOSALS: &[&str] = &["DRAFT", "ACTIVE", "REJECTED", "RETIRED"];
const SEVERITIES: &[&str] = &["CRITICAL", "HIGH", "MEDIUM", "LOW", "NONE"];
const MODES_OF_SIGNALS: &[&str] = &["BLOCK", "WARN", "AUDIT"];
const STATES: &[&str] = &[
    "PROPOSED",
    "ISSUED",
    "ACKNOWLEDGED",
    "SUCCEEDED",
    "FAILED",
    "TIMED_OUT",
    "REJECTED",
    "EXPIRED",
    "SUPERSEDED",
    "REVERTED",
];
const TYPES: &[&str] = &[
    "PAUSE",
    "RESUME",
    "STOP",
    "KILL",
    "AGENT_RESTART",
    "AGENT_QUARANTINE",
    "TEAM_RESTART",
    "TASK_REASSIGN",
    "PRIORITY_OVERRIDE",
    "CANCEL_TASK",
    "REALLOCATE_CAPACITY",
    "NOTIFY",
];
const SYNTHETIC: Filter = filter("include_synthetic", How::Synthetic).of("is_synthetic");

/// Every list.
pub static LISTS: [List; 21] = [
    List {
        paths: &["/api/v1/policies"],
        from: "policies",
        shape: Shape::Record("policies"),
        only: "",
        order: "tenant_id, policy_id",
        limit: 20,
        filters: &[
            word("status", &["ACTIVE", "RETIRED"]),
            word("enforcement_mode", MODES),
            word("scope", SCOPES).of("scope_level"),
            word("source", SOURCES),
            word("rule_type", RULES),
            filter("created_after", How::After).of("changed_at"),
            filter("created_before", How::Before).of("changed_at"),
        ],
        id: "policy_id",
        about: "the policies of the register, whole",
    },
    List {
        paths: &["/api/v1/policies/rules"],
        from: "policy_rules",
        shape: Shape::Flat,
        only: "",
        order: "created_at DESC, tenant_id, rule_id",
        limit: 20,
        filters: &[
            word("status", &["ACTIVE", "RETIRED"]),
            word("enforcement_mode", MODES),
            word("scope", SCOPES),
            word("source", SOURCES),
            word("rule_type", RULES),
            filter("created_after", How::After).of("created_at"),
            filter("created_before", How::Before).of("created_at"),
        ],
        id: "rule_id",
        about: "policies as rules (panels LIB-O1 to O5)",
    },
    List {
        paths: &["/api/v1/policies/limits"],
        from: "policy_limits",
        shape: Shape::Flat,
        only: "",
        order: "created_at DESC, tenant_id, policy_id, limit_id",
        limit: 20,
        filters: &[
            word("category", CATEGORIES),
            word("status", &["ACTIVE", "DISABLED"]),
            word("scope", SCOPES),
            word("enforcement", ENFORCEMENTS),
            filter("limit_type", How::Prefix),
            text("policy_id"),
            filter("created_after", How::After).of("created_at"),
            filter("created_before", How::Before).of("created_at"),
        ],
        id: "limit_id",
        about: "limits, each with its policy (panels THR-O1, O3 to O5)",
    },
    List {
        paths: &["/api/v1/policies/budgets"],
        from: "policy_limits",
        shape: Shape::Flat,
        only: "category = 'BUDGET'",
        order: "created_at DESC, tenant_id, policy_id, limit_id",
        limit: 20,
        filters: &[word("scope", SCOPES), word("status", &["ACTIVE", "DISABLED"]).or("ACTIVE")],
        id: "",
        about: "limits of category BUDGET: how much may be spent (panel THR-O2)",
    },
    List {
        paths: &["/api/v1/policies/violations"],
        from: "violations",
        shape: Shape::Flat,
        only: "",
        order: "detected_at DESC, violation_id",
        limit: 50,
        filters: &[
            word("violation_type", &["cost", "quota", "rate", "temporal", "safety", "ethical"]),
            word("source", &["guard", "sim", "runtime", "cost"]),
            filter("severity_min", How::Least).of("severity"),
            word("violation_kind", &["STANDARD", "ANOMALY", "DIVERGENCE"]),
            text("policy_id"),
            text("limit_id"),
            text("run_id"),
            filter("hours", How::Hours(Some(24))).of("detected_at"),
            SYNTHETIC,
        ],
        id: "",
        about: "limits that were neared or breached (panels VIO-O1 to O5)",
    },
    List {
        paths: &["/api/v1/policies/requests"],
        from: "proposals",
        shape: Shape::Record("proposals"),
        only: "draft_version IS NOT NULL",
        order: "created_at DESC, proposal_id",
        limit: 20,
        filters: &[text("policy_id"), text("created_by")],
        id: "",
        about: "what waits for a person's decision (panel ACT-O3)",
    },
    List {
        paths: &["/api/v1/policies/overrides"],
        from: "overrides",
        shape: Shape::Record("overrides"),
        only: "",
        order: "granted_at DESC, override_id",
        limit: 50,
        filters: &[word("status", &["ACTIVE", "EXPIRED", "REVOKED"]), text("policy_id")],
        id: "override_id",
        about: "policies out of force for a while (P7)",
    },
    List {
        paths: &["/api/v1/policy-proposals"],
        from: "proposals",
        shape: Shape::Record("proposals"),
        only: "",
        order: "created_at DESC, proposal_id",
        limit: 50,
        filters: &[
            word("status", PROPOSALS),
            text("policy_id"),
            text("created_by"),
            filter("created_after", How::After).of("created_at"),
            filter("created_before", How::Before).of("created_at"),
        ],
        id: "proposal_id",
        about: "proposals of policies (panels ACT-O1, DFT-O1)",
    },
    List {
        paths: &["/api/v1/policy-proposals/versions"],
        from: "policy_versions",
        shape: Shape::Flat,
        only: "",
        order: "created_at DESC, proposal_id, version DESC",
        limit: 50,
        filters: &[filter("is_current", How::Flag), word("status", PROPOSALS), text("proposal_id"), text("policy_id")],
        id: "",
        about: "versions of proposals (panels DFT-O2, DFT-O3)",
    },
    List {
        paths: &["/api/v1/lessons", "/api/v1/policies/lessons", "/policy-layer/lessons"],
        from: "lessons",
        shape: Shape::Record("lessons"),
        only: "",
        order: "created_at DESC, id",
        limit: 50,
        filters: &[
            word("lesson_type", &["failure", "near_threshold", "critical_success"]),
            word("status", &["pending", "converted_to_draft", "deferred", "dismissed"]),
            word("severity", SEVERITIES),
            text("source_run_id"),
            SYNTHETIC,
        ],
        id: "id",
        about: "lessons learned (panels LES-O1 to O5)",
    },
    List {
        paths: &["/api/v1/alerts"],
        from: "alerts",
        shape: Shape::Record("alerts"),
        only: "",
        order: "last_seen DESC, alert_id",
        limit: 50,
        filters: &[
            filter(
                "status",
                How::Condition(&[
                    ("OPEN", "status <> 'RESOLVED'"),
                    ("RESOLVED", "status = 'RESOLVED'"),
                    ("UPDATED", "status = 'UPDATED'"),
                ]),
            ),
            word("severity", SEVERITIES),
            text("correlation_key"),
            text("fingerprint"),
            filter("hours", How::Hours(None)).of("last_seen"),
            SYNTHETIC,
        ],
        id: "alert_id",
        about: "correlated alerts as they stand (A1); OPEN: all that are not resolved",
    },
    List {
        paths: &["/api/v1/interventions"],
        from: "interventions",
        shape: Shape::Record("interventions"),
        only: "",
        order: "created_at DESC, intervention_id",
        limit: 50,
        filters: &[
            word("state", STATES),
            word("type", TYPES),
            text("target_kind"),
            text("target_id"),
            text("run_id"),
            text("policy_id"),
            filter("created_after", How::After).of("created_at"),
            filter("created_before", How::Before).of("created_at"),
        ],
        id: "intervention_id",
        about: "interventions as they stand (I4, I5, I7)",
    },
    List {
        paths: &["/api/v1/guardian/actions"],
        from: "guardian_actions",
        shape: Shape::Flat,
        only: "",
        order: "created_at DESC, id",
        limit: 50,
        filters: &[
            word("action_type", &["cancel_task", "reallocate_capacity", "override_priority"]),
            text("target_entity"),
            text("initiated_by"),
        ],
        id: "id",
        about: "what the guardian did (I5)",
    },
    List {
        paths: &["/api/v1/silences"],
        from: "silences",
        shape: Shape::Record("silences"),
        only: "",
        order: "starts_at DESC, silence_id",
        limit: 50,
        filters: &[word("status", &["ACTIVE", "EXPIRED"]), text("author")],
        id: "silence_id",
        about: "silences of alerts (A3)",
    },
    List {
        paths: &["/api/v1/signals"],
        from: "signals",
        shape: Shape::Record("signals"),
        only: "",
        order: "event_time DESC, signal_id",
        limit: 50,
        filters: &[
            word("kind", &["NEAR", "BREACH", "RESOLVED"]),
            word("mode", MODES_OF_SIGNALS),
            text("metric"),
            text("policy_id"),
            text("limit_id"),
            text("run_id"),
            text("scope_id"),
            filter("hours", How::Hours(Some(24))).of("event_time"),
            SYNTHETIC,
        ],
        id: "signal_id",
        about: "threshold signals (S1)",
    },
    List {
        paths: &["/api/v1/limits-up"],
        from: "levels_up",
        shape: Shape::Record("signals"),
        only: "",
        order: "utilization DESC, event_time DESC, signal_id",
        limit: 20,
        filters: &[word("kind", &["NEAR", "BREACH"]), text("metric"), text("run_id"), SYNTHETIC],
        id: "",
        about: "limits that are at NEAR or BREACH now, the fullest first, with the minutes that are left (X6)",
    },
    List {
        paths: &["/api/v1/live-windows"],
        from: "live_windows",
        shape: Shape::Record("live_windows"),
        only: "",
        order: "utilization DESC, minutes_to_limit, metric, scope_id",
        limit: 20,
        filters: &[
            word("level", &["NEAR", "BREACH"]),
            text("metric"),
            word("scope_kind", &["RUN", "AGENT", "API_KEY", "HUMAN_ACTOR", "TASK", "PROJECT", "PROVIDER", "TENANT"]),
            text("scope_id"),
            text("run_id"),
            text("policy_id"),
        ],
        id: "",
        about: "windows that have reached half of a limit, the fullest first, with the minutes that are left (X6)",
    },
    List {
        paths: &["/api/v1/agents"],
        from: "agents",
        shape: Shape::Record("agents"),
        only: "",
        order: "last_seen DESC, agent_id",
        limit: 50,
        filters: &[word("health_status", &["healthy", "degraded", "failed", "unknown"]), text("team_id")],
        id: "agent_id",
        about: "agents as they last said they were, within a day",
    },
    List {
        paths: &["/api/v1/tasks"],
        from: "tasks",
        shape: Shape::Record("tasks"),
        only: "",
        order: "last_seen DESC, task_id",
        limit: 50,
        filters: &[
            word("task_status", &["pending", "running", "completed", "failed", "cancelled"]),
            word("priority", &["CRITICAL", "HIGH", "MEDIUM", "LOW"]),
            text("agent_id"),
            text("run_id"),
            filter("open", How::Flag),
        ],
        id: "task_id",
        about: "tasks as they were last said to be, within a day",
    },
    List {
        paths: &["/api/v1/runs"],
        from: "runs",
        shape: Shape::Record("runs"),
        only: "",
        order: "ended_at DESC, run_id",
        limit: 50,
        filters: &[
            word("status", &["COMPLETED", "FAILED", "SILENT"]),
            text("agent_id"),
            text("project_id"),
            text("api_key_id"),
            text("human_actor_id"),
            text("provider"),
            text("parent_run_id"),
            filter("hours", How::Hours(Some(24))).of("ended_at"),
            SYNTHETIC,
        ],
        id: "run_id",
        about: "runs that have ended",
    },
    List {
        paths: &["/api/v1/audit"],
        from: "audit",
        shape: Shape::Record("audit"),
        only: "",
        order: "at DESC, audit_id",
        limit: 50,
        filters: &[
            text("kind"),
            text("principal"),
            text("subject_kind"),
            text("subject_id"),
            filter("refused", How::Flag),
            filter("hours", How::Hours(Some(24))).of("at"),
        ],
        id: "audit_id",
        about: "what was done, by whom, and why",
    },
];
