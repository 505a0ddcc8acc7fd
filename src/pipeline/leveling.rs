//! The policy level in a step (L1, L3): samples in; levels, alerts, reports to the owner of `*`, and responses out.
//!
//! A tenant's owner judges each sample at its row. At every change it reports to the owner of `*` by a `level.report` command in the
//! same transaction, whose id is derived from what it reports: a replay sends the same. A sample that says that trust is locked is
//! reported too, changed or not: it ends what `respond.unlock` lifted.

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, Int64Type};
use serde_json::{Value, json};

use crate::clock::{Micros, Wall};
use crate::decide::commands::{Command, SYSTEM};
use crate::decide::correlation::{Entry, Member};
use crate::decide::id;
use crate::decide::level::{Looked, OVERALL, Sample};
use crate::decide::overall::Report;
use crate::decide::records::{Decision, Level, PolicyLevel, ResponseOutcome, ResponsePlan, Severity, Subject};
use crate::decide::respond::Cause;
use crate::pipeline::entries::Entries;
use crate::pipeline::partition::{Partition, Step};
use crate::pipeline::writer::{Done, Sender, audit, text};
use crate::policy::{Act, By, Refusal};
use crate::telemetry::schema::col;

/// The command by which a tenant's owner tells the owner of `*`: it may come often, is told apart by its revision, and needs no
/// remembered answer.
pub(super) const REPORT: &str = "level.report";
/// Who reports, and who responds where nobody asked.
const CORE: &str = "system:core";
/// What is up while a tenant stands YELLOW or RED.
const UP: &str = "level";
/// Longest text of a report of a response, in bytes of JSON.
const MAX_RESULTS: usize = 64 << 10;

/// What a row of type `governance.sample` says; what is made up for a test says nothing.
pub(super) fn sample(batch: &RecordBatch, row: usize) -> Option<Sample> {
    let synthetic = batch.column(col::IS_SYNTHETIC).as_boolean();
    if synthetic.is_valid(row) && synthetic.value(row) {
        return None;
    }
    let float = |column: usize| {
        let column = batch.column(column).as_primitive::<Float64Type>();
        // nine decimals are what JSON gives back exactly
        column.is_valid(row).then(|| (column.value(row) * 1e9).round() / 1e9)
    };
    let locked = batch.column(col::TRUST_LOCKED).as_boolean();
    let risk = batch.column(col::FORECAST_RISK).as_string::<i32>();
    let responses = batch.column(col::RECENT_RESPONSES).as_primitive::<Int64Type>();
    Some(Sample {
        trust_locked: locked.is_valid(row).then(|| locked.value(row)),
        integrity_score: float(col::INTEGRITY_SCORE),
        consensus_pct: float(col::CONSENSUS_PCT),
        reputation_score: float(col::REPUTATION_SCORE),
        forecast_risk: risk.is_valid(row).then(|| risk.value(row).to_lowercase()),
        recent_responses: responses.is_valid(row).then(|| responses.value(row)),
    })
}

/// A command is of this room.
pub(super) fn is_ours(kind: &str) -> bool {
    kind == REPORT || kind.starts_with("respond.")
}

impl Partition {
    /// Says how a tenant stands at a row, or by its clock alone.
    pub(super) fn tell_level(
        &mut self,
        looked: Looked,
        clock: Micros,
        now: Wall,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        let Looked { record, before, changed, trust_at } = looked;
        if record.tenant_id == OVERALL {
            let said = self.take_report(Report { level: record, trust_at }, clock, now, entries);
            step.decisions.extend(said);
            return;
        }
        if changed {
            tell_alerts(&record, before, clock, entries);
            step.decisions.push(Decision::Level(Box::new(record.clone())));
        }
        let at = trust_at.map(id::rfc3339).unwrap_or_default();
        let tenant = record.tenant_id.clone();
        let report = Command {
            command_id: id::of(&[&tenant, REPORT, &record.revision.to_string(), &at]),
            kind: REPORT.to_owned(),
            principal: CORE.to_owned(),
            tenant_id: tenant,
            authority: SYSTEM,
            issued_at: now.0,
            body: json!(Report { level: record, trust_at }),
            key_id: None,
        };
        step.decisions.push(Decision::Command(Box::new(report)));
    }

    /// Looks at tenants whose clock moved on in silence.
    pub(super) fn age_level(&mut self, tenant: &str, clock: Micros, now: Wall, step: &mut Step, entries: &mut Entries) {
        if self.tenant_levels.is_due(tenant, clock)
            && let Some(looked) = self.tenant_levels.look(tenant, None, clock, now)
            && looked.changed
        {
            self.tell_level(looked, clock, now, step, entries);
        }
    }

    /// Wall time at which an input becomes too old in silence.
    pub(super) fn next_ageing(&self) -> Option<Micros> {
        let due = self
            .tenant_levels
            .expiries()
            .filter_map(|(tenant, at)| self.clocks.idles_to(tenant, at, self.settings.idle_timeout, &self.meta.end));
        due.min()
    }

