//! Lessons in a step: what rows and results teach, what people decide of it, and the draft that goes to the writer of policies.

use serde_json::{Value, json};

use crate::clock::{Micros, Wall};
use crate::decide::commands::{Command, SYSTEM};
use crate::decide::id;
use crate::decide::lessons::{self, Group, Learned, Lesson, LessonStatus, LessonType, Near, NotChanged};
use crate::decide::records::{Audit, Decision, Subject};
use crate::pipeline::happenings::Failure;
use crate::pipeline::judge::{Item, MetricPlan};
use crate::pipeline::partition::{Around, Partition, Step};
use crate::pipeline::writer::{Done, instant, text};
use crate::policy::{Act, By, Refusal, Scope};

/// Largest pattern of a lesson that a command brings, in bytes.
const MAX_PATTERN: usize = 8 << 10;
const SEVERITIES: [&str; 5] = ["CRITICAL", "HIGH", "MEDIUM", "LOW", "NONE"];

impl Partition {
    /// Records a lesson, if it is news.
    pub(super) fn learn(&mut self, learned: Learned, now: Wall, step: &mut Step) {
        if let Some(lesson) = self.lessons.record(learned, now) {
            step.decisions.push(Decision::Lesson(Box::new(lesson)));
        }
    }

    /// What a result teaches that stands in a band of a limit: at rows where the metric decides at rows, else at close (E2).
    pub(super) fn learn_near(&mut self, item: &Item, plan: &MetricPlan, around: &Around, step: &mut Step) {
        let Some(value) = item.value.filter(|_| plan.early != item.closed) else { return };
        let at = if item.closed { item.window.1 } else { around.time(item).unwrap_or(item.window.1) };
        for judged in &item.judged {
            let limit = &judged.limit;
            let Some(band) = lessons::band(value, limit.max) else { continue };
            let group = Group {
                tenant: item.tenant.to_string(),
                kind: LessonType::NearThreshold,
                of: plan.name.clone(),
                band: band.to_owned(),
            };
            if !self.lessons.is_due(group, at) {
                continue;
            }
            let near = Near {
                tenant: &item.tenant,
                metric: &plan.name,
                scope: (plan.scope.as_str(), &item.scope_id),
                run: (plan.scope == Scope::Run).then_some(&*item.scope_id),
                limit: (&limit.policy_id, &limit.limit_id),
                band,
                value,
                max: limit.max,
                window: item.window,
                is_synthetic: around.synthetic(item),
            };
            self.learn(near.learned(), around.now(Some(item)), step);
        }
    }

    /// What a failure of any severity teaches.
    pub(super) fn learn_failure(
        &mut self,
        tenant: &str,
        run: &str,
        time: Micros,
        failure: &Failure,
        now: Wall,
        step: &mut Step,
    ) {
        let group = failures(tenant, &failure.agent);
        // counted, not debounced: every failed run is a lesson, and how many there were goes into the draft
        self.lessons.is_due(group.clone(), time);
        let so_far = self.lessons.seen(&group).map_or(1, |seen| seen.repeats.saturating_add(1));
        let severity = SEVERITIES.into_iter().find(|s| s.eq_ignore_ascii_case(&failure.severity));
        let code = failure.code.as_deref().map(|code| format!(" with {code}")).unwrap_or_default();
        let of_agent = if failure.agent.is_empty() { String::new() } else { format!(" of agent {}", failure.agent) };
        let said = failure.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        let learned = Learned {
            kind: LessonType::Failure,
            tenant: tenant.to_owned(),
            source_event_id: run.to_owned(),
            source_event_type: "run",
            run: Some(run.to_owned()),
            severity: severity.map(str::to_owned),
            title: format!("run {run}{of_agent} failed{code}"),
            description: format!("It failed at {}{code}{said}.", id::rfc3339(time)),
            proposed_action: Some(
                "Convert it to a draft that tells of a series of failures, or dismiss it as a single one.".into(),
            ),
            pattern: json!({
                "agent_id": failure.agent, "error_code": failure.code, "severity": severity, "failures": so_far,
            }),
            is_synthetic: failure.is_synthetic,
            scenario: failure.scenario.clone(),
        };
        self.learn(learned, now, step);
    }

