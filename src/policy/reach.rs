//! Which runs a policy can bind, as sets that can be compared: whether two policies meet on a run, and whether one binds
//! every run the other does.

use serde::Serialize;

use super::model::Policy;
use super::scope::{Key, Who};

/// What stands for a key that must be there and may be anything.
const ANY: &str = "any";

/// The runs a policy can bind: for each key the ids it admits, and whether the key must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reach<'p> {
    /// Sorted; `None`: any.
    ids: [Option<Vec<&'p str>>; Key::COUNT],
    needed: [bool; Key::COUNT],
}

impl<'p> Reach<'p> {
    /// `None` when the policy binds no run at all. See [`admitted`] for which key is at fault.
    pub fn of(policy: &'p Policy) -> Option<Self> {
        let mut needed = [false; Key::COUNT];
        for (key, _) in policy.scope.conditions().into_iter().flatten() {
            needed[key as usize] = true;
        }
        needed[Key::Tenant as usize] = true;
        let ids = Key::ALL.map(|key| admitted(policy, key));
        if ids.iter().flatten().any(Vec::is_empty) { None } else { Some(Self { ids, needed }) }
    }

    /// The ids it admits for a key, sorted; `None`: any.
    pub fn ids(&self, key: Key) -> Option<&[&'p str]> {
        self.ids[key as usize].as_deref()
    }

    /// Whether one run can be bound by both.
    pub fn meets(&self, other: &Self) -> bool {
        Key::ALL.into_iter().all(|key| match (self.ids(key), other.ids(key)) {
            (Some(a), Some(b)) => first_common(a, b).is_some(),
            _ => true,
        })
    }

    /// Whether it binds every run that `other` binds.
    pub fn covers(&self, other: &Self) -> bool {
        Key::ALL.into_iter().all(|key| {
            let there = !self.needed[key as usize] || other.needed[key as usize];
            there
                && match (self.ids(key), other.ids(key)) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(a), Some(b)) => b.iter().all(|id| a.binary_search(id).is_ok()),
                }
        })
    }

    /// A run that both bind; meaningful where they meet.
    pub fn witness(&self, other: &Self) -> Witness {
        let key = |key: Key| {
            let id = match (self.ids(key), other.ids(key)) {
                (Some(a), Some(b)) => first_common(a, b),
                (Some(ids), None) | (None, Some(ids)) => ids.first().copied(),
                (None, None) => (self.needed[key as usize] || other.needed[key as usize]).then_some(ANY),
            };
            id.map(str::to_owned)
        };
        Witness {
            tenant_id: key(Key::Tenant).unwrap_or_default(),
            project_id: key(Key::Project),
            agent_id: key(Key::Agent),
            api_key_id: key(Key::Credential),
            human_actor_id: key(Key::Human),
            provider: key(Key::Provider),
            at: None,
        }
    }
}

/// The first id of two sorted lists that is in both: the shorter is looked up in the longer.
fn first_common<'p>(a: &[&'p str], b: &[&'p str]) -> Option<&'p str> {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    short.iter().copied().find(|id| long.binary_search(id).is_ok())
}

/// The ids a policy admits for a key, sorted; `None`: any; empty: it matches nothing. Tenant, level and `who` may all select
/// by one key.
pub(super) fn admitted(policy: &Policy, key: Key) -> Option<Vec<&str>> {
    let own = (key == Key::Tenant && &*policy.tenant != "*").then(|| vec![&*policy.tenant]);
    let conditions = policy.scope.conditions().into_iter().flatten().filter(|(k, ids)| *k == key && !ids.is_empty());
    own.into_iter()
        .chain(conditions.map(|(_, ids)| ids.iter().map(String::as_str).collect()))
        .reduce(|before, ids| before.into_iter().filter(|id| ids.binary_search(id).is_ok()).collect())
}

/// A run that two policies both bind, as proof that they meet. A key that is `None` may be anything or absent; the id `any`
/// stands for one that must be there and may be anything.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Witness {
    /// `tenant_id`
    pub tenant_id: String,
    /// `project_id`
    pub project_id: Option<String>,
    /// `agent_id`
    pub agent_id: Option<String>,
    /// `api_key_id`
    pub api_key_id: Option<String>,
    /// `human_actor_id`
    pub human_actor_id: Option<String>,
    /// `provider`
    pub provider: Option<String>,
    /// An instant at which both are active; `None`: any, for neither states `active`.
    #[serde(serialize_with = "super::active::instant::serialize")]
    pub at: Option<crate::clock::Micros>,
}

impl Witness {
    /// The keys, as policies select by them.
    pub fn who(&self) -> Who<'_> {
        Who {
            tenant: &self.tenant_id,
            project: self.project_id.as_deref(),
            agent: self.agent_id.as_deref(),
            api_key: self.api_key_id.as_deref(),
            human: self.human_actor_id.as_deref(),
            provider: self.provider.as_deref(),
        }
    }
}

impl std::fmt::Display for Witness {
    /// `tenant acme, agent planner, at 2026-01-05T21:00:00.000000Z`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tenant {}", self.tenant_id)?;
        for (name, id) in [
            ("project", &self.project_id),
            ("agent", &self.agent_id),
            ("API key", &self.api_key_id),
            ("person", &self.human_actor_id),
            ("provider", &self.provider),
        ] {
            if let Some(id) = id {
                write!(f, ", {name} {id}")?;
            }
        }
        match self.at {
            Some(at) => write!(f, ", at {}", super::active::format_instant(at)),
            None => Ok(()),
        }
    }
}
