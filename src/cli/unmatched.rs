//! Policies in force that govern nothing so far (X2).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::pipeline::LimitSets;

/// Policies by (tenant, id).
pub(super) type Policies = BTreeSet<(Arc<str>, Arc<str>)>;

/// How far the limit sets of a partition were looked at: how many, of which generation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Looked(usize, u64);

impl Looked {
    /// Whether there are limit sets not looked at yet.
    pub(super) fn is_behind(self, limits: &LimitSets) -> bool {
        let (sets, generation) = limits.sets();
        generation != self.1 || sets.len() > self.0
    }

    /// Takes the policies of new limit sets from those that matched nothing.
    pub(super) fn look(&mut self, limits: &LimitSets, unmatched: &mut Policies) {
        let (sets, generation) = limits.sets();
        let looked = if generation == self.1 { self.0 } else { 0 };
        let new = sets.get(looked..).unwrap_or_default();
        for considered in new.iter().flat_map(|set| &set.ambiguous).flat_map(|a| &a.considered) {
            unmatched.retain(|(tenant, id)| *tenant != considered.policy_tenant || *id != considered.policy_id);
        }
        for limit in new.iter().flat_map(|set| &set.limits) {
            unmatched.retain(|(tenant, id)| {
                let gave = limit.contributors.iter().any(|c| c.policy_tenant == *tenant && c.policy_id == *id);
                !gave && (limit.policy_tenant != *tenant || limit.policy_id != *id)
            });
        }
        *self = Self(sets.len(), generation);
    }
}
