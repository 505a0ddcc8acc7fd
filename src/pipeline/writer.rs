//! The one writer of policies: commands in, answers, audit lines and records of the policies topic out (P7, P8, P11).
//!
//! Every partition has one; only that of the owner of the key `*` is ever given work, since policy commands stand there. It is part of
//! the deterministic core: what it accepts follows from its state, the command and the step's clock. A command with an id that was
//! answered before gets the same answer and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::{Micros, SECOND, Wall};
use crate::decide::commands::{Command, GUARDIAN, MONITOR, NotACommand, POLICY_COMMANDS, Received, SYSTEM, UNSIGNED};
use crate::decide::id;
use crate::decide::records::{Audit, CommandResult, Decision, PolicyRecord, Subject};
use crate::kafka::core::{Input, InputBatch};
use crate::pipeline::intake;
use crate::pipeline::partition::{Partition, Step};
use crate::pipeline::terms::{Judge, set_digest};
use crate::policy::{
    About, Act, By, Effects, Item, LimitStatus, Order, Policy, PolicySet, Refusal, Register, SetOrder, Terms, parse,
};
use crate::telemetry::{Origin, Reason};

/// Who acts where no command asked.
const OURSELVES: &str = "system:runwarden";
/// A command older than this is refused, so that its answer need not be remembered for ever.
const OLDEST: Micros = 24 * 3_600 * SECOND;
/// A command from further ahead than this is refused.
const AHEAD: Micros = 300 * SECOND;
/// Answers are remembered a little longer than commands are taken.
const REMEMBERED: Micros = OLDEST + 2 * AHEAD;
/// Most answers remembered.
const MOST: usize = 100_000;
/// Most conflicts and dependents listed in an answer.
const MAX_LISTED: usize = 100;
/// Longest reason given.
const MAX_REASON: usize = 64 << 10;

/// An answer that was given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    digest: String,
    at: Micros,
    result: CommandResult,
}

/// The writer's state.
#[derive(Default)]
pub(super) struct Writer {
    pub register: Register,
    answers: BTreeMap<String, Answer>,
    by_time: BTreeSet<(Micros, String)>,
    dirty: BTreeSet<String>,
    judge: Judge,
}

impl Writer {
    /// When something ends by itself next.
    pub fn next_end(&self) -> Option<Micros> {
        self.register.next_end()
    }

    /// Answers that changed since the last call; `None`: forgotten.
    pub fn take_answers(&mut self) -> Vec<(String, Option<&Answer>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|id| {
                let answer = self.answers.get(&id);
                (id, answer)
            })
            .collect()
    }

    /// Makes the next checkpoint a full one.
    pub fn mark_all_dirty(&mut self) {
        self.register.mark_all_dirty();
        self.dirty.extend(self.answers.keys().cloned());
    }

    /// Takes an answer back.
    pub fn restore_answer(&mut self, id: String, answer: Answer) {
        self.by_time.insert((answer.at, id.clone()));
        self.answers.insert(id, answer);
    }

    /// Takes an item of the register back.
    pub fn restore_item(&mut self, item: Item) {
        self.register.restore(item);
    }

    fn remember(&mut self, digest: String, at: Micros, result: CommandResult) {
        let id = result.command_id.clone();
        self.dirty.insert(id.clone());
        self.restore_answer(id, Answer { digest, at, result });
    }

    fn forget(&mut self, now: Micros) {
        while let Some((at, id)) = self.by_time.pop_first() {
            if at.saturating_add(REMEMBERED) > now {
                self.by_time.insert((at, id));
                return;
            }
            self.answers.remove(&id);
            self.dirty.insert(id);
        }
    }
}

/// A field of a body.
fn text<'b>(body: &'b Value, name: &'static str) -> Result<&'b str, Refusal> {
    let found = body.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    found.ok_or_else(|| Refusal::new("body", format!("body.{name} is missing, or is no text")))
}

/// An object of texts.
fn texts(body: &Value, name: &'static str) -> Result<BTreeMap<String, String>, Refusal> {
    let wrong = || Refusal::new("body", format!("body.{name} must be an object of texts by name"));
    let object = body.get(name).and_then(Value::as_object).ok_or_else(wrong)?;
    object
        .iter()
        .map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned())))
        .collect::<Option<_>>()
        .ok_or_else(wrong)
}

