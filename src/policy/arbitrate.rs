//! Arbitration: which limits hold for one run or group, and why (P4; *Arbitration*, `policies.md`).
//!
//! Among the enforcing limits (BLOCK mode and an effect) of one metric and one kind of enforcement there is one outcome; every
//! other limit is evaluated alone and never changes an enforced result. Pure, and independent of the order of policies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::amount::Amount;
use super::model::{
    Alerts, Category, Enforcement, Limit, LimitStatus, Mode, OnBreach, OnFailure, Policy, RuleType, Status, Strategy,
};
use crate::clock::Micros;

/// Which policy gave which part of a limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contributor {
    /// Policy id.
    pub policy_id: String,
    /// Of `max`, `near`, `action`.
    pub gave: Vec<String>,
}

/// How a limit fared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    /// Policy id.
    pub policy_id: String,
    /// Limit id.
    pub limit_id: String,
    /// won, lost or alone.
    pub outcome: String,
    /// In words.
    pub why: String,
}

/// One limit in force for a run or group: a row of the lookup table the threshold SQL joins on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EffectiveLimit {
    /// Metric name.
    pub metric: String,
    /// Limit that gave `max`.
    pub limit_id: String,
    /// Its type.
    pub limit_type: String,
    /// Its category.
    pub category: Category,
    /// Tenant of its policy.
    pub policy_tenant: String,
    /// Its policy.
    pub policy_id: String,
    /// Version of that.
    pub policy_version: u32,
    /// Snapshot it was taken from.
    pub snapshot_id: String,
    /// Rule type of its policy.
    pub rule_type: RuleType,
    /// Mode of its policy.
    pub mode: Mode,
    /// What a breach does.
    pub enforcement: Enforcement,
    /// The intervention, arbitrated.
    pub on_breach: OnBreach,
    /// The maximum, arbitrated.
    pub max: Amount,
    /// NEAR as a share of `max`.
    pub near: Amount,
    /// The NEAR line itself, arbitrated: exact.
    pub near_at: Amount,
    /// Who gave what.
    pub contributors: Vec<Contributor>,
    /// Every limit that competed.
    pub considered: Vec<Considered>,
    /// Whether missing inputs stop.
    pub fail_closed: bool,
    /// After a breach the scope stays rejected so long.
    pub cooldown_seconds: u64,
    /// For DEGRADE.
    pub fallback_model: Option<String>,
    /// Where alerts go.
    pub alerts: Alerts,
}

impl EffectiveLimit {
    /// Whether a breach orders an intervention.
    pub fn intervenes(&self) -> bool {
        self.mode == Mode::Block && self.enforcement == Enforcement::Block && self.on_breach != OnBreach::None
    }

    /// Whether a breach holds new work of the scope back.
    pub fn holds_back(&self) -> bool {
        self.mode == Mode::Block
            && matches!(self.enforcement, Enforcement::Reject | Enforcement::Queue | Enforcement::Degrade)
    }
}

/// FAIL_CLOSED could not order these limits: stop at binding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ambiguity {
    /// Metric name.
    pub metric: String,
    /// The policies, in order.
    pub policies: Vec<String>,
}

/// The limits in force for a run or group, in deterministic order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LimitSet {
    /// One per arbitrated outcome and per limit evaluated alone.
    pub limits: Vec<EffectiveLimit>,
    /// What FAIL_CLOSED refused to order.
    pub ambiguous: Vec<Ambiguity>,
}

/// A limit that competes, with its policy and the snapshot both come from.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub policy: &'a Policy,
    pub limit: &'a Limit,
    pub snapshot: &'a str,
}

impl<'a> Candidate<'a> {
    /// Lowest first: every tie goes this way.
    fn rank(&self) -> (i64, &'a str, &'a str, &'a str) {
        (self.policy.precedence, &self.policy.tenant, &self.policy.id, &self.limit.id)
    }

    fn near_at(&self) -> Amount {
        self.limit.max.near_line(self.limit.near)
    }

    fn enforcing(&self) -> bool {
        self.policy.enforcement_mode == Mode::Block
            && match self.limit.enforcement {
                Enforcement::Block => self.limit.on_breach != OnBreach::None,
                Enforcement::Reject | Enforcement::Queue | Enforcement::Degrade => true,
                Enforcement::Warn | Enforcement::Alert => false,
            }
    }

    fn alone(&self, outcome: &str, why: String) -> EffectiveLimit {
        let (policy, limit) = (self.policy, self.limit);
        let gave = ["max", "near", "action"].map(str::to_owned).to_vec();
        EffectiveLimit {
            metric: limit.metric.clone(),
            limit_id: limit.id.clone(),
            limit_type: limit.limit_type.clone(),
            category: limit.category,
            policy_tenant: policy.tenant.clone(),
            policy_id: policy.id.clone(),
            policy_version: policy.version,
            snapshot_id: self.snapshot.to_owned(),
            rule_type: policy.rule_type,
            mode: policy.enforcement_mode,
            enforcement: limit.enforcement,
            on_breach: limit.on_breach,
            max: limit.max,
            near: limit.near,
            near_at: self.near_at(),
            contributors: vec![Contributor { policy_id: policy.id.clone(), gave }],
            considered: vec![self.considered(outcome, why)],
            fail_closed: policy.on_failure == OnFailure::Closed,
            cooldown_seconds: limit.cooldown_seconds,
            fallback_model: limit.fallback_model.clone(),
            alerts: policy.alerts.clone(),
        }
    }

