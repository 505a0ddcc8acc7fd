//! The rules: which groups of policies are compared, when they contradict, and how that is said.

use std::ops::ControlFlow;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::policy::amount::Amount;
use crate::policy::arbitrate::action_text;
use crate::policy::fault::quoted;
use crate::policy::model::{Enforcement, Limit, LimitStatus, Mode, OnBreach, OnFailure, Policy, Strategy};

use super::coincide::{Coincide, coincide};
use super::pairs::{Buckets, Group, Member};
use super::{ConflictType, Engine};

const ALIGN_MODES: &str = "Align enforcement modes or narrow scopes";
const ORDER_THEM: &str = "Give them different precedences, the same max, or conflict_strategy MOST_RESTRICTIVE";
const PART_TIMES: &str = "Let their active times not overlap, or align modes and limits";
const REPLACE: &str = "Retire the one that loses, give it the lower precedence, or narrow the scope of the other";
const PART_CONDITIONS: &str = "Let their conditions exclude each other, or let one policy act";

/// What arbitration looks at in a limit, beside `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Terms<'p> {
    precedence: i64,
    strategy: Strategy,
    max: Amount,
    near: Amount,
    on_breach: OnBreach,
    fallback: Option<&'p str>,
    forecast: Option<u32>,
    cooldown: u64,
    closed: bool,
}

impl<'p> Terms<'p> {
    fn of(policy: &Policy, limit: &'p Limit) -> Self {
        Self {
            precedence: policy.precedence,
            strategy: policy.conflict_strategy,
            max: limit.max,
            near: limit.near,
            on_breach: limit.on_breach,
            fallback: limit.fallback_model.as_deref(),
            forecast: limit.near_forecast_minutes,
            cooldown: limit.cooldown_seconds,
            closed: policy.on_failure == OnFailure::Closed,
        }
    }

    /// Whether the two would have the same effect.
    fn same_effect(&self, other: &Self) -> bool {
        let effect = |t: &Self| (t.max, t.near, t.on_breach, t.cooldown, t.forecast);
        effect(self) == effect(other) && self.fallback == other.fallback
    }

    /// Whether nothing of `other` is left under MOST_RESTRICTIVE when this one goes first.
    fn as_strict_as(&self, other: &Self) -> bool {
        self.max <= other.max
            && self.max.product(self.near) <= other.max.product(other.near)
            && self.on_breach >= other.on_breach
            && self.forecast >= other.forecast
            && self.cooldown >= other.cooldown
            && self.closed >= other.closed
    }
}

/// How a mode is said of a policy.
fn verb(mode: Mode) -> &'static str {
    match mode {
        Mode::Block => "blocks",
        Mode::Warn => "warns",
        Mode::Audit => "audits",
        Mode::Disabled => "is disabled",
    }
}

fn modes(a: &Policy, b: &Policy) -> String {
    let (first, second) = (verb(a.enforcement_mode), verb(b.enforcement_mode));
    format!("Policy '{}' {first} while '{}' {second} on same scope", a.name, b.name)
}

/// The limits of a policy that count, with their numbers.
fn counting(policy: &Policy) -> impl Iterator<Item = (u32, &Limit)> {
    let counts = policy.counts();
    (0_u32..).zip(&policy.limits).filter(move |(_, limit)| counts && limit.status == LimitStatus::Active)
}

impl<'p> Engine<'p> {
    fn numbered(&self) -> impl Iterator<Item = (u32, u32, &'p Policy)> {
        (0_u32..).zip(&self.classes).zip(&self.policies).map(|((n, class), policy)| (n, *class, *policy))
    }

