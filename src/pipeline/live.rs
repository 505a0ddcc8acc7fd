//! What is live now, for those who look: windows that have reached half of a limit, and agents and tasks as they last were, each
//! written at most once a second (`runwarden.live`).
//!
//! A view: nothing is decided by it, its records are outside a step's digest, and a replay writes none. What was noted and not yet
//! written when a process died is written with its next row. Which windows were written is kept with the state, so that each is
//! taken off when it ends.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hashbrown::{Equivalent, HashMap, HashSet};
use rustc_hash::FxBuildHasher;

use crate::clock::{Micros, SECOND, Wall};
use crate::decide::entities::{Entities, Entity, Value};
use crate::decide::id::part;
use crate::decide::levels::Judged;
use crate::decide::records::{Kind, Live, LiveAgent, LiveTask, LiveWindow, Subject};
use crate::kafka::core::CoreError;
use crate::pipeline::judge::{self, Item, MetricPlan};
use crate::pipeline::partition::{Around, Partition, Step};
use crate::policy::{Amount, Entity as EntityKind, Scope};

/// Between two rounds of a partition.
const ROUND: Micros = SECOND;
/// Most records of each kind in a round; the rest waits its turn.
const MOST: usize = 2_000;
/// Most windows held; of what is beyond, nothing is shown.
const HELD: usize = 100_000;
/// What share of a limit a window has reached: one half, in units of 10⁻⁹.
const HALF: Amount = Amount(500_000_000);

/// A group of a metric: its index, the tenant, the value of the scope's key field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    metric: usize,
    tenant: Box<str>,
    id: Box<str>,
}

#[derive(Clone, Copy)]
struct GroupRef<'a>(usize, &'a str, &'a str);

impl Hash for Group {
    fn hash<H: Hasher>(&self, state: &mut H) {
        GroupRef(self.metric, &self.tenant, &self.id).hash(state);
    }
}

impl Hash for GroupRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0, self.1, self.2).hash(state);
    }
}

impl Equivalent<Group> for GroupRef<'_> {
    fn equivalent(&self, key: &Group) -> bool {
        self.0 == key.metric && *self.1 == *key.tenant && *self.2 == *key.id
    }
}

#[derive(Debug)]
struct Window {
    window: (Micros, Micros),
    /// `None`: written by a process before, and no row came since.
    value: Option<Amount>,
    /// The push it was noted in.
    push: u64,
    /// It waits to be written.
    waits: bool,
    /// A record of it is on the topic.
    written: bool,
}

/// Tenant, metric and id.
type Name = [String; 3];

/// The windows of a partition that have reached half of a limit.
#[derive(Debug, Default)]
pub struct LiveWindows {
    held: HashMap<Group, Window, FxBuildHasher>,
    waiting: VecDeque<Group>,
    /// To be taken off the topic: tenant, metric, id.
    over: Vec<(Box<str>, String, Box<str>)>,
    dirty: BTreeSet<Group>,
    push: u64,
    /// Clock of the last round.
    last: Micros,
    unshown: u64,
}

impl LiveWindows {
    /// Another batch of rows begins.
    pub(super) fn begin(&mut self) {
        self.push += 1;
    }

    /// A row's group stands at `value`, half of a limit or more. Of overlapping windows the fullest counts.
    pub(super) fn note(&mut self, metric: usize, tenant: &str, id: &str, window: (Micros, Micros), value: Amount) {
        let push = self.push;
        if let Some(known) = self.held.get_mut(&GroupRef(metric, tenant, id)) {
            if known.push == push && known.value.is_some_and(|other| other > value) {
                return;
            }
            (known.window, known.value, known.push) = (window, Some(value), push);
            if !std::mem::replace(&mut known.waits, true) {
                self.waiting.push_back(Group { metric, tenant: tenant.into(), id: id.into() });
            }
            return;
        }
        if self.held.len() >= HELD {
            self.unshown += 1;
            return;
        }
        let group = Group { metric, tenant: tenant.into(), id: id.into() };
        self.held.insert(group.clone(), Window { window, value: Some(value), push, waits: true, written: false });
        self.waiting.push_back(group);
    }

    /// A window closed: with it goes what was last seen of it, or of one before.
    pub(super) fn close(&mut self, metric: usize, plan: &MetricPlan, tenant: &str, id: &str, end: Micros) {
        let group = GroupRef(metric, tenant, id);
        if self.held.get(&group).is_some_and(|known| known.window.1 <= end)
            && let Some((group, _)) = self.held.remove_entry(&group)
        {
            // also of what was not written here: a process before may have, after its last checkpoint
            self.over.push((group.tenant.clone(), plan.name.clone(), group.id.clone()));
            self.dirty.insert(group);
        }
    }