    /// Takes a report at the owner of `*`.
    fn take_report(&mut self, report: Report, clock: Micros, now: Wall, entries: &mut Entries) -> Vec<Decision> {
        if self.overall.take(report) { self.stand(clock, now, entries) } else { Vec::new() }
    }

    /// Says how all stand, if that is news, and plans a response to a change of level.
    fn stand(&mut self, clock: Micros, now: Wall, entries: &mut Entries) -> Vec<Decision> {
        let Some((level, before)) = self.overall.next(&mut self.tenant_levels, now) else { return Vec::new() };
        if self.overall.is_sampled() {
            tell_alerts(&level, before, clock, entries);
        }
        let (policy, revision) = (level.policy, level.revision.to_string());
        let mut said = vec![Decision::Level(Box::new(level))];
        if before != Some(policy) {
            let apply = self.settings.tuning.responding.auto_apply;
            let reason = match before {
                Some(before) => format!("the level went from {} to {}", before.as_str(), policy.as_str()),
                None => format!("the level is {}", policy.as_str()),
            };
            let cause = Cause { id: &format!("level/{revision}"), principal: CORE, reason: &reason };
            let (plan, act) = self.plan(policy, apply, now, &cause);
            let by = Sender { principal: CORE, authority: SYSTEM, cause: &plan.response_id };
            said.push(Decision::Audit(Box::new(audit(act, 0, &by, now))));
            said.push(Decision::Response(Box::new(plan)));
        }
        said
    }

    fn plan(&mut self, level: Level, apply: bool, now: Wall, cause: &Cause<'_>) -> (ResponsePlan, Act) {
        let tuning = std::sync::Arc::clone(&self.settings.tuning);
        let locked = self.overall.locked();
        let mut plan = self.responses.plan(level, apply, &locked, now, &tuning.responding, cause);
        if let Some(last) = self.overall.last.as_ref().filter(|last| last.policy == level) {
            plan.reasons.clone_from(&last.reasons);
        }
        self.responses_dirty = true;
        let blocked = plan.outcome == ResponseOutcome::Blocked;
        let act = Act {
            kind: if blocked { "respond.blocked" } else { "respond.planned" },
            subject: "response",
            id: plan.response_id.clone(),
            tenant: OVERALL.to_owned(),
            principal: None,
            before: Value::Null,
            after: json!({
                "outcome": plan.outcome, "level": plan.level, "apply": plan.apply, "actions": plan.actions,
                "blocked_by": plan.blocked_by,
            }),
            reason: cause.reason.to_owned(),
        };
        (plan, act)
    }

    /// Applies a command about the level of all or the responses to it.
    pub(super) fn respond(
        &mut self,
        command: &Command,
        by: &By,
        now: Wall,
        entries: &mut Entries,
    ) -> Result<Done, Refusal> {
        let body = &command.body;
        let clock = self.clocks.highest(OVERALL).unwrap_or(now.0);
        if command.kind != REPORT && command.tenant_id != OVERALL {
            return Err(Refusal::new("tenant", "responses concern all tenants: tenant_id is `*`"));
        }
        match command.kind.as_str() {
            REPORT => {
                let wrong = || Refusal::new("body", "body must hold a level record of the command's tenant");
                let report: Report = serde_json::from_value(body.clone()).map_err(|_| wrong())?;
                if report.level.tenant_id != command.tenant_id || command.tenant_id == OVERALL {
                    return Err(wrong());
                }
                let decisions = self.take_report(report, clock, now, entries);
                Ok(Done { result: json!({"news": !decisions.is_empty()}), decisions, ..Done::default() })
            }
            "respond.run" => self.run_response(body, by, now),
            "respond.result" => self.report_response(body, by, now),
            "respond.brake" => {
                let on = body.get("on").and_then(Value::as_bool);
                let on = on.ok_or_else(|| Refusal::new("body", "body.on is missing, or is not true or false"))?;
                let before = std::mem::replace(&mut self.responses.brake, on);
                Ok(self.acted("respond.brake", "brake", by, json!({"on": before}), json!({"on": on})))
            }
            "respond.unlock" => {
                if by.reason.trim().is_empty() {
                    return Err(Refusal::new("reason", "to lift a trust lock says why: give `reason`"));
                }
                if self.overall.locked().is_empty() {
                    return Err(Refusal::new("state", "trust is not locked"));
                }
                let most = self.settings.tuning.responding.max_unlocks;
                let tuning = std::sync::Arc::clone(&self.settings.tuning);
                let count = self.responses.unlock(now, &tuning.responding).map_err(|count| {
                    let why =
                        format!("{count} manual unlocks today, at most {most}: respond.reset_unlocks begins anew");
                    Refusal::new("too_many", why)
                })?;
                let lifted = self.overall.lift();
                let shown: Vec<&String> = lifted.iter().take(100).collect();
                let after = json!({"trust_locked": false, "tenants": shown, "unlocks_today": count});
                let mut done = self.acted("respond.unlocked", "trust_lock", by, json!({"trust_locked": true}), after);
                done.decisions = self.stand(clock, now, entries);
                Ok(done)
            }
            "respond.reset_unlocks" => {
                let before = self.responses.reset_unlocks(now);
                let (before, after) = (json!({"unlocks_today": before}), json!({"unlocks_today": 0}));
                Ok(self.acted("respond.unlocks_reset", "unlocks", by, before, after))
            }
            other => Err(Refusal::new("unknown_command", format!("{other} is not a command of this version"))),
        }
    }

