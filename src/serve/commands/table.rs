//! Every route that writes, in one table: the router, its description and its tests are made from it.

use crate::serve::access::Role;

/// What a member of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text that is not empty.
    Text,
    /// A whole number.
    Whole,
    /// true or false.
    Flag,
    /// An object.
    Object,
    /// A list.
    List,
    /// RFC 3339 with an offset, or an integer of epoch milliseconds.
    Time,
    /// Anything.
    Any,
}

impl Kind {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Whole => "a whole number",
            Self::Flag => "true or false",
            Self::Object => "an object",
            Self::List => "a list",
            Self::Time => "a time (RFC 3339, or epoch milliseconds)",
            Self::Any => "any value",
        }
    }
}

/// A member of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name, in the request and in the command.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Whether it has to be there.
    pub required: bool,
    /// In words.
    pub about: &'static str,
}

const fn needed(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, required: true, about }
}

const fn optional(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, required: false, about }
}

/// What every request may say beside its own fields, in the body or in the query.
pub const COMMON: [Field; 4] = [
    optional("tenant_id", Kind::Text, "on whose behalf; of a caller of all tenants only"),
    optional("authority", Kind::Whole, "to act with less authority than the caller has, 1 to 5"),
    optional("reason", Kind::Text, "why; it stands in the audit"),
    optional("initiated_by", Kind::Text, "who asked the caller for it"),
];

/// How the body of a command is made of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An object of these fields, and [`COMMON`].
    Fields(&'static [Field]),
    /// One policy as JSON, or as YAML by its content type; [`COMMON`] in the query.
    Policy,
}

/// On whose behalf a route acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// A tenant; a caller of all tenants that names none means all.
    AnyOrAll,
    /// One tenant, which a caller of all tenants has to name.
    One,
    /// One tenant or `*`, which a caller of all tenants has to name.
    OneOrAll,
    /// All tenants: nothing for a caller of one.
    All,
}

/// A route that writes.
#[derive(Debug, Clone, Copy)]
pub struct WriteRoute {
    /// `POST`, `PUT` or `DELETE`.
    pub method: &'static str,
    /// As the router takes it.
    pub path: &'static str,
    /// Type of the command it becomes; `None`: a report on the outcomes topic.
    pub command: Option<&'static str>,
    /// The role it takes.
    pub role: Role,
    /// What `{id}` of the path is called in the command.
    pub id: Option<&'static str>,
    /// How the body is made.
    pub form: Form,
    /// On whose behalf.
    pub whose: Whose,
    /// What it makes: the member of the result with its id, and where it is found. The answer is 201 then.
    pub makes: Option<(&'static str, &'static str)>,
    /// In words.
    pub about: &'static str,
    /// A request that is valid as such.
    pub example: &'static str,
}

impl WriteRoute {
    const fn new(method: &'static str, path: &'static str, command: &'static str, role: Role) -> Self {
        Self {
            method,
            path,
            command: Some(command),
            role,
            id: None,
            form: Form::Fields(&[]),
            whose: Whose::AnyOrAll,
            makes: None,
            about: "",
            example: r#"{"reason": "needed"}"#,
        }
    }

    /// Of the policies, which have one writer.
    const fn policies(method: &'static str, path: &'static str, command: &'static str) -> Self {
        Self::new(method, path, command, Role::Admin)
    }

    /// Of one tenant's affairs.
    const fn tenants(path: &'static str, command: &'static str) -> Self {
        let route = Self::new("POST", path, command, Role::Operate);
        Self { whose: Whose::One, ..route }
    }

    const fn id(self, name: &'static str) -> Self {
        Self { id: Some(name), ..self }
    }

    const fn fields(self, fields: &'static [Field]) -> Self {
        Self { form: Form::Fields(fields), ..self }
    }

    const fn policy(self) -> Self {
        Self { form: Form::Policy, example: POLICY, ..self }
    }

    const fn whose(self, whose: Whose) -> Self {
        Self { whose, ..self }
    }

    const fn makes(self, member: &'static str, path: &'static str) -> Self {
        Self { makes: Some((member, path)), ..self }
    }

    const fn says(self, about: &'static str) -> Self {
        Self { about, ..self }
    }

