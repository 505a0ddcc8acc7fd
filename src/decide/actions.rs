//! The actions of a policy whose condition turned true: what they would do to whom (`contracts.md`, *Intervention*).

use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use crate::clock::{Micros, Wall};
use crate::decide::id;
use crate::decide::interventions::{self, SYSTEM, Slot};
use crate::decide::records::{Audit, Intervention, Subject};
use crate::policy::{Action, Policy};

/// Longest id of a target that a template gives.
const MAX_TARGET: usize = 512;

/// A condition that turned true, and of whom.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// The policy.
    pub policy: Arc<Policy>,
    /// The tenant of the event.
    pub tenant: Arc<str>,
    /// Run, agent and task it is about; those that the condition does not read are what the event names beside.
    pub subjects: [Option<Arc<str>>; 3],
    /// Of the run, agent and task only those that the condition reads: what makes this condition this one.
    pub about: [Option<Arc<str>>; 3],
    /// The team that the event names.
    pub team: Option<Arc<str>>,
    /// The row of the batch at which it turned.
    pub row: usize,
    /// Its event time.
    pub time: Micros,
    /// Whether nothing is known for sure: the policy is `fail_closed`.
    pub unknown: bool,
}

/// What an action orders.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// AGENT_QUARANTINE, …
    pub kind: &'static str,
    /// Whom it concerns.
    pub target: Subject,
    /// Parameters, templates filled in.
    pub parameters: Json,
    /// Whether a person must approve first.
    pub approval_required: bool,
    /// Why.
    pub reason: String,
}

/// The type of intervention of an action, and the kind of its target.
fn kind(action: &str) -> (&'static str, &'static str) {
    match action {
        "pause_run" => ("PAUSE", "RUN"),
        "resume_run" => ("RESUME", "RUN"),
        "stop_run" => ("STOP", "RUN"),
        "kill_run" => ("KILL", "RUN"),
        "restart_agent" => ("AGENT_RESTART", "AGENT"),
        "quarantine_agent" => ("AGENT_QUARANTINE", "AGENT"),
        "restart_team" => ("TEAM_RESTART", "TEAM"),
        "reassign_task" => ("TASK_REASSIGN", "TASK"),
        "override_priority" => ("PRIORITY_OVERRIDE", "TASK"),
        "cancel_task" => ("CANCEL_TASK", "TASK"),
        "reallocate_capacity" => ("REALLOCATE_CAPACITY", "AGENT"),
        _ => ("NOTIFY", ""),
    }
}

impl Taken {
    fn id(&self, name: &str) -> Option<&str> {
        let [run, agent, task] = &self.subjects;
        match name {
            "run.id" | "run.run_id" => run.as_deref(),
            "agent.id" | "agent.agent_id" => agent.as_deref(),
            "task.id" | "task.task_id" => task.as_deref(),
            "team.id" | "team.team_id" => self.team.as_deref(),
            "tenant.id" | "tenant.tenant_id" => Some(&self.tenant),
            _ => None,
        }
    }