    fn acted(&mut self, kind: &'static str, id: &str, by: &By, before: Value, after: Value) -> Done {
        self.responses_dirty = true;
        let act = Act {
            kind,
            subject: "response",
            id: id.to_owned(),
            tenant: OVERALL.to_owned(),
            principal: None,
            before,
            after: after.clone(),
            reason: by.reason.clone(),
        };
        Done { result: after, acts: vec![act], ..Done::default() }
    }

    fn run_response(&mut self, body: &Value, by: &By, now: Wall) -> Result<Done, Refusal> {
        let apply = match body.get("apply") {
            None | Some(Value::Null) => false,
            Some(given) => given.as_bool().ok_or_else(|| Refusal::new("body", "body.apply must be true or false"))?,
        };
        let level = match body.get("level").filter(|level| !level.is_null()) {
            Some(given) => given
                .as_str()
                .and_then(Level::parse)
                .ok_or_else(|| Refusal::new("level", "body.level must be GREEN, YELLOW, RED or UNKNOWN"))?,
            None => self.overall.last.as_ref().map_or(Level::Unknown, |last| last.policy),
        };
        let cause = Cause { id: &by.command_id, principal: &by.principal, reason: &by.reason };
        let (plan, act) = self.plan(level, apply, now, &cause);
        let result = json!({
            "response_id": plan.response_id, "outcome": plan.outcome, "level": plan.level, "actions": plan.actions,
            "blocked_by": plan.blocked_by,
        });
        Ok(Done { result, acts: vec![act], decisions: vec![Decision::Response(Box::new(plan))], ..Done::default() })
    }

    /// Whoever executes a response says that it begins, and how it ended; an undo is only noted.
    fn report_response(&mut self, body: &Value, by: &By, now: Wall) -> Result<Done, Refusal> {
        let (response, state, executor) = (text(body, "response_id")?, text(body, "state")?, text(body, "executor")?);
        let results = body.get("results").cloned().unwrap_or_default();
        if results.to_string().len() > MAX_RESULTS || executor.len() > 256 || response.len() > 256 {
            return Err(Refusal::new(
                "body",
                format!("body.results has at most {MAX_RESULTS} bytes, names at most 256"),
            ));
        }
        let misfit = |why: crate::decide::respond::Misfit| Refusal::new("state", why.to_string());
        let kind = match state {
            "CLAIMED" => {
                self.responses.claim(response, executor, now).map_err(misfit)?;
                "respond.claimed"
            }
            "SUCCEEDED" | "FAILED" => {
                self.responses.finish(response, executor, now).map_err(misfit)?;
                "respond.finished"
            }
            "UNDONE" => "respond.undone",
            _ => return Err(Refusal::new("body", "body.state must be CLAIMED, SUCCEEDED, FAILED or UNDONE")),
        };
        let after = json!({"state": state, "executor": executor, "results": results});
        Ok(self.acted(kind, response, by, Value::Null, after))
    }
}

/// A change of level enters the alerts; it is up while YELLOW or RED.
fn tell_alerts(level: &PolicyLevel, before: Option<Level>, clock: Micros, entries: &mut Entries) {
    if before == Some(level.policy) {
        return;
    }
    let severity = match level.policy {
        Level::Green => {
            if before.is_some() {
                entries.push(Entry::Down { tenant: level.tenant_id.clone(), cause: UP.to_owned(), clock });
            }
            return;
        }
        Level::Red => Severity::Critical,
        Level::Yellow | Level::Unknown => Severity::Medium,
    };
    let tenant = &level.tenant_id;
    let name = id::of(&[tenant, "level", &level.revision.to_string()]);
    let scope = Subject { kind: "TENANT".into(), id: tenant.clone() };
    let whose = if tenant == OVERALL { "of all tenants".to_owned() } else { format!("of tenant {tenant}") };
    let title = format!("the policy level {whose} is {}", level.policy.as_str());
    let member = Member::new("level", level.policy.as_str(), name, tenant, scope, clock);
    let mut member = member.saying(severity, &title, &level.reasons.join("; "));
    member.up = (level.policy != Level::Unknown).then(|| UP.to_owned());
    entries.push(Entry::Member(Box::new(member)));
}
