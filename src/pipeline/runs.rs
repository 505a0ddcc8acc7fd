//! What a partition knows of its runs: who they belong to and which snapshots they are bound to (P5).
//!
//! A run binds each policy at that policy's binding moment: `run.started`, `run.first_token`, or each step; without the event,
//! at first sight. A run is forgotten so long of its tenant's event time after its last event (`[limits] run-retention`), to
//! the hour; a tenant with more than its most forgets those that were silent longest, counted. What a row makes forgotten is
//! still there for the decisions of its step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::{Equivalent, HashMap};
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND};
use crate::policy::Scope;

/// End markers remembered per run.
const ENDS: usize = 16;
/// Granularity of forgetting.
const BUCKET: Micros = 3600 * SECOND;

/// Identity fields of a run, as last seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fields {
    /// `project_id`
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub project: Option<Arc<str>>,
    /// `agent_id`
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agent: Option<Arc<str>>,
    /// `api_key_id`
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub api_key: Option<Arc<str>>,
    /// `human_actor_id`
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub human: Option<Arc<str>>,
    /// `provider`
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub provider: Option<Arc<str>>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Whose it is.
    pub fields: Fields,
    /// Snapshot in force at `run.started` (or at first sight).
    pub run_start: Arc<str>,
    /// Snapshot in force at `run.first_token` (or at first sight).
    pub first_token: Arc<str>,
    /// Event time of the first event.
    pub first: Micros,
    /// Event time of the latest event.
    pub last: Micros,
    /// Event times of `run.completed` and `run.failed`: the latest [`ENDS`] of them. More than one when the id is used again.
    pub ends: BTreeSet<Micros>,
    /// It stands stopped, because the terms it is bound to are ambiguous.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub denied: bool,
    /// Records of alerts it has caused (`max_alerts_per_run`).
    #[serde(skip_serializing_if = "is_zero", default)]
    pub alerts: u32,
    /// Those of the ends that were `run.failed`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub failures: BTreeSet<Micros>,
    /// The run that started it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent: Option<Arc<str>>,
    /// Set by the row that names the parent first, until someone takes it; not state.
    #[serde(skip)]
    pub has_new_parent: bool,
    /// Interned arbitration of the moment; not state, found again after a restart.
    #[serde(skip)]
    pub limit_set: Option<u32>,
    /// Whether any policy governs it or a group it belongs to, where that has been asked; not state either.
    #[serde(skip)]
    pub covered: Option<bool>,
    /// What it was before the row that changed its identity or binding, until someone takes it; not state either.
    #[serde(skip)]
    pub before: Option<Box<Self>>,
}

impl Fields {
    /// The groups a run with these fields belongs to, beside its tenant.
    pub fn groups(&self) -> [(Scope, Option<Arc<str>>); 5] {
        [
            (Scope::Agent, self.agent.clone()),
            (Scope::ApiKey, self.api_key.clone()),
            (Scope::HumanActor, self.human.clone()),
            (Scope::Project, self.project.clone()),
            (Scope::Provider, self.provider.clone()),
        ]
    }
}

impl Run {
    /// Whether nothing came after its latest end.
    pub fn has_ended(&self) -> bool {
        self.ends.last().is_some_and(|end| *end >= self.last)
    }
}

/// One row's view of its run.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Tenant.
    pub tenant: &'a str,
    /// Run.
    pub run: &'a str,
    /// Event type.
    pub event_type: &'a str,
    /// Event time.
    pub time: Micros,
    /// `parent_run_id`
    pub parent: Option<&'a str>,
    /// Project, agent, key, human, provider.
    pub fields: [Option<&'a str>; 5],
}

/// Whether a row changed what its run is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// As before.
    Same,
    /// First sight of the run.
    New,
    /// Its identity or binding changed.
    Changed,
}

/// Tenant and run.
pub type RunKey = (Box<str>, Box<str>);

/// Tenant and run, to look for a [`RunKey`].
#[derive(Hash)]
pub struct RunRef<'a>(pub &'a str, pub &'a str);

impl Equivalent<RunKey> for RunRef<'_> {
    fn equivalent(&self, key: &RunKey) -> bool {
        *self.0 == *key.0 && *self.1 == *key.1
    }
}

type Gone = HashMap<RunKey, Run, FxBuildHasher>;
type Runs = HashMap<Box<str>, Run, FxBuildHasher>;

