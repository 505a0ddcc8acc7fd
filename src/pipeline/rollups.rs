//! Roll-ups per tenant and minute: how much was judged, and what came of it.
//!
//! Rows are counted with the clocks ([`crate::pipeline::clocks`]), actions here, each in the minute of its tenant's clock at its row,
//! so a roll-up does not depend on how a poll cut the batches. One is said when its minute is over.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::clock::Micros;
use crate::decide::records::{Decision, Evaluation};
use crate::pipeline::clocks::{MINUTE, Minute};
use crate::pipeline::partition::{Partition, Step};

/// What was done within one minute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Acts {
    blocks: u64,
    by_action: BTreeMap<String, u64>,
}

/// By minutes since 1970.
pub(super) type Minutes = BTreeMap<i64, Acts>;

/// What was done in the minutes that are not over.
#[derive(Debug, Default)]
pub(super) struct Rollups {
    tenants: BTreeMap<Box<str>, Minutes>,
    dirty: BTreeSet<Box<str>>,
}

impl Rollups {
    /// Notes an action at a tenant's clock; `blocks`: it holds work back, or ends it.
    pub(super) fn act(&mut self, tenant: &str, clock: Micros, action: &str, blocks: bool) {
        let minutes = self.tenants.entry(tenant.into()).or_default();
        let acts = minutes.entry(clock.div_euclid(MINUTE)).or_default();
        acts.blocks += u64::from(blocks);
        *acts.by_action.entry(action.to_owned()).or_default() += 1;
        self.dirty.insert(tenant.into());
    }

    /// Takes the actions of a tenant up to a minute.
    fn take(&mut self, tenant: &str, until: i64) -> Minutes {
        let Some(minutes) = self.tenants.get_mut(tenant) else { return Minutes::new() };
        let later = minutes.split_off(&until.saturating_add(1));
        let taken = std::mem::replace(minutes, later);
        if minutes.is_empty() {
            self.tenants.remove(tenant);
        }
        if !taken.is_empty() {
            self.dirty.insert(tenant.into());
        }
        taken
    }

    /// What changed since the last call; `None`: nothing is left.
    pub(super) fn take_changes(&mut self) -> Vec<(Box<str>, Option<&Minutes>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|tenant| (tenant.clone(), self.tenants.get(&tenant))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub(super) fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.tenants.keys().cloned());
    }

    /// Takes one back.
    pub(super) fn restore(&mut self, tenant: Box<str>, minutes: Minutes) {
        self.tenants.insert(tenant, minutes);
    }
}

impl Partition {
    /// Says what was judged in the minutes that are over.
    pub(super) fn roll_up(&mut self, finish: bool, step: &mut Step) {
        if finish {
            self.clocks.finish();
        }
        for Minute { tenant, minute, rows, uncovered } in self.clocks.take_over() {
            let mut acts = self.rollups.take(&tenant, minute);
            let of_minute = acts.remove(&minute).unwrap_or_default();
            // what was done in silence, when no row counted a minute
            for (earlier, acts) in acts {
                step.decisions.push(evaluation(&tenant, earlier, acts, (0, 0)));
            }
            step.decisions.push(evaluation(&tenant, minute, of_minute, (rows, uncovered)));
        }
        if finish {
            let tenants: Vec<Box<str>> = self.rollups.tenants.keys().cloned().collect();
            for tenant in tenants {
                for (minute, acts) in self.rollups.take(&tenant, i64::MAX) {
                    step.decisions.push(evaluation(&tenant, minute, acts, (0, 0)));
                }
            }
        }
    }
}

fn evaluation(tenant: &str, minute: i64, acts: Acts, (rows, uncovered): (u32, u32)) -> Decision {
    let evaluations = u64::from(rows.saturating_sub(uncovered));
    Decision::Evaluation(Box::new(Evaluation {
        tenant_id: tenant.to_owned(),
        minute: minute.saturating_mul(MINUTE),
        evaluations,
        blocks: acts.blocks,
        allows: evaluations.saturating_sub(acts.blocks),
        by_action: acts.by_action,
        uncovered: uncovered.into(),
    }))
}
