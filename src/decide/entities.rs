//! What is known of runs, agents and tasks: the latest value of each field that some condition reads.
//!
//! "Latest" is by event time, the later record winning a tie, so that a late record does not bring back an old value. A field
//! that an event leaves out keeps its value. A run is forgotten 24 hours of its tenant's event time after its last event, an agent
//! or a task after 7 days. Of runs nothing is kept while no condition reads any; what agents and tasks say of themselves always is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND};
use crate::policy::Entity as Kind;

/// Most runs, most agents and most tasks of one tenant; of what is beyond, nothing is known.
const MAX_ENTITIES: usize = 1_000_000;
/// Granularity of forgetting.
const BUCKET: Micros = 3600 * SECOND;

/// How long an entity is remembered after its last event.
fn kept(kind: Kind) -> Micros {
    match kind {
        Kind::Run => 24 * 3600 * SECOND,
        Kind::Agent | Kind::Task => 7 * 24 * 3600 * SECOND,
    }
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// A text.
    Text(Arc<str>),
    /// A whole number.
    Whole(i64),
    /// Any other number.
    Real(f64),
    /// True or false.
    Truth(bool),
    /// Money, in units of 10⁻⁹.
    Money(i128),
    /// µs.
    Time(Micros),
}

/// What is up for an entity: a condition that held when it was last evaluated.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Up {
    /// Tenant of the policy.
    pub policy_tenant: Arc<str>,
    /// Its id.
    pub policy_id: Arc<str>,
    /// Its version.
    pub version: u32,
    /// The others that the condition was evaluated with: run, agent, task.
    pub with: [Option<Arc<str>>; 3],
}

/// One run, agent or task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Entity {
    /// By field, with the event time of the record that said so.
    pub values: BTreeMap<Arc<str>, (Micros, Value)>,
    /// Highest event time.
    pub last: Micros,
    /// A run that has not ended, a task that is not done.
    pub open: bool,
    /// The run of a task, as last named with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Arc<str>>,
    /// The agent of a run or a task, as last named with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Arc<str>>,
    /// Conditions that hold. Kept with the task if the condition reads one, else with the run, else with the agent.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub up: BTreeSet<Up>,
}

/// Tenant, kind and id.
pub type Key = (Box<str>, Kind, Box<str>);

/// What an event says of one entity.
#[derive(Debug)]
pub struct Said<'a> {
    /// Which.
    pub id: &'a str,
    /// Event time.
    pub time: Micros,
    /// The fields it gives.
    pub values: Vec<(Arc<str>, Value)>,
    /// Whether it is open now; `None`: as before.
    pub open: Option<bool>,
    /// The run named beside a task.
    pub run: Option<&'a str>,
    /// The agent named beside a run or a task.
    pub agent: Option<&'a str>,
}

#[derive(Debug, Default)]
struct Tenant {
    kinds: [HashMap<Box<str>, Entity, FxBuildHasher>; 3],
    /// Agent → its open runs and open tasks.
    open: HashMap<Box<str>, [BTreeSet<Box<str>>; 2], FxBuildHasher>,
    /// Hour of the tenant's clock → what may have expired by then.
    expiry: BTreeMap<i64, Vec<(Kind, Box<str>)>>,
}

/// The entities of one partition.
#[derive(Debug, Default)]
pub struct Entities {
    tenants: HashMap<Box<str>, Tenant, FxBuildHasher>,
    dirty: BTreeSet<Key>,
    refused: usize,
    /// Whether somebody takes what is fresh.
    followed: bool,
    /// Agents and tasks that something was said of since they were last taken, each once, in that order.
    fresh: VecDeque<Key>,
    is_fresh: HashSet<Key, FxBuildHasher>,
}

fn at(kind: Kind) -> usize {
    match kind {
        Kind::Run => 0,
        Kind::Task => 1,
        Kind::Agent => 2,
    }
}

fn due(kind: Kind, last: Micros) -> i64 {
    last.saturating_add(kept(kind)).div_euclid(BUCKET).saturating_add(1)
}