/// All runs of a partition.
#[derive(Debug)]
pub struct RunTable {
    retention: Micros,
    most: usize,
    tenants: HashMap<Box<str>, Tenant, FxBuildHasher>,
    dirty: BTreeSet<RunKey>,
    /// Forgotten in this step.
    gone: Gone,
    denied: Vec<RunKey>,
    forgotten: u64,
}

#[derive(Debug)]
struct Tenant {
    runs: Runs,
    /// Run → those that name it as their parent.
    children: HashMap<Box<str>, BTreeSet<Box<str>>, FxBuildHasher>,
    /// Hour of a last event, or an earlier one → runs.
    expiry: BTreeMap<i64, BTreeSet<Box<str>>>,
    /// Nothing expires before the tenant's clock shows this.
    due: Micros,
}

impl Default for Tenant {
    fn default() -> Self {
        Self { runs: Runs::default(), children: HashMap::default(), expiry: BTreeMap::new(), due: Micros::MAX }
    }
}

impl Tenant {
    /// Takes out the run that was silent longest (of those of one hour, the first by name), or, with a clock, every one whose
    /// time has come.
    fn forget(&mut self, clock: Option<Micros>, retention: Micros, gone: &mut dyn FnMut(Box<str>, Run)) {
        while let Some(mut entry) = self.expiry.first_entry() {
            let hour = *entry.key();
            if clock.is_some_and(|clock| expires(hour, retention) > clock) {
                break;
            }
            let id = entry.get_mut().pop_first();
            if entry.get().is_empty() {
                entry.remove();
            }
            let Some((id, run)) = id.and_then(|id| self.runs.remove_entry(&id)) else { continue };
            if bucket(run.last) > hour {
                self.expiry.entry(bucket(run.last)).or_default().insert(id.clone());
                self.runs.insert(id, run);
                continue;
            }
            if let Some(parent) = &run.parent
                && let Some(children) = self.children.get_mut(&**parent)
            {
                children.remove(&id);
                if children.is_empty() {
                    self.children.remove(&**parent);
                }
            }
            gone(id, run);
            if clock.is_none() {
                break;
            }
        }
        self.due = self.expiry.first_key_value().map_or(Micros::MAX, |(hour, _)| expires(*hour, retention));
    }
}

impl Default for RunTable {
    fn default() -> Self {
        Self::new(24 * 3600 * SECOND, usize::MAX)
    }
}

impl RunTable {
    /// Runs are remembered for `retention` µs of their tenant's event time, at most `most` of a tenant.
    pub fn new(retention: Micros, most: usize) -> Self {
        Self {
            retention,
            most,
            tenants: HashMap::default(),
            dirty: BTreeSet::new(),
            gone: Gone::default(),
            denied: Vec::new(),
            forgotten: 0,
        }
    }