    /// Other terms are in force: each is looked at again.
    pub(super) fn look_again(&mut self) {
        let idle: Vec<Group> = self.held.iter().filter(|(_, w)| !w.waits).map(|(group, _)| group.clone()).collect();
        for group in idle {
            self.held.entry(group.clone()).and_modify(|w| w.waits = true);
            self.waiting.push_back(group);
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.over.is_empty()
    }

    /// How many rows were not shown since the last call, because too many windows are on their way to a limit.
    pub(super) fn take_unshown(&mut self) -> u64 {
        std::mem::take(&mut self.unshown)
    }

    /// The written ones that changed since the last call, with the name of their metric; `None`: over.
    pub(super) fn take_changes(&mut self, plans: &[MetricPlan]) -> Vec<(Name, Option<(Micros, Micros)>)> {
        let window = |group: &Group| self.held.get(group).filter(|w| w.written).map(|w| w.window);
        let name = |group: &Group| {
            let metric = plans.get(group.metric).map(|plan| plan.name.clone()).unwrap_or_default();
            [group.tenant.to_string(), metric, group.id.to_string()]
        };
        std::mem::take(&mut self.dirty).iter().map(|group| (name(group), window(group))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub(super) fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.held.iter().filter(|(_, w)| w.written).map(|(group, _)| group.clone()));
    }

    /// Takes a written one back from a checkpoint; one of a metric that is no longer there is over.
    pub(super) fn restore(&mut self, [tenant, metric, id]: Name, window: (Micros, Micros), plans: &[MetricPlan]) {
        match plans.iter().position(|plan| plan.name == metric) {
            Some(at) => {
                let group = Group { metric: at, tenant: tenant.into(), id: id.into() };
                let known = Window { window, value: None, push: 0, waits: false, written: true };
                self.held.entry(group).or_insert(known);
            }
            None => self.over.push((tenant.into(), metric, id.into())),
        }
    }
}

impl Partition {
    /// Writes what has changed since the last round, if it is time for one.
    pub(super) fn show(&mut self, step: &mut Step) -> Result<(), CoreError> {
        let now = Wall(self.meta.now);
        let idle = self.live.is_idle() && !self.standing.entities.has_fresh();
        if idle || now.0 < self.live.last.saturating_add(ROUND) {
            return Ok(());
        }
        self.live.last = now.0;
        let over = std::mem::take(&mut self.live.over);
        self.show_windows(now, step)?;
        // a group whose next window is shown already is not over
        let mut shown: HashSet<String> = step.live.iter().map(Live::key).collect();
        let over = over.into_iter().map(|(tenant, metric, id)| gone(&tenant, metric, &id));
        step.live.extend(over.filter(|live| shown.insert(live.key())));
        self.show_entities(now, step);
        Ok(())
    }

    /// When the next round is due; `None`: nothing waits.
    pub(super) fn next_round(&self) -> Option<Micros> {
        let waits = !self.live.is_idle() || self.standing.entities.has_fresh();
        waits.then(|| self.live.last.saturating_add(ROUND))
    }

    fn show_windows(&mut self, now: Wall, step: &mut Step) -> Result<(), CoreError> {
        let around = Around::none(now);
        let most = self.live.waiting.len().min(MOST);
        let due: Vec<Group> = self.live.waiting.drain(..most).collect();
        let mut items = Vec::with_capacity(due.len());
        for group in due {
            let Some(known) = self.live.held.get_mut(&group) else { continue };
            // its place in the queue was that of a window before
            if !std::mem::replace(&mut known.waits, false) {
                continue;
            }
            let (Some(value), Some(plan)) = (known.value, self.plans.get(group.metric)) else { continue };
            let mut item = Item {
                at: u32::MAX,
                closed: false,
                metric: group.metric,
                tenant: Arc::from(&*group.tenant),
                scope_id: Arc::from(&*group.id),
                window: known.window,
                value: Some(value),
                evidence: (i64::MAX, i64::MIN),
                complete: true,
                cost_provenance: None,
                is_synthetic: None,
                pace: None,
                limit_set: u32::MAX,
                judged: Vec::new(),
            };
            item.paced(plan, self.clocks.highest(&group.tenant).unwrap_or(known.window.0));
            item.limit_set = self.limit_set(&item, &around);
            items.push(item);
        }
        judge::judge(&mut items, &self.plans, &mut self.limits, &mut self.thresholds)
            .map_err(|e| CoreError { context: "cannot show the windows", message: e.to_string() })?;
        for item in items {
            let group = Group { metric: item.metric, tenant: (*item.tenant).into(), id: (*item.scope_id).into() };
            let Some(known) = self.live.held.get_mut(&group) else { continue };
            let plan = &self.plans[item.metric];
            match nearest(&item) {
                Some(judged) => {
                    if !std::mem::replace(&mut known.written, true) {
                        self.live.dirty.insert(group);
                    }
                    step.live.extend(window(&item, plan, judged, now));
                }
                // its limits are others now
                None => {
                    self.live.held.remove(&group);
                    step.live.push(gone(&group.tenant, plan.name.clone(), &group.id));
                    self.live.dirty.insert(group);
                }
            }
        }
        Ok(())
    }