    /// A text with `${agent.id}` and the like filled in; the error names what is missing.
    fn filled(&self, template: &str) -> Result<String, String> {
        let mut text = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, more)) = after.split_once('}') else { break };
            text.push_str(before);
            text.push_str(self.id(name.trim()).ok_or_else(|| format!("the event gives no {}", name.trim()))?);
            rest = more;
        }
        text.push_str(rest);
        if text.len() > MAX_TARGET { Err(format!("longer than {MAX_TARGET} bytes")) } else { Ok(text) }
    }

    /// Whom the condition is about, the narrowest first.
    pub fn subject(&self) -> Subject {
        let [run, agent, task] = &self.about;
        let named = |kind: &str, id: &Option<Arc<str>>| {
            id.as_ref().map(|id| Subject { kind: kind.to_owned(), id: id.to_string() })
        };
        named("TASK", task)
            .or_else(|| named("RUN", run))
            .or_else(|| named("AGENT", agent))
            .unwrap_or(Subject { kind: "TENANT".to_owned(), id: self.tenant.to_string() })
    }

    fn why(&self, action: &Action) -> String {
        let given = action.reason.as_deref().unwrap_or("its condition holds");
        let subject = self.subject();
        let doubt = if self.unknown { ", as its condition cannot be told and it is fail_closed" } else { "" };
        format!("{given} (policy {}, {} {}{doubt})", self.policy.id, subject.kind, subject.id)
    }

    /// What an action orders.
    ///
    /// # Errors
    /// In words, when the event does not give whom it concerns.
    pub fn order(&self, action: &Action) -> Result<Order, String> {
        let (kind, target_kind) = kind(&action.action);
        let subject = self.subject();
        let target_kind = if target_kind.is_empty() { subject.kind.as_str() } else { target_kind };
        let id = match (&action.target, target_kind) {
            (Some(template), _) => self.filled(template)?,
            (None, _) if kind == "NOTIFY" => subject.id.clone(),
            (None, "RUN") => self.filled("${run.id}")?,
            (None, "AGENT") => self.filled("${agent.id}")?,
            (None, "TASK") => self.filled("${task.id}")?,
            (None, _) => self.filled("${team.id}")?,
        };
        let mut parameters = Map::new();
        for (name, value) in &action.parameters {
            let value = match value {
                Json::String(template) => Json::String(self.filled(template)?),
                other => other.clone(),
            };
            parameters.insert(name.clone(), value);
        }
        let target = Subject { kind: target_kind.to_owned(), id };
        let approval_required = action.approval_required;
        Ok(Order { kind, target, parameters: Json::Object(parameters), approval_required, reason: self.why(action) })
    }

    /// What keeps an intervention live: this condition, of these subjects.
    pub fn cause(&self) -> String {
        cause(&self.policy.tenant, &self.policy.id, &self.about)
    }

    fn id_of(&self, kind: &str, target: &Subject) -> String {
        let target = format!("{}:{}", target.kind, target.id);
        let (version, time) = (self.policy.version.to_string(), id::rfc3339(self.time));
        id::of(&[&self.tenant, kind, &target, &self.cause(), &version, &time])
    }

    /// The intervention of an order: proposed when a person must approve, else issued.
    pub fn intervention(&self, order: Order, now: Wall) -> Intervention {
        let id = self.id_of(order.kind, &order.target);
        let slot = Slot { tenant: self.tenant.to_string(), kind: order.kind.to_owned(), target: order.target };
        let whole = interventions::Order {
            parameters: order.parameters,
            approval_required: order.approval_required,
            ..interventions::Order::of_policy(slot, &self.policy.id, "", order.reason)
        };
        Intervention { intervention_id: id, ..whole.record(now) }
    }

    /// A line of the audit about this condition: a shadow decision, or an action that could not be taken.
    fn audit(&self, kind: &str, part: &str, after: Json, reason: String, refused: bool, now: Wall) -> Audit {
        let subject = self.subject();
        Audit {
            audit_id: self.id_of(&format!("{kind}{part}"), &subject),
            at: now.0,
            kind: kind.to_owned(),
            tenant_id: self.tenant.to_string(),
            principal: format!("policy:{}", self.policy.id),
            authority: SYSTEM,
            subject,
            before: Json::Null,
            after,
            reason,
            refused,
        }
    }

    /// What BLOCK would have done, of a policy in AUDIT or WARN mode: one line for each action.
    pub fn shadows(&self, now: Wall) -> Vec<Audit> {
        let each = self.policy.actions.iter().enumerate();
        each.map(|(number, action)| {
            let mode = self.policy.enforcement_mode.as_str();
            let after = match self.order(action) {
                Ok(order) => json!({
                    "would": order.kind,
                    "target": order.target,
                    "parameters": order.parameters,
                    "approval_required": order.approval_required,
                    "mode": mode,
                }),
                Err(why) => json!({"would": kind(&action.action).0, "impossible": why, "mode": mode}),
            };
            self.audit("shadow_decision", &format!("/{number}"), after, self.why(action), false, now)
        })
        .collect()
    }

    /// An action that is not taken, and why.
    pub fn impossible(&self, number: usize, action: &Action, why: &str, now: Wall) -> Audit {
        let kind = kind(&action.action).0;
        let after = json!({"type": kind, "action": number});
        let reason = format!("{kind} is not ordered: {why} ({})", self.why(action));
        self.audit("action_impossible", &format!("/{number}"), after, reason, true, now)
    }
}

/// The cause of a policy's condition of these subjects.
pub fn cause(policy_tenant: &str, policy_id: &str, about: &[Option<Arc<str>>; 3]) -> String {
    let subjects = about.iter().map(|s| id::part(s.as_deref().unwrap_or_default()));
    let parts: Vec<String> =
        ["condition".to_owned(), id::part(policy_tenant), id::part(policy_id)].into_iter().chain(subjects).collect();
    parts.join("/")
}

#[cfg(test)]
mod tests;
