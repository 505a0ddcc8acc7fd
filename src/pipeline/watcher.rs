//! Which early results can change a level, so that the engine traces them row by row.
//!
//! Most groups are far below every limit: comparing with the lowest NEAR line of the group's limit set, remembered by the
//! engine's dense group id, keeps them off the threshold SQL.

use datafusion::arrow::array::{Array, StringArray};
use hashbrown::HashSet;

use crate::decide::levels::{Levels, Shape};
use crate::pipeline::judge::{self, MetricPlan};
use crate::pipeline::limits::LimitSets;
use crate::pipeline::live::LiveWindows;
use crate::pipeline::runs::{RunKey, RunRef, RunTable};
use crate::policy::{Amount, Scope};
use crate::stream::{QueryRows, Watch};

/// Limit set per (key set, group id), as long as nothing about it changes.
#[derive(Debug, Default)]
pub struct GroupCache {
    /// Key set of each query.
    key_sets: Vec<usize>,
    /// (epoch, limit set) by key set and group.
    sets: Vec<Vec<(u32, u32)>>,
    epoch: u32,
}

impl GroupCache {
    /// For queries with these key sets.
    pub fn new(key_sets: Vec<usize>) -> Self {
        let count = key_sets.iter().max().map_or(0, |m| m + 1);
        Self { key_sets, sets: vec![Vec::new(); count], epoch: 1 }
    }

    /// Forgets everything: terms changed.
    pub fn forget(&mut self) {
        self.epoch = self.epoch.checked_add(1).unwrap_or_else(|| {
            self.sets.iter_mut().for_each(Vec::clear);
            1
        });
    }

    /// The engine may reuse this id.
    pub fn free(&mut self, key_set: usize, group: u32) {
        if let Some(entry) = self.sets.get_mut(key_set).and_then(|s| s.get_mut(group as usize)) {
            entry.0 = 0;
        }
    }

    fn get(&self, query: usize, group: u32) -> Option<u32> {
        let set = self.sets.get(*self.key_sets.get(query)?)?;
        set.get(group as usize).filter(|(epoch, _)| *epoch == self.epoch).map(|(_, number)| *number)
    }

    fn put(&mut self, query: usize, group: u32, number: u32) {
        let Some(set) = self.key_sets.get(query).and_then(|k| self.sets.get_mut(*k)) else { return };
        let at = group as usize;
        if set.len() <= at {
            set.resize(at + 1, (0, 0));
        }
        set[at] = (self.epoch, number);
    }
}

/// Chooses what is traced during one push.
pub struct Watcher<'a> {
    /// Per query.
    pub plans: &'a [MetricPlan],
    /// Limit sets.
    pub limits: &'a mut LimitSets,
    /// Runs, for run-scope metrics whose limits have times.
    pub runs: &'a RunTable,
    /// Limit set of each row's run, for the others.
    pub run_sets: &'a [u32],
    /// Levels that are up.
    pub levels: &'a Levels,
    /// Remembered limit sets of groups.
    pub groups: &'a mut GroupCache,
    /// Runs whose terms changed in this batch: always traced, because each row is judged under its own terms.
    pub changed: &'a HashSet<RunKey>,
    /// Who notes windows that are on their way to a limit.
    pub live: Option<&'a mut LiveWindows>,
}

impl Watch for Watcher<'_> {
    fn select(&mut self, early: &[QueryRows]) -> Vec<(usize, usize)> {
        let mut wanted = Vec::new();
        for (index, rows) in early.iter().enumerate() {
            let Some(plan) = self.plans.get(rows.query) else { continue };
            if plan.early {
                self.select_of(index, rows, plan, &mut wanted);
            }
        }
        wanted
    }
}

impl Watcher<'_> {
    fn select_of(&mut self, index: usize, rows: &QueryRows, plan: &MetricPlan, wanted: &mut Vec<(usize, usize)>) {
        let Ok(Some(values)) = judge::values(&rows.rows) else { return };
        let tenants = judge::texts(&rows.rows, "tenant_id");
        let scopes = judge::texts(&rows.rows, plan.scope.field());
        for row in 0..rows.rows.num_rows() {
            let Some(number) = self.find(rows, row, plan, [tenants, scopes]) else { continue };
            let set = self.limits.get(number);
            let half = set.and_then(|s| s.halves.get(rows.query).copied().flatten());
            let floor = set.and_then(|s| s.floors.get(rows.query).copied().flatten());
            if let (Some(live), Some(half)) = (self.live.as_deref_mut(), half)
                && values.is_valid(row)
                && values.value(row) >= half
                && let (Some(tenant), Some(id)) = (judge::text(tenants, row), judge::text(scopes, row))
            {
                let window = rows.window.get(row).copied().unwrap_or_default();
                live.note(rows.query, tenant, id, window, Amount(values.value(row)));
            }
            let Some(floor) = floor else {
                if !self.changed.is_empty()
                    && self.is_changed(plan, judge::text(tenants, row), judge::text(scopes, row))
                {
                    wanted.push((index, row));
                }
                continue;
            };
            let reached = values.is_valid(row) && values.value(row) >= floor.0;
            if !reached && self.changed.is_empty() {
                continue;
            }
            let (Some(tenant), Some(id)) = (judge::text(tenants, row), judge::text(scopes, row)) else { continue };
            if self.is_changed(plan, Some(tenant), Some(id)) {
                wanted.push((index, row));
            } else if reached {
                let window = rows.window.get(row).copied().unwrap_or_default();
                let limits = self.limits.get(number).map_or(&[][..], |set| &set.limits);
                let limits = limits.iter().map(|l| &**l).filter(|l| *l.metric == *plan.name);
                let over = plan.shape != Shape::Hop && self.levels.settled(tenant, &plan.name, id, window, limits);
                if !over {
                    wanted.push((index, row));
                }
            }
        }
    }

    fn is_changed(&self, plan: &MetricPlan, tenant: Option<&str>, id: Option<&str>) -> bool {
        let (Some(tenant), Some(id)) = (tenant, id) else { return false };
        plan.scope == Scope::Run && self.changed.contains(&RunRef(tenant, id))
    }

    /// The limit set of a result's group. Where limits are active at times only, the lines of all that may ever hold count,
    /// whichever the arbitration of a moment prefers: what is remembered of a group must hold for rows of any time.
    fn find(
        &mut self,
        rows: &QueryRows,
        row: usize,
        plan: &MetricPlan,
        texts: [Option<&StringArray>; 2],
    ) -> Option<u32> {
        let timed = self.limits.timed();
        if plan.scope == Scope::Run && !timed {
            return self.run_sets.get(*rows.at.get(row)? as usize).copied();
        }
        let group = *rows.group.get(row)?;
        if let Some(known) = self.groups.get(rows.query, group) {
            return Some(known);
        }
        let [tenant, id] = texts.map(|column| judge::text(column, row));
        let (tenant, id) = (tenant?, id?);
        let number = match (plan.scope, timed) {
            (Scope::Run, _) => self.limits.lines_of_run(tenant, self.runs.get(tenant, id)?),
            (scope, true) => self.limits.lines_of_group(scope, tenant, id),
            (scope, false) => self.limits.of_group(scope, tenant, id, None),
        };
        self.groups.put(rows.query, group, number);
        Some(number)
    }
}