    fn show_entities(&mut self, now: Wall, step: &mut Step) {
        let entities = &mut self.standing.entities;
        for (tenant, kind, id) in entities.take_fresh(MOST) {
            let Some(entity) = entities.get(&tenant, kind, &id) else { continue };
            let record = match kind {
                EntityKind::Agent => json(&agent(&tenant, &id, entity, entities, now)),
                EntityKind::Task => json(&task(&tenant, &id, entity, now)),
                EntityKind::Run => None,
            };
            let name = kind.as_str();
            step.live.extend(record.map(|record| Live {
                tenant_id: tenant.into(),
                kind: name,
                id: vec![id.into()],
                record: Some(record),
            }));
        }
    }
}

/// The limit that is nearest, if half of it is reached; the first of equals.
fn nearest(item: &Item) -> Option<(&Judged, Amount)> {
    let reached = |judged: &Judged| item.value.and_then(|value| value.ratio(judged.limit.max));
    let all = item.judged.iter().filter_map(|judged| Some((judged, reached(judged)?)));
    all.filter(|(_, ratio)| *ratio >= HALF).reduce(|best, next| if next.1 > best.1 { next } else { best })
}

fn json(value: &impl serde::Serialize) -> Option<String> {
    // names and numbers: there is nothing in it that JSON cannot say
    serde_json::to_string(value).ok()
}

fn gone(tenant: &str, metric: String, id: &str) -> Live {
    Live { tenant_id: tenant.into(), kind: "window", id: vec![metric, id.into()], record: None }
}

fn window(item: &Item, plan: &MetricPlan, (judged, utilization): (&Judged, Amount), now: Wall) -> Option<Live> {
    let limit = &judged.limit;
    let id = item.scope_id.to_string();
    let record = LiveWindow {
        tenant_id: item.tenant.to_string(),
        metric: plan.name.clone(),
        run_id: (plan.scope == Scope::Run).then(|| id.clone()),
        scope: Subject { kind: plan.scope.as_str().to_owned(), id: id.clone() },
        window_start: item.window.0,
        window_end: item.window.1,
        value: item.value?,
        policy_id: limit.policy_id.to_string(),
        policy_version: limit.policy_version,
        limit_id: limit.limit_id.to_string(),
        limit_type: limit.limit_type.to_string(),
        mode: limit.mode.as_str().to_owned(),
        limit: limit.max,
        near: limit.near,
        utilization,
        minutes_to_limit: judged.minutes_to_limit.map(|minutes| (minutes * 10.0).round() / 10.0),
        level: judged.level.filter(|level| *level != Kind::Resolved),
        enforcement: limit.enforcement.as_str().to_owned(),
        on_breach: limit.on_breach.as_str().to_owned(),
        updated_at: now.0,
    };
    let (tenant_id, metric) = (record.tenant_id.clone(), record.metric.clone());
    Some(Live { tenant_id, kind: "window", id: vec![metric, id], record: Some(json(&record)?) })
}

fn text(entity: &Entity, field: &str) -> Option<String> {
    match entity.values.get(field) {
        Some((_, Value::Text(text))) => Some(text.to_string()),
        _ => None,
    }
}

fn real(entity: &Entity, field: &str) -> Option<f64> {
    match entity.values.get(field) {
        Some((_, Value::Real(number))) => Some(*number),
        _ => None,
    }
}

fn whole(entity: &Entity, field: &str) -> Option<i64> {
    match entity.values.get(field) {
        Some((_, Value::Whole(number))) => Some(*number),
        _ => None,
    }
}

fn agent(tenant: &str, id: &str, entity: &Entity, entities: &Entities, now: Wall) -> LiveAgent {
    LiveAgent {
        agent_id: id.to_owned(),
        tenant_id: tenant.to_owned(),
        team_id: text(entity, "team_id"),
        health_status: text(entity, "health_status"),
        anomaly_score: real(entity, "anomaly_score"),
        consecutive_anomalous_readings: whole(entity, "consecutive_anomalous_readings"),
        capacity: whole(entity, "capacity"),
        open_tasks: entities.open_of(tenant, id, EntityKind::Task).count(),
        last_seen: entity.last,
        updated_at: now.0,
    }
}

fn task(tenant: &str, id: &str, entity: &Entity, now: Wall) -> LiveTask {
    LiveTask {
        task_id: id.to_owned(),
        tenant_id: tenant.to_owned(),
        run_id: entity.run.as_deref().map(Into::into),
        agent_id: entity.agent.as_deref().map(Into::into),
        task_status: text(entity, "task_status"),
        priority: text(entity, "priority"),
        running_duration_seconds: real(entity, "running_duration_seconds"),
        timeout_seconds: real(entity, "timeout_seconds"),
        open: entity.open,
        last_seen: entity.last,
        updated_at: now.0,
    }
}

impl Live {
    /// `tenant/kind/id`, the parts of the id joined by `/`.
    pub fn key(&self) -> String {
        let id: Vec<String> = self.id.iter().map(|one| part(one)).collect();
        format!("{}/{}/{}", part(&self.tenant_id), self.kind, id.join("/"))
    }
}