    /// Lessons that were put off and whose date has passed (E3).
    pub(super) fn return_lessons(&mut self, now: Wall, step: &mut Step) {
        if self.settings.event_clock || self.lessons.next_due().is_none_or(|due| due > now.0) {
            return;
        }
        for lesson in self.lessons.pass(now) {
            step.decisions.push(Decision::Audit(Box::new(Audit {
                audit_id: id::of(&[&lesson.tenant_id, "lesson.reactivated", &lesson.id, &lesson.revision.to_string()]),
                at: now.0,
                kind: "lesson.reactivated".into(),
                tenant_id: lesson.tenant_id.clone(),
                principal: "system:runwarden".into(),
                authority: SYSTEM,
                subject: Subject { kind: "LESSON".into(), id: lesson.id.clone() },
                before: json!({"status": "deferred"}),
                after: json!({"status": "pending"}),
                reason: "its date has passed".into(),
                refused: false,
            })));
            step.decisions.push(Decision::Lesson(Box::new(lesson)));
        }
    }

    /// A command about a lesson.
    pub(super) fn teach(&mut self, kind: &str, body: &Value, by: &By, now: Wall) -> Result<Done, Refusal> {
        if kind == "lesson.create" {
            return self.create_lesson(body, by, now);
        }
        let wanted = text(body, "lesson_id")?;
        let before = self.lessons.get(&by.tenant, wanted).map(|lesson| lesson.status);
        let mut sent = None;
        let (act, changed) = match kind {
            "lesson.defer" => {
                let until = instant(body, "defer_until")?;
                let until = until.ok_or_else(|| Refusal::new("body", "body.defer_until is missing: until when?"))?;
                ("lesson.deferred", self.lessons.defer(&by.tenant, wanted, until, now))
            }
            "lesson.dismiss" => {
                if by.reason.trim().is_empty() {
                    return Err(Refusal::new("reason", "to dismiss a lesson says why: give `reason`"));
                }
                ("lesson.dismissed", self.lessons.dismiss(&by.tenant, wanted, &by.principal, &by.reason, now))
            }
            "lesson.reactivate" => ("lesson.reactivated", self.lessons.reactivate(&by.tenant, wanted)),
            "lesson.convert" => {
                let proposal = self.proposal_of(&by.tenant, wanted, now);
                let id = proposal.as_ref().map(|command| command.command_id.clone()).unwrap_or_default();
                let converted = self.lessons.convert(&by.tenant, wanted, &id, now);
                sent = proposal.filter(|_| converted.is_ok());
                ("lesson.converted", converted)
            }
            other => return Err(Refusal::new("unknown_command", format!("{other} is not a command of this version"))),
        };
        let lesson = changed.map_err(|why| match why {
            NotChanged::Missing => Refusal::new("not_found", format!("tenant {} has no lesson {wanted}", by.tenant)),
            NotChanged::Past => Refusal::new("defer_until", "a lesson is put off until a date that is yet to come"),
            NotChanged::Illegal(status) => {
                let steps = "pending becomes converted_to_draft, deferred or dismissed; deferred becomes pending";
                Refusal::new("state", format!("it is {}: {steps}", status.as_str()))
            }
        })?;
        let act = Act {
            kind: act,
            subject: "lesson",
            id: lesson.id.clone(),
            tenant: by.tenant.clone(),
            principal: None,
            before: json!({"status": before}),
            after: json!({
                "status": lesson.status, "draft_proposal_id": lesson.draft_proposal_id,
                "deferred_until": lesson.deferred_until.map(id::rfc3339),
            }),
            reason: by.reason.clone(),
        };
        let result = json!({
            "lesson_id": lesson.id, "status": lesson.status, "draft_proposal_id": lesson.draft_proposal_id,
            "revision": lesson.revision,
        });
        let command = sent.map(|command| Decision::Command(Box::new(command)));
        let decisions = std::iter::once(Decision::Lesson(Box::new(lesson))).chain(command).collect();
        Ok(Done { result, acts: vec![act], decisions, ..Done::default() })
    }