    fn considered(&self, outcome: &str, why: String) -> Considered {
        Considered {
            policy_id: self.policy.id.clone(),
            limit_id: self.limit.id.clone(),
            outcome: outcome.to_owned(),
            why,
        }
    }
}

/// Whether a policy's limits count at all at `at`.
pub(super) fn in_force(policy: &Policy, limit: &Limit, at: Option<Micros>) -> bool {
    policy.status == Status::Active
        && policy.enforcement_mode != Mode::Disabled
        && limit.status == LimitStatus::Active
        && at.is_none_or(|at| policy.active.as_ref().is_none_or(|a| a.at(at)))
}

/// Arbitrates candidates that match and are in force.
pub(super) fn arbitrate(mut candidates: Vec<Candidate<'_>>) -> LimitSet {
    candidates.sort_by(|a, b| a.rank().cmp(&b.rank()));
    let mut groups: BTreeMap<(&str, Enforcement), Vec<Candidate<'_>>> = BTreeMap::new();
    let mut set = LimitSet::default();
    for candidate in candidates {
        if candidate.enforcing() {
            groups.entry((&candidate.limit.metric, candidate.limit.enforcement)).or_default().push(candidate);
        } else {
            let why = format!("{} is evaluated alone", candidate.policy.enforcement_mode);
            set.limits.push(candidate.alone("alone", why));
        }
    }
    for ((metric, _), group) in groups {
        let Some(first) = group.first() else { continue };
        match first.policy.conflict_strategy {
            Strategy::MostRestrictive => set.limits.push(most_restrictive(&group)),
            Strategy::ExplicitPriority => set.limits.push(explicit_priority(&group)),
            Strategy::FailClosed => {
                if ambiguous(&group) {
                    let policies = group.iter().map(|c| c.policy.id.clone()).collect();
                    set.ambiguous.push(Ambiguity { metric: metric.to_owned(), policies });
                } else {
                    set.limits.push(explicit_priority(&group));
                }
            }
        }
    }
    set.limits.sort_by(|a, b| {
        let key = |l: &EffectiveLimit| (l.metric.clone(), l.policy_tenant.clone(), l.policy_id.clone(), l.limit_id.clone());
        key(a).cmp(&key(b))
    });
    set
}

/// Smallest `max`, smallest `near × max`, harshest action, each from whichever policy has it.
fn most_restrictive(group: &[Candidate<'_>]) -> EffectiveLimit {
    // min_by keeps the first of equals, and the group is in rank order
    let first = |f: &dyn Fn(&Candidate<'_>) -> Amount| {
        (0..group.len()).min_by_key(|i| f(&group[*i])).unwrap_or(0)
    };
    let by_max = first(&|c| c.limit.max);
    let by_near = first(&|c| c.near_at());
    let by_action = (0..group.len()).rev().max_by_key(|i| group[*i].limit.on_breach).unwrap_or(0);
    let mut limit = group[by_max].alone("won", "smallest limit".to_owned());
    limit.near_at = group[by_near].near_at();
    limit.near = limit.near_at.ratio(limit.max).unwrap_or(limit.near);
    if by_near == by_max {
        limit.near = group[by_max].limit.near;
    }
    limit.on_breach = group[by_action].limit.on_breach;
    let mut gave: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (index, what) in [(by_max, "max"), (by_near, "near"), (by_action, "action")] {
        gave.entry(index).or_default().push(what.to_owned());
    }
    limit.contributors = gave
        .iter()
        .map(|(i, gave)| Contributor { policy_id: group[*i].policy.id.clone(), gave: gave.clone() })
        .collect();
    limit.considered = (0..group.len())
        .map(|i| match gave.get(&i) {
            Some(parts) => group[i].considered("won", format!("most restrictive in {}", parts.join(", "))),
            None => group[i].considered("lost", format!("{} is less restrictive", group[i].limit.max)),
        })
        .collect();
    limit
}

/// The limit of the lowest precedence, whole; equal precedence falls back to the smallest `max`.
fn explicit_priority(group: &[Candidate<'_>]) -> EffectiveLimit {
    let lowest = group[0].policy.precedence;
    let winner = (0..group.len())
        .take_while(|i| group[*i].policy.precedence == lowest)
        .min_by_key(|i| group[*i].limit.max)
        .unwrap_or(0);
    let mut limit = group[winner].alone("won", format!("lowest precedence, {lowest}"));
    limit.considered = (0..group.len())
        .map(|i| {
            let precedence = group[i].policy.precedence;
            if i == winner {
                group[i].considered("won", format!("lowest precedence, {precedence}"))
            } else if precedence == lowest {
                group[i].considered("lost", "equal precedence, larger limit".to_owned())
            } else {
                group[i].considered("lost", format!("precedence {precedence} is above {lowest}"))
            }
        })
        .collect();
    limit
}

/// Equal precedence with different max, near or action.
fn ambiguous(group: &[Candidate<'_>]) -> bool {
    let first = &group[0];
    group
        .iter()
        .take_while(|c| c.policy.precedence == first.policy.precedence)
        .any(|c| (c.limit.max, c.limit.near, c.limit.on_breach) != (first.limit.max, first.limit.near, first.limit.on_breach))
}
