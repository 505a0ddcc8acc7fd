//! What a BREACH does: an intervention in BLOCK mode, a shadow decision in AUDIT (*What a limit does*, `policies.md`).
//!
//! At most one live intervention of a kind per target (I4). It is live until an executor reports its end, or until every level
//! that asked for it has ended. Deadlines, escalation, approval and cascades are a later part of the life cycle.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::clock::{Micros, Wall};
use crate::decide::id;
use crate::decide::records::{Audit, AuditLog, Intervention, InterventionState, Signal, Subject};
use crate::policy::Ambiguity;

/// Authority of what a policy raises (I2).
const SYSTEM: u8 = 5;

/// What one target of one kind is under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// Tenant.
    pub tenant: String,
    /// PAUSE STOP KILL
    pub kind: String,
    /// Whom it concerns.
    pub target: Subject,
}

/// A live intervention and what keeps it so.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Live {
    /// As last published.
    pub record: Intervention,
    /// What asks for it: levels, as named by [`crate::decide::levels::cause`], and ambiguous terms.
    pub causes: BTreeSet<String>,
}

/// A report from an executor (`contracts.md`, *Outcome*).
#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    /// Which intervention.
    pub intervention_id: String,
    /// ACKNOWLEDGED SUCCEEDED FAILED
    pub state: InterventionState,
    /// Who reports.
    #[serde(default)]
    pub executor: Option<String>,
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

/// The live interventions of one partition.
#[derive(Debug, Default)]
pub struct Interventions {
    live: BTreeMap<Slot, Live>,
    by_id: BTreeMap<String, Slot>,
    /// (tenant, cause) → what it holds live.
    held: BTreeMap<(String, String), BTreeSet<Slot>>,
    dirty: BTreeSet<Slot>,
}

/// What an intervention is ordered for.
struct Order<'a> {
    slot: Slot,
    /// What holds it live.
    cause: String,
    /// What its id is made of beside tenant, type and target.
    identity: &'a str,
    run_id: Option<String>,
    policy_id: &'a str,
    signal_id: Option<String>,
    reason: String,
}

/// Names a run whose terms are ambiguous among the causes.
fn denial(run: &str) -> String {
    format!("ambiguous/{}", id::part(run))
}

