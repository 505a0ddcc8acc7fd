//! What a partition knows of its runs: who they belong to and which snapshots they are bound to (P5).
//!
//! A run binds each policy at that policy's binding moment: `run.started`, `run.first_token`, or each step; without the event,
//! at first sight. A run is forgotten 24 hours of its tenant's event time after its last event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND};
use crate::policy::Scope;

/// How long a silent or ended run is remembered.
const KEPT: Micros = 24 * 3600 * SECOND;
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

type Runs = HashMap<Box<str>, Run, FxBuildHasher>;

/// All runs of a partition.
#[derive(Debug, Default)]
pub struct RunTable {
    tenants: HashMap<Box<str>, Tenant, FxBuildHasher>,
    dirty: BTreeSet<(Box<str>, Box<str>)>,
}

#[derive(Debug, Default)]
struct Tenant {
    runs: Runs,
    /// Hour of the tenant's clock → runs that may have expired by then.
    expiry: BTreeMap<i64, Vec<Box<str>>>,
}

impl RunTable {
    /// Takes one row; `snapshot` is in force.
    pub fn observe(&mut self, seen: Seen<'_>, snapshot: &Arc<str>) -> (Bound, &mut Run) {
        let tenant = self.tenants.entry_ref(seen.tenant).or_default();
        let mut bound = Bound::Same;
        let run = match tenant.runs.entry_ref(seen.run) {
            hashbrown::hash_map::EntryRef::Occupied(entry) => entry.into_mut(),
            hashbrown::hash_map::EntryRef::Vacant(entry) => {
                bound = Bound::New;
                tenant.expiry.entry(bucket(seen.time)).or_default().push(seen.run.into());
                entry.insert(Run {
                    fields: Fields::default(),
                    run_start: Arc::clone(snapshot),
                    first_token: Arc::clone(snapshot),
                    first: seen.time,
                    last: seen.time,
                    ends: BTreeSet::new(),
                    denied: false,
                    limit_set: None,
                    covered: None,
                    before: None,
                })
            }
        };
        let identity = differs(&run.fields, seen.fields);
        let binding = match seen.event_type {
            "run.started" => run.run_start != *snapshot,
            "run.first_token" => run.first_token != *snapshot,
            _ => false,
        };
        if (identity || binding) && bound != Bound::New {
            run.before = Some(Box::new(run.clone()));
        }
        let mut touched = bound == Bound::New;
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
                if run.ends.len() > ENDS {
                    run.ends.pop_first();
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

    /// The run, if it is known.
    pub fn get(&self, tenant: &str, run: &str) -> Option<&Run> {
        self.tenants.get(tenant)?.runs.get(run)
    }

    /// The run, to note its limit set.
    pub fn get_mut(&mut self, tenant: &str, run: &str) -> Option<&mut Run> {
        self.tenants.get_mut(tenant)?.runs.get_mut(run)
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

    /// Ids of the snapshots that some run is bound to.
    pub fn snapshots(&self) -> BTreeSet<Arc<str>> {
        let runs = self.tenants.values().flat_map(|t| t.runs.values());
        runs.flat_map(|r| [Arc::clone(&r.run_start), Arc::clone(&r.first_token)]).collect()
    }

    /// Forgets what has been silent for 24 hours at `clock`, the tenant's highest event time. Gives the forgotten runs that
    /// stood stopped ([`Run::denied`]).
    pub fn expire(&mut self, tenant: &str, clock: Micros) -> Vec<Box<str>> {
        let mut denied = Vec::new();
        let Some(state) = self.tenants.get_mut(tenant) else { return denied };
        while let Some(entry) = state.expiry.first_entry() {
            if entry.key().saturating_mul(BUCKET).saturating_add(KEPT + BUCKET) > clock {
                break;
            }
            let (hour, runs) = entry.remove_entry();
            for id in runs {
                let Some(run) = state.runs.get(&id) else { continue };
                let now_in = bucket(run.last);
                if now_in > hour {
                    state.expiry.entry(now_in).or_default().push(id);
                } else {
                    if run.denied {
                        denied.push(id.clone());
                    }
                    state.runs.remove(&id);
                    self.dirty.insert((tenant.into(), id));
                }
            }
        }
        denied
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
        state.expiry.entry(bucket(run.last)).or_default().push(id.into());
        state.runs.insert(id.into(), run);
    }
}

impl Bound {
    fn max(self, other: Self) -> Self {
        if self == Self::New { self } else { other }
    }
}

fn bucket(time: Micros) -> i64 {
    time.div_euclid(BUCKET)
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
        Seen { tenant: "t", run: "r", event_type, time, fields: [None, agent, None, None, None] }
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
}
