//! Sets of files (P8, *Files and the topic*): the highest generation wins, a set replaces what came from sets.

use std::collections::BTreeSet;

use serde_json::json;

use crate::policy::conflict::conflicts;
use crate::policy::depend::dependents;
use crate::policy::model::{LimitStatus, Policy};

use super::{
    Act, Change, Effects, Order, PolicyKey, Provenance, Refusal, Register, SetInfo, SetOrder, Toggle, authority,
    free_of_conflict, free_of_dependents, within,
};

/// Least authority of who applies a set, deletes, retires and changes limits (GUARDIAN).
pub(super) const DECIDE: u8 = 4;

impl Register {
    /// Applies a set whole, or refuses it whole.
    ///
    /// # Errors
    /// Too little authority; a lower generation, or the same with another digest; a clash of ids with an approved policy; a BLOCKING
    /// conflict; a policy left out that others depend on; faults. The old set then stays.
    pub fn apply_set(&mut self, set: SetOrder, order: &Order<'_>) -> Result<Effects, Refusal> {
        let by = order.by;
        within(by, "*")?;
        authority(by, DECIDE)?;
        if let Some(current) = &self.set {
            if set.digest == current.digest && set.generation == current.generation {
                let result = json!({"unchanged": true, "generation": set.generation, "digest": set.digest});
                let mut effects = Effects { result, ..Effects::default() };
                // whoever offers it again has not seen it
                self.publish(by, true, &mut effects);
                return Ok(effects);
            }
            if set.generation < current.generation {
                let reason = format!(
                    "generation {} is in force, and this is generation {}: count `generation` in set.yaml up",
                    current.generation, set.generation
                );
                return Err(Refusal::new("generation", reason));
            }
            if set.generation == current.generation && set.generation > 0 {
                let reason = format!(
                    "generation {} is in force with another content: count `generation` in set.yaml up",
                    current.generation
                );
                return Err(Refusal::new("generation", reason));
            }
        }
        let key = |p: &Policy| -> PolicyKey { (p.tenant.clone(), p.id.clone()) };
        let wanted: BTreeSet<PolicyKey> = set.policies.iter().map(key).collect();
        let approved = |key: &PolicyKey| {
            self.policies.get(key).is_some_and(|h| h.policy.is_some() && h.origin == Provenance::Proposal)
        };
        if let Some((tenant, id)) = wanted.iter().find(|key| approved(key)) {
            let reason = format!(
                "policy {id} of tenant {tenant} was approved over commands; give the one in the files another id, or delete that one"
            );
            return Err(Refusal::new("clash", reason));
        }
        let policies: Vec<Policy> = set.policies.iter().cloned().map(|p| self.toggled(p)).collect();
        let kept = self
            .policies
            .iter()
            .filter(|(_, h)| h.origin == Provenance::Proposal)
            .filter_map(|(_, h)| h.policy.as_ref());
        let after: Vec<&Policy> = kept.chain(&policies).collect();
        free_of_conflict(conflicts(after.iter().copied()))?;
        let gone: Vec<PolicyKey> = self
            .policies
            .iter()
            .filter(|(key, h)| h.origin == Provenance::Set && h.policy.is_some() && !wanted.contains(*key))
            .map(|(key, _)| key.clone())
            .collect();
        for (tenant, id) in &gone {
            let left = self.policies.get(&(tenant.clone(), id.clone())).and_then(|h| h.policy.as_ref());
            free_of_dependents(dependents(after.iter().copied().chain(left), tenant, id))?;
        }
        self.faultless(after, &set.terms, order)?;
        let before = self.set.as_ref().map(|s| json!({"generation": s.generation, "digest": s.digest}));
        let mut effects = Effects::default();
        let info = json!({
            "generation": set.generation, "digest": set.digest, "policies": policies.len(), "queries": set.terms.queries.len(),
            "applied_at": crate::clock::rfc3339(by.at), "applied_by": by.principal,
        });
        let set_generation = set.generation;
        for key in gone {
            self.hold(key, None, Provenance::Set, None, by, &mut effects);
        }
        for policy in set.policies {
            self.hold(key(&policy), Some(policy), Provenance::Set, None, by, &mut effects);
        }
        self.set = Some(SetInfo {
            generation: set.generation,
            digest: set.digest,
            applied_at: by.at,
            applied_by: by.principal.clone(),
            terms: set.terms,
        });
        self.dirty.insert(vec!["set".into()]);
        effects.changes.push(Change::of("*", "set", vec!["current".to_owned()], set_generation, &info));
        effects.acts.push(Act {
            kind: "policy_set.applied",
            subject: "set",
            id: format!("generation {}", info["generation"]),
            tenant: "*".into(),
            principal: None,
            before: json!(before),
            after: info.clone(),
            reason: by.reason.clone(),
        });
        self.settle(by, &mut effects);
        effects.result = info;
        effects.result["revision"] = self.revision.into();
        Ok(effects)
    }

