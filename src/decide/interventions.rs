//! Interventions (I1–I7, X3): what is ordered, by whom it is held, and what becomes of it.
//!
//! At most one intervention of a kind on a target is live: one that something is still to be done about, or one that succeeded and
//! whose cause has not ended. [`life`] says which steps are legal and how long a state may last; [`due`] takes what time demands:
//! expiry, time-outs with the ladder PAUSE → STOP → KILL, auto-rollback; [`act`] what people and agents demand; [`stopped`] remembers
//! the runs that were stopped, so that stop means stopped. What has ended is remembered for a while, to be reverted.
//!
//! Everything that changes gives the records to publish, in order.

mod act;
mod due;
pub mod life;
pub mod stopped;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::clock::{Micros, Wall};
use crate::decide::id;
use crate::decide::records::{Audit, AuditLog, Intervention, InterventionState as State, Signal, Subject};
use crate::policy::{Ambiguity, Policy};

pub use self::act::{Actor, NotDone};
pub use self::life::Acting;
use self::stopped::StoppedRuns;

/// Authority of what a policy raises (I2).
pub(crate) const SYSTEM: u8 = 5;
/// A policy's minutes in µs.
const MINUTE: Micros = 60 * crate::clock::SECOND;

/// What one target of one kind is under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// Tenant.
    pub tenant: String,
    /// PAUSE STOP KILL …
    pub kind: String,
    /// Whom it concerns.
    pub target: Subject,
}

impl Slot {
    fn of(record: &Intervention) -> Self {
        Self { tenant: record.tenant_id.clone(), kind: record.kind.clone(), target: record.target.clone() }
    }

    fn beside(&self, kind: &str) -> Self {
        Self { kind: kind.to_owned(), ..self.clone() }
    }
}

/// What a policy asks of those who act for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Care {
    /// After it succeeded it is reverted by itself, after so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Micros>,
    /// Least authority of who approves, rejects or reverts it.
    #[serde(default)]
    pub min_authority: u8,
}

impl Care {
    /// As a policy has it.
    pub fn of(policy: &Policy) -> Self {
        let minutes = policy.rollback.enabled.then_some(policy.rollback.auto_rollback_after_minutes);
        Self {
            rollback: minutes.map(|minutes| Micros::from(minutes).saturating_mul(MINUTE)),
            min_authority: policy.min_authority,
        }
    }
}

/// An intervention and what keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// As last published.
    pub record: Intervention,
    /// What asks for it: levels, as named by [`crate::decide::levels::cause`], conditions, ambiguous terms.
    pub causes: BTreeSet<String>,
    /// What its policy asks.
    #[serde(default)]
    pub care: Care,
}

impl Live {
    /// Whether another of the kind on the target would be one too many.
    pub fn is_live(&self) -> bool {
        life::is_pending(self.record.state) || (self.record.state == State::Succeeded && !self.causes.is_empty())
    }

    /// When time demands something of it.
    fn due(&self, acting: &Acting) -> Option<Micros> {
        let record = &self.record;
        if life::is_pending(record.state) {
            return record.deadline;
        }
        let executed = record.executed_at?;
        let rollback = self.care.rollback.map(|after| executed.saturating_add(after));
        let forget = executed.saturating_add(acting.kept);
        rollback.into_iter().chain([forget]).min().filter(|_| self.causes.is_empty() || rollback.is_some())
    }
}

/// A report from an executor (`contracts.md`, *Outcome*).
#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    /// Which intervention.
    pub intervention_id: String,
    /// ACKNOWLEDGED SUCCEEDED FAILED
    pub state: State,
    /// Who reports.
    #[serde(default)]
    pub executor: Option<String>,
    /// When it was done.
    #[serde(default, with = "crate::clock::time::given")]
    pub at: Option<Micros>,
    /// State before.
    #[serde(default)]
    pub before: serde_json::Value,
    /// State after.
    #[serde(default)]
    pub after: serde_json::Value,
    /// In words.
    #[serde(default)]
    pub message: Option<String>,
}

/// The interventions of one partition.
#[derive(Debug, Default)]
pub struct Interventions {
    acting: Acting,
    /// Whether states last only so long: not in a simulation, where nobody acts.
    timed: bool,
    slots: BTreeMap<Slot, Live>,
    by_id: BTreeMap<(String, String), Slot>,
    /// (tenant, cause) → what it holds live.
    held: BTreeMap<(String, String), BTreeSet<Slot>>,
    due: BTreeSet<(Micros, Slot)>,
    stopped: StoppedRuns,
    dirty: BTreeSet<Slot>,
}

