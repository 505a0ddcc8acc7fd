//! Which of several limits holds: arbitration among the enforcing limits of one metric and enforcement kind.
//!
//! Only limits that enforce (BLOCK mode and an effect) compete, each kind of enforcement for itself; every other limit is a
//! row of its own and changes no enforced one. Results depend on the limits, not on the order in which they are given.

use std::cmp::Reverse;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use super::amount::Amount;
use super::model::{
    Alerts, Category, Enforcement, Limit, Mode, Monitor, OnBreach, OnFailure, Policy, Rollback, RuleType, Strategy,
};
use super::names::names;

names! {
    /// How a limit fared.
    Outcome {
        /// It gave at least part of the result.
        Won = "won",
        /// It gave nothing.
        Lost = "lost",
        /// Nothing competed with it.
        Alone = "alone",
    }
}

/// Who gave part of a result. `gave` is some of `max near action near_forecast_minutes cooldown_seconds fail_closed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contributor {
    /// The policy.
    pub policy_id: Arc<str>,
    /// Its tenant; not part of the signal's JSON.
    #[serde(skip, default = "any_tenant")]
    pub policy_tenant: Arc<str>,
    /// What it gave.
    #[serde(deserialize_with = "parts")]
    pub gave: Vec<&'static str>,
}

fn any_tenant() -> Arc<str> {
    Arc::from("*")
}

/// What a contributor can give.
const PARTS: [&str; 6] = ["max", "near", "action", "near_forecast_minutes", "cooldown_seconds", "fail_closed"];

fn parts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<&'static str>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    let known = |word: &String| {
        PARTS.into_iter().find(|p| p == word).ok_or_else(|| serde::de::Error::unknown_variant(word, &PARTS))
    };
    words.iter().map(known).collect()
}

/// A limit as arbitration looks at it: made once for a snapshot, shared by all who consider it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The policy's tenant.
    pub policy_tenant: Arc<str>,
    /// The policy.
    pub policy_id: Arc<str>,
    /// Its limit.
    pub limit_id: Arc<str>,
    /// Its policy's precedence.
    pub precedence: i64,
    /// Its own `max`.
    pub max: Amount,
    /// Its own `near`.
    pub near: Amount,
    /// Its own action.
    pub on_breach: OnBreach,
}

/// A limit that was looked at, and why it won or lost. Reads like its [`Terms`]; JSON has all fields side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Flat", into = "Flat")]
pub struct Considered {
    terms: Arc<Terms>,
    /// How it fared.
    pub outcome: Outcome,
    /// Why, in words; shared by all that fared alike.
    pub why: Arc<str>,
}

impl std::ops::Deref for Considered {
    type Target = Terms;

    fn deref(&self) -> &Terms {
        &self.terms
    }
}

/// [`Considered`] as JSON.
#[derive(Serialize, Deserialize)]
struct Flat {
    policy_tenant: Arc<str>,
    policy_id: Arc<str>,
    limit_id: Arc<str>,
    precedence: i64,
    max: Amount,
    near: Amount,
    on_breach: OnBreach,
    outcome: Outcome,
    why: Arc<str>,
}

impl From<Flat> for Considered {
    fn from(flat: Flat) -> Self {
        let Flat { policy_tenant, policy_id, limit_id, precedence, max, near, on_breach, outcome, why } = flat;
        let terms = Terms { policy_tenant, policy_id, limit_id, precedence, max, near, on_breach };
        Self { terms: Arc::new(terms), outcome, why }
    }
}

impl From<Considered> for Flat {
    fn from(Considered { terms, outcome, why }: Considered) -> Self {
        let Terms { policy_tenant, policy_id, limit_id, precedence, max, near, on_breach } = Terms::clone(&terms);
        Self { policy_tenant, policy_id, limit_id, precedence, max, near, on_breach, outcome, why }
    }
}

/// The row of a limit with which nothing competes, and what arbitration needs to know of it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Position of the limit in its policy.
    pub limit: u32,
    /// Whether it takes part in arbitration.
    pub enforces: bool,
    /// Place in the order of arbitration among the limits of the snapshot.
    pub place: u32,
    pub row: Arc<EffectiveLimit>,
    /// near × max, exactly.
    line: (i128, i128),
    terms: Arc<Terms>,
}