    const fn example(self, example: &'static str) -> Self {
        Self { example, ..self }
    }

    /// The type of the command it becomes, or `outcome`.
    pub fn kind(&self) -> &'static str {
        self.command.unwrap_or("outcome")
    }

    /// Its own fields.
    pub fn own_fields(&self) -> &'static [Field] {
        match self.form {
            Form::Fields(fields) => fields,
            Form::Policy => &[],
        }
    }

    /// Most bytes of a body, `policies` of one that holds policies.
    pub fn most_bytes(&self, policies: usize) -> usize {
        match self.form {
            Form::Fields(_) => MAX_BYTES,
            Form::Policy => policies,
        }
    }
}

/// Most bytes of a body.
pub const MAX_BYTES: usize = 64 << 10;
/// Most bytes of a body that holds policies, unless it is configured otherwise.
pub const MAX_POLICY: usize = 1 << 20;

const POLICY: &str = r#"{"id": "planner-pace", "name": "Pace of planners", "enforcement_mode": "AUDIT", "limits": [{"id": "steps", "limit_type": "RUNS_STEPS", "metric": "run_steps", "max": 40}]}"#;
const PROPOSALS: &str = "/api/v1/policy-proposals";
const LIMIT: &[Field] = &[needed("policy_id", Kind::Text, "the policy that has the limit")];
const WHY: &[Field] = &[needed("reason", Kind::Text, "why; it stands in the audit")];
const LIMITED: &str = r#"{"policy_id": "run-token-ceiling", "reason": "the migration of tonight"}"#;
const COMMENT: &[Field] = &[optional("comment", Kind::Text, "why; `reason` is the same")];
const DEFER: &[Field] = &[needed("defer_until", Kind::Time, "when it comes back by itself")];
const DEFERRED: &str = r#"{"defer_until": "2027-01-31T00:00:00Z", "reason": "after the migration"}"#;
const ON: &[Field] = &[needed("on", Kind::Flag, "whether responses are held back")];
const ORDER: &[Field] = &[
    needed(
        "type",
        Kind::Text,
        "PAUSE RESUME STOP KILL AGENT_RESTART AGENT_QUARANTINE TEAM_RESTART TASK_REASSIGN PRIORITY_OVERRIDE CANCEL_TASK REALLOCATE_CAPACITY NOTIFY",
    ),
    needed("target", Kind::Object, "`kind` (RUN AGENT TASK TEAM API_KEY HUMAN_ACTOR PROJECT PROVIDER TENANT) and `id`"),
    optional("parameters", Kind::Object, "of the type"),
    optional("approval_required", Kind::Flag, "only propose it: somebody else must approve"),
    needed("reason", Kind::Text, "why; it stands in the audit"),
];
const OUTCOME: &[Field] = &[
    needed("state", Kind::Text, "ACKNOWLEDGED SUCCEEDED FAILED"),
    optional("executor", Kind::Text, "who did it; default: the caller"),
    optional("at", Kind::Time, "when it was done"),
    optional("before", Kind::Any, "state before"),
    optional("after", Kind::Any, "state after"),
    optional("message", Kind::Text, "in words"),
];
const CANCEL: &[Field] =
    &[needed("task_id", Kind::Text, "the task"), needed("reason", Kind::Text, "why; it stands in the audit")];
const REALLOCATE: &[Field] = &[
    needed("from_agent_id", Kind::Text, "from which agent"),
    needed("to_agent_id", Kind::Text, "to which agent"),
    needed("capacity", Kind::Whole, "how much"),
    needed("reason", Kind::Text, "why; it stands in the audit"),
];
const PRIORITY: &[Field] = &[
    needed("task_id", Kind::Text, "the task"),
    needed("new_priority", Kind::Text, "CRITICAL HIGH MEDIUM LOW"),
    needed("reason", Kind::Text, "why; it stands in the audit"),
];
const ESCALATE: &[Field] =
    &[needed("alert_id", Kind::Text, "an open alert"), needed("reason", Kind::Text, "why; it stands in the audit")];