    /// The command that proposes what a pending lesson suggests (E4).
    fn proposal_of(&self, tenant: &str, lesson_id: &str, now: Wall) -> Option<Command> {
        let lesson = self.lessons.get(tenant, lesson_id).filter(|lesson| lesson.status == LessonStatus::Pending)?;
        let (policy, why) = lessons::draft(lesson, self.lessons.seen(&group_of(lesson)));
        Some(Command {
            command_id: lessons::command_id(lesson),
            kind: "proposal.create".into(),
            tenant_id: tenant.to_owned(),
            principal: "system:lessons".into(),
            authority: SYSTEM,
            issued_at: now.0,
            body: json!({"policy": policy, "reason": why, "lesson_id": lesson.id, "file": "lesson"}),
            key_id: None,
        })
    }

    /// A lesson that was found elsewhere: in recorded telemetry, by a person (E6). One that is known is not made twice.
    fn create_lesson(&mut self, body: &Value, by: &By, now: Wall) -> Result<Done, Refusal> {
        let kind = text(body, "lesson_type")?;
        let kind = LessonType::ALL.into_iter().find(|k| k.as_str() == kind).ok_or_else(|| {
            let known = LessonType::ALL.map(LessonType::as_str).join(" ");
            Refusal::new("lesson_type", format!("{kind} is no type of lesson: {known}"))
        })?;
        let source_event_type = match body.get("source_event_type").and_then(Value::as_str) {
            None | Some("run") => "run",
            Some("signal") => "signal",
            Some("incident") => "incident",
            Some(other) => {
                return Err(Refusal::new("source_event_type", format!("{other} is none of run, signal, incident")));
            }
        };
        let severity = match body.get("severity").and_then(Value::as_str) {
            None => None,
            Some(given) => Some(
                SEVERITIES
                    .into_iter()
                    .find(|s| *s == given)
                    .ok_or_else(|| Refusal::new("severity", format!("{given} is none of {}", SEVERITIES.join(" "))))?,
            ),
        };
        let pattern = body.get("detected_pattern").cloned().unwrap_or(Value::Null);
        if pattern.to_string().len() > MAX_PATTERN {
            return Err(Refusal::new("detected_pattern", format!("it is larger than {MAX_PATTERN} bytes")));
        }
        let optional = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let source = text(body, "source_event_id")?;
        let learned = Learned {
            kind,
            tenant: by.tenant.clone(),
            source_event_id: source.chars().take(512).collect(),
            source_event_type,
            run: optional("source_run_id").map(|run| run.chars().take(512).collect()),
            severity: severity.map(str::to_owned),
            title: text(body, "title")?.to_owned(),
            description: text(body, "description")?.to_owned(),
            proposed_action: optional("proposed_action"),
            pattern,
            is_synthetic: body.get("is_synthetic").and_then(Value::as_bool).unwrap_or(false),
            scenario: optional("synthetic_scenario_id").map(|id| id.chars().take(256).collect()),
        };
        let lesson_id = id::of(&[&by.tenant, &learned.source_event_id, kind.as_str()]);
        if self.lessons.get(&by.tenant, &lesson_id).is_some() {
            return Ok(Done { result: json!({"lesson_id": lesson_id, "exists": true}), ..Done::default() });
        }
        let made = self.lessons.record(learned, now);
        let made = made
            .ok_or_else(|| Refusal::new("too_many", "this tenant has too many lessons that nobody has decided on"))?;
        let result = json!({"lesson_id": made.id, "exists": false});
        Ok(Done { result, decisions: vec![Decision::Lesson(Box::new(made))], ..Done::default() })
    }
}

fn failures(tenant: &str, agent: &str) -> Group {
    Group { tenant: tenant.to_owned(), kind: LessonType::Failure, of: agent.to_owned(), band: String::new() }
}

/// What debouncing knows the lesson by.
fn group_of(lesson: &Lesson) -> Group {
    let text = |name: &str| lesson.detected_pattern.get(name).and_then(Value::as_str).unwrap_or_default();
    match lesson.lesson_type {
        LessonType::Failure => failures(&lesson.tenant_id, text("agent_id")),
        LessonType::NearThreshold => Group {
            tenant: lesson.tenant_id.clone(),
            kind: lesson.lesson_type,
            of: text("metric").to_owned(),
            band: text("band").to_owned(),
        },
        LessonType::CriticalSuccess => Group {
            tenant: lesson.tenant_id.clone(),
            kind: lesson.lesson_type,
            of: text("agent_id").to_owned(),
            band: String::new(),
        },
    }
}