    /// Takes one row; `snapshot` is in force.
    pub fn observe(&mut self, seen: Seen<'_>, snapshot: &Arc<str>) -> (Bound, &mut Run) {
        let (retention, dirty, gone, denied) = (self.retention, &mut self.dirty, &mut self.gone, &mut self.denied);
        let tenant = self.tenants.entry_ref(seen.tenant).or_default();
        if tenant.runs.len() >= self.most && !tenant.runs.contains_key(seen.run) {
            self.forgotten += 1;
            tenant.forget(None, retention, &mut |id, run| forgotten(seen.tenant, id, run, dirty, gone, denied));
        }
        let mut bound = Bound::Same;
        let Tenant { runs, children, expiry, due } = tenant;
        let run = match runs.entry_ref(seen.run) {
            hashbrown::hash_map::EntryRef::Occupied(entry) => entry.into_mut(),
            hashbrown::hash_map::EntryRef::Vacant(entry) => {
                // one that this very step made forgotten has rows under other terms in it
                let again = if gone.is_empty() { None } else { gone.remove(&RunRef(seen.tenant, seen.run)) };
                bound = if again.is_some() { Bound::Changed } else { Bound::New };
                let hour = bucket(seen.time);
                expiry.entry(hour).or_default().insert(seen.run.into());
                *due = (*due).min(expires(hour, retention));
                entry.insert(Run {
                    fields: Fields::default(),
                    run_start: Arc::clone(snapshot),
                    first_token: Arc::clone(snapshot),
                    first: seen.time,
                    last: seen.time,
                    ends: BTreeSet::new(),
                    denied: false,
                    alerts: 0,
                    failures: BTreeSet::new(),
                    parent: None,
                    has_new_parent: false,
                    limit_set: None,
                    covered: None,
                    before: again.map(Box::new),
                })
            }
        };
        let identity = differs(&run.fields, seen.fields);
        let binding = match seen.event_type {
            "run.started" => run.run_start != *snapshot,
            "run.first_token" => run.first_token != *snapshot,
            _ => false,
        };
        if (identity || binding) && bound == Bound::Same {
            run.before = Some(Box::new(run.clone()));
        }
        let mut touched = bound != Bound::Same;
        if let Some(parent) = seen.parent.filter(|parent| run.parent.is_none() && *parent != seen.run) {
            run.parent = Some(parent.into());
            run.has_new_parent = true;
            touched = true;
            children.entry_ref(parent).or_default().insert(seen.run.into());
        }
        match seen.event_type {
            "run.started" if binding => {
                run.run_start = Arc::clone(snapshot);
                touched = true;
                bound = bound.max(Bound::Changed);
            }
            "run.first_token" if binding => {
                run.first_token = Arc::clone(snapshot);
                touched = true;
                bound = bound.max(Bound::Changed);
            }
            "run.completed" | "run.failed" => {
                touched |= run.ends.insert(seen.time);
                if seen.event_type == "run.failed" {
                    touched |= run.failures.insert(seen.time);
                }
                if run.ends.len() > ENDS
                    && let Some(oldest) = run.ends.pop_first()
                {
                    run.failures.remove(&oldest);
                }
            }
            _ => {}
        }
        if identity {
            merge(&mut run.fields, seen.fields);
            touched = true;
            bound = bound.max(Bound::Changed);
        }
        // the hour is what expiry needs; a checkpoint for every step of every run would cost more than it tells
        if bucket(seen.time) > bucket(run.last) {
            touched = true;
        }
        run.first = run.first.min(seen.time);
        run.last = run.last.max(seen.time);
        if bound != Bound::Same {
            run.limit_set = None;
            run.covered = None;
        }
        if touched {
            self.dirty.insert((seen.tenant.into(), seen.run.into()));
        }
        (bound, run)
    }

    /// The run, if it is known, or was until this step made it forgotten.
    pub fn get(&self, tenant: &str, run: &str) -> Option<&Run> {
        let known = self.tenants.get(tenant).and_then(|t| t.runs.get(run));
        known.or_else(|| if self.gone.is_empty() { None } else { self.gone.get(&RunRef(tenant, run)) })
    }