const ALERT: &[Field] = &[
    needed("fingerprint", Kind::Text, "what it is known by: raised again it is the same, and it is cleared by it"),
    needed("severity", Kind::Text, "CRITICAL HIGH MEDIUM LOW, or WARNING"),
    needed("title", Kind::Text, "in a line"),
    optional("description", Kind::Text, "in words; default: the title"),
    optional("agent_id", Kind::Text, "which agent it is about"),
    optional("run_id", Kind::Text, "which run it is about"),
];
const CLEAR: &[Field] = &[needed("fingerprint", Kind::Text, "what it was raised with")];
const SILENCE: &[Field] = &[
    needed("matchers", Kind::List, "objects of `name`, `operator` (= != =~ !~) and `value`; all must match"),
    needed("ends_at", Kind::Time, "when it ends"),
    optional("starts_at", Kind::Time, "when it begins; default: now"),
    optional("comment", Kind::Text, "why; `reason` is the same, and one of them is needed"),
];
const OVERRIDE: &[Field] = &[
    needed("policy_id", Kind::Text, "the policy"),
    optional("policy_tenant", Kind::Text, "whose policy it is, `*` for everyone's; default: the tenant's own"),
    needed("minutes", Kind::Whole, "for how long, within what the policy allows"),
    needed("reason", Kind::Text, "why; it stands in the audit"),
];
const LESSON: &[Field] = &[
    needed("lesson_type", Kind::Text, "failure near_threshold critical_success"),
    needed("source_event_id", Kind::Text, "the run, signal or incident that teaches it"),
    optional("source_event_type", Kind::Text, "run signal incident; default: run"),
    optional("source_run_id", Kind::Text, "the run"),
    optional("severity", Kind::Text, "CRITICAL HIGH MEDIUM LOW NONE"),
    needed("title", Kind::Text, "in a line"),
    needed("description", Kind::Text, "in words"),
    optional("proposed_action", Kind::Text, "what might be done"),
    optional("detected_pattern", Kind::Object, "what was seen"),
    optional("is_synthetic", Kind::Flag, "whether it is of made-up data"),
    optional("synthetic_scenario_id", Kind::Text, "of which scenario"),
];
const RESPOND: &[Field] = &[
    optional("level", Kind::Text, "GREEN YELLOW RED UNKNOWN; default: the level that is"),
    optional("apply", Kind::Flag, "execute it; default: preview"),
];

/// Every route that writes, except for what reads with a body.
pub fn routes_table() -> &'static [WriteRoute] {
    ROUTES
}