/// What an intervention is ordered for.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    /// Kind and target.
    pub slot: Slot,
    /// What its id is made of beside tenant, type and target.
    pub identity: &'a str,
    /// The run concerned.
    pub run_id: Option<String>,
    /// The policy that asks for it; empty: none.
    pub policy_id: &'a str,
    /// The signal that asks for it.
    pub signal_id: Option<String>,
    /// In words.
    pub reason: String,
    /// Who asks: `policy:<id>`, a person, an agent.
    pub initiated_by: String,
    /// Who sent it.
    pub principal: String,
    /// With which authority.
    pub authority: u8,
    /// Parameters of the kind.
    pub parameters: serde_json::Value,
    /// State before, as far as it is known.
    pub before: serde_json::Value,
    /// Whether a person must agree first.
    pub approval_required: bool,
    /// The intervention on the parent run.
    pub parent: Option<String>,
}

impl<'a> Order<'a> {
    /// Of a policy, as SYSTEM.
    pub fn of_policy(slot: Slot, policy_id: &'a str, identity: &'a str, reason: String) -> Self {
        Self {
            run_id: (slot.target.kind == "RUN").then(|| slot.target.id.clone()),
            slot,
            identity,
            policy_id,
            signal_id: None,
            reason,
            initiated_by: format!("policy:{policy_id}"),
            principal: "runwarden".into(),
            authority: SYSTEM,
            parameters: serde_json::Value::Null,
            before: serde_json::Value::Null,
            approval_required: false,
            parent: None,
        }
    }

    /// The intervention: proposed when a person must agree first, else issued.
    pub fn record(self, now: Wall) -> Intervention {
        let target = format!("{}:{}", self.slot.target.kind, self.slot.target.id);
        let issued = !self.approval_required;
        Intervention {
            intervention_id: id::of(&[&self.slot.tenant, &self.slot.kind, &target, self.identity]),
            revision: 1,
            state: if issued { State::Issued } else { State::Proposed },
            mode: "enforced".into(),
            kind: self.slot.kind,
            target: self.slot.target,
            parameters: self.parameters.clone(),
            tenant_id: self.slot.tenant,
            run_id: self.run_id,
            policy_id: self.policy_id.into(),
            signal_id: self.signal_id,
            reason: self.reason,
            authority_level: self.authority,
            initiated_by: self.initiated_by,
            principal: self.principal,
            approval_required: self.approval_required,
            approved_by: None,
            created_at: now.0,
            issued_at: issued.then_some(now.0),
            deadline: None,
            executed_at: None,
            reverted_at: None,
            reverted_by: None,
            supersedes: None,
            parent_intervention_id: self.parent,
            audit_log: AuditLog { before: self.before, parameters: self.parameters, ..AuditLog::default() },
        }
    }
}

/// Names a run whose terms are ambiguous among the causes.
fn denial(run: &str) -> String {
    format!("ambiguous/{}", id::part(run))
}

/// The breach in words, for people who read the intervention.
pub fn reason(signal: &Signal) -> String {
    let value = signal.value.map_or_else(|| "nothing".to_owned(), |v| v.to_string());
    format!(
        "{} of {} {} is {value}, limit {} (policy {}, limit {})",
        signal.metric, signal.scope.kind, signal.scope.id, signal.limit, signal.policy_id, signal.limit_id
    )
}

impl Interventions {
    /// None yet. `timed`: whether states last only so long.
    pub fn new(acting: Acting, timed: bool) -> Self {
        Self { acting, timed, ..Self::default() }
    }

    /// The latest record of each that is live, or remembered to be reverted.
    pub fn records(&self) -> impl Iterator<Item = &Intervention> {
        self.slots.values().map(|live| &live.record)
    }

    /// A BREACH whose limit enforces. `level` names the level that breached ([`crate::decide::levels::cause`]).
    pub fn issue(&mut self, signal: &Signal, level: String, care: Care, now: Wall) -> Vec<Intervention> {
        let slot =
            Slot { tenant: signal.tenant_id.clone(), kind: signal.on_breach.clone(), target: signal.scope.clone() };
        let order = Order::of_policy(slot, &signal.policy_id, &signal.signal_id, reason(signal));
        let order = Order { run_id: signal.run_id.clone(), signal_id: Some(signal.signal_id.clone()), ..order };
        self.order(order.record(now), Some(level), care, now)
    }