impl Entities {
    /// Takes what an event says of one entity.
    pub fn observe(&mut self, tenant: &str, kind: Kind, said: Said<'_>) {
        let state = self.tenants.entry_ref(tenant).or_default();
        let map = &mut state.kinds[at(kind)];
        let is_new = !map.contains_key(said.id);
        if is_new && map.len() >= MAX_ENTITIES {
            self.refused += 1;
            return;
        }
        let entity =
            map.entry_ref(said.id).or_insert_with(|| Entity { open: true, last: said.time, ..Entity::default() });
        let before = entity.agent.clone().filter(|_| entity.open && !is_new);
        let newer = said.time >= entity.last;
        // the hour is what forgetting needs; a checkpoint for every event would cost more than it tells
        let mut touched = is_new || said.time.div_euclid(BUCKET) > entity.last.div_euclid(BUCKET);
        entity.last = entity.last.max(said.time);
        for (field, value) in said.values {
            touched = true;
            match entity.values.get_mut(&field) {
                Some((time, _)) if *time > said.time => {}
                Some(known) => *known = (said.time, value),
                None => {
                    entity.values.insert(field, (said.time, value));
                }
            }
        }
        if newer {
            let open = said.open.unwrap_or(entity.open);
            let differs = |known: &Option<Arc<str>>, said: Option<&str>| said.is_some() && known.as_deref() != said;
            if open != entity.open || differs(&entity.run, said.run) || differs(&entity.agent, said.agent) {
                touched = true;
                entity.open = open;
                entity.run = said.run.map(Arc::from).or(entity.run.take());
                entity.agent = said.agent.map(Arc::from).or(entity.agent.take());
            }
        }
        let after = entity.agent.clone().filter(|_| entity.open);
        if is_new {
            state.expiry.entry(due(kind, said.time)).or_default().push((kind, said.id.into()));
        }
        if kind != Kind::Agent && before != after {
            if let Some(open) = before.as_ref().and_then(|agent| state.open.get_mut(&**agent)) {
                open[at(kind)].remove(said.id);
            }
            if let Some(agent) = &after {
                state.open.entry_ref(&**agent).or_default()[at(kind)].insert(said.id.into());
            }
        }
        let turned = before != after && kind == Kind::Task;
        if touched {
            self.dirty.insert((tenant.into(), kind, said.id.into()));
            self.refresh(tenant, kind, said.id);
        }
        for agent in before.into_iter().chain(after).filter(|_| turned) {
            self.refresh(tenant, Kind::Agent, &agent);
        }
    }

    fn refresh(&mut self, tenant: &str, kind: Kind, id: &str) {
        if !self.followed || kind == Kind::Run {
            return;
        }
        let key: Key = (tenant.into(), kind, id.into());
        if self.is_fresh.insert(key.clone()) {
            self.fresh.push_back(key);
        }
    }

    /// Whether agents and tasks of which something new is said are remembered for [`Self::take_fresh`].
    pub fn follow(&mut self, followed: bool) {
        self.followed = followed;
    }

    /// Whether [`Self::take_fresh`] would give anything.
    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Agents and tasks that something was said of, those that wait longest first.
    pub fn take_fresh(&mut self, most: usize) -> Vec<Key> {
        let taken: Vec<Key> = self.fresh.drain(..self.fresh.len().min(most)).collect();
        for key in &taken {
            self.is_fresh.remove(key);
        }
        taken
    }

    /// How many new ones were not taken up since the last call, because their tenant has too many of the kind.
    pub fn take_refused(&mut self) -> usize {
        std::mem::take(&mut self.refused)
    }

    /// One entity.
    pub fn get(&self, tenant: &str, kind: Kind, id: &str) -> Option<&Entity> {
        self.tenants.get(tenant)?.kinds[at(kind)].get(id)
    }

