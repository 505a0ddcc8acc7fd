//! Commands in; answers, audit lines and what follows out.
//!
//! What concerns everyone (policies, silences, the policy level) has one writer, the owner of the key `*`; what concerns one tenant
//! is applied by the tenant's owner ([`crate::pipeline::acting`]). It is part of the deterministic core: what is accepted follows
//! from the state, the command and the step's clock. A command with an id that was answered before under its key gets the same
//! answer and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::{Micros, SECOND, Wall};
use crate::decide::commands::{self, Command, NotACommand, Received, SYSTEM};
use crate::decide::id;
use crate::decide::records::{Audit, CommandResult, Decision, PolicyRecord, Subject};
use crate::kafka::core::{Input, InputBatch};
use crate::pipeline::entries::Entries;
use crate::pipeline::intake;
use crate::pipeline::leveling;
use crate::pipeline::partition::{Partition, Step};
use crate::pipeline::terms::{Judge, set_digest};
use crate::policy::{
    About, Act, By, Change, Effects, Item, LimitStatus, Order, Policy, PolicySet, Refusal, Register, SetOrder, Terms,
    parse,
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
/// Most answers remembered under one key.
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

/// Key of the record (`*` or the tenant), and id of the command.
pub(super) type AnswerKey = (String, String);

/// The writer's state.
#[derive(Default)]
pub(super) struct Writer {
    pub register: Register,
    answers: BTreeMap<AnswerKey, Answer>,
    /// How many are remembered, by key.
    held: BTreeMap<String, usize>,
    by_time: BTreeSet<(Micros, AnswerKey)>,
    dirty: BTreeSet<AnswerKey>,
    judge: Judge,
}

/// What an accepted command does.
#[derive(Default)]
pub(super) struct Done {
    /// For whoever asked.
    pub result: Value,
    /// For the policies topic.
    pub changes: Vec<Change>,
    /// For the audit.
    pub acts: Vec<Act>,
    /// Everything else.
    pub decisions: Vec<Decision>,
}

impl From<Effects> for Done {
    fn from(effects: Effects) -> Self {
        let Effects { result, changes, acts, .. } = effects;
        Self { result, changes, acts, decisions: Vec::new() }
    }
}

impl Writer {
    /// When something ends by itself next.
    pub fn next_end(&self) -> Option<Micros> {
        self.register.next_end()
    }

    /// Answers that changed since the last call; `None`: forgotten.
    pub fn take_answers(&mut self) -> Vec<(AnswerKey, Option<&Answer>)> {
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
    pub fn restore_answer(&mut self, answer: Answer) {
        let key = (answer.result.tenant_id.clone(), answer.result.command_id.clone());
        self.by_time.insert((answer.at, key.clone()));
        *self.held.entry(key.0.clone()).or_default() += 1;
        self.answers.insert(key, answer);
    }

    /// Takes an item of the register back.
    pub fn restore_item(&mut self, item: Item) {
        self.register.restore(item);
    }

    fn remember(&mut self, digest: String, at: Micros, result: CommandResult) {
        self.dirty.insert((result.tenant_id.clone(), result.command_id.clone()));
        self.restore_answer(Answer { digest, at, result });
    }

    fn forget(&mut self, now: Micros) {
        while let Some((at, key)) = self.by_time.pop_first() {
            if at.saturating_add(REMEMBERED) > now {
                self.by_time.insert((at, key));
                return;
            }
            self.answers.remove(&key);
            if let Some(held) = self.held.get_mut(&key.0) {
                *held = held.saturating_sub(1);
                if *held == 0 {
                    self.held.remove(&key.0);
                }
            }
            self.dirty.insert(key);
        }
    }
}

/// A field of a body.
pub(super) fn text<'b>(body: &'b Value, name: &'static str) -> Result<&'b str, Refusal> {
    let found = body.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    found.ok_or_else(|| Refusal::new("body", format!("body.{name} is missing, or is no text")))
}

/// A time of a body.
pub(super) fn instant(body: &Value, name: &'static str) -> Result<Option<Micros>, Refusal> {
    #[derive(Deserialize)]
    struct At(#[serde(with = "crate::clock::time::given")] Option<Micros>);
    let Some(value) = body.get(name) else { return Ok(None) };
    let wrong = |_| Refusal::new("body", format!("body.{name} must be a time: RFC 3339, or epoch milliseconds"));
    serde_json::from_value::<At>(value.clone()).map(|at| at.0).map_err(wrong)
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
    pub(super) fn take_commands(
        &mut self,
        inputs: &[InputBatch<'_>],
        now: Wall,
        step: &mut Step,
        entries: &mut Entries,
    ) {
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
            self.answer(received, key, record.offset, now, step, entries);
        }
    }

    /// What ends by itself by now, and what is remembered no longer.
    pub(super) fn end_terms(&mut self, now: Wall, step: &mut Step) {
        self.writer.forget(now.0);
        let effects = self.writer.register.expire(now.0);
        let by = Sender { principal: OURSELVES, authority: SYSTEM, cause: "expired" };
        self.follow_through(effects.into(), &by, now, step);
    }

    fn answer(
        &mut self,
        received: &Received,
        key: &str,
        offset: i64,
        now: Wall,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        let command = &received.command;
        let known = self.writer.answers.get(&(key.to_owned(), command.command_id.clone()));
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
                .or_else(|| command.body.get("comment"))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .chars()
                .take(4_096)
                .collect(),
            command_id: command.command_id.clone(),
        };
        let outcome = self.admit(received, key, now).and_then(|()| self.apply(command, &by, now, entries));
        let result = match outcome {
            Ok(mut done) => {
                let result = CommandResult {
                    result: std::mem::take(&mut done.result),
                    ..result_of(received, key, offset, "ACCEPTED", "ok", String::new())
                };
                step.decisions.push(Decision::CommandResult(Box::new(result.clone())));
                let sender = Sender { principal: &by.principal, authority: by.authority, cause: &by.command_id };
                self.follow_through(done, &sender, now, step);
                result
            }
            Err(why) => self.refuse(received, key, offset, why, now, step),
        };
        // an id is not burnt by who has no right to use it
        if received.unsigned.is_none() && command.kind != leveling::REPORT {
            self.writer.remember(received.digest.clone(), now.0, result);
        }
    }

    /// Whether a command may be looked at.
    fn admit(&self, received: &Received, key: &str, now: Wall) -> Result<(), Refusal> {
        let command = &received.command;
        let Some((writer, required)) = commands::known(&command.kind) else {
            return Err(Refusal::new("unknown_command", format!("{} is not a command of this version", command.kind)));
        };
        // before anything is looked up: who has no right learns nothing
        if received.authority < required {
            let reason = format!("this takes authority {required}, and {} was given", received.authority);
            return Err(Refusal { required: Some(required), ..Refusal::new("authority", reason) });
        }
        match writer {
            commands::Writer::Everyone if key != "*" => {
                return Err(Refusal::new("key", format!("{} has one writer: its key is `*`", command.kind)));
            }
            // what concerns all may be alerted of under `*`
            commands::Writer::Tenant
                if (key == "*" && !matches!(command.kind.as_str(), "alert.raise" | "alert.clear"))
                    || key != command.tenant_id =>
            {
                let reason = format!("{} concerns one tenant: its tenant_id and its key are the same", command.kind);
                return Err(Refusal::new("key", reason));
            }
            _ => {}
        }
        if command.kind == leveling::REPORT {
            return Ok(());
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
        if self.writer.held.get(key).is_some_and(|held| *held >= MOST) {
            return Err(Refusal::new("too_many", format!("{MOST} commands were answered within a day")));
        }
        Ok(())
    }

    fn apply(&mut self, command: &Command, by: &By, now: Wall, entries: &mut Entries) -> Result<Done, Refusal> {
        if leveling::is_ours(&command.kind) {
            return self.respond(command, by, now, entries);
        }
        if commands::known(&command.kind).is_some_and(|(writer, _)| writer == commands::Writer::Tenant) {
            return self.act_on(command, by, now, entries);
        }
        self.govern(command, by).map(Done::from)
    }

    fn govern(&mut self, command: &Command, by: &By) -> Result<Effects, Refusal> {
        let tuning = std::sync::Arc::clone(&self.settings.tuning);
        let Writer { register, judge, .. } = &mut self.writer;
        let judge = std::cell::RefCell::new(judge);
        let faults = |policies: &[&Policy], terms: &Terms| judge.borrow_mut().faults(policies, terms, &tuning);
        let order = Order { by, faults: &faults };
        let body = &command.body;
        let tenant = tenant_of(body, command);
        match command.kind.as_str() {
            "policy_set.apply" => register.apply_set(set_of(body)?, &order),
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
            "silence.create" => {
                let matchers = body.get("matchers").cloned().unwrap_or_default();
                let matchers = serde_json::from_value(matchers).map_err(|_| {
                    let form = "[{\"name\": \"agent\", \"operator\": \"=\", \"value\": \"planner\"}]";
                    Refusal::new("body", format!("body.matchers must be a list such as {form}; operators: = != =~ !~"))
                })?;
                let starts_at = instant(body, "starts_at")?.unwrap_or(by.at);
                let ends_at = instant(body, "ends_at")?;
                let ends_at = ends_at.ok_or_else(|| Refusal::new("body", "body.ends_at is missing: silences end"))?;
                register.silence(tenant, matchers, (starts_at, ends_at), by)
            }
            "silence.expire" => register.unsilence(text(body, "silence_id")?, by),
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

    fn follow_through(&self, done: Done, by: &Sender<'_>, now: Wall, step: &mut Step) {
        step.decisions.extend(done.decisions);
        for (number, act) in done.acts.into_iter().enumerate() {
            step.decisions.push(Decision::Audit(Box::new(audit(act, number, by, now))));
        }
        for change in done.changes {
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

/// Who acted, and what makes the audit lines of it unique.
pub(super) struct Sender<'a> {
    pub(super) principal: &'a str,
    pub(super) authority: u8,
    pub(super) cause: &'a str,
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

pub(super) fn audit(act: Act, number: usize, by: &Sender<'_>, now: Wall) -> Audit {
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
