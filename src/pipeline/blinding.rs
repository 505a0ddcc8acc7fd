//! Blindness in a step (X5): lag, silence, late rows and refused keys turn a tenant's sight; who governs it is told, and where a policy is
//! `fail_closed`, new runs are paused until it is back, through the breaker.
//!
//! Lag is taken from what a step was given: the append time of the last record it processes, held against its clock while newer records
//! wait, and nothing at the end of the input. That is at most by the idle time of the log more than the newest record's append time
//! would say, which no step knows. Simulations and `run --until-end` read history and look for no blindness.

use serde_json::json;

use crate::clock::{Micros, SECOND, Wall};
use crate::decide::blindness::{Cause, Turn};
use crate::decide::breaker::Governed;
use crate::decide::commands::SYSTEM;
use crate::decide::correlation::{Entry, Member};
use crate::decide::id;
use crate::decide::interventions::{Care, Order, Slot};
use crate::decide::records::{Audit, Decision, Severity, Subject};
use crate::kafka::core::{Input, InputBatch};
use crate::pipeline::entries::Entries;
use crate::pipeline::happenings::{Happening, What};
use crate::pipeline::intake::Rows;
use crate::pipeline::limits::LimitSets;
use crate::pipeline::partition::{Around, Partition, Step};
use crate::pipeline::runs::{Run, Seen};
use crate::policy::{EffectiveLimit, Mode, OnFailure, Policy, Scope, Snapshot};
use crate::stream::{Late, Overflow};
use crate::telemetry::Batch;

/// What a blind tenant's pauses are held by.
const HOLD: &str = "blind";
/// Most policies listed in one record.
const LISTED: usize = 100;
/// A run that sent something so long before its tenant fell silent was under way.
const UNDER_WAY: Micros = 60 * SECOND;

fn up(cause: Cause) -> String {
    format!("{HOLD}/{}", cause.as_str())
}

/// The limit under which a run that begins is not let go on unseen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    policy_tenant: String,
    policy_id: String,
    /// Otherwise its policy is in AUDIT: it is said what would be done.
    enforced: bool,
}

/// Whether any policy may fail closed: otherwise runs need not be asked about.
pub(super) fn fails_closed(snapshot: &Snapshot) -> bool {
    let closed = |p: &Policy| p.counts() && p.on_failure == OnFailure::Closed && p.enforcement_mode != Mode::Warn;
    snapshot.policies().iter().any(|policy| closed(policy) && !policy.limits.is_empty())
}

/// What fails closed for a run at its first row; `set` is the run's own limit set.
pub(super) fn failing(seen: &Seen<'_>, run: &Run, set: u32, limits: &mut LimitSets) -> Option<Failing> {
    if matches!(seen.event_type, "run.completed" | "run.failed") {
        return None;
    }
    let at = limits.timed().then_some(seen.time);
    let of = |limits: &LimitSets, number: u32| -> Option<Failing> {
        let holds = |limit: &&std::sync::Arc<EffectiveLimit>| limit.fail_closed && limit.mode != Mode::Warn;
        let closed = limits.get(number)?.limits.iter().filter(holds).max_by_key(|limit| limit.enforcing())?;
        Some(Failing {
            policy_tenant: closed.policy_tenant.to_string(),
            policy_id: closed.policy_id.to_string(),
            enforced: closed.enforcing(),
        })
    };
    let mut found: Option<Failing> = of(limits, set);
    let groups = run.fields.groups();
    let wider = groups.iter().filter_map(|(scope, id)| Some((*scope, id.as_deref()?)));
    for (scope, id) in [(Scope::Tenant, seen.tenant)].into_iter().chain(wider) {
        if found.as_ref().is_some_and(|found| found.enforced) {
            break;
        }
        let number = limits.of_group(scope, seen.tenant, id, at);
        let other = of(limits, number);
        if found.is_none() || other.as_ref().is_some_and(|other| other.enforced) {
            found = other;
        }
    }
    found
}

impl Partition {
    /// How many tenants are blind, by cause.
    pub fn blind(&self) -> [u64; Cause::ALL.len()] {
        self.sights.count()
    }

