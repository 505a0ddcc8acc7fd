//! What the register is made of and speaks of: items as they are kept, orders, and what follows from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::{Micros, time};
use crate::policy::conflict::Conflict;
use crate::policy::depend::DependencyEdge;
use crate::policy::model::{LimitStatus, Policy};
use crate::policy::names::names;
use crate::policy::silence::Silence;
use crate::policy::snapshot::Snapshot;

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
    /// `policy proposal version limit override silence snapshot set in-force`
    pub kind: &'static str,
    /// What, in parts.
    pub id: Vec<String>,
    /// Its revision; 0 where it has none.
    pub revision: u64,
    /// Its state as JSON, with every digit of amounts; `None`: gone.
    pub record: Option<String>,
}

impl Change {
    pub(super) fn gone(tenant: impl Into<String>, kind: &'static str, id: Vec<String>) -> Self {
        Self { tenant: tenant.into(), kind, id, revision: 0, record: None }
    }

    pub(super) fn of(
        tenant: impl Into<String>,
        kind: &'static str,
        id: Vec<String>,
        revision: u64,
        of: &impl Serialize,
    ) -> Self {
        Self { record: Some(text(of)), revision, ..Self::gone(tenant, kind, id) }
    }
}

/// JSON text. What is kept here can be written as JSON.
pub(super) fn text(of: &impl Serialize) -> String {
    serde_json::to_string(of).unwrap_or_default()
}

/// The JSON text of an object with more fields before its own.
pub(super) fn text_with(fields: &Value, of: &impl Serialize) -> String {
    let (more, own) = (fields.to_string(), text(of));
    format!("{},{}", more.strip_suffix('}').unwrap_or(&more), own.strip_prefix('{').unwrap_or(&own))
}

/// A step of something's life, for the audit.
#[derive(Debug, Clone, PartialEq)]
pub struct Act {
    /// Such as `proposal.approved`.
    pub kind: &'static str,
    /// `proposal policy limit override silence set`
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
    Silence(Box<Silence>),
    Superseded(String, Micros),
    InForce { revision: u64, activated_at: Micros },
}
