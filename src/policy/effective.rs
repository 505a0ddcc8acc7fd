//! The limits of one run or one group: which policies match, at which moment they were bound, and what is left after
//! arbitration.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Micros;

use super::amount::Amount;
use super::arbitrate::{Candidate, LimitSet, settle};
use super::model::{Binding, Policy};
use super::scope::{Scope, Who};
use super::snapshot::Snapshot;

/// The snapshots of the moments at which a run binds policies.
#[derive(Debug, Clone)]
pub struct BoundTerms {
    /// In force when the run started; of a run that was never seen starting, at first sight.
    pub run_start: Option<Arc<Snapshot>>,
    /// In force at its first token; `None` before it.
    pub first_token: Option<Arc<Snapshot>>,
    /// In force now.
    pub each_step: Arc<Snapshot>,
}

impl Snapshot {
    /// The limits on metrics of one scope for the holder of `who`, of which only the keys that the scope has are looked at.
    /// `metrics` gives the scope of a metric, `None` for an unknown one, whose limits are left out. `at` is the event time
    /// that judges `active`; without it every policy is active. `filter` says which policies of this snapshot count.
    pub fn effective(
        &self,
        who: &Who<'_>,
        scope: Scope,
        metrics: &dyn Fn(&str) -> Option<Scope>,
        at: Option<Micros>,
        filter: &dyn Fn(&Policy) -> bool,
    ) -> LimitSet {
        let mut candidates = Vec::new();
        let filter = |p: &Policy| filter(p) && !self.suspends(who.tenant, &p.tenant, &p.id);
        self.collect(&who.within(scope), scope, metrics, at, &filter, &mut candidates);
        settle(candidates)
    }

    /// For each metric the smallest NEAR line that any matching limit has, whatever its mode, binding and active time: no
    /// lower value can raise a level. Zero where a limit forecasts, which may raise at any value.
    pub fn floors(
        &self,
        who: &Who<'_>,
        scope: Scope,
        metrics: &dyn Fn(&str) -> Option<Scope>,
    ) -> BTreeMap<Arc<str>, Amount> {
        let mut candidates = Vec::new();
        self.collect(&who.within(scope), scope, metrics, None, &|_| true, &mut candidates);
        let mut floors = BTreeMap::new();
        for candidate in candidates {
            let row = &candidate.known.row;
            let floor = row.floor();
            floors.entry(row.metric.clone()).and_modify(|f: &mut Amount| *f = floor.min(*f)).or_insert(floor);
        }
        floors
    }

    fn collect<'s>(
        &'s self,
        who: &Who<'_>,
        scope: Scope,
        metrics: &dyn Fn(&str) -> Option<Scope>,
        at: Option<Micros>,
        filter: &dyn Fn(&Policy) -> bool,
        candidates: &mut Vec<Candidate<'s>>,
    ) {
        self.index.visit(self.policies(), who, |position, policy| {
            let active = match (at, &policy.active) {
                (Some(at), Some(active)) => active.contains(at),
                _ => true,
            };
            if active && filter(policy) {
                let limits = self.index.candidates(position, policy);
                candidates.extend(limits.filter(|c| metrics(&c.limit.metric) == Some(scope)));
            }
        });
    }
}

/// The limits on run-scope metrics under the terms a run is bound to. Each policy counts once, from the snapshot of its own
/// binding moment: one that bound this run at its start keeps those terms even if its binding was changed since. Of an
/// override, the terms in force now decide: it reaches runs that are bound already.
pub fn effective_run(
    terms: &BoundTerms,
    who: &Who<'_>,
    metrics: &dyn Fn(&str) -> Option<Scope>,
    at: Option<Micros>,
) -> LimitSet {
    let bound = |snapshot: Option<&Arc<Snapshot>>, binding: Binding, policy: &Policy| {
        snapshot
            .and_then(|s| s.policy(&policy.tenant, &policy.id))
            .is_some_and(|p| p.binding == binding && p.counts() && p.scope.matches(who))
    };
    let suspended = |p: &Policy| terms.each_step.suspends(who.tenant, &p.tenant, &p.id);
    let (start, token) = (terms.run_start.as_ref(), terms.first_token.as_ref());
    let mut candidates = Vec::new();
    let same = |s: &Option<&Arc<Snapshot>>| s.is_none_or(|s| s.id() == terms.each_step.id());
    if same(&start) && same(&token) {
        // one snapshot at every moment: each policy counts once by itself, most of the time
        let filter = |p: &Policy| {
            let bound = match p.binding {
                Binding::RunStart => start.is_some(),
                Binding::FirstToken => token.is_some(),
                Binding::EachStep => true,
            };
            bound && !suspended(p)
        };
        terms.each_step.collect(who, Scope::Run, metrics, at, &filter, &mut candidates);
        return settle(candidates);
    }
    if let Some(snapshot) = start {
        let filter = |p: &Policy| p.binding == Binding::RunStart && !suspended(p);
        snapshot.collect(who, Scope::Run, metrics, at, &filter, &mut candidates);
    }
    if let Some(snapshot) = token {
        let filter =
            |p: &Policy| p.binding == Binding::FirstToken && !bound(start, Binding::RunStart, p) && !suspended(p);
        snapshot.collect(who, Scope::Run, metrics, at, &filter, &mut candidates);
    }
    let filter = |p: &Policy| {
        p.binding == Binding::EachStep
            && !bound(start, Binding::RunStart, p)
            && !bound(token, Binding::FirstToken, p)
            && !suspended(p)
    };
    terms.each_step.collect(who, Scope::Run, metrics, at, &filter, &mut candidates);
    settle(candidates)
}

#[cfg(test)]
mod tests;