    /// Looks at how old what is processed is.
    pub(super) fn watch_lag(&mut self, inputs: &[InputBatch<'_>], now: Wall, step: &mut Step, entries: &mut Entries) {
        if self.settings.event_clock || now.0 < self.meta.lag_looked.saturating_add(SECOND) {
            return;
        }
        let telemetry = inputs.iter().filter(|i| matches!(i.input, Input::Telemetry | Input::Repartition));
        let lags = telemetry.filter_map(|input| {
            if input.at_end {
                return Some(0);
            }
            let last = input.records.last().map(|record| record.timestamp).filter(|at| *at > 0)?;
            Some(now.0.saturating_sub(last).max(0))
        });
        let lag = lags.max();
        let Some(began) = self.sights.lags(lag) else { return };
        // those that nothing was heard of yet are asked about in the next step
        if self.clocks.latest().is_some() {
            self.meta.lag_looked = now.0;
        }
        let tenants: Vec<Box<str>> = if began {
            let tenants = self.clocks.tenants().into_iter();
            let unseen = tenants.filter(|t| !self.sights.is(t, Cause::Lag) && self.is_under_way(t));
            unseen.map(Into::into).collect()
        } else {
            self.sights.lagging()
        };
        let seconds = lag.unwrap_or_default() / SECOND;
        let why = match began {
            true => format!("what is processed was appended {seconds} s ago, and newer records wait"),
            false => format!("what is processed was appended {seconds} s ago"),
        };
        for tenant in tenants {
            let turn = Turn { tenant, cause: Cause::Lag, began, why: why.clone() };
            let clock = self.clocks.highest(&turn.tenant).unwrap_or(now.0);
            self.turn_sight(&turn, clock, now, step, entries);
        }
    }

    /// Looks at a tenant whose clock has idled to `clock` in silence.
    pub(super) fn watch_silence(
        &mut self,
        tenant: &str,
        clock: Micros,
        now: Wall,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        let highest = self.clocks.highest(tenant).unwrap_or(clock);
        let silent = clock.saturating_sub(highest);
        let turn = |began, why| Turn { tenant: tenant.into(), cause: Cause::Silence, began, why };
        let turn = if self.sights.is(tenant, Cause::Silence) {
            (!self.runs.knows(tenant)).then(|| turn(false, "no run of it is remembered any more".to_owned()))
        } else {
            let news = self.sights.is_silent(tenant, highest, silent) && self.is_under_way(tenant);
            let why = || format!("runs are under way, and for {} s nothing was heard of them", silent / SECOND);
            news.then(|| turn(true, why()))
        };
        if let Some(turn) = turn {
            self.turn_sight(&turn, clock, now, step, entries);
        }
    }

    /// Whether a run of the tenant sent something lately and has not ended.
    fn is_under_way(&self, tenant: &str) -> bool {
        let within = self.sights.bounds().silence.max(UNDER_WAY);
        let since = self.clocks.highest(tenant).map(|highest| highest.saturating_sub(within));
        since.is_some_and(|since| self.runs.under_way(tenant, since))
    }

    /// A tenant speaks at a row: it is silent no more.
    pub(super) fn hears(&mut self, tenant: &str, row: u32, time: Micros) -> Option<Happening> {
        self.sights.speaks(tenant);
        let silent = self.sights.is(tenant, Cause::Silence);
        let why = "it is heard again".to_owned();
        let turn = Turn { tenant: tenant.into(), cause: Cause::Silence, began: false, why };
        silent.then(|| Happening { row, tenant: tenant.into(), run: "".into(), time, what: What::Sight(turn) })
    }

    /// What late rows and refused keys of a batch do to the sight of their tenants.
    pub(super) fn watch_rows(&mut self, batch: &Batch, late: &[Late], overflows: &[Overflow], around: &mut Around) {
        if self.settings.event_clock {
            return;
        }
        let rows = Rows::new(&batch.rows);
        let before = around.happenings.len();
        let mut said = |row: u32, turn: Turn| {
            let time = rows.time.value(row as usize);
            let tenant = turn.tenant.clone();
            around.happenings.push_back(Happening { row, tenant, run: "".into(), time, what: What::Sight(turn) });
        };
        for overflow in overflows.iter().filter(|o| (o.at as usize) < batch.rows.num_rows()) {
            said(overflow.at, refused(overflow));
        }
        let mut everywhere = late.iter().filter(|late| late.everywhere).map(|late| late.row).peekable();
        if self.sights.counts() || everywhere.peek().is_some() {
            let first = if self.sights.counts() { 0 } else { everywhere.peek().copied().unwrap_or_default() };
            let late: Vec<u32> = everywhere.collect();
            let count = u32::try_from(batch.rows.num_rows()).unwrap_or(u32::MAX);
            for row in first..count {
                let tenant = rows.tenant.value(row as usize);
                let clock = around.clocks.get(row as usize).copied().unwrap_or_default();
                if let Some(turn) = self.sights.row(tenant, clock, late.binary_search(&row).is_ok()) {
                    said(row, turn);
                }
            }
        }
        if around.happenings.len() > before {
            around.happenings.make_contiguous().sort_by_key(|happening| happening.row);
        }
    }

    /// A tenant's sight turns: its policies are UNKNOWN from here on, or known again.
    pub(super) fn turn_sight(&mut self, turn: &Turn, clock: Micros, now: Wall, step: &mut Step, entries: &mut Entries) {
        if !self.sights.turn(turn, now.0) {
            return;
        }
        let Turn { tenant, cause, began, why } = turn;
        let snapshot = std::sync::Arc::clone(self.limits.current());
        let governs = |p: &&std::sync::Arc<Policy>| {
            p.counts() && p.is_for_tenant(tenant) && !snapshot.suspends(tenant, &p.tenant, &p.id)
        };
        let policies: Vec<&Policy> = snapshot.policies().iter().filter(governs).map(|p| &**p).collect();
        let closed: Vec<&str> =
            policies.iter().filter(|p| p.on_failure == OnFailure::Closed).map(|p| &*p.id).take(LISTED).collect();
        if !policies.is_empty() {
            let name = id::of(&[tenant, &up(*cause), &now.0.to_string(), if *began { "BEGAN" } else { "ENDED" }]);
            let scope = Subject { kind: "TENANT".into(), id: tenant.to_string() };
            if *began {
                let severity = if closed.is_empty() { Severity::High } else { Severity::Critical };
                let title = format!("{} policies of tenant {tenant} are UNKNOWN: {}", policies.len(), words(*cause));
                let what = if closed.is_empty() { "They fail open: nothing is held." } else { "New runs are paused." };
                let member = Member::new("blindness", cause.as_str(), name.clone(), tenant, scope.clone(), clock);
                let mut member = member.saying(severity, &title, &format!("{why}. {what}"));
                member.is_urgent = true;
                member.up = Some(up(*cause));
                entries.push(Entry::Member(Box::new(member)));
            } else {
                entries.push(Entry::Down { tenant: tenant.to_string(), cause: up(*cause), clock });
            }
            let listed: Vec<&str> = policies.iter().take(LISTED).map(|p| &*p.id).collect();
            let state = |unknown: bool| if unknown { "UNKNOWN" } else { "KNOWN" };
            step.decisions.push(Decision::Audit(Box::new(Audit {
                audit_id: name,
                at: now.0,
                kind: if *began { "blindness.began".into() } else { "blindness.ended".into() },
                tenant_id: tenant.to_string(),
                principal: "system:runwarden".into(),
                authority: SYSTEM,
                subject: scope,
                before: json!({"policies": state(!began)}),
                after: json!({
                    "cause": cause, "policies": state(*began), "affected": listed, "affected_total": policies.len(),
                    "fail_closed": closed,
                }),
                reason: why.clone(),
                refused: false,
            })));
        }
        if !began && self.sights.blind(tenant).next().is_none() {
            let why = format!("tenant {tenant} is seen again");
            let said = self.interventions.lift(tenant, HOLD, &why, now);
            self.publish(said, now, step, entries);
        }
    }

    /// A run begins under a policy that fails closed: while its tenant is blind, it is paused.
    #[expect(
        clippy::too_many_arguments,
        reason = "what is known of a row that begins a run, and where to say what follows"
    )]
    pub(super) fn begin_run(
        &mut self,
        tenant: &str,
        run: &str,
        (time, clock): (Micros, Micros),
        failing: &Failing,
        active: usize,
        now: Wall,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        let causes: Vec<&str> = self.sights.blind(tenant).map(|(cause, _)| cause.as_str()).collect();
        if causes.is_empty() {
            return;
        }
        let Failing { policy_tenant, policy_id, enforced } = failing;
        let target = Subject { kind: "RUN".into(), id: run.to_owned() };
        let why = format!(
            "tenant {tenant} is blind ({}) and policy {policy_id} is fail_closed: RUN {run} waits until it is seen again",
            causes.join(", ")
        );
        let governed =
            Governed { tenant: tenant.to_owned(), policy_tenant: policy_tenant.clone(), policy_id: policy_id.clone() };
        let identity = format!("{HOLD}/{}", id::rfc3339(time));
        if *enforced && self.may_hold(&governed, &target, (time, active), now, step, entries) {
            let slot = Slot { tenant: tenant.to_owned(), kind: "PAUSE".into(), target };
            let policy = self.limits.current().policy(policy_tenant, policy_id).cloned();
            let care = policy.map(|policy| Care::of(&policy)).unwrap_or_default();
            let order = Order::of_policy(slot, policy_id, &identity, why);
            self.rollups.act(tenant, clock, "PAUSE", true);
            let said = self.interventions.order(order.record(now), Some(HOLD.to_owned()), care, now);
            self.publish(said, now, step, entries);
            return;
        }
        self.rollups.act(tenant, clock, "AUDIT", false);
        step.decisions.push(Decision::Audit(Box::new(Audit {
            audit_id: id::of(&[tenant, "shadow_decision", policy_tenant, policy_id, run, &identity]),
            at: now.0,
            kind: "shadow_decision".into(),
            tenant_id: tenant.to_owned(),
            principal: format!("policy:{policy_id}"),
            authority: SYSTEM,
            subject: target,
            before: serde_json::Value::Null,
            after: json!({"would": "PAUSE", "blind": causes, "breaker": enforced}),
            reason: why,
            refused: false,
        })));
    }
}

/// A tenant comes to have too many live keys, or no longer has.
pub(super) fn refused(overflow: &Overflow) -> Turn {
    let Overflow { clock: tenant, began, keys, .. } = overflow;
    let what = if *began { "rows of further ones are refused" } else { "new ones are counted again" };
    Turn {
        tenant: tenant.as_str().into(),
        cause: Cause::Overflow,
        began: *began,
        why: format!("it has {keys} live keys: {what}"),
    }
}

fn words(cause: Cause) -> &'static str {
    match cause {
        Cause::Lag => "telemetry is processed too late",
        Cause::Silence => "its runs have fallen silent",
        Cause::Late => "much of its telemetry comes too late to count",
        Cause::Overflow => "it has too many live keys",
    }
}