    /// The run's parent, that one's parent, and so on: at most `depth`, none twice.
    pub fn ancestors(&self, tenant: &str, run: &str, depth: usize) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut at = run.to_owned();
        while found.len() < depth {
            let parent = self.get(tenant, &at).and_then(|run| run.parent.as_deref());
            let Some(parent) = parent.filter(|parent| *parent != run && !found.iter().any(|f| f == parent)) else {
                break;
            };
            at = parent.to_owned();
            found.push(at.clone());
        }
        found
    }

    /// The runs that name this one as their parent and have not ended, by id.
    pub fn children(&self, tenant: &str, run: &str) -> Vec<String> {
        let Some(state) = self.tenants.get(tenant) else { return Vec::new() };
        let children = state.children.get(run).into_iter().flatten();
        let open = |id: &&str| state.runs.get(*id).is_some_and(|run| !run.has_ended());
        children.map(|id| &**id).filter(open).map(str::to_owned).collect()
    }

    /// The event time of a run's first event.
    pub fn since(&self, tenant: &str, run: &str) -> Micros {
        self.get(tenant, run).map_or(0, |run| run.first)
    }

    /// Whether any run of the tenant is remembered.
    pub fn knows(&self, tenant: &str) -> bool {
        self.tenants.contains_key(tenant)
    }

    /// Whether a run of the tenant sent something since an event time and has not ended.
    pub fn under_way(&self, tenant: &str, since: Micros) -> bool {
        let runs = self.tenants.get(tenant).into_iter().flat_map(|t| t.runs.values());
        runs.into_iter().any(|run| run.last >= since && !run.has_ended())
    }

    /// Whether a run of this tenant has this agent.
    pub fn names_agent(&self, tenant: &str, agent: &str) -> bool {
        let runs = self.tenants.get(tenant).into_iter().flat_map(|t| t.runs.values());
        runs.into_iter().any(|run| run.fields.agent.as_deref() == Some(agent))
    }

    /// Another snapshot is in force: every limit set is found anew.
    pub fn rebind(&mut self) {
        for tenant in self.tenants.values_mut() {
            for run in tenant.runs.values_mut() {
                run.limit_set = None;
                run.covered = None;
            }
        }
    }

    /// Notes that a run changed outside [`Self::observe`].
    pub fn touch(&mut self, tenant: &str, run: &str) {
        self.dirty.insert((tenant.into(), run.into()));
    }

    /// Counts a record of an alert that a run caused, unless it has caused `most` of them.
    pub fn told(&mut self, tenant: &str, run: &str, most: u32) -> bool {
        let known = self.tenants.get_mut(tenant).and_then(|t| t.runs.get_mut(run));
        // of one that is forgotten there is nothing to count
        let Some(known) = known else { return true };
        if known.alerts >= most {
            return false;
        }
        known.alerts += 1;
        self.dirty.insert((tenant.into(), run.into()));
        true
    }

    /// The step is decided: what it made forgotten is gone.
    pub fn settle(&mut self) {
        self.gone = Gone::default();
    }

    /// Runs forgotten before their time because their tenant had too many, since the start.
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Ids of the snapshots that some run is bound to.
    pub fn snapshots(&self) -> BTreeSet<Arc<str>> {
        let runs = self.tenants.values().flat_map(|t| t.runs.values());
        runs.flat_map(|r| [Arc::clone(&r.run_start), Arc::clone(&r.first_token)]).collect()
    }

    /// Forgets the tenant's runs whose time has come at `clock`, its highest event time.
    pub fn expire(&mut self, tenant: &str, clock: Micros) {
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        if clock < state.due {
            return;
        }
        let (dirty, gone, denied) = (&mut self.dirty, &mut self.gone, &mut self.denied);
        state.forget(Some(clock), self.retention, &mut |id, run| forgotten(tenant, id, run, dirty, gone, denied));
        if state.runs.is_empty() {
            self.tenants.remove(tenant);
        }
    }

    /// Runs forgotten since the last call that stood stopped ([`Run::denied`]).
    pub fn take_denied(&mut self) -> Vec<RunKey> {
        std::mem::take(&mut self.denied)
    }

    /// How many runs are known.
    pub fn len(&self) -> usize {
        self.tenants.values().map(|t| t.runs.len()).sum()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs changed since the last call; `None`: forgotten.
    pub fn take_changes(&mut self) -> Vec<(RunKey, Option<&Run>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|(t, r)| {
                let run = self.tenants.get(&t).and_then(|s| s.runs.get(&r));
                ((t, r), run)
            })
            .collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        for (tenant, state) in &self.tenants {
            self.dirty.extend(state.runs.keys().map(|r| (tenant.clone(), r.clone())));
        }
    }

    /// Takes a run back.
    pub fn restore(&mut self, tenant: &str, id: &str, run: Run) {
        let state = self.tenants.entry_ref(tenant).or_default();
        let hour = bucket(run.last);
        state.expiry.entry(hour).or_default().insert(id.into());
        state.due = state.due.min(expires(hour, self.retention));
        if let Some(parent) = &run.parent {
            state.children.entry_ref(&**parent).or_default().insert(id.into());
        }
        state.runs.insert(id.into(), run);
    }
}

fn forgotten(
    tenant: &str,
    id: Box<str>,
    run: Run,
    dirty: &mut BTreeSet<RunKey>,
    gone: &mut Gone,
    denied: &mut Vec<RunKey>,
) {
    let key: RunKey = (tenant.into(), id);
    dirty.insert(key.clone());
    if run.denied {
        denied.push(key.clone());
    }
    gone.insert(key, run);
}