    /// Takes a policy that was approved over commands out of the register.
    ///
    /// # Errors
    /// It is not there, comes from files, others depend on it (GOV-POL-002), or too little authority.
    pub fn delete(&mut self, tenant: &str, id: &str, order: &Order<'_>) -> Result<Effects, Refusal> {
        let policy = self.approved(tenant, id, order)?;
        free_of_dependents(dependents(self.all(), tenant, id))?;
        let mut effects = Effects::default();
        let key = (policy.tenant.clone(), policy.id.clone());
        let proposal = self.policies.get(&key).and_then(|h| h.proposal_id.clone());
        self.hold(key, None, Provenance::Proposal, proposal.as_deref(), order.by, &mut effects);
        self.end_proposal(proposal.as_deref(), order.by, &mut effects);
        effects.acts.push(policy_act(
            "policy.deleted",
            &policy,
            json!(policy),
            serde_json::Value::Null,
            &order.by.reason,
        ));
        self.settle(order.by, &mut effects);
        effects.result = json!({"policy_id": id, "tenant_id": tenant, "deleted": true});
        Ok(effects)
    }

    /// Takes a policy that was approved over commands out of force; it stays in the register as RETIRED.
    ///
    /// # Errors
    /// As [`Self::delete`].
    pub fn retire(&mut self, tenant: &str, id: &str, order: &Order<'_>) -> Result<Effects, Refusal> {
        let policy = self.approved(tenant, id, order)?;
        free_of_dependents(dependents(self.all(), tenant, id))?;
        let mut effects = Effects::default();
        let key = (policy.tenant.clone(), policy.id.clone());
        let proposal = self.policies.get(&key).and_then(|h| h.proposal_id.clone());
        let retired = Policy { status: crate::policy::model::Status::Retired, ..policy.clone() };
        self.hold(key, Some(retired), Provenance::Proposal, proposal.as_deref(), order.by, &mut effects);
        self.end_proposal(proposal.as_deref(), order.by, &mut effects);
        effects.acts.push(policy_act("policy.retired", &policy, json!("ACTIVE"), json!("RETIRED"), &order.by.reason));
        self.settle(order.by, &mut effects);
        effects.result = json!({"policy_id": id, "tenant_id": tenant, "status": "RETIRED"});
        Ok(effects)
    }

    /// Puts a limit in or out of force, whatever its policy came from. The state outlives new versions of the policy.
    ///
    /// # Errors
    /// It is not there, too little authority, or (GOV-POL-001) it would make a BLOCKING conflict.
    pub fn toggle(
        &mut self,
        (tenant, id, limit): (&str, &str, &str),
        status: LimitStatus,
        order: &Order<'_>,
    ) -> Result<Effects, Refusal> {
        let by = order.by;
        within(by, tenant)?;
        let missing = || Refusal::new("not_found", format!("tenant {tenant} has no policy {id} with a limit {limit}"));
        let held = self.policy(tenant, id).ok_or_else(missing)?;
        let (origin, proposal) = (held.origin, held.proposal_id.clone());
        let policy = held.policy.clone().ok_or_else(missing)?;
        authority(by, DECIDE.max(policy.min_authority))?;
        let number = policy.limits.iter().position(|l| *l.id == *limit).ok_or_else(missing)?;
        let before = policy.limits[number].status;
        let mut changed = policy.clone();
        changed.limits[number].status = status;
        if super::in_force(&changed) {
            free_of_conflict(crate::policy::conflict::conflicts_with(self.all(), &changed))?;
        }
        if status == LimitStatus::Active {
            self.faultless(self.with(&changed), &self.terms(), order)?;
        }
        let toggle = Toggle { status, changed_at: by.at, changed_by: by.principal.clone(), reason: by.reason.clone() };
        let key = (policy.tenant.clone(), policy.id.clone());
        self.toggles.insert((key.0.clone(), key.1.clone(), policy.limits[number].id.clone()), toggle);
        self.dirty.insert(vec!["toggle".into(), tenant.into(), id.into(), limit.into()]);
        let mut effects = Effects::default();
        self.hold(key, Some(changed), origin, proposal.as_deref(), by, &mut effects);
        let kind = if status == LimitStatus::Active { "limit.enabled" } else { "limit.disabled" };
        effects.acts.push(Act {
            subject: "limit",
            id: format!("{id}/{limit}"),
            ..policy_act(kind, &policy, json!(before), json!(status), &by.reason)
        });
        self.settle(by, &mut effects);
        effects.result = json!({"policy_id": id, "tenant_id": tenant, "limit_id": limit, "status": status});
        Ok(effects)
    }

    /// A policy that came from a proposal, if `by` may decide about it.
    fn approved(&self, tenant: &str, id: &str, order: &Order<'_>) -> Result<Policy, Refusal> {
        within(order.by, tenant)?;
        let missing = || Refusal::new("not_found", format!("tenant {tenant} has no policy {id}"));
        let held = self.policy(tenant, id).ok_or_else(missing)?;
        let policy = held.policy.clone().ok_or_else(missing)?;
        authority(order.by, DECIDE.max(policy.min_authority))?;
        if held.origin == Provenance::Set {
            let reason = format!("policy {id} comes from the files ({}): change it there", policy.file);
            return Err(Refusal::new("from_files", reason));
        }
        Ok(policy)
    }
}

pub(super) fn policy_act(
    kind: &'static str,
    policy: &Policy,
    before: serde_json::Value,
    after: serde_json::Value,
    reason: &str,
) -> Act {
    Act {
        kind,
        subject: "policy",
        id: policy.id.to_string(),
        tenant: policy.tenant.to_string(),
        principal: None,
        before,
        after,
        reason: reason.to_owned(),
    }
}
