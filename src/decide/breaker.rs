//! The blast-radius breaker (X4): a policy that would hold more than a share of a tenant's runs within a minute is put in shadow, and a
//! person is told. A wrong price must not stop the fleet.
//!
//! Time is event time. What trips it is not done any more, so the runs held stay at or below the share (or below the least number).
//! It stays tripped until its policy, the prices or the queries change: somebody must have looked.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND};

/// The time in which runs are counted.
const WITHIN: Micros = 60 * SECOND;

/// `[breaker]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// More than so many percent of the runs of a tenant.
    pub percent: u32,
    /// And at least so many runs.
    pub runs: u32,
}

impl Default for Share {
    fn default() -> Self {
        Self { percent: 50, runs: 5 }
    }
}

/// A policy of a tenant: tenant, the policy's tenant, its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Governed {
    /// Whose runs.
    pub tenant: String,
    /// Tenant of the policy.
    pub policy_tenant: String,
    /// The policy.
    pub policy_id: String,
}

/// What it did lately.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lately {
    /// The runs it held within the last minute, with the event time.
    held: BTreeMap<String, Micros>,
    /// Since when it is in shadow, of event time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tripped: Option<Micros>,
}

/// What the breaker says of one more run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be held.
    Go,
    /// It would be one too many: the policy is in shadow from here on.
    Trips {
        /// Runs held within the minute, this one included.
        held: usize,
        /// Runs of the tenant within the minute.
        active: usize,
    },
    /// The policy is in shadow.
    Tripped,
}

/// The breakers of one partition.
#[derive(Debug, Default)]
pub struct Breakers {
    share: Share,
    policies: BTreeMap<Governed, Lately>,
    dirty: BTreeSet<Governed>,
}

impl Breakers {
    /// With nothing tripped.
    pub fn new(share: Share) -> Self {
        Self { share, ..Self::default() }
    }

    /// Asks before a run is held at event time `at`, when so many runs of the tenant are active.
    pub fn ask(&mut self, policy: &Governed, run: &str, at: Micros, active: usize) -> Verdict {
        if let Some(lately) = self.policies.get(policy)
            && lately.tripped.is_some()
        {
            return Verdict::Tripped;
        }
        let since = at.saturating_sub(WITHIN);
        let lately = self.policies.entry(policy.clone()).or_default();
        lately.held.retain(|_, then| *then > since);
        self.dirty.insert(policy.clone());
        let again = lately.held.contains_key(run);
        let held = lately.held.len() + usize::from(!again);
        if !again && held >= self.share.runs as usize {
            let active = active.max(held);
            if held.saturating_mul(100) > active.saturating_mul(self.share.percent as usize) {
                lately.tripped = Some(at);
                return Verdict::Trips { held, active };
            }
        }
        lately.held.insert(run.to_owned(), at);
        Verdict::Go
    }

    /// Whether a policy is in shadow for a tenant.
    pub fn is_tripped(&self, policy: &Governed) -> bool {
        self.policies.get(policy).is_some_and(|lately| lately.tripped.is_some())
    }

    /// Puts those back in force that `changed` says somebody has looked after; gives those that were tripped.
    pub fn reset(&mut self, changed: impl Fn(&Governed) -> bool) -> Vec<Governed> {
        let gone: Vec<Governed> = self.policies.keys().filter(|policy| changed(policy)).cloned().collect();
        let mut were = Vec::new();
        for policy in gone {
            if self.policies.remove(&policy).is_some_and(|lately| lately.tripped.is_some()) {
                were.push(policy.clone());
            }
            self.dirty.insert(policy);
        }
        were
    }

    /// What changed since the last call; `None`: nothing is known any more.
    pub fn take_changes(&mut self) -> Vec<(Governed, Option<&Lately>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|policy| (policy.clone(), self.policies.get(&policy))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.policies.keys().cloned());
    }

    /// Takes one back.
    pub fn restore(&mut self, policy: Governed, lately: Lately) {
        self.policies.insert(policy, lately);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Governed {
        Governed { tenant: "acme".into(), policy_tenant: "*".into(), policy_id: "p".into() }
    }

    fn held(breakers: &mut Breakers, runs: usize, active: usize, pace: Micros) -> usize {
        (0..runs)
            .filter(|n| {
                let at = pace * i64::try_from(*n).unwrap();
                breakers.ask(&policy(), &format!("r{n}"), at, active) == Verdict::Go
            })
            .count()
    }

    #[test]
    fn it_trips_at_the_run_that_would_be_too_many_and_stays_so() {
        assert_eq!(held(&mut Breakers::default(), 100, 100, SECOND / 10), 50, "half of them");
        assert_eq!(held(&mut Breakers::default(), 8, 8, SECOND), 4, "the fifth of eight is more than half");
        assert_eq!(held(&mut Breakers::default(), 4, 4, SECOND), 4, "four are too few to judge by");
        assert_eq!(held(&mut Breakers::default(), 50, 10, 60 * SECOND), 50, "one a minute is no blast");
        let strict = Share { percent: 10, runs: 5 };
        assert_eq!(held(&mut Breakers::new(strict), 100, 100, SECOND / 10), 10);
    }

    #[test]
    fn it_is_per_policy_and_ends_when_somebody_has_looked_after_it_also_after_a_crash() {
        let mut breakers = Breakers::default();
        held(&mut breakers, 10, 10, SECOND);
        breakers.mark_all_dirty();
        let mut back = Breakers::default();
        for (policy, lately) in breakers.take_changes() {
            let lately = serde_json::to_string(lately.unwrap()).unwrap();
            back.restore(policy, serde_json::from_str(&lately).unwrap());
        }
        assert!(back.is_tripped(&policy()));
        let other = Governed { policy_id: "q".into(), ..policy() };
        assert_eq!(back.ask(&other, "r", 0, 10), Verdict::Go);
        assert!(back.reset(|_| false).is_empty() && back.is_tripped(&policy()));
        assert_eq!(back.reset(|p| p.policy_id == "p"), [policy()]);
        assert_eq!(back.ask(&policy(), "r", 0, 10), Verdict::Go);
    }
}
