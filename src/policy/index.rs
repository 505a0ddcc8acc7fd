//! Finds the policies that can match without visiting the others.
//!
//! Every policy that counts is posted once under its tenant: under each id of its most selective condition, or among those
//! that select by no id. A look-up visits the postings of `*` and of the tenant under the keys at hand, and asks the
//! selector itself. Maps are looked up, never iterated.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::arbitrate::{Candidate, Row};
use super::model::{LimitStatus, Policy, Strategy};
use super::scope::{Key, Who};

#[derive(Debug, Clone, Default)]
struct Postings {
    any: Vec<u32>,
    by_id: [FxHashMap<String, Vec<u32>>; Key::COUNT],
}

/// The index of one snapshot. Numbers are positions among its policies.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    tenants: FxHashMap<Arc<str>, Postings>,
    /// The row of each limit that counts, as it is when nothing competes; by policy.
    rows: Vec<Vec<Row>>,
    /// Policies that count and state when they are active.
    pub timed: Vec<u32>,
    /// Some policy that counts and enforces has the strategy FAIL_CLOSED.
    pub fails_closed: bool,
}

impl Index {
    pub fn build(policies: &[Arc<Policy>], snapshot_id: &Arc<str>) -> Self {
        let mut index = Self { rows: vec![Vec::new(); policies.len()], ..Self::default() };
        for (position, (policy, rows)) in (0_u32..).zip(policies.iter().zip(&mut index.rows)) {
            if !policy.counts() {
                continue;
            }
            let (alerts, monitor) = (Arc::new(policy.alerts.clone()), Arc::new(policy.monitor.clone()));
            *rows = (0_u32..)
                .zip(&policy.limits)
                .filter(|(_, limit)| limit.status == LimitStatus::Active)
                .map(|limit| Row::new(limit, policy, snapshot_id, &alerts, &monitor))
                .collect();
            if rows.is_empty() {
                continue;
            }
            if policy.active.is_some() {
                index.timed.push(position);
            }
            index.fails_closed |= policy.conflict_strategy == Strategy::FailClosed
                && policy.limits.iter().any(|limit| limit.status == LimitStatus::Active && policy.enforces(limit));
            let postings = index.tenants.entry(policy.tenant.clone()).or_default();
            // who before level: ids of agents and keys select more than those of tenants and projects
            match policy.scope.conditions().into_iter().flatten().find(|(_, ids)| !ids.is_empty()) {
                None => postings.any.push(position),
                Some((key, ids)) => {
                    for id in ids {
                        postings.by_id[key as usize].entry(id.clone()).or_default().push(position);
                    }
                }
            }
        }
        index.place(policies);
        index
    }

    /// Gives every limit its place in the order of arbitration.
    fn place(&mut self, policies: &[Arc<Policy>]) {
        let mut places: Vec<(usize, usize)> =
            self.rows.iter().enumerate().flat_map(|(p, rows)| (0..rows.len()).map(move |n| (p, n))).collect();
        let candidate = |(p, n): &(usize, usize)| -> Option<Candidate<'_>> {
            let (policy, known) = (policies.get(*p)?, self.rows.get(*p)?.get(*n)?);
            Some(Candidate { policy, limit: policy.limits.get(known.limit as usize)?, known, place: known.place })
        };
        places.sort_by(|a, b| match (candidate(a), candidate(b)) {
            (Some(a), Some(b)) => a.order(&b),
            _ => a.cmp(b),
        });
        for (place, (p, n)) in (0_u32..).zip(places) {
            if let Some(row) = self.rows.get_mut(p).and_then(|rows| rows.get_mut(n)) {
                row.place = place;
            }
        }
    }

    /// Visits each policy that matches the keys, once, in no particular order.
    pub fn visit<'s>(
        &'s self,
        policies: &'s [Arc<Policy>],
        who: &Who<'_>,
        mut each: impl FnMut(usize, &'s Arc<Policy>),
    ) {
        let own = if who.tenant == "*" { None } else { self.tenants.get(who.tenant) };
        for postings in [self.tenants.get("*"), own].into_iter().flatten() {
            let by_id = Key::ALL.iter().filter_map(|key| {
                let ids = &postings.by_id[*key as usize];
                if ids.is_empty() { None } else { ids.get(who.key(*key)?) }
            });
            for position in std::iter::once(&postings.any).chain(by_id).flatten() {
                let position = *position as usize;
                if let Some(policy) = policies.get(position).filter(|p| p.scope.matches(who)) {
                    each(position, policy);
                }
            }
        }
    }

    /// The limits of a policy that count, with their rows.
    pub fn candidates<'s>(&'s self, position: usize, policy: &'s Arc<Policy>) -> impl Iterator<Item = Candidate<'s>> {
        self.rows.get(position).into_iter().flatten().filter_map(move |known| {
            let limit = policy.limits.get(known.limit as usize)?;
            Some(Candidate { policy, limit, known, place: known.place })
        })
    }
}
