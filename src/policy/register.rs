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

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::{Micros, time};

use super::conflict::{Conflict, Conflicts};
use super::depend::DependencyEdge;
use super::model::{LimitStatus, Policy, Status};
use super::names::names;
use super::snapshot::{Snapshot, Suspension};

mod overrides;
pub(super) mod proposals;
mod sets;
#[cfg(test)]
mod tests;

/// A superseded snapshot stays on the topic this long: 60 days.
const SNAPSHOTS_KEPT: Micros = 60 * 24 * 3_600 * crate::clock::SECOND;
/// What ended is remembered this long: 60 days as well.
const ENDED_KEPT: Micros = SNAPSHOTS_KEPT;
/// Most items of one kind: proposals and overrides are made by people.
const MOST: usize = 100_000;

names! {
    /// Where a policy in the register came from.
    Provenance {
        /// From a set of files.
        Set = "SET",
        /// From a proposal that was approved.
        Proposal = "PROPOSAL",
    }
}
names! {
    /// Where a proposal stands (P8).
    ProposalStatus {
        /// Waits for a person.
        Draft = "DRAFT",
        /// Its policy is, or was, put in force.
        Active = "ACTIVE",
        /// A person said no; kept for audit.
        Rejected = "REJECTED",
        /// Its policy was taken out of force.
        Retired = "RETIRED",
    }
}
names! {
    /// Where an override stands.
    OverrideStatus {
        /// It holds.
        Active = "ACTIVE",
        /// Its time is over.
        Expired = "EXPIRED",
        /// Someone ended it.
        Revoked = "REVOKED",
    }
}

/// Who acts, when, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// `user:<name>`, `service:<name>`, `system:<name>`
    pub principal: String,
    /// 1 to 5.
    pub authority: u8,
    /// On behalf of which tenant; `*` may touch all.
    pub tenant: String,
    /// The step's clock, µs.
    pub at: Micros,
    /// In their words.
    pub reason: String,
    /// Id of the command; what it makes is known by it.
    pub command_id: String,
}

/// Everything of a set beside its policies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Terms {
    /// Texts of the queries by name.
    pub queries: BTreeMap<String, String>,
    /// The price table; empty without one.
    pub prices: String,
    /// Decision settings, opaque here.
    pub settings: String,
}

/// The set in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetInfo {
    /// From `set.yaml`.
    pub generation: u64,
    /// SHA-256 over everything it carries, in hexadecimal.
    pub digest: String,
    /// When it was applied.
    #[serde(with = "time")]
    pub applied_at: Micros,
    /// By whom.
    pub applied_by: String,
    /// Its queries, prices and settings.
    pub terms: Terms,
}

/// A set to be applied.
#[derive(Debug, Clone, PartialEq)]
pub struct SetOrder {
    /// From `set.yaml`.
    pub generation: u64,
    /// SHA-256 over everything it carries.
    pub digest: String,
    /// Its policies.
    pub policies: Vec<Policy>,
    /// The rest.
    pub terms: Terms,
}

/// A policy of the register.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// `None`: deleted, or no longer in the set; its versions go on counting.
    pub policy: Option<Policy>,
    /// Last version.
    pub version: u32,
    /// Where it came from.
    pub origin: Provenance,
    /// The proposal that put it in force.
    pub proposal_id: Option<String>,
    /// When it last changed.
    #[serde(with = "time")]
    pub changed_at: Micros,
    /// By whom.
    pub changed_by: String,
}

