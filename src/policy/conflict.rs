//! What contradicts what in a set of policies (P9): pairs that meet on a run, each with a run that both bind as proof.
//!
//! "Same scope" means that a run exists which both policies bind, at an instant at which both are active; where there is no such
//! run there is no conflict. The rules are those of the table in the manual: [`ConflictType`] says each. They look at policies
//! with status ACTIVE only.
//!
//! Policies that bind the same runs at the same times are of one *class*; classes that meet are found through their ids
//! ([`pairs`]), so that the work grows with the policies and with the conflicts there are, not with the square of the policies.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::clock::Micros;

use super::active::Active;
use super::model::{Policy, Status};
use super::names::names;
use super::reach::{Reach, Witness};

use pairs::Member;

mod coincide;
mod pairs;
mod rules;

/// Most conflicts reported of one type: more are not read by anyone, and their number may be the square of the policies.
pub const MAX_CONFLICTS: usize = 1_000;
/// Most reasons given for one pair.
const MAX_REASONS: usize = 3;

names! {
    /// What kind of contradiction it is. The severity follows from it.
    ConflictType {
        /// Same scope and rule type, different enforcement mode.
        ScopeOverlap = "SCOPE_OVERLAP",
        /// Same metric, limit type, scope and enforcement, equal precedence, different `max`, and a strategy that cannot order
        /// them. Only limits that enforce compete, so only they contradict.
        ThresholdContradiction = "THRESHOLD_CONTRADICTION",
        /// Both state `active`, the times overlap, and modes or limits differ on one scope.
        TemporalConflict = "TEMPORAL_CONFLICT",
        /// One that comes later by precedence never takes effect, or contradicts one that goes first.
        PriorityOverride = "PRIORITY_OVERRIDE",
    }
}
names! {
    /// What a conflict keeps from happening. Ordered: BLOCKING first.
    ConflictSeverity {
        /// Neither may become ACTIVE beside the other (GOV-POL-001).
        Blocking = "BLOCKING",
        /// A person should look.
        Warning = "WARNING",
    }
}

impl ConflictType {
    /// The severity of every conflict of this type.
    pub fn severity(self) -> ConflictSeverity {
        match self {
            Self::ThresholdContradiction => ConflictSeverity::Blocking,
            Self::ScopeOverlap | Self::TemporalConflict | Self::PriorityOverride => ConflictSeverity::Warning,
        }
    }
}

/// Two policies that contradict each other. A pair has at most one conflict of a type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The one that prevails, or the stricter.
    pub policy_a_id: String,
    /// The other.
    pub policy_b_id: String,
    /// Name of the first.
    pub policy_a_name: String,
    /// Name of the second.
    pub policy_b_name: String,
    /// Tenant of the first; ids are unique within it.
    pub policy_a_tenant: String,
    /// Tenant of the second.
    pub policy_b_tenant: String,
    /// Its kind.
    pub conflict_type: ConflictType,
    /// That of its kind.
    pub severity: ConflictSeverity,
    /// Why it is a conflict.
    pub explanation: String,
    /// How to resolve it.
    pub recommended_action: String,
    /// A run that both bind.
    pub witness: Witness,
}

/// The conflicts of a set: BLOCKING first, then by type and by the policies' tenants and ids.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Conflicts {
    /// At most [`MAX_CONFLICTS`] of each type.
    pub conflicts: Vec<Conflict>,
    /// How many of them are BLOCKING.
    pub unresolved_count: usize,
    /// Whether these are all there are; otherwise there may be more of a type that has [`MAX_CONFLICTS`].
    pub complete: bool,
}

impl Conflicts {
    /// Those that forbid activation.
    pub fn blocking(&self) -> impl Iterator<Item = &Conflict> {
        self.conflicts.iter().filter(|c| c.severity == ConflictSeverity::Blocking)
    }
}

/// Every conflict within a set. Policies that are not ACTIVE are left out; of two with one (tenant, id) the first counts.
pub fn conflicts<'p>(policies: impl IntoIterator<Item = &'p Policy>) -> Conflicts {
    Engine::new(policies.into_iter().collect(), None).run()
}

/// The conflicts that a candidate has with the ACTIVE policies, as if it were ACTIVE itself (GOV-POL-001). Another version of the
/// candidate among them is left out: the candidate takes its place. Conflicts among the others are not reported.
pub fn conflicts_with<'p>(active: impl IntoIterator<Item = &'p Policy>, candidate: &'p Policy) -> Conflicts {
    let same = |p: &Policy| p.tenant == candidate.tenant && p.id == candidate.id;
    let others = active.into_iter().filter(|p| !same(p)).collect();
    Engine::new(others, Some(candidate)).run()
}

/// What is found about one pair.
struct Found {
    /// The first, by the limits or actions that contradict.
    reasons: BTreeMap<(u32, u32), String>,
    more: usize,
    action: &'static str,
    witness: Witness,
}

struct Engine<'p> {
    /// By (tenant, id), those that can bind a run.
    policies: Vec<&'p Policy>,
    /// Of each policy.
    classes: Vec<u32>,
    /// Of each class.
    reaches: Arc<Vec<Reach<'p>>>,
    /// Of each class.
    actives: Vec<Option<&'p Active>>,
    /// The candidate's class, which is its own; only pairs with it are looked at.
    only: Option<u32>,
    times: FxHashMap<(u32, u32), Option<Micros>>,
    found: BTreeMap<(ConflictType, u32, u32), Found>,
    counts: BTreeMap<ConflictType, usize>,
    complete: bool,
}

