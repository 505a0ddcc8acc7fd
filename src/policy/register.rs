//! The policy register: what is in force, what is proposed, who decided it. The state of the one writer (P7, P8, P11).
//!
//! Decides: whether a set, a proposal, a deletion, a change of a limit or an override is accepted, and which snapshot follows.
//! Leaves to others: signatures, commands, topics (`pipeline`), and what a query is: whoever calls says what is wrong with
//! policies under given queries ([`Order::faults`]).
//!
//! Two rules cannot be switched off. GOV-POL-001: nothing becomes ACTIVE while a BLOCKING conflict exists. GOV-POL-002: nothing
//! that others depend on is deleted. Invariant: the snapshot is a function of the register's items.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;

use crate::clock::Micros;

use super::conflict::{Conflict, Conflicts};
use super::depend::DependencyEdge;
use super::model::{LimitStatus, Policy, Status};
use super::silence::{Silence, SilenceStatus};
use super::snapshot::{Snapshot, Suspension};

mod overrides;
pub(super) mod proposals;
mod records;
mod sets;
mod silences;
#[cfg(test)]
mod tests;

use self::records::text_with;
pub use self::records::{
    Act, By, Change, Effects, Held, Item, Order, Override, OverrideStatus, Proposal, ProposalStatus, Provenance,
    Refusal, SetInfo, SetOrder, Terms, Toggle, Version,
};

/// A superseded snapshot stays on the topic this long: 60 days.
const SNAPSHOTS_KEPT: Micros = 60 * 24 * 3_600 * crate::clock::SECOND;
/// What ended is remembered this long: 60 days as well.
const ENDED_KEPT: Micros = SNAPSHOTS_KEPT;
/// Most items of one kind: proposals and overrides are made by people.
const MOST: usize = 100_000;

type PolicyKey = (Arc<str>, Arc<str>);
/// Tenant, policy, limit.
type LimitKey = (Arc<str>, Arc<str>, Arc<str>);

/// The register.
#[derive(Debug, Default)]
pub struct Register {
    set: Option<SetInfo>,
    policies: BTreeMap<PolicyKey, Held>,
    proposals: BTreeMap<String, Proposal>,
    versions: BTreeMap<(String, u32), Version>,
    toggles: BTreeMap<LimitKey, Toggle>,
    overrides: BTreeMap<String, Override>,
    silences: BTreeMap<String, Silence>,
    /// Those that were said with the terms in force last.
    silencing: Vec<Silence>,
    superseded: BTreeMap<String, Micros>,
    revision: u64,
    activated_at: Micros,
    /// `None` until the first set is applied.
    snapshot: Option<Arc<Snapshot>>,
    next_end: Option<Micros>,
    dirty: BTreeSet<Vec<String>>,
}

impl Register {
    /// The set in force.
    pub fn set(&self) -> Option<&SetInfo> {
        self.set.as_ref()
    }

