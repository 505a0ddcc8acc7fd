//! Overrides (P7): who may, from which authority, for how long. The record stays; the override ends by itself.

use serde_json::{Value, json};

use crate::clock::{Micros, SECOND};

use super::{
    Act, By, Change, ENDED_KEPT, Effects, MOST, Order, Override, OverrideStatus, Refusal, Register, authority, within,
};

impl Register {
    /// Takes a policy out of force for a tenant for some minutes. `tenant` is whose runs; `*`: everyone's.
    ///
    /// # Errors
    /// No such policy; less authority or more minutes than its `override` allows; no reason.
    pub fn grant(
        &mut self,
        tenant: &str,
        (policy_tenant, policy_id): (&str, &str),
        minutes: u32,
        order: &Order<'_>,
    ) -> Result<Effects, Refusal> {
        let by = order.by;
        within(by, tenant)?;
        let missing = || Refusal::new("not_found", format!("tenant {policy_tenant} has no policy {policy_id}"));
        let policy = self.policy(policy_tenant, policy_id).and_then(|h| h.policy.as_ref()).ok_or_else(missing)?;
        if !policy.is_for_tenant(tenant) && tenant != "*" {
            return Err(missing());
        }
        let rule = policy.override_rule;
        authority(by, rule.min_authority)?;
        if by.reason.is_empty() {
            return Err(Refusal::new("reason", "an override says why: give `reason`"));
        }
        if minutes == 0 || minutes > rule.max_minutes {
            return Err(Refusal::new(
                "minutes",
                format!("an override of {policy_id} lasts 1 to {} minutes", rule.max_minutes),
            ));
        }
        if self.overrides.len() >= MOST {
            return Err(Refusal::new("too_many", format!("there are {MOST} overrides")));
        }
        let granted = Override {
            override_id: by.command_id.clone(),
            revision: 0,
            tenant_id: tenant.to_owned(),
            policy_tenant: policy_tenant.to_owned(),
            policy_id: policy_id.to_owned(),
            status: OverrideStatus::Active,
            reason: by.reason.clone(),
            granted_by: by.principal.clone(),
            authority: by.authority,
            granted_at: by.at,
            expires_at: by.at.saturating_add(Micros::from(minutes).saturating_mul(60 * SECOND)),
            ended_at: None,
            ended_by: None,
        };
        let mut effects = Effects {
            result: json!({"override_id": granted.override_id, "expires_at": crate::clock::rfc3339(granted.expires_at)}),
            ..Effects::default()
        };
        self.write("override.granted", Value::Null, granted, None, &by.reason, &mut effects);
        self.settle(by, &mut effects);
        Ok(effects)
    }

    /// Ends an override before its time.
    ///
    /// # Errors
    /// It is not there or has ended, or less authority than it took to grant it.
    pub fn revoke(&mut self, override_id: &str, order: &Order<'_>) -> Result<Effects, Refusal> {
        let by = order.by;
        let missing = || Refusal::new("not_found", format!("there is no override {override_id} that holds"));
        let held = self
            .overrides
            .get(override_id)
            .filter(|o| o.status == OverrideStatus::Active && (by.tenant == "*" || by.tenant == o.tenant_id))
            .ok_or_else(missing)?;
        let rule = self
            .policy(&held.policy_tenant, &held.policy_id)
            .and_then(|h| h.policy.as_ref())
            .map(|p| p.override_rule)
            .unwrap_or_default();
        authority(by, rule.min_authority)?;
        let revoked = Override {
            status: OverrideStatus::Revoked,
            ended_at: Some(by.at),
            ended_by: Some(by.principal.clone()),
            ..held.clone()
        };
        let mut effects =
            Effects { result: json!({"override_id": override_id, "status": "REVOKED"}), ..Effects::default() };
        self.write("override.revoked", json!("ACTIVE"), revoked, None, &by.reason, &mut effects);
        self.settle(by, &mut effects);
        Ok(effects)
    }

    /// Ends those whose time is over, and forgets those that ended long ago: their record stays on the audit topic.
    pub(super) fn expire_overrides(&mut self, by: &By, effects: &mut Effects) {
        let over = |o: &&Override| o.status == OverrideStatus::Active && o.expires_at <= by.at;
        let over: Vec<Override> = self.overrides.values().filter(over).cloned().collect();
        for held in over {
            let ended = Override { status: OverrideStatus::Expired, ended_at: Some(held.expires_at), ..held };
            self.write("override.expired", json!("ACTIVE"), ended, Some(&by.principal), &by.reason, effects);
        }
        let old = |o: &&Override| o.ended_at.is_some_and(|at| at.saturating_add(ENDED_KEPT) <= by.at);
        let old: Vec<(String, String)> =
            self.overrides.values().filter(old).map(|o| (o.tenant_id.clone(), o.override_id.clone())).collect();
        for (tenant, id) in old {
            self.overrides.remove(&id);
            self.dirty.insert(vec!["override".into(), id.clone()]);
            effects.changes.push(Change::gone(tenant, "override", vec![id]));
        }
    }

    fn write(
        &mut self,
        kind: &'static str,
        before: Value,
        mut held: Override,
        principal: Option<&str>,
        reason: &str,
        effects: &mut Effects,
    ) {
        held.revision += 1;
        let (tenant, id) = (held.tenant_id.clone(), held.override_id.clone());
        effects.changes.push(Change::of(&tenant, "override", vec![id.clone()], held.revision, &held));
        effects.acts.push(Act {
            kind,
            subject: "override",
            id: id.clone(),
            tenant,
            principal: principal.map(str::to_owned),
            before,
            after: json!(held),
            reason: reason.to_owned(),
        });
        self.dirty.insert(vec!["override".into(), id.clone()]);
        self.overrides.insert(id, held);
    }
}