impl<'p> Engine<'p> {
    fn new(mut policies: Vec<&'p Policy>, candidate: Option<&'p Policy>) -> Self {
        policies.retain(|p| p.status == Status::Active);
        policies.extend(candidate);
        policies.sort_by(|a, b| (&a.tenant, &a.id).cmp(&(&b.tenant, &b.id)));
        policies.dedup_by(|b, a| a.tenant == b.tenant && a.id == b.id);
        let (mut kept, mut classes) = (Vec::with_capacity(policies.len()), Vec::with_capacity(policies.len()));
        let (mut reaches, mut actives) = (Vec::new(), Vec::new());
        let mut only = None;
        let mut known = FxHashMap::default();
        for policy in policies {
            let is_candidate = candidate.is_some_and(|c| std::ptr::eq(c, policy));
            let key = (&*policy.tenant, &policy.scope, policy.active.as_ref(), is_candidate);
            // a policy that binds no run or is never active meets nothing
            let class = *known.entry(key).or_insert_with(|| {
                let reach = Reach::of(policy)?;
                if policy.active.is_some() {
                    Active::common(policy.active.as_ref(), None)?;
                }
                reaches.push(reach);
                actives.push(policy.active.as_ref());
                u32::try_from(reaches.len() - 1).ok()
            });
            if let Some(class) = class {
                only = only.or(is_candidate.then_some(class));
                kept.push(policy);
                classes.push(class);
            }
        }
        if candidate.is_some() && only.is_none() {
            (kept, classes) = Default::default();
        }
        Self {
            policies: kept,
            classes,
            reaches: Arc::new(reaches),
            actives,
            only,
            times: FxHashMap::default(),
            found: BTreeMap::new(),
            counts: BTreeMap::new(),
            complete: true,
        }
    }

    fn run(mut self) -> Conflicts {
        self.scope_overlaps();
        self.threshold_contradictions();
        self.temporal_conflicts();
        self.priority_overrides();
        self.contrary_actions();
        let complete = self.complete;
        let policy = |n: u32| self.policies.get(n as usize).copied();
        let mut conflicts: Vec<Conflict> = self
            .found
            .into_iter()
            .filter_map(|((conflict_type, a, b), found)| {
                let (a, b) = (policy(a)?, policy(b)?);
                let mut explanation = found.reasons.into_values().collect::<Vec<_>>().join("; ");
                if found.more > 0 {
                    explanation.push_str(&format!("; and {} more", found.more));
                }
                Some(Conflict {
                    policy_a_id: a.id.to_string(),
                    policy_b_id: b.id.to_string(),
                    policy_a_name: a.name.clone(),
                    policy_b_name: b.name.clone(),
                    policy_a_tenant: a.tenant.to_string(),
                    policy_b_tenant: b.tenant.to_string(),
                    conflict_type,
                    severity: conflict_type.severity(),
                    explanation,
                    recommended_action: found.action.to_owned(),
                    witness: found.witness,
                })
            })
            .collect();
        conflicts.sort_by_key(|c| c.severity);
        let mut conflicts = Conflicts { conflicts, unresolved_count: 0, complete };
        conflicts.unresolved_count = conflicts.blocking().count();
        conflicts
    }

    /// An instant at which policies of both classes are active, and `None` within when any is.
    fn instant(&mut self, a: u32, b: u32) -> Option<Option<Micros>> {
        let active = |class: u32| self.actives.get(class as usize).copied().flatten();
        let (one, other) = (active(a), active(b));
        if one.is_none() && other.is_none() {
            return Some(None);
        }
        let times = &mut self.times;
        let at = *times.entry((a.min(b), a.max(b))).or_insert_with(|| Active::common(one, other));
        at.map(Some)
    }

    /// Whether policies of class `a` bind whatever those of class `b` do, whenever they do.
    fn covers(&self, a: u32, b: u32) -> bool {
        let active = |class: u32| self.actives.get(class as usize).copied().flatten();
        let times = match (active(a), active(b)) {
            (None, _) => true,
            (Some(a), Some(b)) => a.covers(b),
            (Some(a), None) => a.covers(&Active::default()),
        };
        let reach = |class: u32| self.reaches.get(class as usize);
        times && reach(a).zip(reach(b)).is_some_and(|(a, b)| a.covers(b))
    }

    /// Whether no more conflicts of a type are kept; what is not looked at any more is said in the result.
    fn full(&mut self, of: ConflictType) -> bool {
        let full = self.counts.get(&of).is_some_and(|n| *n >= MAX_CONFLICTS);
        if full {
            self.complete = false;
        }
        full
    }

    /// Records that two policies whose classes meet at `at` contradict each other.
    fn add(
        &mut self,
        of: ConflictType,
        (a, b): (Member, Member),
        at: Option<Micros>,
        reason: impl FnOnce(&Policy, &Policy) -> String,
        action: &'static str,
    ) {
        let parts = (a.1, b.1);
        let (a, b) = (a.0, b.0);
        let class = |n: u32| self.classes.get(n as usize).and_then(|class| self.reaches.get(*class as usize));
        let policy = |n: u32| self.policies.get(n as usize).copied();
        let (Some(reaches), Some(policies)) = (class(a).zip(class(b)), policy(a).zip(policy(b))) else { return };
        if let Some(found) = self.found.get_mut(&(of, a, b)) {
            // whichever way the pair is visited, the same reasons are given
            found.reasons.insert(parts, reason(policies.0, policies.1));
            if found.reasons.len() > MAX_REASONS {
                found.reasons.pop_last();
                found.more += 1;
            }
            return;
        }
        let witness = Witness { at, ..reaches.0.witness(reaches.1) };
        let reasons = BTreeMap::from([(parts, reason(policies.0, policies.1))]);
        if !self.full(of) {
            *self.counts.entry(of).or_default() += 1;
            self.found.insert((of, a, b), Found { reasons, more: 0, action, witness });
        }
    }
}

#[cfg(test)]
mod tests;