static ROUTES: &[WriteRoute] = &[
    WriteRoute::policies("POST", "/api/v1/policies", "policy.create")
        .policy()
        .makes("proposal_id", PROPOSALS)
        .says("Proposes a new policy: a draft that waits for a person."),
    WriteRoute::policies("PUT", "/api/v1/policies/{id}", "policy.update")
        .policy()
        .says("Proposes another version of a policy: a draft that waits for a person."),
    WriteRoute::policies("DELETE", "/api/v1/policies/{id}", "policy.delete")
        .id("policy_id")
        .says("Deletes a policy that came from a proposal, unless others depend on it (GOV-POL-002)."),
    WriteRoute::policies("DELETE", "/api/v1/policies/rules/{id}", "rule.retire")
        .id("policy_id")
        .says("Takes a policy that came from a proposal out of force, unless others depend on it (GOV-POL-002); it stays as RETIRED."),
    WriteRoute::policies("POST", "/api/v1/policies/limits/{id}/enable", "limit.enable")
        .id("limit_id")
        .fields(LIMIT)
        .example(LIMITED)
        .says("Puts a limit in force again."),
    WriteRoute::policies("POST", "/api/v1/policies/limits/{id}/disable", "limit.disable")
        .id("limit_id")
        .fields(LIMIT)
        .example(LIMITED)
        .says("Takes a limit out of force at once, until it is enabled."),
    WriteRoute::policies("POST", PROPOSALS, "proposal.create")
        .policy()
        .makes("proposal_id", PROPOSALS)
        .says("Proposes a policy, new or known: a draft that waits for a person."),
    WriteRoute::policies("POST", "/api/v1/policy-proposals/{id}/approve", "proposal.approve")
        .id("proposal_id")
        .says("Approves a draft: it is in force with the same step, unless a conflict forbids it (GOV-POL-001)."),
    WriteRoute::policies("POST", "/api/v1/policy-proposals/{id}/reject", "proposal.reject")
        .id("proposal_id")
        .fields(WHY)
        .says("Rejects a draft; it is kept."),
    WriteRoute::policies("POST", "/api/v1/policies/overrides", "override.grant")
        .fields(OVERRIDE)
        .makes("override_id", "/api/v1/policies/overrides")
        .example(r#"{"policy_id": "run-token-ceiling", "policy_tenant": "*", "minutes": 30, "reason": "the migration of tonight"}"#)
        .says("Takes a policy out of force for a tenant, for some minutes."),
    WriteRoute::policies("POST", "/api/v1/policies/overrides/{id}/revoke", "override.revoke")
        .id("override_id")
        .says("Ends an override before its time."),
    WriteRoute::new("POST", "/api/v1/silences", "silence.create", Role::Operate)
        .fields(SILENCE)
        .makes("silence_id", "/api/v1/silences")
        .example(r#"{"matchers": [{"name": "agent", "operator": "=", "value": "planner"}], "ends_at": "2027-01-31T00:00:00Z", "comment": "migration"}"#)
        .says("Mutes the notices of alerts that match, for a while. Interventions go on."),
    WriteRoute::new("POST", "/api/v1/silences/{id}/expire", "silence.expire", Role::Operate)
        .id("silence_id")
        .fields(COMMENT)
        .says("Ends a silence before its time."),
    WriteRoute::new("DELETE", "/api/v1/silences/{id}", "silence.expire", Role::Operate)
        .id("silence_id")
        .fields(COMMENT)
        .says("Ends a silence before its time."),
    WriteRoute::tenants("/api/v1/lessons", "lesson.create")
        .fields(LESSON)
        .makes("lesson_id", "/api/v1/lessons")
        .example(r#"{"lesson_type": "failure", "source_event_id": "r-17", "title": "run r-17 failed", "description": "It ran out of memory.", "severity": "HIGH"}"#)
        .says("Records a lesson that was found elsewhere; one that is known is not made twice."),
    WriteRoute::tenants("/api/v1/lessons/{id}/convert", "lesson.convert")
        .id("lesson_id")
        .says("Makes a draft proposal of a pending lesson."),
    WriteRoute::tenants("/api/v1/lessons/{id}/defer", "lesson.defer")
        .id("lesson_id")
        .fields(DEFER)
        .example(DEFERRED)
        .says("Puts a pending lesson off."),
    WriteRoute::tenants("/api/v1/lessons/{id}/dismiss", "lesson.dismiss")
        .id("lesson_id")
        .fields(WHY)
        .says("Says that nothing will be made of a pending lesson."),
    WriteRoute::tenants("/api/v1/lessons/{id}/reactivate", "lesson.reactivate")
        .id("lesson_id")
        .says("Brings a deferred lesson back now."),
    WriteRoute::tenants("/policy-layer/lessons/{id}/convert", "lesson.convert")
        .id("lesson_id")
        .says("As below /api/v1/lessons."),
    WriteRoute::tenants("/policy-layer/lessons/{id}/defer", "lesson.defer")
        .id("lesson_id")
        .fields(DEFER)
        .example(DEFERRED)
        .says("As below /api/v1/lessons."),
    WriteRoute::tenants("/policy-layer/lessons/{id}/dismiss", "lesson.dismiss")
        .id("lesson_id")
        .fields(WHY)
        .says("As below /api/v1/lessons."),
    WriteRoute::tenants("/api/v1/interventions", "intervention.create")
        .fields(ORDER)
        .makes("intervention_id", "/api/v1/interventions")
        .example(r#"{"type": "PAUSE", "target": {"kind": "RUN", "id": "r-17"}, "reason": "it loops"}"#)
        .says("Orders an intervention."),
    WriteRoute::tenants("/api/v1/interventions/{id}/approve", "intervention.approve")
        .id("intervention_id")
        .says("Approves a proposed intervention: it is issued."),
    WriteRoute::tenants("/api/v1/interventions/{id}/reject", "intervention.reject")
        .id("intervention_id")
        .fields(WHY)
        .says("Rejects a proposed intervention."),
    WriteRoute::tenants("/api/v1/interventions/{id}/revert", "intervention.revert")
        .id("intervention_id")
        .fields(WHY)
        .says("Takes an intervention back; what it paused is resumed, everything else is a mark."),
    WriteRoute {
        method: "POST",
        path: "/api/v1/interventions/{id}/outcome",
        command: None,
        role: Role::Operate,
        id: Some("intervention_id"),
        form: Form::Fields(OUTCOME),
        whose: Whose::One,
        makes: None,
        about: "Reports, as an executor, how far an intervention has come. The answer says that the report is on its way, not that it fits.",
        example: r#"{"state": "ACKNOWLEDGED", "executor": "worker-1"}"#,
    },
    WriteRoute::tenants("/api/v1/guardian/intervention/cancel-task", "guardian.cancel_task")
        .fields(CANCEL)
        .makes("action_id", "/api/v1/guardian/actions")
        .example(r#"{"task_id": "t-1", "reason": "agent failure during a critical operation", "initiated_by": "guardian-agent-1", "authority": 4}"#)
        .says("Cancels a task."),
    WriteRoute::tenants("/api/v1/guardian/intervention/reallocate", "guardian.reallocate")
        .fields(REALLOCATE)
        .makes("action_id", "/api/v1/guardian/actions")
        .example(r#"{"from_agent_id": "a-1", "to_agent_id": "a-2", "capacity": 2, "reason": "a critical task waits", "initiated_by": "guardian-agent-1", "authority": 4}"#)
        .says("Moves capacity from one agent to another."),
    WriteRoute::tenants("/api/v1/guardian/intervention/override-priority", "guardian.override_priority")
        .fields(PRIORITY)
        .makes("action_id", "/api/v1/guardian/actions")
        .example(r#"{"task_id": "t-1", "new_priority": "CRITICAL", "reason": "a production incident", "initiated_by": "guardian-agent-1", "authority": 4}"#)
        .says("Gives a task another priority."),
    WriteRoute::tenants("/api/v1/guardian/actions/{id}/revert", "intervention.revert")
        .id("intervention_id")
        .fields(WHY)
        .example(r#"{"reason": "the crisis is over", "initiated_by": "guardian-agent-1"}"#)
        .says("Takes an action of the guardian back."),
    WriteRoute::tenants("/api/v1/guardian/escalate", "guardian.escalate")
        .fields(ESCALATE)
        .example(r#"{"alert_id": "al-1", "reason": "a restart did not help", "initiated_by": "watchdog-1"}"#)
        .says("Hands an open alert to the guardian: it becomes CRITICAL."),
    WriteRoute::tenants("/api/v1/alerts", "alert.raise")
        .fields(ALERT)
        .whose(Whose::OneOrAll)
        .example(r#"{"fingerprint": "disk/node-1", "severity": "HIGH", "title": "the disk of node-1 is full"}"#)
        .says("Raises an external alert."),
    WriteRoute::tenants("/api/v1/alerts/clear", "alert.clear")
        .fields(CLEAR)
        .whose(Whose::OneOrAll)
        .example(r#"{"fingerprint": "disk/node-1"}"#)
        .says("Says that what was raised is over."),
    WriteRoute::policies("POST", "/api/v1/respond/run", "respond.run")
        .fields(RESPOND)
        .whose(Whose::All)
        .example(r#"{"level": "YELLOW", "apply": false, "reason": "a rehearsal"}"#)
        .says("Plans a response to a policy level, and executes it when asked to."),
    WriteRoute::policies("POST", "/api/v1/respond/brake", "respond.brake")
        .fields(ON)
        .whose(Whose::All)
        .example(r#"{"on": true, "reason": "the night of the migration"}"#)
        .says("Holds every response back, or no longer."),
    WriteRoute::policies("POST", "/api/v1/respond/unlock", "respond.unlock")
        .fields(WHY)
        .whose(Whose::All)
        .says("Lifts a trust lock by hand."),
    WriteRoute::policies("POST", "/api/v1/respond/reset-unlocks", "respond.reset_unlocks")
        .whose(Whose::All)
        .says("Begins to count the unlocks of the day anew."),
];