/// The tenant that a body names, or the one the command is for.
fn tenant_of<'b>(body: &'b Value, command: &'b Command) -> &'b str {
    body.get("tenant").and_then(Value::as_str).unwrap_or(&command.tenant_id)
}

/// The one policy of a body: `policy` is an object or the text of a file.
fn policy_of(body: &Value, command: &Command) -> Result<Policy, Refusal> {
    let file = body.get("file").and_then(Value::as_str).unwrap_or("policy");
    let written = match body.get("policy") {
        Some(Value::String(text)) => text.clone(),
        Some(object @ Value::Object(_)) => object.to_string(),
        _ => return Err(Refusal::new("body", "body.policy must be a policy, as an object or as the text of a file")),
    };
    let faults = |faults: Vec<_>| {
        let lines: Vec<String> = faults.iter().map(|f: &crate::policy::Fault| f.to_string()).collect();
        Refusal::new("invalid", lines.join("\n"))
    };
    let mut found = parse(file, &written).map_err(faults)?;
    match (found.pop(), found.pop()) {
        (Some(mut policy), None) => {
            // who may act for one tenant only means that one
            if &*policy.tenant == "*" && command.tenant_id != "*" {
                policy.tenant = command.tenant_id.as_str().into();
            }
            Ok(policy)
        }
        (None, _) => Err(Refusal::new("invalid", format!("{file}: no policy was read"))),
        (Some(_), Some(_)) => Err(Refusal::new("invalid", format!("{file}: a proposal is about one policy"))),
    }
}

/// The set of a body.
fn set_of(body: &Value) -> Result<SetOrder, Refusal> {
    let policies = texts(body, "policies")?;
    let queries = texts(body, "queries")?;
    let optional = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let terms = Terms { queries, prices: optional("prices"), settings: optional("settings") };
    let digest = set_digest(&policies, &terms);
    if text(body, "digest")? != digest {
        return Err(Refusal::new("digest", "body.digest is not the digest of what the set carries"));
    }
    let files: Vec<(String, String)> = policies.into_iter().collect();
    let set = PolicySet::from_files(&files).map_err(|faults| {
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Refusal::new("invalid", lines.join("\n"))
    })?;
    let generation = set.generation();
    if body.get("generation").and_then(Value::as_u64) != Some(generation) {
        return Err(Refusal::new("generation", format!("body.generation must be that of set.yaml, {generation}")));
    }
    Ok(SetOrder { generation, digest, policies: set.into_policies(), terms })
}