    fn policy(&self, (number, _): Member) -> Option<&'p Policy> {
        self.policies.get(number as usize).copied()
    }

    fn limit(&self, member: Member) -> Option<(&'p Policy, &'p Limit)> {
        let policy = self.policy(member)?;
        Some((policy, policy.limits.get(member.1 as usize)?))
    }

    /// Visits the pairs of members of groups that contradict, at an instant at which both are active, until enough are found.
    fn each<B: std::hash::Hash + Eq, K: std::hash::Hash + Eq + Copy>(
        &mut self,
        of: ConflictType,
        buckets: &Buckets<B, K>,
        contradict: impl Fn(&Self, &Group<K>, &Group<K>) -> bool,
        mut found: impl FnMut(&mut Self, Member, Member, Option<crate::clock::Micros>),
    ) {
        let reaches = Arc::clone(&self.reaches);
        buckets.each_pair(&reaches, self.only, |a, b| {
            if !contradict(self, a, b) {
                return ControlFlow::Continue(());
            }
            let Some(at) = self.instant(a.class, b.class) else { return ControlFlow::Continue(()) };
            for one in &a.members {
                for other in b.members.iter().filter(|other| other.0 != one.0) {
                    found(self, *one, *other, at);
                }
                if self.full(of) {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
    }

    /// Same scope and rule type, different enforcement mode. DISABLED counts: what it leaves unguarded the other guards.
    pub(super) fn scope_overlaps(&mut self) {
        let mut buckets = Buckets::new();
        for (n, class, policy) in self.numbered() {
            let mode = policy.enforcement_mode;
            buckets.add(policy.rule_type, class, mode as i128, mode, (n, 0));
        }
        let of = ConflictType::ScopeOverlap;
        self.each(
            of,
            &buckets,
            |_, _, _| true,
            |engine, a, b, at| engine.add_by_mode(of, a, b, at, modes, ALIGN_MODES),
        );
    }

    /// Records a pair, the one of the stricter mode first.
    fn add_by_mode(
        &mut self,
        of: ConflictType,
        a: Member,
        b: Member,
        at: Option<crate::clock::Micros>,
        reason: impl FnOnce(&Policy, &Policy) -> String,
        action: &'static str,
    ) {
        let mode = |m: Member| self.policy(m).map(|p| p.enforcement_mode);
        let (a, b) = if (mode(a), a.0) <= (mode(b), b.0) { (a, b) } else { (b, a) };
        self.add(of, (a, b), at, reason, action);
    }

    /// Same metric, limit type, scope and enforcement, equal precedence, different `max`, and a strategy that cannot order them:
    /// that of the first by tenant and id, as arbitration takes it.
    pub(super) fn threshold_contradictions(&mut self) {
        let mut buckets = Buckets::new();
        for (n, class, policy) in self.numbered() {
            let orders = policy.conflict_strategy == Strategy::MostRestrictive;
            for (l, limit) in counting(policy).filter(|(_, limit)| policy.enforces(limit)) {
                let bucket = (&*limit.metric, &*limit.limit_type, limit.enforcement, policy.precedence);
                buckets.add(bucket, class, limit.max.0, (limit.max, orders), (n, l));
            }
        }
        buckets.retain(|groups| groups.iter().any(|g| !g.key.1));
        let of = ConflictType::ThresholdContradiction;
        let contradict = |_: &Self, a: &Group<(Amount, bool)>, b: &Group<(Amount, bool)>| !(a.key.1 && b.key.1);
        self.each(of, &buckets, contradict, |engine, a, b, at| {
            let (a, b) = if a.0 < b.0 { (a, b) } else { (b, a) };
            let (Some((first, limit)), Some((_, rival))) = (engine.limit(a), engine.limit(b)) else { return };
            if first.conflict_strategy == Strategy::MostRestrictive {
                return;
            }
            let reason = |a: &Policy, b: &Policy| {
                format!(
                    "Policies '{}' and '{}' both {} {} ({}) at precedence {}, with max {} and {}, which {} cannot order",
                    a.name,
                    b.name,
                    limit.enforcement,
                    quoted(&limit.metric),
                    limit.limit_type,
                    a.precedence,
                    limit.max,
                    rival.max,
                    a.conflict_strategy
                )
            };
            engine.add(of, (a, b), at, reason, ORDER_THEM);
        });
    }

    /// Both state `active`, the times overlap, and modes or limits differ on one scope. Limits differ where both limit one
    /// metric, and not alike.
    pub(super) fn temporal_conflicts(&mut self) {
        let of = ConflictType::TemporalConflict;
        let timed = |p: &&Policy| p.active.is_some();
        let mut buckets = Buckets::new();
        for (n, class, policy) in self.numbered().filter(|(_, _, p)| timed(p)) {
            let mode = policy.enforcement_mode;
            buckets.add((), class, mode as i128, mode, (n, 0));
        }
        let reason = |a: &Policy, b: &Policy| format!("{} at the same time", modes(a, b));
        self.each(
            of,
            &buckets,
            |_, _, _| true,
            |engine, a, b, at| {
                engine.add_by_mode(of, a, b, at, reason, PART_TIMES);
            },
        );

        let mut numbers = FxHashMap::default();
        let mut buckets = Buckets::new();
        for (n, class, policy) in self.numbered().filter(|(_, _, p)| timed(p)) {
            let mut limits: Vec<&Limit> = counting(policy).map(|(_, limit)| limit).collect();
            limits.sort_by(|a, b| (&a.metric, a.enforcement, a.max).cmp(&(&b.metric, b.enforcement, b.max)));
            for alike in limits.chunk_by(|a, b| a.metric == b.metric) {
                let terms: Vec<_> = alike.iter().map(|l| (l.enforcement, l.max, l.near, l.on_breach)).collect();
                let next = i128::try_from(numbers.len()).unwrap_or(i128::MAX);
                let number = *numbers.entry(terms).or_insert(next);
                let place = alike.first().and_then(|first| policy.limits.iter().position(|l| std::ptr::eq(l, *first)));
                let place = place.and_then(|p| u32::try_from(p).ok()).unwrap_or(0);
                if let Some(first) = alike.first() {
                    buckets.add((&*first.metric, policy.enforcement_mode), class, number, number, (n, place));
                }
            }
        }
        self.each(of, &buckets, |_, _, _| true, |engine, a, b, at| {
            let (Some((_, one)), Some((_, other))) = (engine.limit(a), engine.limit(b)) else { return };
            let (one, other) = if a.0 < b.0 { (one, other) } else { (other, one) };
            let terms = |l: &Limit| format!("max {} near {} {}", l.max, l.near, action_text(l));
            let reason = |a: &Policy, b: &Policy| {
                let metric = quoted(&one.metric);
                let (first, second) = (terms(one), terms(other));
                format!("Policies '{}' and '{}' limit {metric} at the same time on same scope, one by {first}, one by {second}", a.name, b.name)
            };
            engine.add_by_mode(of, a, b, at, reason, PART_TIMES);
        });
    }

    /// Limits of one metric and enforcement at different precedences: the later never takes effect where the earlier binds
    /// whatever it binds and prevails, and contradicts it where the earlier decides otherwise.
    pub(super) fn priority_overrides(&mut self) {
        let mut buckets: Buckets<(&str, Enforcement), Terms<'_>> = Buckets::new();
        for (n, class, policy) in self.numbered() {
            for (l, limit) in counting(policy).filter(|(_, limit)| policy.enforces(limit)) {
                let lane = i128::from(policy.precedence);
                buckets.add((&*limit.metric, limit.enforcement), class, lane, Terms::of(policy, limit), (n, l));
            }
        }
        // the strategy is that of the earlier; the later's does not count
        let earlier = |a: &Group<Terms<'p>>, b: &Group<Terms<'p>>| a.key.precedence < b.key.precedence;
        let contradict = |engine: &Self, a: &Group<Terms<'p>>, b: &Group<Terms<'p>>| {
            let (first, later) = if earlier(a, b) { (a, b) } else { (b, a) };
            match first.key.strategy {
                Strategy::MostRestrictive => {
                    first.key.as_strict_as(&later.key) && engine.covers(first.class, later.class)
                }
                Strategy::ExplicitPriority | Strategy::FailClosed => {
                    !first.key.same_effect(&later.key) || engine.covers(first.class, later.class)
                }
            }
        };
        let of = ConflictType::PriorityOverride;
        self.each(of, &buckets, contradict, |engine, a, b, at| {
            let precedence = |m: Member| engine.policy(m).map(|p| p.precedence);
            let (a, b) = if precedence(a) < precedence(b) { (a, b) } else { (b, a) };
            let (Some((_, first)), Some((_, later))) = (engine.limit(a), engine.limit(b)) else { return };
            let class = |m: Member| engine.classes.get(m.0 as usize).copied();
            let never = class(a).zip(class(b)).is_some_and(|(a, b)| engine.covers(a, b));
            let reason = |a: &Policy, b: &Policy| {
                let (strategy, metric) = (a.conflict_strategy, quoted(&first.metric));
                let (low, high) = (a.precedence, b.precedence);
                if never {
                    format!(
                        "Policy '{}' (precedence {high}) never takes effect on {metric}: '{}' (precedence {low}) binds every run it binds and prevails under {strategy}",
                        b.name, a.name
                    )
                } else {
                    format!(
                        "Policy '{}' (precedence {high}, max {}, {}) contradicts '{}' (precedence {low}, max {}, {}) on {metric}: where both bind, {strategy} lets the latter decide",
                        b.name,
                        later.max,
                        action_text(later),
                        a.name,
                        first.max,
                        action_text(first)
                    )
                }
            };
            engine.add(of, (a, b), at, reason, REPLACE);
        });
    }

    /// Actions that contradict under conditions that may be true together: the same action with different parameters, or to
    /// resume what the other holds. Of two on one target only the first is live, so the later contradicts the earlier.
    pub(super) fn contrary_actions(&mut self) {
        let held = ["pause_run", "stop_run", "kill_run"];
        let mut texts: FxHashMap<(&str, String), i128> = FxHashMap::default();
        let mut buckets = Buckets::new();
        for (n, class, policy) in self.numbered() {
            if !policy.counts() || policy.enforcement_mode != Mode::Block || policy.condition.is_none() {
                continue;
            }
            for (k, action) in (0_u32..).zip(&policy.actions).filter(|(_, action)| action.action != "notify") {
                let kind = action.action.as_str();
                let next = i128::try_from(texts.len()).unwrap_or(i128::MAX);
                let parameters = serde_json::Value::Object(action.parameters.clone()).to_string();
                let lane = *texts.entry((kind, parameters)).or_insert(next);
                let key = (lane, kind, action.target.as_deref());
                let families = if held.contains(&kind) { [Some(kind), Some("resume_run")] } else { [Some(kind), None] };
                for family in families.into_iter().flatten() {
                    buckets.add(family, class, lane, key, (n, k));
                }
            }
        }
        type Key<'p> = (i128, &'p str, Option<&'p str>);
        let contradict = |_: &Self, a: &Group<Key<'p>>, b: &Group<Key<'p>>| {
            let ((_, one, target), (_, other, rival)) = (a.key, b.key);
            let one_target = target.is_none() || rival.is_none() || target == rival;
            one_target && (one == other || (one == "resume_run") != (other == "resume_run"))
        };
        let of = ConflictType::PriorityOverride;
        self.each(of, &buckets, contradict, |engine, a, b, at| {
            let rank = |m: Member| engine.policy(m).map(|p| (p.precedence, m.0));
            let (a, b) = if rank(a) < rank(b) { (a, b) } else { (b, a) };
            let (Some(first), Some(later)) = (engine.policy(a), engine.policy(b)) else { return };
            let Some(conditions) = first.condition.as_ref().zip(later.condition.as_ref()) else { return };
            let together = match coincide(conditions.0, conditions.1) {
                Coincide::Never => return,
                Coincide::Maybe => "both conditions can be true at once",
                Coincide::Incomparable => {
                    "their conditions cannot be compared (SQL, or too many alternatives), so they may be true at once"
                }
            };
            let action = |p: &'p Policy, m: Member| p.actions.get(m.1 as usize).map(|a| a.action.as_str());
            let (one, other) = (action(first, a).unwrap_or_default(), action(later, b).unwrap_or_default());
            let reason = |a: &Policy, b: &Policy| {
                if one == other {
                    format!("Policies '{}' and '{}' both {one}, with different parameters; {together}", a.name, b.name)
                } else {
                    format!("Policy '{}' would {one} what '{}' would {other}; {together}", a.name, b.name)
                }
            };
            engine.add(of, (a, b), at, reason, PART_CONDITIONS);
        });
    }
}