    /// A run is bound, at event time `at`, to terms that FAIL_CLOSED cannot order: it is stopped, without a signal.
    pub fn deny(&mut self, tenant: &str, run: &str, ambiguity: &Ambiguity, at: Micros, now: Wall) -> Vec<Intervention> {
        let Ambiguity { policy_tenant, policy_id, limit_id, metric, .. } = ambiguity;
        let parts = [policy_tenant, policy_id, limit_id, metric].map(|p| id::part(p)).join("/");
        let identity = format!("ambiguous/{parts}/{}", id::rfc3339(at));
        let target = Subject { kind: "RUN".into(), id: run.into() };
        let slot = Slot { tenant: tenant.into(), kind: "STOP".into(), target };
        let why = format!("ambiguous: {metric} of RUN {run}: {}", ambiguity.why);
        let order = Order::of_policy(slot, policy_id, &identity, why);
        self.order(order.record(now), Some(denial(run)), Care::default(), now)
    }

    /// The run ended, or its terms are not ambiguous any more.
    pub fn admit(&mut self, tenant: &str, run: &str) {
        self.release(tenant, &denial(run));
    }

    /// Orders something, unless one of the kind is live on the target; then `cause` only asks for that one too. What it makes
    /// needless is superseded.
    pub fn order(&mut self, record: Intervention, cause: Option<String>, care: Care, now: Wall) -> Vec<Intervention> {
        let slot = Slot::of(&record);
        if let Some(cause) = &cause
            && self.slots.get(&slot).is_some_and(Live::is_live)
        {
            self.held.entry((slot.tenant.clone(), cause.clone())).or_default().insert(slot.clone());
            let mut live = self.take(&slot);
            if let Some(live) = &mut live {
                live.causes.insert(cause.clone());
            }
            self.put(slot, live);
            return Vec::new();
        }
        if self.slots.get(&slot).is_some_and(Live::is_live) {
            return Vec::new();
        }
        self.begin(slot, record, cause.into_iter().collect(), care, now)
    }

    /// Puts an order in its slot, whatever was there.
    fn begin(
        &mut self,
        slot: Slot,
        mut record: Intervention,
        causes: BTreeSet<String>,
        care: Care,
        now: Wall,
    ) -> Vec<Intervention> {
        let mut said = Vec::new();
        if record.state == State::Issued {
            said.extend(self.supersede(&slot, &record.intervention_id, now));
            record.supersedes = record.supersedes.or_else(|| said.first().map(|old| old.intervention_id.clone()));
        }
        record.deadline = self.deadline(record.state, now);
        if let Some(old) = self.take(&slot) {
            self.drop_causes(&slot, &old.causes);
        }
        for cause in &causes {
            self.held.entry((slot.tenant.clone(), cause.clone())).or_default().insert(slot.clone());
        }
        said.push(record.clone());
        self.put(slot.clone(), Some(Live { record, causes, care }));
        said.extend(self.tell(&slot, now));
        said
    }

    /// What runwarden executes itself: a NOTIFY is done when its alert is on the topic.
    fn tell(&mut self, slot: &Slot, now: Wall) -> Vec<Intervention> {
        let issued = |live: &Live| live.record.kind == "NOTIFY" && live.record.state == State::Issued;
        let Some(live) = self.slots.get(slot).filter(|live| issued(live)) else { return Vec::new() };
        let outcome = Outcome {
            intervention_id: live.record.intervention_id.clone(),
            state: State::Succeeded,
            executor: Some("runwarden".into()),
            at: None,
            before: serde_json::Value::Null,
            after: serde_json::Value::Null,
            message: Some("raised as an alert".into()),
        };
        self.report(&slot.tenant, &outcome, now).unwrap_or_default()
    }

    /// By when a state must end.
    fn deadline(&self, state: State, now: Wall) -> Option<Micros> {
        let within = match state {
            State::Proposed => self.acting.approve_within,
            State::Issued => self.acting.acknowledge_within,
            State::Acknowledged => self.acting.complete_within,
            _ => return None,
        };
        self.timed.then(|| now.0.saturating_add(within))
    }

