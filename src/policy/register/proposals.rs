//! Proposals (P8): DRAFT → ACTIVE, or → REJECTED, by a person only. Approving activates in the same step, after the conflict check.

use serde_json::{Value, json};

use crate::policy::conflict::conflicts_with;
use crate::policy::model::{Policy, Status};

use super::sets::{DECIDE, policy_act};
use super::{
    Act, By, Change, Effects, MOST, Order, Proposal, ProposalStatus, Provenance, Refusal, Register, Version, authority,
    free_of_conflict, within,
};

/// Least authority of who proposes (MONITOR).
const PROPOSE: u8 = 3;

/// Most conflicts listed in an answer.
const LISTED: usize = 100;

/// Which policies a proposal may be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// One whose id is not taken.
    New,
    /// One that is there, or waits for a person.
    Known,
    /// Either.
    Any,
}

impl Register {
    /// Proposes a policy, or another version of one: a DRAFT that waits for a person.
    ///
    /// # Errors
    /// Too little authority; faults; an id that is taken (or not there), or comes from files.
    pub fn propose(&mut self, policy: Policy, about: About, order: &Order<'_>) -> Result<Effects, Refusal> {
        let by = order.by;
        within(by, &policy.tenant)?;
        authority(by, PROPOSE)?;
        let (tenant, id) = (policy.tenant.to_string(), policy.id.to_string());
        let held = self.policy(&tenant, &id);
        if let Some(held) = held.filter(|h| h.origin == Provenance::Set) {
            let file = held.policy.as_ref().map(|p| p.file.to_string()).unwrap_or_default();
            return Err(Refusal::new(
                "from_files",
                format!("policy {id} comes from the files ({file}): change it there"),
            ));
        }
        let there = held.is_some();
        let open = |p: &&Proposal| {
            p.tenant_id == tenant
                && p.policy_id == id
                && matches!(p.status, ProposalStatus::Draft | ProposalStatus::Active)
        };
        let open = self.proposals.values().find(open).map(|p| p.proposal_id.clone());
        match (about, there || open.is_some()) {
            (About::New, true) => {
                return Err(Refusal::new(
                    "exists",
                    format!("tenant {tenant} has a policy {id}, or a draft of it: send policy.update"),
                ));
            }
            (About::Known, false) => {
                return Err(Refusal::new(
                    "not_found",
                    format!("tenant {tenant} has no policy {id}: send policy.create"),
                ));
            }
            _ => {}
        }
        self.faultless(self.with(&policy), &self.terms(), order)?;
        if self.proposals.len() >= MOST && open.is_none() {
            return Err(Refusal::new("too_many", format!("there are {MOST} proposals")));
        }
        let mut effects = Effects::default();
        let proposal_id = open.unwrap_or_else(|| by.command_id.clone());
        let mut proposal = self.proposals.get(&proposal_id).cloned().unwrap_or_else(|| Proposal {
            proposal_id: proposal_id.clone(),
            revision: 0,
            tenant_id: tenant.clone(),
            policy_id: id.clone(),
            status: ProposalStatus::Draft,
            rationale: String::new(),
            created_at: by.at,
            created_by: by.principal.clone(),
            decided_at: None,
            decided_by: None,
            decision_reason: None,
            draft_version: None,
            current_version: 0,
            versions: 0,
        });
        proposal.rationale.clone_from(&by.reason);
        proposal.versions += 1;
        let number = proposal.versions;
        if let Some(replaced) = proposal.draft_version.replace(number) {
            self.set_version(
                &proposal_id,
                replaced,
                |v| (v.is_current, v.status) = (false, ProposalStatus::Retired),
                &mut effects,
            );
        }
        let current = proposal.status == ProposalStatus::Draft;
        if current {
            proposal.current_version = number;
        }
        let version = Version {
            proposal_id: proposal_id.clone(),
            version: number,
            is_current: current,
            status: ProposalStatus::Draft,
            created_at: by.at,
            created_by: by.principal.clone(),
            policy: policy.clone(),
        };
        self.versions.insert((proposal_id.clone(), number), version);
        self.set_version(&proposal_id, number, |_| (), &mut effects);
        let would = conflicts_with(self.all(), &policy);
        effects.acts.push(act(
            "proposal.created",
            &proposal,
            Value::Null,
            json!({"version": number, "status": "DRAFT"}),
            &by.reason,
        ));
        effects.result = json!({
            "proposal_id": proposal_id, "policy_id": id, "tenant_id": tenant, "version": number, "status": proposal.status,
            "conflicts": would.conflicts.iter().take(LISTED).collect::<Vec<_>>(), "unresolved_count": would.unresolved_count,
        });
        self.put(proposal, &mut effects);
        Ok(effects)
    }

