//! A policy set as it is in force: immutable, content-addressed, and what it gives to one run or group.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::arbitrate::{Candidate, LimitSet, arbitrate, in_force};
use super::model::{Binding, Policy};
use super::scope::{Scope, Who};
use crate::clock::Micros;

/// Why a snapshot cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not a snapshot of this version.
    #[error("not a snapshot: {0}")]
    Json(#[from] serde_json::Error),
    /// Its content is not what its id says.
    #[error("the snapshot {said} has the content of {is}")]
    Content {
        /// Id it carries.
        said: String,
        /// Id of its content.
        is: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Content {
    policies: Vec<Policy>,
    /// (file, text) of the queries that decide.
    queries: Vec<(String, String)>,
    prices: String,
    settings: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    id: String,
    content: Content,
}

/// An immutable policy set with the queries, prices and settings it was made with.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    id: String,
    content: Content,
}

impl Snapshot {
    /// Of policies in any order.
    pub fn new(mut policies: Vec<Policy>, queries: Vec<(String, String)>, prices: String, settings: String) -> Self {
        policies.sort_by(|a, b| (&a.tenant, &a.id).cmp(&(&b.tenant, &b.id)));
        let content = Content { policies, queries, prices, settings };
        Self { id: id_of(&content), content }
    }

    /// UUIDv5 of the content.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The policies, ordered by tenant and id.
    pub fn policies(&self) -> &[Policy] {
        &self.content.policies
    }

    /// As it is stored in checkpoints and on the policies topic.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&Stored { id: self.id.clone(), content: self.content.clone() }).unwrap_or_default()
    }

    /// Reads it back.
    ///
    /// # Errors
    /// Text that is no snapshot, or whose content is not what its id says.
    pub fn from_json(text: &str) -> Result<Self, SnapshotError> {
        let stored: Stored = serde_json::from_str(text)?;
        let is = id_of(&stored.content);
        if is != stored.id {
            return Err(SnapshotError::Content { said: stored.id, is });
        }
        Ok(Self { id: stored.id, content: stored.content })
    }

    /// Whether any policy holds only at times.
    pub fn has_active_windows(&self) -> bool {
        self.content.policies.iter().any(|p| p.active.is_some())
    }

    /// Which of the time-bound policies hold at `at`, as a number: equal where the answer is.
    pub fn active_key(&self, at: Micros) -> u64 {
        let timed = self.content.policies.iter().filter_map(|p| p.active.as_ref());
        // FNV-1a: equal sequences of answers, equal keys
        timed.fold(0xcbf2_9ce4_8422_2325, |hash, a| (hash ^ u64::from(a.at(at))).wrapping_mul(0x0000_0100_0000_01b3))
    }

    /// Whether it holds this limit of this version.
    pub fn holds(&self, tenant: &str, policy: &str, version: u32, limit: &str) -> bool {
        self.content.policies.iter().any(|p| {
            p.tenant == tenant && p.id == policy && p.version == version && p.limits.iter().any(|l| l.id == limit)
        })
    }

    /// The limits of a group of a wider metric: policies that match the group's own keys. `metrics` gives the scope of a
    /// metric; `at` judges active times (`None`: all count as active).
    pub fn effective(
        &self,
        who: &Who<'_>,
        scope: Scope,
        metrics: &dyn Fn(&str) -> Option<Scope>,
        at: Option<Micros>,
    ) -> LimitSet {
        let mut candidates = Vec::new();
        self.collect(who, scope, metrics, at, None, &mut candidates);
        arbitrate(candidates)
    }

    fn collect<'a>(
        &'a self,
        who: &Who<'_>,
        scope: Scope,
        metrics: &dyn Fn(&str) -> Option<Scope>,
        at: Option<Micros>,
        binding: Option<Binding>,
        out: &mut Vec<Candidate<'a>>,
    ) {
        for policy in &self.content.policies {
            if binding.is_some_and(|b| b != policy.binding) || !policy.scope.matches(&policy.tenant, who) {
                continue;
            }
            for limit in &policy.limits {
                if in_force(policy, limit, at) && metrics(&limit.metric) == Some(scope) {
                    out.push(Candidate { policy, limit, snapshot: &self.id });
                }
            }
        }
    }
}

fn id_of(content: &Content) -> String {
    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:runwarden");
    let text = serde_json::to_vec(content).unwrap_or_default();
    Uuid::new_v5(&namespace, &text).to_string()
}

/// The snapshots a run is bound to, by binding moment (P5).
#[derive(Debug, Clone)]
pub struct BoundTerms {
    /// In force at `run.started`, or at first sight.
    pub run_start: Arc<Snapshot>,
    /// In force at `run.first_token`, or at first sight.
    pub first_token: Arc<Snapshot>,
    /// In force now.
    pub each_step: Arc<Snapshot>,
}

impl BoundTerms {
    /// The run's limits: each policy counts once, from the snapshot of its own binding moment.
    pub fn effective(&self, who: &Who<'_>, metrics: &dyn Fn(&str) -> Option<Scope>, at: Option<Micros>) -> LimitSet {
        let mut candidates = Vec::new();
        for (snapshot, binding) in [
            (&self.run_start, Binding::RunStart),
            (&self.first_token, Binding::FirstToken),
            (&self.each_step, Binding::EachStep),
        ] {
            snapshot.collect(who, Scope::Run, metrics, at, Some(binding), &mut candidates);
        }
        // a policy whose binding changed between snapshots would count twice: the earlier moment holds it
        let mut seen = std::collections::BTreeSet::new();
        candidates.retain(|c| seen.insert((c.policy.tenant.clone(), c.policy.id.clone(), c.limit.id.clone())));
        arbitrate(candidates)
    }
}