    /// The terms in force.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.snapshot.as_ref()
    }

    /// How often the snapshot changed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The proposals by id.
    pub fn proposals(&self) -> &BTreeMap<String, Proposal> {
        &self.proposals
    }

    /// The versions by proposal and number.
    pub fn versions(&self) -> &BTreeMap<(String, u32), Version> {
        &self.versions
    }

    /// The overrides by id.
    pub fn overrides(&self) -> &BTreeMap<String, Override> {
        &self.overrides
    }

    /// The silences by id.
    pub fn silences(&self) -> &BTreeMap<String, Silence> {
        &self.silences
    }

    /// A policy that is not deleted.
    pub fn policy(&self, tenant: &str, id: &str) -> Option<&Held> {
        self.policies.get(&(tenant.into(), id.into())).filter(|held| held.policy.is_some())
    }

    /// When something ends by itself next.
    pub fn next_end(&self) -> Option<Micros> {
        self.next_end
    }

    fn count_ends(&mut self) {
        let overrides = self.overrides.values().filter(|o| o.status == OverrideStatus::Active).map(|o| o.expires_at);
        let snapshots = self.superseded.values().map(|at| at.saturating_add(SNAPSHOTS_KEPT));
        let ended = self.overrides.values().filter_map(|o| o.ended_at).map(|at| at.saturating_add(ENDED_KEPT));
        let silences = self.silences.values().map(|s| match s.status {
            SilenceStatus::Active => s.ends_at,
            SilenceStatus::Expired => s.ends_at.saturating_add(ENDED_KEPT),
        });
        self.next_end = overrides.chain(snapshots).chain(ended).chain(silences).min();
    }

    fn all(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().filter_map(|held| held.policy.as_ref())
    }

    fn terms(&self) -> Terms {
        self.set.as_ref().map(|set| set.terms.clone()).unwrap_or_default()
    }

    /// The policies as they would be with `candidate` in place of what has its id.
    fn with<'p>(&'p self, candidate: &'p Policy) -> Vec<&'p Policy> {
        let other = |p: &&Policy| p.tenant != candidate.tenant || p.id != candidate.id;
        self.all().filter(other).chain([candidate]).collect()
    }

    /// Gives a policy the state that people gave its limits.
    fn toggled(&self, mut policy: Policy) -> Policy {
        for limit in &mut policy.limits {
            let key = (policy.tenant.clone(), policy.id.clone(), limit.id.clone());
            if let Some(toggle) = self.toggles.get(&key) {
                limit.status = toggle.status;
            }
        }
        policy
    }

    /// Policies as they are judged: a limit that a person disabled may be enabled again, so it must hold as well.
    fn judged<'p>(&self, policies: impl IntoIterator<Item = &'p Policy>) -> Vec<Policy> {
        let enabled = |policy: &Policy| {
            let mut policy = policy.clone();
            for limit in &mut policy.limits {
                let key = (policy.tenant.clone(), policy.id.clone(), limit.id.clone());
                if self.toggles.contains_key(&key) {
                    limit.status = LimitStatus::Active;
                }
            }
            policy
        };
        policies.into_iter().map(enabled).collect()
    }

    fn faultless(&self, policies: Vec<&Policy>, terms: &Terms, order: &Order<'_>) -> Result<(), Refusal> {
        let judged = self.judged(policies);
        let faults = (order.faults)(&judged.iter().collect::<Vec<_>>(), terms);
        if faults.is_empty() { Ok(()) } else { Err(Refusal::new("invalid", faults.join("\n"))) }
    }

    /// Puts a policy (or its absence) in the register, its version counted up if its content is another.
    fn hold(
        &mut self,
        key: PolicyKey,
        policy: Option<Policy>,
        origin: Provenance,
        proposal: Option<&str>,
        by: &By,
        effects: &mut Effects,
    ) {
        let old = self.policies.get(&key);
        let last = old.map_or(0, |held| held.version);
        let policy = policy.map(|policy| {
            let mut policy = self.toggled(policy);
            policy.version = last;
            let same = old.and_then(|held| held.policy.as_ref()).is_some_and(|p| p.content() == policy.content());
            policy.version = if same { last } else { last.saturating_add(1) };
            policy
        });
        let version = policy.as_ref().map_or(last, |p| p.version);
        if old.is_some_and(|held| {
            held.policy == policy && held.origin == origin && held.proposal_id.as_deref() == proposal
        }) {
            return;
        }
        let gone: BTreeSet<Arc<str>> = old
            .and_then(|held| held.policy.as_ref())
            .into_iter()
            .flat_map(|p| &p.limits)
            .map(|l| l.id.clone())
            .collect();
        let limits = policy.as_ref().map(|p| p.limits.clone()).unwrap_or_default();
        let held = Held {
            policy,
            version,
            origin,
            proposal_id: proposal.map(str::to_owned),
            changed_at: by.at,
            changed_by: by.principal.clone(),
        };
        let (tenant, id) = (key.0.to_string(), key.1.to_string());
        let ids = || vec![id.clone()];
        effects.changes.push(match &held.policy {
            Some(policy) => {
                let fields = json!({
                    "policy_id": id, "tenant_id": tenant, "revision": version, "origin": origin, "proposal_id": held.proposal_id,
                    "changed_at": crate::clock::rfc3339(by.at), "changed_by": by.principal,
                });
                let record = Some(text_with(&fields, policy));
                Change { record, revision: version.into(), ..Change::gone(&tenant, "policy", ids()) }
            }
            None => Change::gone(&tenant, "policy", ids()),
        });
        for gone in gone.iter().filter(|gone| limits.iter().all(|l| l.id != **gone)) {
            self.toggles.remove(&(key.0.clone(), key.1.clone(), gone.clone()));
            self.dirty.insert(vec!["toggle".into(), tenant.clone(), id.clone(), gone.to_string()]);
            effects.changes.push(Change::gone(&tenant, "limit", vec![id.clone(), gone.to_string()]));
        }
        for limit in &limits {
            let toggle = self.toggles.get(&(key.0.clone(), key.1.clone(), limit.id.clone()));
            let fields = json!({
                "limit_id": limit.id, "policy_id": id, "tenant_id": tenant, "revision": version,
                "changed_by": toggle.map(|t| &t.changed_by), "reason": toggle.map(|t| &t.reason),
            });
            let record = Some(text_with(&fields, limit));
            let ids = vec![id.clone(), limit.id.to_string()];
            effects.changes.push(Change { record, revision: version.into(), ..Change::gone(&tenant, "limit", ids) });
        }
        self.dirty.insert(vec!["policy".into(), tenant, id]);
        self.policies.insert(key, held);
    }

    /// The snapshot that the items give; `None` before the first set.
    fn made(&self) -> Option<Snapshot> {
        let Terms { queries, prices, settings } = &self.set.as_ref()?.terms;
        let held = self.overrides.values().filter(|o| o.status == OverrideStatus::Active);
        let suspended = held.map(|o| Suspension {
            tenant: o.tenant_id.as_str().into(),
            policy_tenant: o.policy_tenant.as_str().into(),
            policy_id: o.policy_id.as_str().into(),
        });
        let snapshot = Snapshot::new(self.all().cloned().collect(), queries.clone(), prices, settings);
        Some(snapshot.suspending(suspended.collect()))
    }

    /// Makes the snapshot anew; if it is another, it is in force from here on.
    fn settle(&mut self, by: &By, effects: &mut Effects) {
        let Some(snapshot) = self.made() else { return };
        let (before, id) = (self.snapshot.clone(), snapshot.id().to_string());
        let changed = before.as_ref().is_none_or(|old| **old.id() != *id);
        let silencing = self.silences_in_force();
        let muted = silencing != self.silencing;
        if !changed && !muted && !effects.changes.iter().any(|c| c.kind == "set") {
            return self.count_ends();
        }
        if changed || muted {
            self.silencing = silencing;
            self.revision += 1;
            self.dirty.insert(vec!["in-force".into()]);
        }
        if changed {
            self.activated_at = by.at;
            if let Some(old) = before {
                self.superseded.insert(old.id().to_string(), by.at);
                self.dirty.insert(vec!["superseded".into(), old.id().to_string()]);
            }
            if self.superseded.remove(&id).is_some() {
                self.dirty.insert(vec!["superseded".into(), id]);
            }
        }
        let snapshot = Arc::new(snapshot);
        effects.activated = Some(Arc::clone(&snapshot));
        self.snapshot = Some(snapshot);
        self.publish(by, changed, effects);
        self.count_ends();
    }

    /// Says what is in force: whole in one record, so that whoever follows needs no other.
    fn publish(&self, by: &By, changed: bool, effects: &mut Effects) {
        let (Some(set), Some(snapshot)) = (&self.set, &self.snapshot) else { return };
        let (id, whole) = (snapshot.id().to_string(), snapshot.to_json());
        let fields = json!({
            "revision": self.revision, "generation": set.generation, "digest": set.digest, "snapshot_id": id,
            "activated_at": crate::clock::rfc3339(self.activated_at), "activated_by": by.principal, "silences": self.silencing,
        });
        let fields = fields.to_string();
        let in_force = format!("{},\"snapshot\":{whole}}}", fields.strip_suffix('}').unwrap_or(&fields));
        if changed {
            effects.changes.push(Change { record: Some(whole), ..Change::gone("*", "snapshot", vec![id]) });
        }
        let current = Change::gone("*", "in-force", vec!["current".to_owned()]);
        effects.changes.push(Change { record: Some(in_force), revision: self.revision, ..current });
    }

    /// Ends what ends by itself: overrides, and snapshots nobody needs any more.
    pub fn expire(&mut self, now: Micros) -> Effects {
        let mut effects = Effects::default();
        if self.next_end().is_none_or(|end| end > now) {
            return effects;
        }
        let by = By {
            principal: "system:runwarden".into(),
            authority: 5,
            tenant: "*".into(),
            at: now,
            reason: "its time is over".into(),
            command_id: String::new(),
        };
        self.expire_overrides(&by, &mut effects);
        self.expire_silences(&by, &mut effects);
        let old: Vec<String> = self
            .superseded
            .iter()
            .filter(|(_, at)| at.saturating_add(SNAPSHOTS_KEPT) <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in old {
            self.superseded.remove(&id);
            self.dirty.insert(vec!["superseded".into(), id.clone()]);
            effects.changes.push(Change::gone("*", "snapshot", vec![id]));
        }
        self.settle(&by, &mut effects);
        self.count_ends();
        effects
    }

    /// Items that changed since the last call, by name; `None`: gone.
    pub fn take_changes(&mut self) -> Vec<(Vec<String>, Option<Item>)> {
        std::mem::take(&mut self.dirty).into_iter().map(|name| (name.clone(), self.item(&name))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        let policies = self.policies.keys().map(|(t, id)| vec!["policy".into(), t.to_string(), id.to_string()]);
        let proposals = self.proposals.keys().map(|id| vec!["proposal".into(), id.clone()]);
        let versions = self.versions.keys().map(|(id, n)| vec!["version".into(), id.clone(), n.to_string()]);
        let toggles =
            self.toggles.keys().map(|(t, p, l)| vec!["toggle".into(), t.to_string(), p.to_string(), l.to_string()]);
        let overrides = self.overrides.keys().map(|id| vec!["override".into(), id.clone()]);
        let silences = self.silences.keys().map(|id| vec!["silence".into(), id.clone()]);
        let superseded = self.superseded.keys().map(|id| vec!["superseded".into(), id.clone()]);
        let single = self.set.iter().flat_map(|_| [vec!["set".into()], vec!["in-force".into()]]);
        let all: BTreeSet<Vec<String>> = policies
            .chain(proposals)
            .chain(versions)
            .chain(toggles)
            .chain(overrides)
            .chain(silences)
            .chain(superseded)
            .chain(single)
            .collect();
        self.dirty.extend(all);
    }

    fn item(&self, name: &[String]) -> Option<Item> {
        let parts: Vec<&str> = name.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["set"] => self.set.clone().map(Item::Set),
            ["in-force"] => {
                self.set.as_ref().map(|_| Item::InForce { revision: self.revision, activated_at: self.activated_at })
            }
            ["policy", tenant, id] => {
                let (key, held) = self.policies.get_key_value(&((*tenant).into(), (*id).into()))?;
                Some(Item::Policy(key.0.clone(), key.1.clone(), Box::new(held.clone())))
            }
            ["proposal", id] => self.proposals.get(*id).map(|p| Item::Proposal(Box::new(p.clone()))),
            ["version", id, n] => {
                self.versions.get(&((*id).to_owned(), n.parse().ok()?)).map(|v| Item::Version(Box::new(v.clone())))
            }
            ["toggle", tenant, policy, limit] => {
                let key = ((*tenant).into(), (*policy).into(), (*limit).into());
                self.toggles.get(&key).map(|t| Item::Toggle(key.0.clone(), key.1.clone(), key.2.clone(), t.clone()))
            }
            ["override", id] => self.overrides.get(*id).map(|o| Item::Override(Box::new(o.clone()))),
            ["silence", id] => self.silences.get(*id).map(|s| Item::Silence(Box::new(s.clone()))),
            ["superseded", id] => self.superseded.get(*id).map(|at| Item::Superseded((*id).to_owned(), *at)),
            _ => None,
        }
    }

    /// Takes one item back; [`Self::restored`] comes after the last.
    pub fn restore(&mut self, item: Item) {
        match item {
            Item::Set(set) => self.set = Some(set),
            Item::Policy(tenant, id, held) => drop(self.policies.insert((tenant, id), *held)),
            Item::Proposal(p) => drop(self.proposals.insert(p.proposal_id.clone(), *p)),
            Item::Version(v) => drop(self.versions.insert((v.proposal_id.clone(), v.version), *v)),
            Item::Toggle(tenant, policy, limit, toggle) => drop(self.toggles.insert((tenant, policy, limit), toggle)),
            Item::Override(o) => drop(self.overrides.insert(o.override_id.clone(), *o)),
            Item::Silence(s) => drop(self.silences.insert(s.silence_id.clone(), *s)),
            Item::Superseded(id, at) => drop(self.superseded.insert(id, at)),
            Item::InForce { revision, activated_at } => (self.revision, self.activated_at) = (revision, activated_at),
        }
    }

    /// After the last item: makes the snapshot again, which is not a new one.
    pub fn restored(&mut self) {
        self.snapshot = self.made().map(Arc::new);
        self.silencing = self.silences_in_force();
        self.count_ends();
    }
}

