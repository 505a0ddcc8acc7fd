//! Interventions in a step: outcomes, deadlines and commands in; records, guardian events, audit lines, alerts and cascades out.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock::{Micros, Wall};
use crate::decide::commands::{Command, SYSTEM};
use crate::decide::correlation::{Entry, Member, Throttle, View};
use crate::decide::id;
use crate::decide::interventions::{Actor, Care, NotDone, Order, Outcome, Slot, life};
use crate::decide::records::{
    Audit, Decision, GuardianEvent, Intervention, InterventionState as State, Severity, Subject,
};
use crate::kafka::core::{Input, InputBatch};
use crate::pipeline::entries::Entries;
use crate::pipeline::intake;
use crate::pipeline::partition::{Partition, Step};
use crate::pipeline::writer::{Done, text};
use crate::policy::{Act, Alerts, By, Entity, Refusal};
use crate::telemetry::{Origin, Reason};

/// The interventions of the seed's guardian: those whose changes are events of their own (I6).
const GUARDIAN_KINDS: [&str; 3] = ["CANCEL_TASK", "REALLOCATE_CAPACITY", "PRIORITY_OVERRIDE"];
/// The four priorities.
const PRIORITIES: [&str; 4] = ["CRITICAL", "HIGH", "MEDIUM", "LOW"];
/// Every type that a command may order, and the kind of its target; empty: any.
const KINDS: [(&str, &str); 12] = [
    ("PAUSE", ""),
    ("RESUME", ""),
    ("STOP", ""),
    ("KILL", ""),
    ("AGENT_RESTART", "AGENT"),
    ("AGENT_QUARANTINE", "AGENT"),
    ("TEAM_RESTART", "TEAM"),
    ("TASK_REASSIGN", "TASK"),
    ("PRIORITY_OVERRIDE", "TASK"),
    ("CANCEL_TASK", "TASK"),
    ("REALLOCATE_CAPACITY", "AGENT"),
    ("NOTIFY", ""),
];
/// Seconds between the restarts of a team's agents, unless the parameters say so.
const STAGGER: i64 = 30;
/// Largest parameters that a command brings, in bytes.
const MAX_PARAMETERS: usize = 8 << 10;
/// Most agents listed in the schedule of a team's restart.
const MAX_TEAM: usize = 1_000;