impl Row {
    pub fn new(
        (number, limit): (u32, &Limit),
        policy: &Policy,
        snapshot_id: &Arc<str>,
        alerts: &Arc<Alerts>,
        monitor: &Arc<Monitor>,
    ) -> Self {
        let terms = Arc::new(Terms {
            policy_tenant: policy.tenant.clone(),
            policy_id: policy.id.clone(),
            limit_id: limit.id.clone(),
            precedence: policy.precedence,
            max: limit.max,
            near: limit.near,
            on_breach: limit.on_breach,
        });
        let row = Arc::new(EffectiveLimit::sole(policy, limit, snapshot_id, alerts, monitor, &terms));
        let line = limit.max.product(limit.near);
        Self { limit: number, enforces: policy.enforces(limit), place: 0, row, line, terms }
    }
}

/// One row of the table the threshold SQL joins on: a limit as it holds for a run or a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectiveLimit {
    /// The metric's name.
    pub metric: Arc<str>,
    /// The limit `max` came from.
    pub limit_id: Arc<str>,
    /// Its type.
    pub limit_type: Arc<str>,
    /// Its category.
    pub category: Category,
    /// Tenant of the policy `max` came from; may be `*`.
    pub policy_tenant: Arc<str>,
    /// The policy `max` came from.
    pub policy_id: Arc<str>,
    /// Its version.
    pub policy_version: u32,
    /// The snapshot it was taken from.
    pub snapshot_id: Arc<str>,
    /// Its rule type.
    pub rule_type: RuleType,
    /// Its mode.
    pub mode: Mode,
    /// What a breach leads to.
    pub enforcement: Enforcement,
    /// The intervention, arbitrated; under AUDIT and WARN what BLOCK would do.
    pub on_breach: OnBreach,
    /// BREACH at `value ≥ max`.
    pub max: Amount,
    /// The ratio of the limit that gave `near_at`.
    pub near: Amount,
    /// NEAR at `value ≥ near_at`: near × max, the smallest that competes, rounded up to nine digits; at most `max`.
    pub near_at: Amount,
    /// NEAR also when the forecast reaches `max` within so many minutes.
    pub near_forecast_minutes: Option<u32>,
    /// Who gave what.
    pub contributors: Vec<Contributor>,
    /// Every limit that competed, in order of precedence.
    pub considered: Vec<Considered>,
    /// Whether missing inputs count as a breach.
    pub fail_closed: bool,
    /// After a breach the scope stays rejected so long.
    pub cooldown_seconds: u64,
    /// For DEGRADE.
    pub fallback_model: Option<Arc<str>>,
    /// Where alerts go: of the policy `max` came from.
    pub alerts: Arc<Alerts>,
    /// Whether interventions are undone by themselves: of the policy the action came from.
    pub rollback: Rollback,
    /// Least authority of those who act: of the policy the action came from.
    pub min_authority: u8,
    /// What may be collected: of the policy `max` came from.
    pub monitor: Arc<Monitor>,
}

impl EffectiveLimit {
    /// The lowest value that anyone wants to know of: NEAR, where lessons begin (85 %, requirement E2), or any if it forecasts.
    pub fn floor(&self) -> Amount {
        if self.near_forecast_minutes.is_some() {
            return Amount::ZERO;
        }
        let lessons = self.max.0.checked_mul(85).map_or(self.max.0 / 100 * 85, |hundredfold| hundredfold / 100);
        Amount(self.near_at.0.min(lessons))
    }

    /// The row of a limit with which nothing competes.
    pub(super) fn sole(
        policy: &Policy,
        limit: &Limit,
        snapshot_id: &Arc<str>,
        alerts: &Arc<Alerts>,
        monitor: &Arc<Monitor>,
        terms: &Arc<Terms>,
    ) -> Self {
        let why = if policy.enforces(limit) {
            "the only enforcing limit of its kind on the metric"
        } else if policy.enforcement_mode == Mode::Block {
            "it signals and alerts only, which competes with nothing"
        } else if policy.enforcement_mode == Mode::Warn {
            "mode WARN enforces nothing and competes with nothing"
        } else {
            "mode AUDIT is a shadow and competes with nothing"
        };
        Self {
            metric: limit.metric.clone(),
            limit_id: limit.id.clone(),
            limit_type: limit.limit_type.clone(),
            category: limit.category,
            policy_tenant: policy.tenant.clone(),
            policy_id: policy.id.clone(),
            policy_version: policy.version,
            snapshot_id: snapshot_id.clone(),
            rule_type: policy.rule_type,
            mode: policy.enforcement_mode,
            enforcement: limit.enforcement,
            on_breach: limit.on_breach,
            max: limit.max,
            near: limit.near,
            near_at: limit.max.near_line(limit.near),
            near_forecast_minutes: limit.near_forecast_minutes,
            contributors: vec![Contributor {
                policy_id: policy.id.clone(),
                policy_tenant: policy.tenant.clone(),
                gave: vec!["max", "near", "action"],
            }],
            considered: vec![Considered { terms: Arc::clone(terms), outcome: Outcome::Alone, why: Arc::from(why) }],
            fail_closed: policy.on_failure == OnFailure::Closed,
            cooldown_seconds: limit.cooldown_seconds,
            fallback_model: limit.fallback_model.clone(),
            alerts: alerts.clone(),
            rollback: policy.rollback,
            min_authority: policy.min_authority,
            monitor: monitor.clone(),
        }
    }