    /// Ends the milder ones on the target that nobody has acknowledged.
    fn supersede(&mut self, slot: &Slot, by: &str, now: Wall) -> Vec<Intervention> {
        let mut said = Vec::new();
        for kind in life::milder(&slot.kind) {
            let other = slot.beside(kind);
            if self.slots.get(&other).is_some_and(|live| live.record.state == State::Issued) {
                let results = serde_json::json!({"superseded_by": by});
                said.extend(self.step(&other, State::Superseded, now, |record| record.audit_log.results = results));
            }
        }
        said
    }

    /// Takes a legal step; gives the new revision. One that ends it for good leaves the slot free.
    fn step(
        &mut self,
        slot: &Slot,
        to: State,
        now: Wall,
        change: impl FnOnce(&mut Intervention),
    ) -> Option<Intervention> {
        let mut live = self.take(slot)?;
        if !life::legal(live.record.state, to) {
            self.put(slot.clone(), Some(live));
            return None;
        }
        live.record.revision += 1;
        live.record.state = to;
        live.record.deadline = self.deadline(to, now);
        change(&mut live.record);
        let record = live.record.clone();
        if life::is_pending(to) || to == State::Succeeded {
            self.put(slot.clone(), Some(live));
        } else {
            self.drop_causes(slot, &live.causes);
            self.put(slot.clone(), None);
        }
        Some(record)
    }

    fn take(&mut self, slot: &Slot) -> Option<Live> {
        let live = self.slots.remove(slot)?;
        self.by_id.remove(&(slot.tenant.clone(), live.record.intervention_id.clone()));
        if let Some(due) = live.due(&self.acting) {
            self.due.remove(&(due, slot.clone()));
        }
        self.dirty.insert(slot.clone());
        Some(live)
    }

    fn put(&mut self, slot: Slot, live: Option<Live>) {
        self.dirty.insert(slot.clone());
        let Some(live) = live else { return };
        self.by_id.insert((slot.tenant.clone(), live.record.intervention_id.clone()), slot.clone());
        if let Some(due) = live.due(&self.acting).filter(|_| self.timed) {
            self.due.insert((due, slot.clone()));
        }
        self.slots.insert(slot, live);
    }

    fn drop_causes(&mut self, slot: &Slot, causes: &BTreeSet<String>) {
        for cause in causes {
            let key = (slot.tenant.clone(), cause.clone());
            if let Some(slots) = self.held.get_mut(&key) {
                slots.remove(slot);
                if slots.is_empty() {
                    self.held.remove(&key);
                }
            }
        }
    }

    /// What BLOCK would have done: for a BREACH of a policy in AUDIT mode.
    pub fn shadow(signal: &Signal, now: Wall) -> Audit {
        Audit {
            audit_id: id::of(&[&signal.tenant_id, "shadow_decision", &signal.signal_id]),
            at: now.0,
            kind: "shadow_decision".into(),
            tenant_id: signal.tenant_id.clone(),
            principal: format!("policy:{}", signal.policy_id),
            authority: SYSTEM,
            subject: signal.scope.clone(),
            before: serde_json::Value::Null,
            after: serde_json::json!({
                "would": if signal.on_breach == "none" { signal.enforcement.clone() } else { signal.on_breach.clone() },
                "signal_id": signal.signal_id,
            }),
            reason: reason(signal),
            refused: false,
        }
    }

    /// What asked for interventions, a level by its name, ended: so does its claim on them. One that succeeded and has no other
    /// claim is not live any more; what is still to be done stays so.
    pub fn release(&mut self, tenant: &str, cause: &str) {
        for slot in self.held.remove(&(tenant.to_owned(), cause.to_owned())).unwrap_or_default() {
            let Some(mut live) = self.take(&slot) else { continue };
            live.causes.remove(cause);
            // in a simulation nobody reports: what was ordered is taken as done
            let over = !self.timed && live.causes.is_empty();
            self.put(slot, Some(live).filter(|_| !over));
        }
    }