fn slot(signal: &Signal) -> Slot {
    Slot { tenant: signal.tenant_id.clone(), kind: signal.on_breach.clone(), target: signal.scope.clone() }
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
    /// A BREACH whose limit enforces: the intervention to publish, unless one of the kind is live on the target. `level` names
    /// the level that breached ([`crate::decide::levels::cause`]).
    pub fn issue(&mut self, signal: &Signal, level: String, now: Wall) -> Option<Intervention> {
        let order = Order {
            slot: slot(signal),
            cause: level,
            identity: &signal.signal_id,
            run_id: signal.run_id.clone(),
            policy_id: &signal.policy_id,
            signal_id: Some(signal.signal_id.clone()),
            reason: reason(signal),
        };
        self.order(order, now)
    }

    /// A run is bound, at event time `at`, to terms that FAIL_CLOSED cannot order: it is stopped, without a signal.
    pub fn deny(
        &mut self,
        tenant: &str,
        run: &str,
        ambiguity: &Ambiguity,
        at: Micros,
        now: Wall,
    ) -> Option<Intervention> {
        let Ambiguity { policy_tenant, policy_id, limit_id, metric, .. } = ambiguity;
        let parts = [policy_tenant, policy_id, limit_id, metric].map(|p| id::part(p)).join("/");
        let identity = format!("ambiguous/{parts}/{}", id::rfc3339(at));
        let target = Subject { kind: "RUN".into(), id: run.into() };
        let order = Order {
            slot: Slot { tenant: tenant.into(), kind: "STOP".into(), target },
            cause: denial(run),
            identity: &identity,
            run_id: Some(run.into()),
            policy_id,
            signal_id: None,
            reason: format!("ambiguous: {metric} of RUN {run}: {}", ambiguity.why),
        };
        self.order(order, now)
    }

    /// The run ended, or its terms are not ambiguous any more.
    pub fn admit(&mut self, tenant: &str, run: &str) {
        self.release(tenant, &denial(run));
    }

    fn order(&mut self, order: Order<'_>, now: Wall) -> Option<Intervention> {
        let Order { slot, cause, identity, run_id, policy_id, signal_id, reason } = order;
        self.dirty.insert(slot.clone());
        self.held.entry((slot.tenant.clone(), cause.clone())).or_default().insert(slot.clone());
        if let Some(live) = self.live.get_mut(&slot) {
            live.causes.insert(cause);
            return None;
        }
        let record = Intervention {
            intervention_id: id::of(&[
                &slot.tenant,
                &slot.kind,
                &format!("{}:{}", slot.target.kind, slot.target.id),
                identity,
            ]),
            revision: 1,
            state: InterventionState::Issued,
            mode: "enforced".into(),
            kind: slot.kind.clone(),
            target: slot.target.clone(),
            parameters: serde_json::Value::Null,
            tenant_id: slot.tenant.clone(),
            run_id,
            policy_id: policy_id.into(),
            signal_id,
            reason,
            authority_level: SYSTEM,
            initiated_by: format!("policy:{policy_id}"),
            principal: "runwarden".into(),
            approval_required: false,
            approved_by: None,
            created_at: now.0,
            issued_at: Some(now.0),
            deadline: None,
            executed_at: None,
            reverted_at: None,
            reverted_by: None,
            supersedes: None,
            parent_intervention_id: None,
            audit_log: AuditLog::default(),
        };
        self.by_id.insert(record.intervention_id.clone(), slot.clone());
        self.live.insert(slot, Live { record: record.clone(), causes: BTreeSet::from([cause]) });
        Some(record)
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

    /// What asked for interventions, a level by its name, ended: so does its claim on them. One without a claim is not live.
    pub fn release(&mut self, tenant: &str, cause: &str) {
        for slot in self.held.remove(&(tenant.to_owned(), cause.to_owned())).unwrap_or_default() {
            let Some(live) = self.live.get_mut(&slot) else { continue };
            live.causes.remove(cause);
            if live.causes.is_empty() {
                self.by_id.remove(&live.record.intervention_id);
                self.live.remove(&slot);
            }
            self.dirty.insert(slot);
        }
    }

    /// An executor's report: the new revision, or `None` for an intervention that is not live or a step that is not legal.
    pub fn report(&mut self, tenant: &str, outcome: &Outcome, now: Wall) -> Option<Intervention> {
        use InterventionState::{Acknowledged, Failed, Issued, Succeeded};
        let slot = self.by_id.get(&outcome.intervention_id)?.clone();
        if slot.tenant != tenant {
            return None;
        }
        let live = self.live.get_mut(&slot)?;
        let legal = matches!(
            (live.record.state, outcome.state),
            (Issued, Acknowledged | Succeeded | Failed) | (Acknowledged, Succeeded | Failed)
        );
        if !legal {
            return None;
        }
        live.record.revision += 1;
        live.record.state = outcome.state;
        if outcome.state == Succeeded {
            live.record.executed_at = Some(now.0);
        }
        live.record.audit_log.before = outcome.before.clone();
        live.record.audit_log.after = outcome.after.clone();
        live.record.audit_log.results = serde_json::json!({ "executor": outcome.executor, "message": outcome.message });
        let record = live.record.clone();
        if outcome.state == Failed {
            self.by_id.remove(&record.intervention_id);
            let causes = self.live.remove(&slot).map(|live| live.causes).unwrap_or_default();
            for cause in causes {
                let key = (slot.tenant.clone(), cause);
                if let Some(slots) = self.held.get_mut(&key) {
                    slots.remove(&slot);
                    if slots.is_empty() {
                        self.held.remove(&key);
                    }
                }
            }
        }
        self.dirty.insert(slot);
        Some(record)
    }

    /// How many are live.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether none is live.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Slots changed since the last call; `None`: no longer live.
    pub fn take_changes(&mut self) -> Vec<(Slot, Option<&Live>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|s| {
                let live = self.live.get(&s);
                (s, live)
            })
            .collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.live.keys().cloned());
    }

    /// Takes one back from a checkpoint.
    pub fn restore(&mut self, slot: Slot, live: Live) {
        self.by_id.insert(live.record.intervention_id.clone(), slot.clone());
        for cause in &live.causes {
            self.held.entry((slot.tenant.clone(), cause.clone())).or_default().insert(slot.clone());
        }
        self.live.insert(slot, live);
    }
}