    /// A copy without who contributed and who was considered.
    fn bare(&self) -> Self {
        Self {
            metric: self.metric.clone(),
            limit_id: self.limit_id.clone(),
            limit_type: self.limit_type.clone(),
            policy_tenant: self.policy_tenant.clone(),
            policy_id: self.policy_id.clone(),
            snapshot_id: self.snapshot_id.clone(),
            contributors: Vec::new(),
            considered: Vec::new(),
            fallback_model: self.fallback_model.clone(),
            alerts: self.alerts.clone(),
            monitor: self.monitor.clone(),
            ..*self
        }
    }

    /// Whether a breach orders an intervention.
    pub fn intervenes(&self) -> bool {
        self.enforcing() && self.enforcement == Enforcement::Block
    }

    /// Whether a breach holds new work of the scope back.
    pub fn holds_back(&self) -> bool {
        self.enforcing() && self.enforcement != Enforcement::Block
    }

    /// Whether a breach does something beyond signal and alert.
    pub fn enforcing(&self) -> bool {
        self.mode == Mode::Block
            && match self.enforcement {
                Enforcement::Block => self.on_breach != OnBreach::None,
                Enforcement::Reject | Enforcement::Queue | Enforcement::Degrade => true,
                Enforcement::Warn | Enforcement::Alert => false,
            }
    }
}

/// FAIL_CLOSED found limits of equal precedence that differ: STOP at binding, verdict `stop`, reason `ambiguous`, no signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ambiguity {
    /// The metric.
    pub metric: Arc<str>,
    /// The kind of enforcement.
    pub enforcement: Enforcement,
    /// Tenant of the policy whose strategy it was.
    pub policy_tenant: Arc<str>,
    /// The policy whose strategy it was: the first by (precedence, tenant, id).
    pub policy_id: Arc<str>,
    /// Its version.
    pub policy_version: u32,
    /// Its limit.
    pub limit_id: Arc<str>,
    /// The snapshot it was taken from.
    pub snapshot_id: Arc<str>,
    /// Every limit that competed.
    pub considered: Vec<Considered>,
    /// What differs, in words.
    pub why: String,
}

/// What holds for one run or one group, in an order that depends on content only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LimitSet {
    /// The limits, by metric, mode, enforcement, policy and limit. Several may be on one metric.
    pub limits: Vec<Arc<EffectiveLimit>>,
    /// Where FAIL_CLOSED could not decide.
    pub ambiguous: Vec<Ambiguity>,
}

/// A limit of a matching policy, and its row when nothing competes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'s> {
    pub policy: &'s Policy,
    pub limit: &'s Limit,
    pub known: &'s Row,
    /// That of `known`.
    pub place: u32,
}

impl<'s> Candidate<'s> {
    /// The order of every tie: precedence, policy tenant, policy id, limit id.
    fn rank(&self) -> (i64, &'s str, &'s str, &'s str) {
        (self.policy.precedence, &self.policy.tenant, &self.policy.id, &self.limit.id)
    }

    /// The order of arbitration: what competes side by side, by rank.
    pub fn order(&self, other: &Self) -> std::cmp::Ordering {
        let (a, b) = (self, other);
        let kind = |c: &Candidate<'_>| c.limit.enforcement;
        a.limit.metric.cmp(&b.limit.metric).then(kind(a).cmp(&kind(b))).then_with(|| a.rank().cmp(&b.rank()))
    }

    fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.limit, other.limit)
    }

    fn considered(&self, outcome: Outcome, why: &Arc<str>) -> Considered {
        Considered { terms: Arc::clone(&self.known.terms), outcome, why: why.clone() }
    }
}