    /// A person says yes: the draft's policy is in force from here on.
    ///
    /// # Errors
    /// Not a person, too little authority, no such draft, faults, or a BLOCKING conflict (GOV-POL-001).
    pub fn approve(&mut self, proposal_id: &str, order: &Order<'_>) -> Result<Effects, Refusal> {
        let (mut proposal, number, policy) = self.draft(proposal_id, order.by, "approved")?;
        let by = order.by;
        if self
            .policies
            .get(&(policy.tenant.clone(), policy.id.clone()))
            .is_some_and(|h| h.origin == Provenance::Set && h.policy.is_some())
        {
            return Err(Refusal::new("from_files", format!("policy {} is in the files by now", policy.id)));
        }
        let policy = Policy { status: Status::Active, ..policy };
        let toggled = self.toggled(policy.clone());
        free_of_conflict(conflicts_with(self.all(), &toggled))?;
        self.faultless(self.with(&toggled), &self.terms(), order)?;
        let mut effects = Effects::default();
        let before = proposal.status;
        if proposal.current_version != number {
            self.set_version(
                proposal_id,
                proposal.current_version,
                |v| (v.is_current, v.status) = (false, ProposalStatus::Retired),
                &mut effects,
            );
        }
        self.set_version(
            proposal_id,
            number,
            |v| (v.is_current, v.status) = (true, ProposalStatus::Active),
            &mut effects,
        );
        proposal.current_version = number;
        proposal.draft_version = None;
        proposal.status = ProposalStatus::Active;
        decided(&mut proposal, by);
        let approved = json!({"status": "APPROVED", "version": number});
        effects.acts.push(act("proposal.approved", &proposal, json!({"status": before}), approved, &by.reason));
        effects.acts.push(policy_act(
            "policy.activated",
            &policy,
            Value::Null,
            json!({"proposal_id": proposal_id, "version": number}),
            &by.reason,
        ));
        self.put(proposal, &mut effects);
        let key = (policy.tenant.clone(), policy.id.clone());
        self.hold(key.clone(), Some(policy), Provenance::Proposal, Some(proposal_id), by, &mut effects);
        self.settle(by, &mut effects);
        effects.result = json!({
            "proposal_id": proposal_id, "status": "ACTIVE", "policy_id": key.1, "tenant_id": key.0, "version": number,
            "policy_version": self.policies.get(&key).map(|h| h.version), "revision": self.revision,
        });
        Ok(effects)
    }

    /// A person says no: the draft is kept as REJECTED. A version in force stays in force.
    ///
    /// # Errors
    /// Not a person, too little authority, no such draft.
    pub fn reject(&mut self, proposal_id: &str, order: &Order<'_>) -> Result<Effects, Refusal> {
        let (mut proposal, number, _) = self.draft(proposal_id, order.by, "rejected")?;
        let mut effects = Effects::default();
        self.set_version(proposal_id, number, |v| v.status = ProposalStatus::Rejected, &mut effects);
        proposal.draft_version = None;
        if proposal.status == ProposalStatus::Draft {
            proposal.status = ProposalStatus::Rejected;
        }
        decided(&mut proposal, order.by);
        let after = json!({"status": "REJECTED", "version": number});
        effects.acts.push(act("proposal.rejected", &proposal, json!({"status": "DRAFT"}), after, &order.by.reason));
        effects.result = json!({"proposal_id": proposal_id, "status": proposal.status, "version": number, "version_status": "REJECTED"});
        self.put(proposal, &mut effects);
        Ok(effects)
    }