/// A proposal: the life of one policy under people's decisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The id of the command that made it.
    pub proposal_id: String,
    /// Counts up with each change.
    pub revision: u64,
    /// Tenant of the policy.
    pub tenant_id: String,
    /// The policy.
    pub policy_id: String,
    /// Where it stands.
    pub status: ProposalStatus,
    /// Why it was proposed.
    pub rationale: String,
    /// When.
    #[serde(with = "time")]
    pub created_at: Micros,
    /// By whom.
    pub created_by: String,
    /// When a person last decided on it.
    #[serde(with = "time::option")]
    pub decided_at: Option<Micros>,
    /// Who.
    pub decided_by: Option<String>,
    /// Why.
    pub decision_reason: Option<String>,
    /// The version that waits for a person.
    pub draft_version: Option<u32>,
    /// The version that counts: the one in force, else the latest draft. Exactly one version `is_current`.
    pub current_version: u32,
    /// How many there are.
    pub versions: u32,
}

/// A version of a proposal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Whose.
    pub proposal_id: String,
    /// 1, 2, 3 …
    pub version: u32,
    /// Exactly one of a proposal is.
    pub is_current: bool,
    /// Where it stands.
    pub status: ProposalStatus,
    /// When it was made.
    #[serde(with = "time")]
    pub created_at: Micros,
    /// By whom.
    pub created_by: String,
    /// What is proposed.
    pub policy: Policy,
}

/// The state that a person gave a limit; it outlives new versions of its policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toggle {
    /// ACTIVE or DISABLED.
    pub status: LimitStatus,
    /// When.
    #[serde(with = "time")]
    pub changed_at: Micros,
    /// By whom.
    pub changed_by: String,
    /// Why.
    pub reason: String,
}

/// An override (P7): a policy out of force for a tenant for some minutes. Expires by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The id of the command that granted it.
    pub override_id: String,
    /// 1 while it holds, 2 when it ended.
    pub revision: u64,
    /// Whose runs and groups are not held to the policy; `*`: nobody's.
    pub tenant_id: String,
    /// Tenant of the policy.
    pub policy_tenant: String,
    /// The policy.
    pub policy_id: String,
    /// Where it stands.
    pub status: OverrideStatus,
    /// Why.
    pub reason: String,
    /// Who granted it.
    pub granted_by: String,
    /// With which authority.
    pub authority: u8,
    /// When.
    #[serde(with = "time")]
    pub granted_at: Micros,
    /// Until when.
    #[serde(with = "time")]
    pub expires_at: Micros,
    /// When it ended.
    #[serde(with = "time::option")]
    pub ended_at: Option<Micros>,
    /// Who ended it; null when its time was over.
    pub ended_by: Option<String>,
}

/// Why something is refused. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Refusal {
    /// Machine-readable.
    pub code: &'static str,
    /// In words.
    pub reason: String,
    /// The BLOCKING conflicts (GOV-POL-001).
    pub conflicts: Vec<Conflict>,
    /// What depends on it (GOV-POL-002).
    pub dependents: Vec<DependencyEdge>,
    /// The authority it takes, when that is what was missing.
    pub required: Option<u8>,
}

impl Refusal {
    /// With a code and words.
    pub fn new(code: &'static str, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), ..Self::default() }
    }
}

/// A record of the policies topic: `tenant/kind/id`.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Whose.
    pub tenant: String,
    /// `policy proposal version limit override snapshot set in-force`
    pub kind: &'static str,
    /// What.
    pub id: String,
    /// Its state; `None`: gone.
    pub record: Option<Value>,
}

/// A step of something's life, for the audit.
#[derive(Debug, Clone, PartialEq)]
pub struct Act {
    /// Such as `proposal.approved`.
    pub kind: &'static str,
    /// `proposal policy limit override set`
    pub subject: &'static str,
    /// Its id.
    pub id: String,
    /// Its tenant.
    pub tenant: String,
    /// Who, when it is not who sent the command.
    pub principal: Option<String>,
    /// State before.
    pub before: Value,
    /// State after.
    pub after: Value,
    /// Why.
    pub reason: String,
}

/// What follows from an accepted order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Effects {
    /// For whoever asked.
    pub result: Value,
    /// For the policies topic, in order.
    pub changes: Vec<Change>,
    /// For the audit, in order.
    pub acts: Vec<Act>,
    /// The snapshot that is in force from now on, if it is another.
    pub activated: Option<Arc<Snapshot>>,
}

