//! Tombstones of stopped runs (X3): what a run sends after it was stopped stops it again, one at a time.

use std::collections::BTreeSet;

use hashbrown::{Equivalent, HashMap};
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, Wall};
use crate::decide::records::{Intervention, InterventionState as State, Subject};

use super::{Acting, Interventions, Live, Order, Slot, life};

/// Tenant and run.
pub type RunKey = (Box<str>, Box<str>);

#[derive(Hash)]
struct RunRef<'a>(&'a str, &'a str);

impl Equivalent<RunKey> for RunRef<'_> {
    fn equivalent(&self, key: &RunKey) -> bool {
        *self.0 == *key.0 && *self.1 == *key.1
    }
}

/// A run that was stopped, or that nobody would stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// STOP or KILL.
    pub kind: String,
    /// The intervention.
    pub intervention_id: String,
    /// When it was stopped.
    pub at: Micros,
    /// The step clock when that was known.
    pub known_at: Micros,
    /// How often it had to be stopped again.
    pub again: u32,
    /// The policy that asked for it.
    #[serde(default)]
    pub policy_id: String,
}

/// All of a partition.
#[derive(Debug, Default)]
pub(super) struct StoppedRuns {
    runs: HashMap<RunKey, Stopped, FxBuildHasher>,
    by_time: BTreeSet<(Micros, RunKey)>,
    dirty: BTreeSet<RunKey>,
}

impl StoppedRuns {
    /// Notes that the intervention stopped its run at `at`.
    pub fn mark(&mut self, record: &Intervention, at: Micros, now: Wall) {
        let (tenant, run) = (record.tenant_id.as_str(), record.target.id.as_str());
        let key: RunKey = (tenant.into(), run.into());
        let again = self.runs.get(&key).map_or(0, |stopped| stopped.again);
        if let Some(old) = self.runs.get(&key) {
            self.by_time.remove(&(old.known_at, key.clone()));
        }
        let (kind, intervention_id) = (record.kind.clone(), record.intervention_id.clone());
        let stopped =
            Stopped { kind, intervention_id, at, known_at: now.0, again, policy_id: record.policy_id.clone() };
        self.restore(key.clone(), stopped);
        self.dirty.insert(key);
    }

    /// The intervention was taken back.
    pub fn lift(&mut self, tenant: &str, run: &str, id: &str) {
        let key: RunKey = (tenant.into(), run.into());
        if let Some(stopped) = self.runs.get(&key).filter(|stopped| stopped.intervention_id == id) {
            self.by_time.remove(&(stopped.known_at, key.clone()));
            self.runs.remove(&key);
            self.dirty.insert(key);
        }
    }

    pub fn next_end(&self, acting: &Acting) -> Option<Micros> {
        self.by_time.first().map(|(at, _)| at.saturating_add(acting.kept))
    }

    pub fn expire(&mut self, acting: &Acting, now: Wall) {
        while let Some((_, key)) =
            self.by_time.first().filter(|(at, _)| at.saturating_add(acting.kept) <= now.0).cloned()
        {
            self.by_time.pop_first();
            self.runs.remove(&key);
            self.dirty.insert(key);
        }
    }

    pub fn take_changes(&mut self) -> Vec<(RunKey, Option<&Stopped>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|key| (key.clone(), self.runs.get(&key))).collect()
    }

    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.runs.keys().cloned());
    }

    pub fn restore(&mut self, key: RunKey, stopped: Stopped) {
        self.by_time.insert((stopped.known_at, key.clone()));
        self.runs.insert(key, stopped);
    }
}

fn run_slot(tenant: &str, kind: &str, run: &str) -> Slot {
    Slot {
        tenant: tenant.to_owned(),
        kind: kind.to_owned(),
        target: Subject { kind: "RUN".into(), id: run.to_owned() },
    }
}

impl Interventions {
    /// Whether an event of a run at event time `at` is one too many: the run was stopped, and has had its time to fall silent.
    pub fn is_zombie(&self, tenant: &str, run: &str, at: Micros) -> bool {
        if self.stopped.runs.is_empty() {
            return false;
        }
        let stopped = self.stopped.runs.get(&RunRef(tenant, run));
        stopped.is_some_and(|stopped| at > stopped.at.saturating_add(self.acting.stop_grace))
    }