    /// The open runs or tasks of an agent, by id.
    pub fn open_of<'s>(&'s self, tenant: &str, agent: &str, kind: Kind) -> impl Iterator<Item = &'s str> {
        let open = self.tenants.get(tenant).and_then(|t| t.open.get(agent)).filter(|_| kind != Kind::Agent);
        open.into_iter().flat_map(move |open| open[at(kind)].iter().map(|id| &**id))
    }

    /// Notes whether a condition holds; gives whether that is new.
    pub fn note(&mut self, tenant: &str, kind: Kind, id: &str, up: Up, holds: bool) -> bool {
        let entity = self.tenants.get_mut(tenant).and_then(|t| t.kinds[at(kind)].get_mut(id));
        let changed = entity.is_some_and(|e| if holds { e.up.insert(up) } else { e.up.remove(&up) });
        if changed {
            self.dirty.insert((tenant.into(), kind, id.into()));
        }
        changed
    }

    /// Takes down what `keep` does not want to keep, in order, and gives it.
    pub fn take_down(&mut self, keep: impl Fn(&Up) -> bool) -> Vec<(Key, Up)> {
        let mut down = Vec::new();
        for (tenant, state) in &mut self.tenants {
            for kind in Kind::ALL.iter().copied() {
                for (id, entity) in &mut state.kinds[at(kind)] {
                    let gone: Vec<Up> = entity.up.iter().filter(|up| !keep(up)).cloned().collect();
                    for up in gone {
                        entity.up.remove(&up);
                        down.push(((tenant.clone(), kind, id.clone()), up));
                    }
                }
            }
        }
        down.sort();
        self.dirty.extend(down.iter().map(|(key, _)| key.clone()));
        down
    }

    /// Whether [`Self::expire`] would look at anything.
    pub fn has_due(&self, tenant: &str, clock: Micros) -> bool {
        let first = self.tenants.get(tenant).and_then(|t| t.expiry.first_key_value());
        first.is_some_and(|(hour, _)| *hour <= clock.div_euclid(BUCKET))
    }

    /// Forgets what has been silent for long at `clock`, the tenant's highest event time; gives what was up for it.
    pub fn expire(&mut self, tenant: &str, clock: Micros) -> Vec<(Key, Up)> {
        let mut down = Vec::new();
        let Some(state) = self.tenants.get_mut(tenant) else { return down };
        let hour = clock.div_euclid(BUCKET);
        while let Some(entry) = state.expiry.first_entry().filter(|entry| *entry.key() <= hour) {
            for (kind, id) in entry.remove() {
                let Some(entity) = state.kinds[at(kind)].get(&id) else { continue };
                let due = due(kind, entity.last);
                if due > hour {
                    state.expiry.entry(due).or_default().push((kind, id));
                    continue;
                }
                let Some(entity) = state.kinds[at(kind)].remove(&id) else { continue };
                let of_agent = entity.agent.as_deref().and_then(|agent| state.open.get_mut(agent));
                if let Some(open) = of_agent.filter(|_| kind != Kind::Agent) {
                    open[at(kind)].remove(&id);
                }
                if let Some(agent) = entity.agent.as_deref()
                    && state.open.get(agent).is_some_and(|open| open.iter().all(BTreeSet::is_empty))
                {
                    state.open.remove(agent);
                }
                let key: Key = (tenant.into(), kind, id);
                down.extend(entity.up.into_iter().map(|up| (key.clone(), up)));
                self.dirty.insert(key);
            }
        }
        down
    }

    /// Forgets all of a kind: no condition reads it any more.
    pub fn clear(&mut self, kind: Kind) {
        for (tenant, state) in &mut self.tenants {
            self.dirty.extend(state.kinds[at(kind)].drain().map(|(id, _)| (tenant.clone(), kind, id)));
            if kind != Kind::Agent {
                state.open.values_mut().for_each(|open| open[at(kind)].clear());
            }
        }
    }

    /// The latest text of a field.
    pub fn text(&self, tenant: &str, kind: Kind, id: &str, field: &str) -> Option<Arc<str>> {
        match self.get(tenant, kind, id)?.values.get(field)? {
            (_, Value::Text(text)) => Some(Arc::clone(text)),
            _ => None,
        }
    }

    /// The latest whole number of a field.
    pub fn whole(&self, tenant: &str, kind: Kind, id: &str, field: &str) -> Option<i64> {
        match self.get(tenant, kind, id)?.values.get(field)? {
            (_, Value::Whole(number)) => Some(*number),
            _ => None,
        }
    }

    /// The agents of a team, as last named with it, by id.
    pub fn team(&self, tenant: &str, team: &str) -> Vec<String> {
        let agents = self.tenants.get(tenant).into_iter().flat_map(|t| &t.kinds[at(Kind::Agent)]);
        let of_team =
            |entity: &Entity| matches!(entity.values.get("team_id"), Some((_, Value::Text(t))) if **t == *team);
        let mut found: Vec<String> =
            agents.filter(|(_, entity)| of_team(entity)).map(|(id, _)| id.to_string()).collect();
        found.sort();
        found
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.tenants.values().flat_map(|t| &t.kinds).map(HashMap::len).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.tenants.values().all(|t| t.kinds.iter().all(HashMap::is_empty))
    }

    /// What changed since the last call; `None`: forgotten.
    pub fn take_changes(&mut self) -> Vec<(Key, Option<&Entity>)> {
        let dirty = std::mem::take(&mut self.dirty);
        let value = |(tenant, kind, id): &Key| self.tenants.get(tenant)?.kinds[at(*kind)].get(id);
        dirty.into_iter().map(|key| (key.clone(), value(&key))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        for (tenant, state) in &self.tenants {
            for kind in Kind::ALL.iter().copied() {
                self.dirty.extend(state.kinds[at(kind)].keys().map(|id| (tenant.clone(), kind, id.clone())));
            }
        }
    }

    /// Takes one back from a checkpoint.
    pub fn restore(&mut self, tenant: &str, kind: Kind, id: &str, entity: Entity) {
        let state = self.tenants.entry_ref(tenant).or_default();
        state.expiry.entry(due(kind, entity.last)).or_default().push((kind, id.into()));
        if let Some(agent) = entity.agent.as_deref().filter(|_| entity.open && kind != Kind::Agent) {
            state.open.entry_ref(agent).or_default()[at(kind)].insert(id.into());
        }
        state.kinds[at(kind)].insert(id.into(), entity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<'a>(id: &'a str, time: Micros, agent: Option<&'a str>, value: i64) -> Said<'a> {
        let values = vec![(Arc::from("capacity"), Value::Whole(value))];
        Said { id, time, values, open: None, run: None, agent }
    }

    #[test]
    fn a_late_record_does_not_bring_back_an_old_value() {
        let mut entities = Entities::default();
        entities.observe("t", Kind::Agent, said("a", 10, None, 1));
        entities.observe("t", Kind::Agent, said("a", 5, None, 2));
        let value = |e: &Entities| e.get("t", Kind::Agent, "a").unwrap().values["capacity"].clone();
        assert_eq!(value(&entities), (10, Value::Whole(1)));
        entities.observe("t", Kind::Agent, said("a", 10, None, 3));
        assert_eq!(value(&entities), (10, Value::Whole(3)), "the later record wins a tie");
    }

    #[test]
    fn open_work_follows_its_agent_and_is_forgotten_with_time() {
        let mut entities = Entities::default();
        entities.observe("t", Kind::Task, said("x", 0, Some("a"), 1));
        entities.observe("t", Kind::Task, said("y", 0, Some("a"), 1));
        let open = |e: &Entities, agent| e.open_of("t", agent, Kind::Task).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(open(&entities, "a"), ["x", "y"]);
        entities.observe("t", Kind::Task, said("x", 1, Some("b"), 1));
        entities.observe("t", Kind::Task, Said { open: Some(false), ..said("y", 1, Some("a"), 1) });
        assert_eq!((open(&entities, "a"), open(&entities, "b")), (vec![], vec!["x".to_owned()]));
        let up = Up { policy_tenant: "*".into(), policy_id: "p".into(), version: 1, with: [None, None, None] };
        assert!(
            entities.note("t", Kind::Task, "x", up.clone(), true) && !entities.note("t", Kind::Task, "x", up, true)
        );
        let week = 7 * 24 * 3600 * SECOND;
        assert!(entities.expire("t", week).is_empty());
        let down = entities.expire("t", week + 2 * BUCKET);
        assert_eq!(down.len(), 1, "what was up is given");
        assert!(entities.is_empty() && open(&entities, "b").is_empty());
        assert!(entities.take_changes().iter().all(|(_, value)| value.is_none()));
    }

    #[test]
    fn what_is_taken_back_is_what_was_given() {
        let mut one = Entities::default();
        one.observe("t", Kind::Run, said("r", 3, Some("a"), 7));
        let up =
            Up { policy_tenant: "*".into(), policy_id: "p".into(), version: 2, with: [None, Some("a".into()), None] };
        one.note("t", Kind::Run, "r", up, true);
        let mut two = Entities::default();
        for ((tenant, kind, id), entity) in one.take_changes() {
            let json = serde_json::to_string(entity.unwrap()).unwrap();
            two.restore(&tenant, kind, &id, serde_json::from_str(&json).unwrap());
        }
        assert_eq!(one.get("t", Kind::Run, "r"), two.get("t", Kind::Run, "r"));
        assert_eq!(two.open_of("t", "a", Kind::Run).collect::<Vec<_>>(), ["r"]);
        two.mark_all_dirty();
        assert_eq!(two.take_changes().len(), 1);
    }
}
