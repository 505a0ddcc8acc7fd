//! What people and agents demand: approving, rejecting, reverting (I2, I4, I5).

use serde_json::json;

use crate::clock::Wall;
use crate::decide::records::{Intervention, InterventionState as State};

use super::{Care, Interventions, Order, Slot, life};

/// Who acts, and why.
#[derive(Debug, Clone)]
pub struct Actor<'a> {
    /// Who.
    pub principal: &'a str,
    /// With which authority.
    pub authority: u8,
    /// Why.
    pub reason: &'a str,
}

/// Why something is not done. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDone {
    /// No such intervention is known here.
    Missing,
    /// It stands in a state from which there is no such step.
    Illegal(State),
    /// It takes this authority.
    Authority(u8),
}

impl Interventions {
    fn known(&self, tenant: &str, id: &str, actor: &Actor<'_>, to: State) -> Result<Slot, NotDone> {
        let slot = self.by_id.get(&(tenant.to_owned(), id.to_owned())).ok_or(NotDone::Missing)?;
        let live = self.slots.get(slot).ok_or(NotDone::Missing)?;
        if actor.authority < live.care.min_authority {
            return Err(NotDone::Authority(live.care.min_authority));
        }
        // ISSUED is where an approval leads to; nobody issues twice
        if !life::legal(live.record.state, to) {
            return Err(NotDone::Illegal(live.record.state));
        }
        Ok(slot.clone())
    }

    /// A person agrees: it is issued.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn approve(&mut self, tenant: &str, id: &str, by: &Actor<'_>, now: Wall) -> Result<Vec<Intervention>, NotDone> {
        let slot = self.known(tenant, id, by, State::Issued)?;
        let mut said = self.supersede(&slot, id, now);
        said.extend(self.step(&slot, State::Issued, now, |record| {
            record.approved_by = Some(by.principal.to_owned());
            record.issued_at = Some(now.0);
            record.audit_log.results = json!({"approved": by.reason});
        }));
        said.extend(self.tell(&slot, now));
        Ok(said)
    }

    /// A person disagrees.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn reject(&mut self, tenant: &str, id: &str, by: &Actor<'_>, now: Wall) -> Result<Vec<Intervention>, NotDone> {
        let slot = self.known(tenant, id, by, State::Rejected)?;
        let results = json!({"rejected_by": by.principal, "reason": by.reason});
        Ok(self.step(&slot, State::Rejected, now, |record| record.audit_log.results = results).into_iter().collect())
    }

    /// Takes one back. That is a mark: what it did is restored by nobody, except that what it paused is resumed.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn revert(&mut self, tenant: &str, id: &str, by: &Actor<'_>, now: Wall) -> Result<Vec<Intervention>, NotDone> {
        let slot = self.known(tenant, id, by, State::Reverted)?;
        Ok(self.take_back(&slot, by.principal, by.reason, now))
    }

    /// What asked for pauses has ended, and nobody needs them any longer: those that nothing else asks for are taken back.
    pub fn lift(&mut self, tenant: &str, cause: &str, why: &str, now: Wall) -> Vec<Intervention> {
        let held = self.held.get(&(tenant.to_owned(), cause.to_owned())).cloned().unwrap_or_default();
        self.release(tenant, cause);
        let mut said = Vec::new();
        for slot in held.iter().filter(|slot| slot.kind == "PAUSE") {
            if self.slots.get(slot).is_some_and(|live| live.causes.is_empty()) {
                said.extend(self.take_back(slot, super::due::OURSELVES, why, now));
            }
        }
        said
    }

    pub(super) fn take_back(&mut self, slot: &Slot, by: &str, why: &str, now: Wall) -> Vec<Intervention> {
        let reverted = self.step(slot, State::Reverted, now, |record| {
            record.reverted_at = Some(now.0);
            record.reverted_by = Some(by.to_owned());
            record.audit_log.results = json!({"reverted": why});
        });
        let Some(reverted) = reverted else { return Vec::new() };
        self.stopped.lift(&slot.tenant, &slot.target.id, &reverted.intervention_id);
        let mut said = vec![reverted];
        if slot.kind == "PAUSE" {
            let reverted = &said[0];
            let identity = format!("reverted/{}", reverted.intervention_id);
            let order = Order {
                run_id: reverted.run_id.clone(),
                initiated_by: by.to_owned(),
                authority: reverted.authority_level,
                parent: reverted.parent_intervention_id.clone(),
                ..Order::of_policy(slot.beside("RESUME"), &reverted.policy_id, &identity, why.to_owned())
            };
            let mut resume = order.record(now);
            resume.supersedes = Some(reverted.intervention_id.clone());
            said.extend(self.order(resume, None, Care::default(), now));
        }
        said
    }
}