/// Whether `by` may touch what belongs to `tenant`.
fn within(by: &By, tenant: &str) -> Result<(), Refusal> {
    if by.tenant == "*" || by.tenant == tenant {
        return Ok(());
    }
    Err(Refusal::new("tenant", format!("a command of tenant {} may not touch what belongs to {tenant}", by.tenant)))
}

/// Whether `by` has the authority.
fn authority(by: &By, required: u8) -> Result<(), Refusal> {
    if by.authority >= required {
        return Ok(());
    }
    let reason = format!("this takes authority {required}, and {} was given", by.authority);
    Err(Refusal { required: Some(required), ..Refusal::new("authority", reason) })
}

/// GOV-POL-001: what may not become ACTIVE.
fn free_of_conflict(found: Conflicts) -> Result<(), Refusal> {
    let blocking: Vec<Conflict> = found.blocking().cloned().collect();
    let Some(first) = blocking.first() else { return Ok(()) };
    let more = if blocking.len() > 1 { format!(" (and {} more)", blocking.len() - 1) } else { String::new() };
    let reason =
        format!("GOV-POL-001: nothing becomes ACTIVE while a BLOCKING conflict exists: {}{more}", first.explanation);
    Err(Refusal { conflicts: blocking, ..Refusal::new("conflict", reason) })
}

/// GOV-POL-002: what may not be deleted.
fn free_of_dependents(dependents: Vec<DependencyEdge>) -> Result<(), Refusal> {
    let Some(first) = dependents.first() else { return Ok(()) };
    let reason = format!("GOV-POL-002: nothing that others depend on is deleted: {}", first.explanation);
    Err(Refusal { dependents, ..Refusal::new("dependents", reason) })
}

fn in_force(policy: &Policy) -> bool {
    policy.status == Status::Active
}