impl Partition {
    /// Takes the commands of a step, in order.
    pub(super) fn take_commands(&mut self, inputs: &[InputBatch<'_>], now: Wall, step: &mut Step) {
        for (input, tenant, record) in intake::addressed(Input::Commands, inputs, self.own, &mut step.rekeyed) {
            let payload = record.payload.unwrap_or_default();
            let read = self.settings.tuning.keys.read(payload);
            let (Ok(received), Some(key)) = (&read, tenant) else {
                let message = match &read {
                    Err(
                        why @ (NotACommand::TooLarge | NotACommand::NotJson | NotACommand::Fields | NotACommand::Text),
                    ) => why.to_string(),
                    Ok(_) => "the key of a command must be `*` or its tenant".to_owned(),
                };
                let names = &self.settings.inputs;
                let topic = if input == Input::Commands { &names.commands } else { &names.repartition };
                let origin = Origin {
                    input: input as u8,
                    topic: std::sync::Arc::clone(topic),
                    partition: self.own.partition,
                    offset: record.offset,
                };
                self.reject_command(origin, Reason::Decode, &message, payload);
                continue;
            };
            self.answer(received, key, record.offset, now, step);
        }
    }

    /// What ends by itself by now, and what is remembered no longer.
    pub(super) fn end_terms(&mut self, now: Wall, step: &mut Step) {
        self.writer.forget(now.0);
        let effects = self.writer.register.expire(now.0);
        let by = Sender { principal: OURSELVES, authority: SYSTEM, cause: "expired" };
        self.follow_through(effects, &by, now, step);
    }

    fn answer(&mut self, received: &Received, key: &str, offset: i64, now: Wall, step: &mut Step) {
        let command = &received.command;
        let known = self.writer.answers.get(&command.command_id);
        if let Some(answer) = known.filter(|_| received.unsigned.is_none()) {
            if answer.digest == received.digest {
                step.decisions.push(Decision::CommandResult(Box::new(answer.result.clone())));
                return;
            }
            let why = Refusal::new("id_reused", "another command had this command_id: give each its own");
            self.refuse(received, key, offset, why, now, step);
            return;
        }
        let by = By {
            principal: command.principal.clone(),
            authority: received.authority,
            tenant: command.tenant_id.clone(),
            at: now.0,
            reason: command
                .body
                .get("reason")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .chars()
                .take(4_096)
                .collect(),
            command_id: command.command_id.clone(),
        };
        let outcome = self.admit(received, key, now).and_then(|()| self.apply(command, &by));
        let result = match outcome {
            Ok(mut effects) => {
                let result = CommandResult {
                    result: std::mem::take(&mut effects.result),
                    ..result_of(received, key, offset, "ACCEPTED", "ok", String::new())
                };
                step.decisions.push(Decision::CommandResult(Box::new(result.clone())));
                let sender = Sender { principal: &by.principal, authority: by.authority, cause: &by.command_id };
                self.follow_through(effects, &sender, now, step);
                result
            }
            Err(why) => self.refuse(received, key, offset, why, now, step),
        };
        // an id is not burnt by who has no right to use it
        if received.unsigned.is_none() {
            self.writer.remember(received.digest.clone(), now.0, result);
        }
    }

    /// Whether a command may be looked at.
    fn admit(&self, received: &Received, key: &str, now: Wall) -> Result<(), Refusal> {
        let command = &received.command;
        let policy_command = POLICY_COMMANDS.contains(&command.kind.as_str());
        if !policy_command {
            return Err(Refusal::new("unknown_command", format!("{} is not a command of this version", command.kind)));
        }
        if received.unsigned.is_some() {
            // before anything is looked up: who has no right learns nothing
            let required = match command.kind.as_str() {
                "policy.create" | "policy.update" | "proposal.create" => MONITOR,
                _ => GUARDIAN,
            };
            let reason = format!("this takes authority {required}, and {UNSIGNED} was given");
            return Err(Refusal { required: Some(required), ..Refusal::new("authority", reason) });
        }
        if key != "*" {
            return Err(Refusal::new("key", format!("{} has one writer: its key is `*`", command.kind)));
        }
        if !self.settings.event_clock {
            let age = now.0.saturating_sub(command.issued_at);
            if age > OLDEST {
                return Err(Refusal::new("stale", "it was issued more than 24 hours ago: send it again"));
            }
            if age < -AHEAD {
                return Err(Refusal::new("future", "it was issued more than 5 minutes ahead of the clock here"));
            }
        }
        if self.writer.answers.len() >= MOST {
            return Err(Refusal::new("too_many", format!("{MOST} commands were answered within a day")));
        }
        Ok(())
    }

    fn apply(&mut self, command: &Command, by: &By) -> Result<Effects, Refusal> {
        let tuning = std::sync::Arc::clone(&self.settings.tuning);
        let Writer { register, judge, .. } = &mut self.writer;
        let judge = std::cell::RefCell::new(judge);
        let faults = |policies: &[&Policy], terms: &Terms| judge.borrow_mut().faults(policies, terms, &tuning);
        let order = Order { by, faults: &faults };
        let body = &command.body;
        let tenant = tenant_of(body, command);
        match command.kind.as_str() {
            "policy_set.apply" => {
                // nobody's set is read who may not apply one
                if by.authority < GUARDIAN {
                    let empty = SetOrder {
                        generation: 0,
                        digest: String::new(),
                        policies: Vec::new(),
                        terms: Terms::default(),
                    };
                    return register.apply_set(empty, &order);
                }
                register.apply_set(set_of(body)?, &order)
            }
            "policy.create" => register.propose(policy_of(body, command)?, About::New, &order),
            "policy.update" => register.propose(policy_of(body, command)?, About::Known, &order),
            "proposal.create" => register.propose(policy_of(body, command)?, About::Any, &order),
            "proposal.approve" => register.approve(text(body, "proposal_id")?, &order),
            "proposal.reject" => register.reject(text(body, "proposal_id")?, &order),
            "policy.delete" => register.delete(tenant, text(body, "policy_id")?, &order),
            "rule.retire" => register.retire(tenant, text(body, "policy_id")?, &order),
            kind @ ("limit.enable" | "limit.disable") => {
                let status = if kind == "limit.enable" { LimitStatus::Active } else { LimitStatus::Disabled };
                register.toggle((tenant, text(body, "policy_id")?, text(body, "limit_id")?), status, &order)
            }
            "override.grant" => {
                let minutes = body.get("minutes").and_then(Value::as_u64).and_then(|m| u32::try_from(m).ok());
                let minutes =
                    minutes.ok_or_else(|| Refusal::new("body", "body.minutes is missing, or is no whole number"))?;
                let policy_tenant = body.get("policy_tenant").and_then(Value::as_str).unwrap_or(tenant);
                register.grant(tenant, (policy_tenant, text(body, "policy_id")?), minutes, &order)
            }
            "override.revoke" => register.revoke(text(body, "override_id")?, &order),
            other => Err(Refusal::new("unknown_command", format!("{other} is not a command of this version"))),
        }
    }

    fn refuse(
        &self,
        received: &Received,
        key: &str,
        offset: i64,
        why: Refusal,
        now: Wall,
        step: &mut Step,
    ) -> CommandResult {
        let command = &received.command;
        let mut reason: String = why.reason.chars().take(MAX_REASON).collect();
        if let Some(unsigned) = received.unsigned {
            reason = format!("{reason} (the signature does not count: {unsigned})");
        }
        let result = CommandResult {
            conflicts: json!(why.conflicts.iter().take(MAX_LISTED).collect::<Vec<_>>()),
            dependents: json!(why.dependents.iter().take(MAX_LISTED).collect::<Vec<_>>()),
            required_authority: why.required,
            ..result_of(received, key, offset, "REFUSED", why.code, reason.clone())
        };
        step.decisions.push(Decision::CommandResult(Box::new(result.clone())));
        let claimed = if received.unsigned.is_none() { String::new() } else { "unverified:".to_owned() };
        step.decisions.push(Decision::Audit(Box::new(Audit {
            audit_id: id::of(&[&command.tenant_id, "command.refused", &command.command_id, &self.own.partition.to_string(), &offset.to_string()]),
            at: now.0,
            kind: "command.refused".into(),
            tenant_id: key.to_owned(),
            principal: format!("{claimed}{}", command.principal),
            authority: received.authority,
            subject: Subject { kind: "COMMAND".into(), id: command.command_id.clone() },
            before: Value::Null,
            after: json!({
                "type": command.kind, "tenant_id": command.tenant_id, "code": why.code, "claimed_authority": command.authority,
                "given_authority": received.authority, "required_authority": why.required,
            }),
            reason,
            refused: true,
        })));
        result
    }

    fn follow_through(&self, effects: Effects, by: &Sender<'_>, now: Wall, step: &mut Step) {
        for (number, act) in effects.acts.into_iter().enumerate() {
            step.decisions.push(Decision::Audit(Box::new(audit(act, number, by, now))));
        }
        for change in effects.changes {
            step.decisions.push(Decision::Policy(Box::new(PolicyRecord {
                tenant_id: change.tenant,
                kind: change.kind.to_owned(),
                id: change.id,
                revision: change.revision,
                record: change.record,
            })));
        }
    }
}

struct Sender<'a> {
    principal: &'a str,
    authority: u8,
    cause: &'a str,
}

fn result_of(received: &Received, key: &str, offset: i64, status: &str, code: &str, reason: String) -> CommandResult {
    CommandResult {
        command_id: received.command.command_id.clone(),
        command: received.command.kind.clone(),
        status: status.to_owned(),
        code: code.to_owned(),
        reason,
        result: Value::Null,
        conflicts: json!([]),
        dependents: json!([]),
        required_authority: None,
        given_authority: received.authority,
        offset,
        tenant_id: key.to_owned(),
    }
}

fn audit(act: Act, number: usize, by: &Sender<'_>, now: Wall) -> Audit {
    let Act { kind, subject, id, tenant, principal, before, after, reason } = act;
    Audit {
        audit_id: id::of(&[&tenant, kind, &id, by.cause, &number.to_string(), &now.0.to_string()]),
        at: now.0,
        kind: kind.to_owned(),
        tenant_id: tenant,
        principal: principal.unwrap_or_else(|| by.principal.to_owned()),
        authority: by.authority,
        subject: Subject { kind: subject.to_uppercase(), id },
        before,
        after,
        reason,
        refused: false,
    }
}
