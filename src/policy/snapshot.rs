//! An immutable set of terms: policies, metric texts, prices and settings under one content-addressed id.
//!
//! Invariant: equal content has the equal id, whatever the order it was given in; where a policy was read (file, line) is
//! carried along but is not content.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Micros;

use super::index::Index;
use super::model::Policy;

/// The namespace of every id of ours: UUIDv5 of `urn:runwarden` in the URL namespace.
pub fn namespace() -> Uuid {
    static NAMESPACE: LazyLock<Uuid> = LazyLock::new(|| Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:runwarden"));
    *NAMESPACE
}

/// Why stored bytes are not a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not the JSON of a snapshot.
    #[error("not the JSON of a snapshot")]
    Json(#[from] serde_json::Error),
    /// The content is another than the id says.
    #[error("the content has the id {actual}, the record says {claimed}: it was changed after it was written")]
    Changed {
        /// The id in the record.
        claimed: String,
        /// The id of the content.
        actual: String,
    },
}

/// What is hashed, and stored with the id beside it. Field order is the canonical order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Content<P> {
    policies: Vec<P>,
    metrics: BTreeMap<String, String>,
    prices: String,
    settings: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    suspended: Vec<Suspension>,
}

/// A policy that an override takes out of force (P7): for one tenant, or for all with `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Suspension {
    /// Whose runs and groups are not held to it.
    pub tenant: Arc<str>,
    /// Tenant of the policy.
    pub policy_tenant: Arc<str>,
    /// The policy.
    pub policy_id: Arc<str>,
}

/// The stored form.
#[derive(Serialize, Deserialize)]
struct Stored<P> {
    snapshot_id: String,
    content: Content<P>,
}

/// The terms in force between two step boundaries. See [`Snapshot::effective`] for what they give.
#[derive(Debug, Clone)]
pub struct Snapshot {
    id: Arc<str>,
    content: Content<Arc<Policy>>,
    pub(super) index: Index,
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.content == other.content
    }
}

impl Snapshot {
    /// Makes a snapshot. `metrics` are the texts of the metric queries by name; `prices` and `settings` are opaque here.
    /// Of two policies with one (tenant, id) the first counts; [`super::PolicySet`] refuses such.
    pub fn new(policies: Vec<Policy>, metrics: BTreeMap<String, String>, prices: &str, settings: &str) -> Self {
        let mut policies: Vec<Arc<Policy>> = policies.into_iter().map(Arc::new).collect();
        policies.sort_by(|a, b| (&a.tenant, &a.id).cmp(&(&b.tenant, &b.id)));
        policies.dedup_by(|b, a| a.tenant == b.tenant && a.id == b.id);
        let (prices, settings) = (prices.to_owned(), settings.to_owned());
        Self::of(Content { policies, metrics, prices, settings, suspended: Vec::new() })
    }

    /// The same terms, of which these policies are out of force while it lasts.
    #[must_use]
    pub fn suspending(self, mut suspended: Vec<Suspension>) -> Self {
        suspended.sort();
        suspended.dedup();
        Self::of(Content { suspended, ..self.content })
    }

    /// Whether an override takes a policy out of force for a tenant.
    pub fn suspends(&self, tenant: &str, policy_tenant: &str, policy_id: &str) -> bool {
        let of = |s: &Suspension| *s.policy_tenant == *policy_tenant && *s.policy_id == *policy_id;
        self.content.suspended.iter().any(|s| of(s) && (&*s.tenant == "*" || *s.tenant == *tenant))
    }

    fn of(content: Content<Arc<Policy>>) -> Self {
        let bare = Content {
            policies: content.policies.iter().map(|p| p.content()).collect::<Vec<_>>(),
            metrics: content.metrics.clone(),
            prices: content.prices.clone(),
            settings: content.settings.clone(),
            suspended: content.suspended.clone(),
        };
        let id: Arc<str> = Arc::from(Uuid::new_v5(&namespace(), &canonical(&bare)).to_string());
        let index = Index::build(&content.policies, &id);
        Self { id, content, index }
    }

    /// The id, a UUID in text.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The policies by tenant and id, those that do not count included.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.content.policies
    }

    /// One policy.
    pub fn policy(&self, tenant: &str, id: &str) -> Option<&Arc<Policy>> {
        let at = self.content.policies.binary_search_by(|p| (&*p.tenant, &*p.id).cmp(&(tenant, id))).ok()?;
        self.content.policies.get(at)
    }

    /// Whether it holds this limit of this version.
    pub fn holds(&self, tenant: &str, policy: &str, version: u32, limit: &str) -> bool {
        let held = self.policy(tenant, policy).filter(|p| p.version == version);
        held.is_some_and(|p| p.limits.iter().any(|l| *l.id == *limit))
    }

    /// Texts of the metric queries by name.
    pub fn metrics(&self) -> &BTreeMap<String, String> {
        &self.content.metrics
    }

    /// Prices, as given.
    pub fn prices(&self) -> &str {
        &self.content.prices
    }

    /// Settings, as given.
    pub fn settings(&self) -> &str {
        &self.content.settings
    }

    /// Whether any policy that counts states when it is active, so that limits depend on the event time.
    pub fn has_active_windows(&self) -> bool {
        !self.index.timed.is_empty()
    }

    /// Whether a policy that counts and enforces has the strategy FAIL_CLOSED, so that limits may be ambiguous.
    pub fn may_be_ambiguous(&self) -> bool {
        self.index.fails_closed
    }

    /// Which of the policies that state `active` are so at an instant: one bit each, equal exactly when the limits at two
    /// instants are equal. Part of a key under which results of [`Self::effective`] may be kept; empty without such.
    pub fn active_at(&self, at: Micros) -> Vec<u64> {
        let mut bits = vec![0_u64; self.index.timed.len().div_ceil(64)];
        for (n, policy) in self.index.timed.iter().enumerate() {
            let active = self.content.policies.get(*policy as usize).and_then(|p| p.active.as_ref());
            if active.is_none_or(|a| a.contains(at))
                && let Some(word) = bits.get_mut(n / 64)
            {
                *word |= 1 << (n % 64);
            }
        }
        bits
    }

    /// The snapshot as JSON, whole; equal snapshots give equal bytes.
    pub fn to_json(&self) -> String {
        let stored = Stored { snapshot_id: self.id.to_string(), content: self.content.clone() };
        String::from_utf8(canonical(&stored)).unwrap_or_default()
    }

    /// Reads what [`Self::to_json`] wrote; fields it does not know are ignored.
    ///
    /// # Errors
    /// When it is not the JSON of a snapshot, or its content is not what its id says.
    pub fn from_json(json: &str) -> Result<Self, SnapshotError> {
        let stored: Stored<Policy> = serde_json::from_str(json)?;
        let Content { policies, metrics, prices, settings, suspended } = stored.content;
        let snapshot = Self::new(policies, metrics, &prices, &settings).suspending(suspended);
        if *snapshot.id != *stored.snapshot_id {
            return Err(SnapshotError::Changed { claimed: stored.snapshot_id, actual: snapshot.id.to_string() });
        }
        Ok(snapshot)
    }
}

/// JSON in declaration order, maps by key.
#[expect(
    clippy::expect_used,
    reason = "maps have text keys, writers are memory, and no type here refuses to be written"
)]
fn canonical<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data")
}