    /// Stops a run again that sends though it was stopped; nothing while it is being stopped.
    pub fn stop_again(&mut self, tenant: &str, run: &str, at: Micros, now: Wall) -> Vec<Intervention> {
        if !self.is_zombie(tenant, run, at) {
            return Vec::new();
        }
        let key: RunKey = (tenant.into(), run.into());
        let under_way = ["STOP", "KILL"].iter().any(|kind| {
            self.slots.get(&run_slot(tenant, kind, run)).is_some_and(|live| life::is_pending(live.record.state))
        });
        if under_way {
            return Vec::new();
        }
        let Some(stopped) = self.stopped.runs.get_mut(&key) else { return Vec::new() };
        stopped.again += 1;
        let stopped = stopped.clone();
        self.stopped.dirty.insert(key);
        let slot = run_slot(tenant, &stopped.kind, run);
        let before = self.slots.get(&slot).cloned();
        let identity = format!("again/{}/{}", stopped.intervention_id, stopped.again);
        let policy = stopped.policy_id.clone();
        let why = format!(
            "RUN {run} sent telemetry of {} though it was stopped at {}",
            crate::clock::rfc3339(at),
            crate::clock::rfc3339(stopped.at)
        );
        let mut record = Order::of_policy(slot.clone(), &policy, &identity, why).record(now);
        record.supersedes = Some(stopped.intervention_id);
        record.signal_id = before.as_ref().and_then(|live| live.record.signal_id.clone());
        if policy.is_empty() {
            record.initiated_by = "system:runwarden".into();
        }
        let (causes, care) = before.map(|live| (live.causes, live.care)).unwrap_or_default();
        self.begin(slot, record, causes, care, now)
    }

    /// What holds a run, the harshest: kind and intervention. What it starts is held alike.
    pub fn holds(&self, tenant: &str, run: &str) -> Option<(&str, &str)> {
        let in_force =
            |live: &&Live| matches!(live.record.state, State::Issued | State::Acknowledged | State::Succeeded);
        for kind in ["KILL", "STOP", "PAUSE"] {
            if let Some(live) = self.slots.get(&run_slot(tenant, kind, run)).filter(in_force) {
                return Some((&live.record.kind, &live.record.intervention_id));
            }
        }
        let stopped = self.stopped.runs.get(&RunRef(tenant, run))?;
        Some((&stopped.kind, &stopped.intervention_id))
    }

    /// Whether a run is paused because its parent was.
    pub fn is_paused_with_parent(&self, tenant: &str, run: &str) -> bool {
        let paused = self.slots.get(&run_slot(tenant, "PAUSE", run));
        paused.is_some_and(|live| live.record.parent_intervention_id.is_some())
    }

    /// The order for a child of a run that `parent` holds, unless the child is held alike. `since`: the first event of the child,
    /// which tells it from an earlier run of its name.
    pub fn cascade(&mut self, parent: &Intervention, child: &str, since: Micros, now: Wall) -> Vec<Intervention> {
        let identity = format!("cascade/{}/{}", parent.intervention_id, crate::clock::rfc3339(since));
        let slot = run_slot(&parent.tenant_id, &parent.kind, child);
        let why = format!("its parent {} is held: {}", parent.target.id, parent.reason);
        let order = Order {
            signal_id: parent.signal_id.clone(),
            initiated_by: parent.initiated_by.clone(),
            authority: parent.authority_level,
            parent: Some(parent.intervention_id.clone()),
            ..Order::of_policy(slot, &parent.policy_id, &identity, why)
        };
        self.order(order.record(now), None, super::Care::default(), now)
    }

    /// As [`Self::cascade`], for a child that appears under a parent that is held already.
    pub fn hold_child(
        &mut self,
        tenant: &str,
        parent: &str,
        child: &str,
        since: Micros,
        now: Wall,
    ) -> Vec<Intervention> {
        let Some((kind, id)) = self.holds(tenant, parent).map(|(kind, id)| (kind.to_owned(), id.to_owned())) else {
            return Vec::new();
        };
        let held = self.get(tenant, &id).map(|live| live.record.clone());
        let record = held.unwrap_or_else(|| {
            // only the mark is left of it
            let slot = run_slot(tenant, &kind, parent);
            let policy = self.stopped(tenant, parent).map(|s| s.policy_id.clone()).unwrap_or_default();
            let mut record = Order::of_policy(slot, &policy, "", "it was stopped".into()).record(now);
            record.intervention_id = id;
            record
        });
        self.cascade(&record, child, since, now)
    }
}

impl Interventions {
    /// The mark of a stopped run.
    pub fn stopped(&self, tenant: &str, run: &str) -> Option<&Stopped> {
        self.stopped.runs.get(&RunRef(tenant, run))
    }
}