    /// The draft of a proposal, if `by` may decide on it.
    fn draft(&self, proposal_id: &str, by: &By, what: &str) -> Result<(Proposal, u32, Policy), Refusal> {
        let missing = || Refusal::new("not_found", format!("there is no proposal {proposal_id}"));
        // what another tenant has is not there for this one
        let proposal = self
            .proposals
            .get(proposal_id)
            .filter(|p| by.tenant == "*" || by.tenant == p.tenant_id)
            .ok_or_else(missing)?;
        let Some(number) = proposal.draft_version else {
            return Err(Refusal::new(
                "not_a_draft",
                format!("proposal {proposal_id} is {} and has no draft to be {what}", proposal.status),
            ));
        };
        let policy =
            self.versions.get(&(proposal_id.to_owned(), number)).map(|v| v.policy.clone()).ok_or_else(missing)?;
        authority(by, DECIDE.max(policy.min_authority))?;
        if by.principal.strip_prefix("user:").is_none_or(str::is_empty) {
            let reason = format!("a proposal is {what} by a person (user:<name>), never by {}", by.principal);
            return Err(Refusal::new("not_a_person", reason));
        }
        if by.reason.is_empty() && what == "rejected" {
            return Err(Refusal::new("reason", "a rejection says why: give `reason`"));
        }
        Ok((proposal.clone(), number, policy))
    }

    /// The policy of a proposal was taken out of force.
    pub(super) fn end_proposal(&mut self, proposal_id: Option<&str>, by: &By, effects: &mut Effects) {
        let Some(mut proposal) = proposal_id.and_then(|id| self.proposals.get(id).cloned()) else { return };
        let id = proposal.proposal_id.clone();
        if let Some(draft) = proposal.draft_version.take() {
            self.set_version(&id, draft, |v| v.status = ProposalStatus::Retired, effects);
        }
        self.set_version(&id, proposal.current_version, |v| v.status = ProposalStatus::Retired, effects);
        proposal.status = ProposalStatus::Retired;
        decided(&mut proposal, by);
        self.put(proposal, effects);
    }

    fn put(&mut self, mut proposal: Proposal, effects: &mut Effects) {
        proposal.revision += 1;
        let id = proposal.proposal_id.clone();
        let (tenant, revision) = (proposal.tenant_id.clone(), proposal.revision);
        effects.changes.push(Change::of(tenant, "proposal", vec![id.clone()], revision, &proposal));
        self.dirty.insert(vec!["proposal".into(), id.clone()]);
        self.proposals.insert(id, proposal);
    }

    fn set_version(
        &mut self,
        proposal_id: &str,
        number: u32,
        change: impl FnOnce(&mut Version),
        effects: &mut Effects,
    ) {
        let Some(version) = self.versions.get_mut(&(proposal_id.to_owned(), number)) else { return };
        change(version);
        let tenant = version.policy.tenant.to_string();
        let id = vec![proposal_id.to_owned(), number.to_string()];
        effects.changes.push(Change::of(tenant, "version", id, 0, version));
        self.dirty.insert(vec!["version".into(), proposal_id.into(), number.to_string()]);
    }
}

fn decided(proposal: &mut Proposal, by: &By) {
    proposal.decided_at = Some(by.at);
    proposal.decided_by = Some(by.principal.clone());
    proposal.decision_reason = Some(by.reason.clone());
}

fn act(kind: &'static str, proposal: &Proposal, before: Value, after: Value, reason: &str) -> Act {
    let (id, tenant) = (proposal.proposal_id.clone(), proposal.tenant_id.clone());
    Act { kind, subject: "proposal", id, tenant, principal: None, before, after, reason: reason.to_owned() }
}