/// Arbitrates the limits of policies that match, count and are active.
pub(super) fn settle(mut candidates: Vec<Candidate<'_>>) -> LimitSet {
    let mut set = LimitSet { limits: Vec::with_capacity(candidates.len()), ambiguous: Vec::new() };
    candidates.retain(|c| {
        if !c.known.enforces {
            set.limits.push(c.known.row.clone());
        }
        c.known.enforces
    });
    // places are known within one snapshot; comparing texts would cost more than all the rest
    let snapshot = candidates.first().map(|c| &c.known.row.snapshot_id);
    if candidates.iter().all(|c| snapshot.is_some_and(|s| Arc::ptr_eq(s, &c.known.row.snapshot_id))) {
        candidates.sort_unstable_by_key(|c| c.place);
    } else {
        candidates.sort_unstable_by(Candidate::order);
    }
    for group in
        candidates.chunk_by(|a, b| a.limit.metric == b.limit.metric && a.limit.enforcement == b.limit.enforcement)
    {
        match group {
            [] => {}
            [only] => set.limits.push(only.known.row.clone()),
            [first, ..] => match first.policy.conflict_strategy {
                Strategy::MostRestrictive => set.limits.push(Arc::new(most_restrictive(group, first))),
                Strategy::ExplicitPriority => set.limits.push(Arc::new(by_priority(group, first))),
                Strategy::FailClosed => match ambiguity(group, first) {
                    None => set.limits.push(Arc::new(by_priority(group, first))),
                    Some(ambiguity) => set.ambiguous.push(ambiguity),
                },
            },
        }
    }
    set.limits.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    set
}

fn key(row: &EffectiveLimit) -> (&str, Mode, Enforcement, &str, &str, &str) {
    (&row.metric, row.mode, row.enforcement, &row.policy_tenant, &row.policy_id, &row.limit_id)
}

/// The first candidate with the smallest key: ties go by rank, in which a group is sorted.
fn first_by<'g, 's, K: Ord>(
    group: &'g [Candidate<'s>],
    first: &'g Candidate<'s>,
    key: impl Fn(&Candidate<'s>) -> K,
) -> &'g Candidate<'s> {
    group.iter().min_by_key(|c| key(c)).unwrap_or(first)
}

/// Smallest `max`, smallest `near × max`, harshest action, each from whichever limit has it; likewise the longest
/// cooldown, the earliest forecast, and fail_closed if any says so.
fn most_restrictive<'s>(group: &[Candidate<'s>], first: &Candidate<'s>) -> EffectiveLimit {
    let max = first_by(group, first, |c| c.limit.max);
    let near = first_by(group, first, |c| c.known.line);
    let action = first_by(group, first, |c| Reverse(c.limit.on_breach));
    let forecast = first_by(group, first, |c| Reverse(c.limit.near_forecast_minutes));
    let cooldown = first_by(group, first, |c| Reverse(c.limit.cooldown_seconds));
    let closed = first_by(group, first, |c| Reverse(c.policy.on_failure));
    let mut parts = vec![("max", max), ("near", near), ("action", action)];
    // defaults are nobody's gift
    parts.extend(forecast.limit.near_forecast_minutes.map(|_| ("near_forecast_minutes", forecast)));
    parts.extend((cooldown.limit.cooldown_seconds > 0).then_some(("cooldown_seconds", cooldown)));
    parts.extend((closed.policy.on_failure == OnFailure::Closed).then_some(("fail_closed", closed)));

    // a text for each would cost more than the arbitration
    let lost: Arc<str> = Arc::from(format!(
        "MOST_RESTRICTIVE: no stricter than max {} of {}, near line {} of {} and {} of {}",
        max.limit.max,
        max.policy.id,
        near.known.row.near_at,
        near.policy.id,
        action_text(action.limit),
        action.policy.id,
    ));
    let mut contributors: Vec<Contributor> = Vec::new();
    let mut considered = Vec::with_capacity(group.len());
    for candidate in group {
        let gave: Vec<&'static str> = parts.iter().filter(|(_, c)| c.is(candidate)).map(|(part, _)| *part).collect();
        if gave.is_empty() {
            considered.push(candidate.considered(Outcome::Lost, &lost));
            continue;
        }
        let why = Arc::from(format!("MOST_RESTRICTIVE: the strictest in {}", gave.join(", ")));
        considered.push(candidate.considered(Outcome::Won, &why));
        match contributors
            .iter_mut()
            .find(|c| c.policy_id == candidate.policy.id && c.policy_tenant == candidate.policy.tenant)
        {
            Some(same) => same.gave.extend(gave),
            None => contributors.push(Contributor {
                policy_id: candidate.policy.id.clone(),
                policy_tenant: candidate.policy.tenant.clone(),
                gave,
            }),
        }
    }
    EffectiveLimit {
        on_breach: action.limit.on_breach,
        near: near.limit.near,
        near_at: near.known.row.near_at,
        near_forecast_minutes: forecast.limit.near_forecast_minutes,
        contributors,
        considered,
        fail_closed: closed.policy.on_failure == OnFailure::Closed,
        cooldown_seconds: cooldown.limit.cooldown_seconds,
        rollback: action.policy.rollback,
        min_authority: action.policy.min_authority,
        ..max.known.row.bare()
    }
}