impl Partition {
    /// What executors report.
    pub(super) fn take_outcomes(
        &mut self,
        inputs: &[InputBatch<'_>],
        now: Wall,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        for (input, tenant, record) in intake::addressed(Input::Outcomes, inputs, self.own, &mut step.rekeyed) {
            let outcome = record.payload.and_then(|p| serde_json::from_slice::<Outcome>(p).ok());
            let reported = |o: &Outcome| matches!(o.state, State::Acknowledged | State::Succeeded | State::Failed);
            let (Some(tenant), Some(outcome)) = (tenant, outcome.filter(reported)) else {
                // never the parser's own words: they hold values
                let message = match tenant {
                    None => "the key of an outcome must be its tenant",
                    Some(_) => "an outcome is JSON with intervention_id and state ACKNOWLEDGED, SUCCEEDED or FAILED",
                };
                let names = &self.settings.inputs;
                let topic = if input == Input::Outcomes { &names.outcomes } else { &names.repartition };
                let (partition, offset) = (self.own.partition, record.offset);
                let origin = Origin { input: input as u8, topic: Arc::clone(topic), partition, offset };
                self.reject_command(origin, Reason::Decode, message, record.payload.unwrap_or_default());
                continue;
            };
            match self.interventions.report(tenant, &outcome, now) {
                Ok(said) => self.publish(said, now, step, entries),
                Err(why) => {
                    let place = format!("{}/{}/{}", input as u8, self.own.partition, record.offset);
                    let said = unfitting(tenant, &outcome, &why, &place, now);
                    step.decisions.push(Decision::Audit(Box::new(said)));
                }
            }
        }
    }

    /// What time demands of interventions.
    pub(super) fn pass_deadlines(&mut self, now: Wall, step: &mut Step, entries: &mut Entries) {
        if self.interventions.next_due().is_none_or(|due| due > now.0) {
            return;
        }
        let runs = &self.runs;
        let ended = |tenant: &str, run: &str, _since: Micros| runs.get(tenant, run).is_some_and(|run| run.has_ended());
        let said = self.interventions.pass(now, &ended);
        self.publish(said, now, step, entries);
    }

    /// Says what became of interventions, and does what follows: children of a held run are held (X3).
    pub(super) fn publish(&mut self, said: Vec<Intervention>, now: Wall, step: &mut Step, entries: &mut Entries) {
        let mut todo: Vec<(Intervention, usize)> = said.into_iter().map(|record| (record, 0)).rev().collect();
        while let Some((record, depth)) = todo.pop() {
            let mut children = Vec::new();
            if record.state == State::Issued
                && record.target.kind == "RUN"
                && (life::holds_runs(&record.kind) || record.kind == "RESUME")
                && depth < self.settings.acting.cascade_depth
            {
                for child in self.runs.children(&record.tenant_id, &record.target.id) {
                    if record.kind == "RESUME" && !self.interventions.is_paused_with_parent(&record.tenant_id, &child) {
                        continue;
                    }
                    let since = self.runs.since(&record.tenant_id, &child);
                    children.extend(self.interventions.cascade(&record, &child, since, now));
                }
            }
            todo.extend(children.into_iter().rev().map(|child| (child, depth + 1)));
            if let Some(run) = record.run_id.as_deref().filter(|_| record.revision == 1) {
                self.notes.intervention(&record.tenant_id, run, &record.intervention_id);
            }
            let member = self.notice(&record, now, entries);
            entries.extend(member.map(|member| Entry::Member(Box::new(member))));
            let audit = Decision::Audit(Box::new(life_step(&record, now)));
            let events = guardian_events(&record, now);
            step.decisions.push(Decision::Intervention(Box::new(record)));
            step.decisions.extend(events.into_iter().map(|event| Decision::Guardian(Box::new(event))));
            step.decisions.push(audit);
        }
    }

    /// The clock of a tenant, for what no row of it decides.
    fn tenant_clock(&self, tenant: &str, now: Wall) -> Micros {
        self.clocks.highest(tenant).unwrap_or(now.0)
    }

    /// What people are told of an intervention: that nobody obeys, and what it was made to tell them.
    fn notice(&self, record: &Intervention, now: Wall, entries: &Entries) -> Option<Member> {
        let Subject { kind, id } = &record.target;
        let clock = entries.clock.unwrap_or_else(|| self.tenant_clock(&record.tenant_id, now));
        let notify = record.kind == "NOTIFY" && record.state == State::Succeeded;
        let (severity, title) = match record.state {
            _ if notify => (Severity::High, record.reason.clone()),
            State::TimedOut => {
                let worst = life::ends_runs(&record.kind) && life::next_rung(&record.kind).is_none();
                let severity = if worst { Severity::Critical } else { Severity::High };
                (severity, format!("{} of {kind} {id} was not obeyed", record.kind))
            }
            State::Failed => (Severity::High, format!("{} of {kind} {id} failed", record.kind)),
            State::Expired => (Severity::Medium, format!("nobody approved {} of {kind} {id}", record.kind)),
            _ => return None,
        };
        let why = record.audit_log.results.get("timed_out").and_then(Value::as_str).unwrap_or(&record.reason);
        let name = id::of(&[&record.intervention_id, record.state.as_str()]);
        let member =
            Member::new("intervention", record.state.as_str(), name, &record.tenant_id, record.target.clone(), clock);
        let mut member = member.saying(severity, &title, why);
        member.policy_id = Some(record.policy_id.clone()).filter(|id| !id.is_empty());
        member.is_urgent = true;
        if let Some(run) = record.run_id.as_deref() {
            member.run_id = Some(run.to_owned());
            member.ancestors = self.runs.ancestors(&record.tenant_id, run, self.settings.acting.cascade_depth);
            // at a row as it was there: what later rows of the batch say is another cut's business
            let known = || self.runs.get(&record.tenant_id, run).and_then(|run| run.fields.agent.as_deref());
            let agent = if entries.clock.is_some() { entries.agent.as_deref() } else { known() };
            member.agent_id = agent.map(str::to_owned);
        }
        if notify && let Some(channels) = record.parameters.get("channels").and_then(Value::as_array) {
            let channels = channels.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            member.throttle = Throttle::of(&Alerts { channels, ..Alerts::default() });
        }
        Some(member)
    }

    /// That a run goes on though it was stopped, when that stops it again.
    pub(super) fn tell_of_zombie(&self, said: &[Intervention], clock: Micros, entries: &mut Entries) {
        for record in said.iter().filter(|record| record.state == State::Issued) {
            let name = id::of(&[&record.intervention_id, "zombie"]);
            let member = Member::new("intervention", "ZOMBIE", name, &record.tenant_id, record.target.clone(), clock);
            let title = format!("RUN {} goes on though it was stopped", record.target.id);
            let mut member = member.saying(Severity::High, &title, &record.reason);
            member.is_urgent = true;
            member.agent_id = entries.agent.as_deref().map(str::to_owned);
            entries.push(Entry::Member(Box::new(member)));
        }
    }

    /// Fills in what only the state of this partition tells: the schedule of a team's restart, and the state before.
    pub(super) fn complete(&self, record: &mut Intervention) {
        let (tenant, target) = (&record.tenant_id, &record.target.id);
        let entities = &self.standing.entities;
        match record.kind.as_str() {
            "TEAM_RESTART" => {
                let given = record.parameters.get("stagger_seconds").and_then(Value::as_i64).filter(|s| *s >= 0);
                let stagger = given.unwrap_or(STAGGER);
                let agents = entities.team(tenant, target);
                let schedule: Vec<Value> = (0..)
                    .zip(agents.iter().take(MAX_TEAM))
                    .map(|(n, agent)| json!({"agent_id": agent, "after_seconds": stagger.saturating_mul(n)}))
                    .collect();
                if !record.parameters.is_object() {
                    record.parameters = json!({});
                }
                record.parameters["stagger_seconds"] = stagger.into();
                record.parameters["schedule"] = schedule.into();
                record.audit_log.parameters = record.parameters.clone();
            }
            "PRIORITY_OVERRIDE" => {
                record.audit_log.before = json!({"priority": entities.text(tenant, Entity::Task, target, "priority")});
            }
            "CANCEL_TASK" | "TASK_REASSIGN" => {
                let agent = entities.get(tenant, Entity::Task, target).and_then(|task| task.agent.clone());
                let status = entities.text(tenant, Entity::Task, target, "task_status");
                record.audit_log.before = json!({"task_status": status, "agent_id": agent});
            }
            "REALLOCATE_CAPACITY" => {
                let of = |name: &str| record.parameters.get(name).and_then(Value::as_str);
                let known = |name| entities.whole(tenant, Entity::Agent, of(name)?, "capacity");
                record.audit_log.before =
                    json!({"from_capacity": known("from_agent_id"), "to_capacity": known("to_agent_id")});
            }
            _ => {}
        }
    }

    /// Applies a command that concerns one tenant.
    pub(super) fn act_on(
        &mut self,
        command: &Command,
        by: &By,
        now: Wall,
        entries: &mut Entries,
    ) -> Result<Done, Refusal> {
        let body = &command.body;
        match command.kind.as_str() {
            "intervention.create" => self.create(body, by, now, entries),
            kind @ ("intervention.approve" | "intervention.reject" | "intervention.revert") => {
                self.decide_on(kind, body, by, now, entries)
            }
            "guardian.cancel_task" => {
                let task = text(body, "task_id")?;
                self.order_by("CANCEL_TASK", "TASK", task, json!({}), body, by, now, entries)
            }
            "guardian.override_priority" => {
                let (task, priority) = (text(body, "task_id")?, text(body, "new_priority")?);
                let parameters = json!({"new_priority": priority});
                self.order_by("PRIORITY_OVERRIDE", "TASK", task, parameters, body, by, now, entries)
            }
            "guardian.reallocate" => {
                let (from, to) = (text(body, "from_agent_id")?, text(body, "to_agent_id")?);
                let capacity = body.get("capacity").cloned().unwrap_or_default();
                let parameters = json!({"from_agent_id": from, "to_agent_id": to, "capacity": capacity});
                self.order_by("REALLOCATE_CAPACITY", "AGENT", from, parameters, body, by, now, entries)
            }
            "guardian.escalate" => self.escalate(body, by, now),
            kind if kind.starts_with("lesson.") => self.teach(kind, body, by, now),
            "alert.raise" | "alert.clear" => self.alert_by(command, by, now, entries),
            other => Err(Refusal::new("unknown_command", format!("{other} is not a command of this version"))),
        }
    }

    fn create(&mut self, body: &Value, by: &By, now: Wall, entries: &mut Entries) -> Result<Done, Refusal> {
        let kind = text(body, "type")?;
        let Some((kind, wanted)) = KINDS.into_iter().find(|(name, _)| *name == kind) else {
            let known = KINDS.map(|(name, _)| name).join(" ");
            return Err(Refusal::new("type", format!("{kind} is no type of intervention: {known}")));
        };
        let missing = || Refusal::new("body", "body.target must be {\"kind\": \"RUN\", \"id\": \"…\"}");
        let target = body.get("target").cloned().ok_or_else(missing)?;
        let target: Subject = serde_json::from_value(target).map_err(|_| missing())?;
        if !wanted.is_empty() && target.kind != wanted {
            return Err(Refusal::new("target", format!("the target of {kind} is of the kind {wanted}")));
        }
        let parameters = body.get("parameters").cloned().unwrap_or_else(|| json!({}));
        self.order_by(kind, &target.kind, &target.id, parameters, body, by, now, entries)
    }

    #[expect(clippy::too_many_arguments, reason = "an order has that many parts, and this is its one door")]
    fn order_by(
        &mut self,
        kind: &str,
        target_kind: &str,
        target: &str,
        parameters: Value,
        body: &Value,
        by: &By,
        now: Wall,
        entries: &mut Entries,
    ) -> Result<Done, Refusal> {
        if by.reason.trim().is_empty() {
            return Err(Refusal::new("reason", "an intervention says why: give `reason`"));
        }
        let target = Subject { kind: target_kind.to_owned(), id: target.to_owned() };
        self.validate(&by.tenant, kind, &target, &parameters)?;
        let slot = Slot { tenant: by.tenant.clone(), kind: kind.to_owned(), target: target.clone() };
        let initiated_by = body.get("initiated_by").and_then(Value::as_str).unwrap_or(&by.principal);
        let identity = format!("command/{}", by.command_id);
        let order = Order {
            initiated_by: initiated_by.chars().take(256).collect(),
            principal: by.principal.clone(),
            authority: by.authority,
            parameters,
            approval_required: body.get("approval_required").and_then(Value::as_bool).unwrap_or(false),
            ..Order::of_policy(slot, "", &identity, by.reason.clone())
        };
        let mut record = order.record(now);
        self.complete(&mut record);
        let care = Care { rollback: None, min_authority: crate::decide::commands::GUARDIAN };
        let said = self.interventions.order(record, None, care, now);
        let Some(first) = said.iter().find(|record| record.kind == kind && record.target == target) else {
            let why =
                format!("{kind} of {} {} is live already: at most one of a kind on a target", target.kind, target.id);
            return Err(Refusal::new("live", why));
        };
        let result = json!({
            "intervention_id": first.intervention_id, "action_id": first.intervention_id, "state": first.state,
            "deadline": first.deadline.map(crate::clock::rfc3339),
        });
        Ok(self.done(result, said, now, entries))
    }

    /// An accepted command's interventions, with what follows.
    fn done(&mut self, result: Value, said: Vec<Intervention>, now: Wall, entries: &mut Entries) -> Done {
        let mut step = Step::default();
        self.publish(said, now, &mut step, entries);
        Done { result, decisions: step.decisions, ..Done::default() }
    }

    fn decide_on(
        &mut self,
        kind: &str,
        body: &Value,
        by: &By,
        now: Wall,
        entries: &mut Entries,
    ) -> Result<Done, Refusal> {
        let wanted = text(body, "intervention_id")?;
        if kind != "intervention.approve" && by.reason.trim().is_empty() {
            return Err(Refusal::new("reason", "to reject or revert says why: give `reason`"));
        }
        if by.principal.starts_with("system:") && kind != "intervention.revert" {
            return Err(Refusal::new("person", "only a person or a service approves or rejects"));
        }
        let actor = Actor { principal: &by.principal, authority: by.authority, reason: &by.reason };
        let done = match kind {
            "intervention.approve" => self.interventions.approve(&by.tenant, wanted, &actor, now),
            "intervention.reject" => self.interventions.reject(&by.tenant, wanted, &actor, now),
            _ => self.interventions.revert(&by.tenant, wanted, &actor, now),
        };
        let said = done.map_err(|why| match why {
            NotDone::Missing => Refusal::new("not_found", format!("no intervention {wanted} is live or remembered")),
            NotDone::Illegal(state) => {
                let action = kind.rsplit_once('.').map_or(kind, |(_, action)| action);
                Refusal::new("state", format!("it is {}: one cannot {action} it", state.as_str()))
            }
            NotDone::Authority(required) => {
                let reason = format!("this takes authority {required}, and {} was given", by.authority);
                Refusal { required: Some(required), ..Refusal::new("authority", reason) }
            }
        })?;
        let state = said.iter().rev().find(|record| record.intervention_id == wanted).map(|record| record.state);
        let result = json!({"intervention_id": wanted, "state": state});
        Ok(self.done(result, said, now, entries))
    }

    /// What the seed's guardian checks before it acts (I3).
    fn validate(&self, tenant: &str, kind: &str, target: &Subject, parameters: &Value) -> Result<(), Refusal> {
        if parameters.to_string().len() > MAX_PARAMETERS {
            return Err(Refusal::new("parameters", format!("parameters are larger than {MAX_PARAMETERS} bytes")));
        }
        if target.id.is_empty() || target.id.len() > 512 {
            return Err(Refusal::new("target", "the id of a target has 1 to 512 bytes"));
        }
        let entities = &self.standing.entities;
        let exists = match target.kind.as_str() {
            "RUN" => self.runs.get(tenant, &target.id).is_some(),
            "TASK" => entities.get(tenant, Entity::Task, &target.id).is_some(),
            "AGENT" => self.agent_exists(tenant, &target.id),
            "TEAM" => !entities.team(tenant, &target.id).is_empty(),
            "TENANT" => target.id == tenant,
            // of these telemetry says no more than that they are used
            "API_KEY" | "HUMAN_ACTOR" | "PROJECT" | "PROVIDER" => true,
            other => {
                let known = "RUN AGENT TASK TEAM API_KEY HUMAN_ACTOR PROJECT PROVIDER TENANT";
                return Err(Refusal::new("target", format!("{other} is no kind of target: {known}")));
            }
        };
        if !exists {
            let why = format!("{} {} is not known: no telemetry of tenant {tenant} names it", target.kind, target.id);
            return Err(Refusal::new("not_found", why));
        }
        let named = |name: &'static str| {
            let value = parameters.get(name).and_then(Value::as_str).filter(|value| !value.is_empty());
            value.ok_or_else(|| Refusal::new("parameters", format!("{kind} takes the parameter {name}")))
        };
        match kind {
            "PRIORITY_OVERRIDE" => {
                let priority = named("new_priority")?;
                if !PRIORITIES.contains(&priority) {
                    return Err(Refusal::new(
                        "priority",
                        format!("{priority} is no priority: {}", PRIORITIES.join(" ")),
                    ));
                }
            }
            "TASK_REASSIGN" => self.known_agent(tenant, named("to_agent_id")?)?,
            "REALLOCATE_CAPACITY" => {
                let (from, to) = (named("from_agent_id")?, named("to_agent_id")?);
                self.known_agent(tenant, from)?;
                self.known_agent(tenant, to)?;
                if from == to {
                    return Err(Refusal::new("parameters", "from_agent_id and to_agent_id must differ"));
                }
                let capacity = parameters.get("capacity").and_then(Value::as_i64).filter(|capacity| *capacity > 0);
                let capacity =
                    capacity.ok_or_else(|| Refusal::new("capacity", "capacity must be a positive whole number"))?;
                let has = entities.whole(tenant, Entity::Agent, from, "capacity").unwrap_or_default();
                let promised: i64 = self
                    .interventions
                    .pending(tenant)
                    .filter(|record| record.kind == kind && record.parameters["from_agent_id"] == *from)
                    .filter_map(|record| record.parameters["capacity"].as_i64())
                    .sum();
                if has.saturating_sub(promised) < capacity {
                    let of_it = if promised > 0 { format!(", {promised} of it promised") } else { String::new() };
                    let why =
                        format!("agent {from} has a capacity of {has}{of_it}: {capacity} cannot be taken from it");
                    return Err(Refusal::new("capacity", why));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn agent_exists(&self, tenant: &str, agent: &str) -> bool {
        self.standing.entities.get(tenant, Entity::Agent, agent).is_some() || self.runs.names_agent(tenant, agent)
    }

    fn known_agent(&self, tenant: &str, agent: &str) -> Result<(), Refusal> {
        if self.agent_exists(tenant, agent) {
            return Ok(());
        }
        Err(Refusal::new("not_found", format!("AGENT {agent} is not known: no telemetry of tenant {tenant} names it")))
    }

    /// A watchdog hands an alert on, because what it tried did not help (I2).
    fn escalate(&mut self, body: &Value, by: &By, now: Wall) -> Result<Done, Refusal> {
        let alert = text(body, "alert_id")?;
        if by.reason.trim().is_empty() {
            return Err(Refusal::new("reason", "to escalate says why: give `reason`"));
        }
        let why = format!("escalated to the guardian by {}: {}", by.principal, by.reason);
        let view = View {
            now,
            silences: &self.silences,
            keep_firing_for: self.settings.alerting.keep_firing_for,
            told: &mut |_, _, _| true,
        };
        let escalated = self.correlation.escalate(&by.tenant, alert, &why, &view);
        let missing = || Refusal::new("not_found", format!("no alert {alert} is open"));
        let (before, record) = escalated.ok_or_else(missing)?;
        let act = Act {
            kind: "guardian.escalated",
            subject: "alert",
            id: record.alert_id.clone(),
            tenant: by.tenant.clone(),
            principal: None,
            before: json!({"severity": before}),
            after: json!({"severity": record.severity}),
            reason: by.reason.clone(),
        };
        let result = json!({"alert_id": record.alert_id, "severity": record.severity, "revision": record.revision});
        Ok(Done { result, acts: vec![act], decisions: vec![Decision::Alert(Box::new(record))], ..Done::default() })
    }

    /// An alert raised or cleared by command: panels, and whoever has no other way in.
    fn alert_by(&mut self, command: &Command, by: &By, now: Wall, entries: &mut Entries) -> Result<Done, Refusal> {
        let body = &command.body;
        let name = text(body, "fingerprint")?;
        let source = body.get("source").and_then(Value::as_str).unwrap_or("external");
        let (source, place) = if source == "panel" { ("panel", "PANEL") } else { ("external", "ALERT") };
        let cause = format!("{source}/{}", id::part(name));
        let clock = self.tenant_clock(&by.tenant, now);
        if command.kind == "alert.clear" {
            entries.push(Entry::Down { tenant: by.tenant.clone(), cause, clock });
            return Ok(Done { result: json!({"fingerprint": name}), ..Done::default() });
        }
        let given = text(body, "severity")?;
        // panels say WARNING (V3)
        let severity = if given == "WARNING" { Some(Severity::Medium) } else { Severity::parse(given) };
        let severity = severity.ok_or_else(|| {
            Refusal::new("severity", format!("{given} is no severity: CRITICAL HIGH MEDIUM LOW, or WARNING"))
        })?;
        let title = text(body, "title")?;
        let scope = Subject { kind: place.into(), id: name.to_owned() };
        let description = body.get("description").and_then(Value::as_str).unwrap_or(title);
        let member_id = id::of(&[&by.tenant, "alert.raise", &by.command_id]);
        let member = Member::new(source, "RAISED", member_id.clone(), &by.tenant, scope, clock);
        let mut member = member.saying(severity, title, description);
        member.agent_id = body.get("agent_id").and_then(Value::as_str).map(str::to_owned);
        member.run_id = body.get("run_id").and_then(Value::as_str).map(str::to_owned);
        member.up = Some(cause);
        member.up_until = Some(clock.saturating_add(self.settings.alerting.external_timeout));
        entries.push(Entry::Member(Box::new(member)));
        Ok(Done { result: json!({"member_id": member_id, "fingerprint": name}), ..Done::default() })
    }
}

/// A report that fits nothing: kept, since executors and runwarden do not agree then.
fn unfitting(tenant: &str, outcome: &Outcome, why: &str, place: &str, now: Wall) -> Audit {
    let cut = |text: &str, most: usize| text.chars().take(most).collect::<String>();
    let intervention = cut(&outcome.intervention_id, 256);
    Audit {
        audit_id: id::of(&[tenant, "outcome", &intervention, place]),
        at: now.0,
        kind: "outcome".into(),
        tenant_id: tenant.to_owned(),
        principal: outcome.executor.as_deref().map_or_else(|| "executor".into(), |executor| cut(executor, 256)),
        authority: crate::decide::commands::UNSIGNED,
        subject: Subject { kind: "INTERVENTION".into(), id: intervention },
        before: Value::Null,
        after: json!({"reported": outcome.state, "message": outcome.message.as_deref().map(|m| cut(m, 512))}),
        reason: format!("this report changes nothing: {why}"),
        refused: true,
    }
}

/// A step of an intervention's life (I5).
fn life_step(record: &Intervention, now: Wall) -> Audit {
    let state = record.state.as_str();
    let results = &record.audit_log.results;
    let by = |name: &str| results.get(name).and_then(Value::as_str).map(str::to_owned);
    let principal = match record.state {
        State::Reverted => record.reverted_by.clone(),
        State::Rejected => by("rejected_by"),
        State::Acknowledged | State::Succeeded | State::Failed => by("executor"),
        State::Issued if record.approved_by.is_some() => record.approved_by.clone(),
        State::Proposed | State::Issued => Some(record.initiated_by.clone()),
        State::TimedOut | State::Expired | State::Superseded => Some("system:runwarden".into()),
    };
    Audit {
        audit_id: id::of(&[&record.tenant_id, "intervention", &record.intervention_id, &record.revision.to_string()]),
        at: now.0,
        kind: format!("intervention.{}", state.to_lowercase()),
        tenant_id: record.tenant_id.clone(),
        principal: principal.unwrap_or_else(|| "executor".into()),
        authority: if record.state == State::Issued || record.state == State::Proposed {
            record.authority_level
        } else {
            SYSTEM
        },
        subject: record.target.clone(),
        before: record.audit_log.before.clone(),
        after: json!({
            "intervention_id": record.intervention_id, "type": record.kind, "state": state, "revision": record.revision,
            "after": record.audit_log.after, "results": results, "parameters": record.parameters,
        }),
        reason: record.reason.clone(),
        refused: false,
    }
}

/// The seed's events of the guardian (I6), with its payload fields.
fn guardian_events(record: &Intervention, now: Wall) -> Vec<GuardianEvent> {
    if !GUARDIAN_KINDS.contains(&record.kind.as_str()) {
        return Vec::new();
    }
    let action = match record.kind.as_str() {
        "CANCEL_TASK" => "cancel_task",
        "REALLOCATE_CAPACITY" => "reallocate_capacity",
        _ => "override_priority",
    };
    let named = |event_type: &str, mut payload: Value| {
        payload["intervention_id"] = record.intervention_id.clone().into();
        payload["tenant_id"] = record.tenant_id.clone().into();
        GuardianEvent {
            event_type: event_type.to_owned(),
            event_id: format!("{}/{}/{event_type}", record.intervention_id, record.revision),
            tenant_id: record.tenant_id.clone(),
            at: now.0,
            payload,
        }
    };
    let task = (record.target.kind == "TASK").then_some(&record.target.id);
    match record.state {
        State::Issued => vec![named(
            "guardian.intervention.started",
            json!({
                "action_type": action, "task_id": task, "target_entity": record.target.id, "reason": record.reason,
                "authority": record.authority_level,
            }),
        )],
        State::Succeeded => {
            let payload =
                json!({"action_type": action, "target_entity": record.target.id, "result": record.audit_log.results});
            let mut events = vec![named("guardian.intervention.completed", payload)];
            if record.kind == "REALLOCATE_CAPACITY" {
                let of = |name: &str| record.parameters.get(name).cloned().unwrap_or_default();
                let payload = json!({
                    "from_agent_id": of("from_agent_id"), "to_agent_id": of("to_agent_id"), "capacity": of("capacity"),
                });
                events.push(named("guardian.resource.reallocated", payload));
            }
            events
        }
        State::Reverted => vec![named(
            "guardian.intervention.reverted",
            json!({
                "action_id": record.intervention_id, "reason": record.audit_log.results["reverted"],
                "reverted_by": record.reverted_by,
            }),
        )],
        _ => Vec::new(),
    }
}