impl Bound {
    fn max(self, other: Self) -> Self {
        if self == Self::New { self } else { other }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn bucket(time: Micros) -> i64 {
    time.div_euclid(BUCKET)
}

/// Clock at which runs with their last event in an hour are forgotten.
fn expires(hour: i64, retention: Micros) -> Micros {
    hour.saturating_add(1).saturating_mul(BUCKET).saturating_add(retention)
}

/// Whether the row says something else than what is known.
fn differs(fields: &Fields, seen: [Option<&str>; 5]) -> bool {
    let held = [&fields.project, &fields.agent, &fields.api_key, &fields.human, &fields.provider];
    held.into_iter().zip(seen).any(|(held, new)| new.is_some() && held.as_deref() != new)
}

/// Takes over what the row says; fields it leaves out stay.
fn merge(fields: &mut Fields, seen: [Option<&str>; 5]) {
    let [project, agent, api_key, human, provider] = seen;
    for (held, new) in [
        (&mut fields.project, project),
        (&mut fields.agent, agent),
        (&mut fields.api_key, api_key),
        (&mut fields.human, human),
        (&mut fields.provider, provider),
    ] {
        if let Some(new) = new
            && held.as_deref() != Some(new)
        {
            *held = Some(new.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<'a>(event_type: &'a str, time: Micros, agent: Option<&'a str>) -> Seen<'a> {
        Seen { tenant: "t", run: "r", parent: None, event_type, time, fields: [None, agent, None, None, None] }
    }

    #[test]
    fn a_run_is_bound_at_its_start_and_keeps_it() {
        let mut table = RunTable::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(table.observe(seen("run.started", 0, Some("x")), &a).0, Bound::New);
        let (bound, run) = table.observe(seen("run.step", 1, None), &b);
        assert_eq!((bound, &*run.run_start, run.fields.agent.as_deref()), (Bound::Same, "a", Some("x")));
        assert_eq!(table.observe(seen("run.first_token", 2, None), &b).0, Bound::Changed);
        assert_eq!(table.observe(seen("run.step", 3, Some("y")), &b).0, Bound::Changed, "another agent, other terms");
    }

    #[test]
    fn a_silent_run_is_forgotten_after_a_day_but_not_a_busy_one() {
        let mut table = RunTable::default();
        let a: Arc<str> = "a".into();
        table.observe(seen("run.started", 0, None), &a);
        table.observe(seen("run.step", 20 * 3600 * SECOND, None), &a);
        table.expire("t", 26 * 3600 * SECOND);
        assert!(table.get("t", "r").is_some(), "seen six hours ago");
        table.take_changes();
        table.expire("t", 46 * 3600 * SECOND);
        assert!(table.is_empty());
        let changes = table.take_changes();
        assert!(matches!(changes.as_slice(), [(_, None)]), "a tombstone is due: {changes:?}");
    }

    #[test]
    fn a_tenant_with_too_many_runs_forgets_those_silent_longest_also_after_a_restore() {
        let hour = |h: i64| h * 3600 * SECOND;
        let a: Arc<str> = "a".into();
        let row = |run, at| Seen { run, ..seen("run.step", hour(at), None) };
        let mut table = RunTable::new(hour(24), 3);
        for (run, at) in [("x", 0), ("b", 1), ("c", 1), ("x", 2)] {
            table.observe(row(run, at), &a);
        }
        let mut again = RunTable::new(hour(24), 3);
        for ((tenant, id), run) in table.take_changes() {
            again.restore(&tenant, &id, run.unwrap().clone());
        }
        for table in [&mut table, &mut again] {
            table.observe(row("d", 2), &a);
            assert!(table.get("t", "b").is_some(), "until the step is decided");
            table.settle();
            assert!(table.get("t", "b").is_none());
            let known = ["b", "c", "d", "x"].map(|id| table.get("t", id).is_some());
            assert_eq!(known, [false, true, true, true], "x spoke later, c comes after b");
            assert_eq!(table.forgotten(), 1);
            assert_eq!(table.observe(row("x", 2), &a).0, Bound::Same);
            assert_eq!(table.len(), 3);
        }
    }

    #[test]
    fn retention_is_what_it_is_set_to_and_a_tenant_without_runs_takes_no_room() {
        let mut table = RunTable::new(60 * SECOND, usize::MAX);
        let a: Arc<str> = "a".into();
        table.observe(seen("run.step", 0, None), &a);
        table.expire("t", 3600 * SECOND);
        assert_eq!(table.len(), 1, "to the hour");
        table.expire("t", 3660 * SECOND);
        assert!(table.is_empty() && table.tenants.is_empty());
    }
}