    /// An executor's report: the new revisions. One that reports the end without having acknowledged has acknowledged by it.
    ///
    /// # Errors
    /// In words, when it is about nothing that is known here, or the step is not legal.
    pub fn report(&mut self, tenant: &str, outcome: &Outcome, now: Wall) -> Result<Vec<Intervention>, String> {
        use State::{Acknowledged, Failed, Issued, Succeeded};
        let id = &outcome.intervention_id;
        let slot = self.by_id.get(&(tenant.to_owned(), id.clone())).cloned();
        let slot = slot.ok_or_else(|| "no such intervention is live".to_owned())?;
        let state = self.slots.get(&slot).map_or(Failed, |live| live.record.state);
        if !matches!(
            (state, outcome.state),
            (Issued, Acknowledged | Succeeded | Failed) | (Acknowledged, Succeeded | Failed)
        ) {
            return Err(format!("it is {}: {} cannot follow", state.as_str(), outcome.state.as_str()));
        }
        let executor = outcome.executor.clone();
        let mut said = Vec::new();
        if state == Issued {
            let results = serde_json::json!({ "executor": executor });
            said.extend(self.step(&slot, Acknowledged, now, |record| record.audit_log.results = results));
        }
        let at = outcome.at.unwrap_or(now.0).min(now.0);
        if outcome.state == Acknowledged {
            return Ok(said);
        }
        let ended = self.step(&slot, outcome.state, now, |record| {
            record.executed_at = (outcome.state == Succeeded).then_some(at);
            if !outcome.before.is_null() {
                record.audit_log.before = outcome.before.clone();
            }
            record.audit_log.after = outcome.after.clone();
            record.audit_log.results = serde_json::json!({ "executor": executor, "message": outcome.message });
        });
        if let Some(record) = ended {
            said.extend(self.settle(&slot, record, at, now));
        }
        Ok(said)
    }

    /// What follows from a success, beside its record.
    fn settle(&mut self, slot: &Slot, record: Intervention, at: Micros, now: Wall) -> Vec<Intervention> {
        let mut said = vec![record];
        let id = said[0].intervention_id.clone();
        if said[0].state != State::Succeeded {
            return said;
        }
        if slot.target.kind == "RUN" && life::ends_runs(&slot.kind) {
            self.stopped.mark(&said[0], at, now);
        }
        if slot.kind == "RESUME" {
            // what it resumes holds no longer
            let paused = slot.beside("PAUSE");
            if self.slots.get(&paused).is_some_and(|live| live.record.state == State::Succeeded) {
                said.extend(self.step(&paused, State::Reverted, now, |record| {
                    record.reverted_at = Some(now.0);
                    record.reverted_by = Some(format!("intervention:{id}"));
                }));
            }
        }
        said
    }

    /// One that is live or remembered.
    pub fn get(&self, tenant: &str, intervention_id: &str) -> Option<&Live> {
        let slot = self.by_id.get(&(tenant.to_owned(), intervention_id.to_owned()))?;
        self.slots.get(slot)
    }

    /// Those of a tenant that something is still to be done about.
    pub fn pending<'s>(&'s self, tenant: &'s str) -> impl Iterator<Item = &'s Intervention> {
        let from = Slot {
            tenant: tenant.to_owned(),
            kind: String::new(),
            target: Subject { kind: String::new(), id: String::new() },
        };
        let of_tenant = self.slots.range(from..).take_while(move |(slot, _)| slot.tenant == tenant);
        of_tenant.map(|(_, live)| &live.record).filter(|record| life::is_pending(record.state))
    }

    /// How many are live.
    pub fn len(&self) -> usize {
        self.slots.values().filter(|live| live.is_live()).count()
    }

    /// Whether none is live.
    pub fn is_empty(&self) -> bool {
        self.slots.values().all(|live| !live.is_live())
    }

    /// Slots changed since the last call; `None`: nothing in it is remembered.
    pub fn take_changes(&mut self) -> Vec<(Slot, Option<&Live>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|s| {
                let live = self.slots.get(&s);
                (s, live)
            })
            .collect()
    }

    /// Runs that were stopped, or are not remembered as such any more, since the last call.
    pub fn take_stopped(&mut self) -> Vec<(stopped::RunKey, Option<&stopped::Stopped>)> {
        self.stopped.take_changes()
    }

    /// Makes the next `take_*` full ones.
    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.slots.keys().cloned());
        self.stopped.mark_all_dirty();
    }

    /// Takes one back from a checkpoint.
    pub fn restore(&mut self, slot: Slot, live: Live) {
        for cause in &live.causes {
            self.held.entry((slot.tenant.clone(), cause.clone())).or_default().insert(slot.clone());
        }
        self.put(slot.clone(), Some(live));
        self.dirty.remove(&slot);
    }

    /// Takes the mark of a stopped run back.
    pub fn restore_stopped(&mut self, key: stopped::RunKey, mark: stopped::Stopped) {
        self.stopped.restore(key, mark);
    }
}