/// What the register must be told of the world: what is wrong with policies under given queries.
pub struct Order<'a> {
    /// Who.
    pub by: &'a By,
    /// Faults of these policies under these terms, in words; empty: none.
    pub faults: &'a dyn Fn(&[&Policy], &Terms) -> Vec<String>,
}

/// One item as it is kept: the name is unique among all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is the type of the same name")]
pub enum Item {
    Set(SetInfo),
    Policy(Arc<str>, Arc<str>, Box<Held>),
    Proposal(Box<Proposal>),
    Version(Box<Version>),
    Toggle(Arc<str>, Arc<str>, Arc<str>, Toggle),
    Override(Box<Override>),
    Superseded(String, Micros),
    InForce { revision: u64, activated_at: Micros },
}

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
    superseded: BTreeMap<String, Micros>,
    revision: u64,
    activated_at: Micros,
    /// `None` until the first set is applied.
    snapshot: Option<Arc<Snapshot>>,
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

    /// A policy that is not deleted.
    pub fn policy(&self, tenant: &str, id: &str) -> Option<&Held> {
        self.policies.get(&(tenant.into(), id.into())).filter(|held| held.policy.is_some())
    }

    /// When something ends by itself next.
    pub fn next_end(&self) -> Option<Micros> {
        let overrides = self.overrides.values().filter(|o| o.status == OverrideStatus::Active).map(|o| o.expires_at);
        let snapshots = self.superseded.values().map(|at| at.saturating_add(SNAPSHOTS_KEPT));
        let ended = self.overrides.values().filter_map(|o| o.ended_at).map(|at| at.saturating_add(ENDED_KEPT));
        overrides.chain(snapshots).chain(ended).min()
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
        let record = held.policy.as_ref().and_then(|policy| {
            let mut record = serde_json::to_value(policy).ok()?;
            let fields = record.as_object_mut()?;
            fields.insert("policy_id".into(), id.clone().into());
            fields.insert("tenant_id".into(), tenant.clone().into());
            fields.insert("revision".into(), version.into());
            fields.insert("origin".into(), json!(origin));
            fields.insert("proposal_id".into(), json!(held.proposal_id));
            fields.insert("changed_at".into(), crate::clock::rfc3339(by.at).into());
            fields.insert("changed_by".into(), by.principal.clone().into());
            Some(record)
        });
        effects.changes.push(Change { tenant: tenant.clone(), kind: "policy", id: id.clone(), record });
        for gone in gone.iter().filter(|gone| limits.iter().all(|l| l.id != **gone)) {
            self.toggles.remove(&(key.0.clone(), key.1.clone(), gone.clone()));
            self.dirty.insert(vec!["toggle".into(), tenant.clone(), id.clone(), gone.to_string()]);
            effects.changes.push(Change {
                tenant: tenant.clone(),
                kind: "limit",
                id: format!("{id}/{gone}"),
                record: None,
            });
        }
        for limit in &limits {
            let toggle = self.toggles.get(&(key.0.clone(), key.1.clone(), limit.id.clone()));
            let mut record = serde_json::to_value(limit).unwrap_or_default();
            if let Some(fields) = record.as_object_mut() {
                fields.insert("limit_id".into(), json!(limit.id));
                fields.insert("policy_id".into(), id.clone().into());
                fields.insert("tenant_id".into(), tenant.clone().into());
                fields.insert("revision".into(), version.into());
                fields.insert("changed_by".into(), json!(toggle.map(|t| &t.changed_by)));
                fields.insert("reason".into(), json!(toggle.map(|t| &t.reason)));
            }
            effects.changes.push(Change {
                tenant: tenant.clone(),
                kind: "limit",
                id: format!("{id}/{}", limit.id),
                record: Some(record),
            });
        }
        self.dirty.insert(vec!["policy".into(), tenant, id]);
        self.policies.insert(key, held);
    }

    /// Makes the snapshot anew; if it is another, it is in force from here on.
    fn settle(&mut self, by: &By, effects: &mut Effects) {
        let Some(set) = &self.set else { return };
        let Terms { queries, prices, settings } = &set.terms;
        let held = self.overrides.values().filter(|o| o.status == OverrideStatus::Active);
        let suspended = held.map(|o| Suspension {
            tenant: o.tenant_id.as_str().into(),
            policy_tenant: o.policy_tenant.as_str().into(),
            policy_id: o.policy_id.as_str().into(),
        });
        let snapshot = Snapshot::new(self.all().cloned().collect(), queries.clone(), prices, settings)
            .suspending(suspended.collect());
        let (before, id) = (self.snapshot.clone(), snapshot.id().to_string());
        let changed = before.as_ref().is_none_or(|old| **old.id() != *id);
        let generation = set.generation;
        let digest = set.digest.clone();
        if !changed && !effects.changes.iter().any(|c| c.kind == "set") {
            return;
        }
        if changed {
            self.revision += 1;
            self.activated_at = by.at;
            if let Some(old) = before {
                self.superseded.insert(old.id().to_string(), by.at);
                self.dirty.insert(vec!["superseded".into(), old.id().to_string()]);
            }
            if self.superseded.remove(&id).is_some() {
                self.dirty.insert(vec!["superseded".into(), id.clone()]);
            }
            self.dirty.insert(vec!["in-force".into()]);
        }
        let snapshot = Arc::new(snapshot);
        let whole: Value = serde_json::from_str(&snapshot.to_json()).unwrap_or_default();
        let every =
            |kind, id: &str, record| Change { tenant: "*".into(), kind, id: id.to_owned(), record: Some(record) };
        if changed {
            effects.changes.push(every("snapshot", &id, whole.clone()));
        }
        // whole in one record, so that whoever follows needs no other
        let in_force = json!({
            "revision": self.revision, "generation": generation, "digest": digest, "snapshot_id": id,
            "activated_at": crate::clock::rfc3339(self.activated_at), "activated_by": by.principal, "snapshot": whole,
        });
        effects.changes.push(every("in-force", "current", in_force));
        effects.activated = Some(Arc::clone(&snapshot));
        self.snapshot = Some(snapshot);
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
        let old: Vec<String> = self
            .superseded
            .iter()
            .filter(|(_, at)| at.saturating_add(SNAPSHOTS_KEPT) <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in old {
            self.superseded.remove(&id);
            self.dirty.insert(vec!["superseded".into(), id.clone()]);
            effects.changes.push(Change { tenant: "*".into(), kind: "snapshot", id, record: None });
        }
        self.settle(&by, &mut effects);
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
        let superseded = self.superseded.keys().map(|id| vec!["superseded".into(), id.clone()]);
        let single = self.set.iter().flat_map(|_| [vec!["set".into()], vec!["in-force".into()]]);
        let all: BTreeSet<Vec<String>> = policies
            .chain(proposals)
            .chain(versions)
            .chain(toggles)
            .chain(overrides)
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
            Item::Superseded(id, at) => drop(self.superseded.insert(id, at)),
            Item::InForce { revision, activated_at } => (self.revision, self.activated_at) = (revision, activated_at),
        }
    }

    /// After the last item: makes the snapshot again, which is not a new one.
    pub fn restored(&mut self) {
        if let Some(set) = &self.set {
            let Terms { queries, prices, settings } = &set.terms;
            let held = self.overrides.values().filter(|o| o.status == OverrideStatus::Active);
            let suspended = held.map(|o| Suspension {
                tenant: o.tenant_id.as_str().into(),
                policy_tenant: o.policy_tenant.as_str().into(),
                policy_id: o.policy_id.as_str().into(),
            });
            let snapshot = Snapshot::new(self.all().cloned().collect(), queries.clone(), prices, settings);
            self.snapshot = Some(Arc::new(snapshot.suspending(suspended.collect())));
        }
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