/// Those of the lowest precedence number: a group is sorted by it.
fn foremost<'g, 's>(group: &'g [Candidate<'s>], first: &Candidate<'s>) -> &'g [Candidate<'s>] {
    let count = group.iter().take_while(|c| c.policy.precedence == first.policy.precedence).count();
    group.get(..count).unwrap_or(group)
}

/// The limit of the lowest precedence, whole; at equal precedence the smallest `max`.
fn by_priority<'s>(group: &[Candidate<'s>], first: &Candidate<'s>) -> EffectiveLimit {
    let strategy = first.policy.conflict_strategy;
    let foremost = foremost(group, first);
    let winner = first_by(foremost, first, |c| c.limit.max);
    let (precedence, max, id) = (winner.policy.precedence, winner.limit.max, &winner.policy.id);
    let how = if foremost.len() == 1 { "the lowest precedence" } else { "the smallest max at the lowest precedence" };
    let won: Arc<str> = Arc::from(format!("{strategy}: {how}, {precedence}"));
    let equal: Arc<str> = Arc::from(format!("{strategy}: equal precedence, but max {max} of {id} goes first"));
    let later: Arc<str> = Arc::from(format!("{strategy}: a later precedence than {precedence} of {id}"));
    let considered = group
        .iter()
        .map(|c| {
            if c.is(winner) {
                c.considered(Outcome::Won, &won)
            } else if c.policy.precedence == precedence {
                c.considered(Outcome::Lost, &equal)
            } else {
                c.considered(Outcome::Lost, &later)
            }
        })
        .collect();
    EffectiveLimit { considered, contributors: winner.known.row.contributors.clone(), ..winner.known.row.bare() }
}

/// What FAIL_CLOSED compares at equal precedence.
pub(super) fn terms(limit: &Limit) -> (Amount, Amount, OnBreach, Option<&str>) {
    (limit.max, limit.near, limit.on_breach, limit.fallback_model.as_deref())
}

/// Whether limits of the lowest precedence differ in max, near or action.
fn ambiguity<'s>(group: &[Candidate<'s>], first: &Candidate<'s>) -> Option<Ambiguity> {
    let foremost = foremost(group, first);
    let other = foremost.iter().find(|c| terms(c.limit) != terms(first.limit))?;
    let say = |c: &Candidate<'_>| {
        format!("{}/{} (max {}, near {}, {})", c.policy.id, c.limit.id, c.limit.max, c.limit.near, action_text(c.limit))
    };
    let why =
        format!("FAIL_CLOSED: at precedence {} {} and {} differ", first.policy.precedence, say(first), say(other));
    let open: Arc<str> = Arc::from("FAIL_CLOSED: ambiguous at the lowest precedence");
    let later: Arc<str> = Arc::from("FAIL_CLOSED: a later precedence");
    let considered = (0..)
        .zip(group)
        .map(|(n, c)| c.considered(Outcome::Lost, if n < foremost.len() { &open } else { &later }))
        .collect();
    Some(Ambiguity {
        metric: first.limit.metric.clone(),
        enforcement: first.limit.enforcement,
        policy_tenant: first.policy.tenant.clone(),
        policy_id: first.policy.id.clone(),
        policy_version: first.policy.version,
        limit_id: first.limit.id.clone(),
        snapshot_id: first.known.row.snapshot_id.clone(),
        considered,
        why,
    })
}

/// What a limit does at BREACH, in words.
pub(super) fn action_text(limit: &Limit) -> String {
    match (limit.enforcement, &limit.fallback_model) {
        (Enforcement::Block, _) => limit.on_breach.to_string(),
        (Enforcement::Degrade, Some(model)) => format!("DEGRADE to {model}"),
        (other, _) => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
