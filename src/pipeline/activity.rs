//! How many runs of a tenant are active: what the breaker's share is a share of (X4).
//!
//! Counted are the runs that sent anything in this minute of event time or the one before. Rows are taken one by one, so the figure at
//! a row does not depend on how a poll cut the batches; runs are known by 32 bits of a hash.

use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash as _, Hasher as _};

use hashbrown::HashMap;
use rustc_hash::{FxBuildHasher, FxHasher};
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND};

const MINUTE: Micros = 60 * SECOND;

type Runs = HashSet<u32, FxBuildHasher>;

/// The active runs of one tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Active {
    minute: i64,
    current: Runs,
    previous: Runs,
    /// Of the previous minute's those that have not sent anything in this one.
    #[serde(skip)]
    carried: usize,
    /// It changed since the last checkpoint.
    #[serde(skip)]
    dirty: bool,
}

impl Active {
    fn take(&mut self, run: u32, time: Micros) -> u32 {
        let minute = time.div_euclid(MINUTE);
        // what is late counts as of now
        if minute > self.minute {
            let follows = minute == self.minute + 1;
            self.previous = std::mem::take(&mut self.current);
            if !follows {
                self.previous.clear();
            }
            self.carried = self.previous.len();
            self.minute = minute;
        }
        if self.current.insert(run) && self.previous.contains(&run) {
            self.carried = self.carried.saturating_sub(1);
        }
        u32::try_from(self.current.len() + self.carried).unwrap_or(u32::MAX)
    }
}

/// The active runs of a partition.
#[derive(Debug, Default)]
pub(super) struct Activity {
    tenants: HashMap<Box<str>, Active, FxBuildHasher>,
    gone: BTreeSet<Box<str>>,
}

impl Activity {
    /// Takes a row of a run; gives how many runs of its tenant are active with it.
    pub(super) fn take(&mut self, tenant: &str, run: &str, time: Micros) -> u32 {
        let mut hasher = FxHasher::default();
        run.hash(&mut hasher);
        let hash = hasher.finish();
        let active = self.tenants.entry_ref(tenant).or_default();
        active.dirty = true;
        active.take((hash ^ (hash >> 32)) as u32, time)
    }

    /// Nobody asks any more.
    pub(super) fn clear(&mut self) {
        self.gone.extend(self.tenants.drain().map(|(tenant, _)| tenant));
    }

    /// What changed since the last call; `None`: gone.
    pub(super) fn take_changes(&mut self) -> Vec<(Box<str>, Option<&Active>)> {
        let mut changed: BTreeSet<Box<str>> = std::mem::take(&mut self.gone);
        for (tenant, active) in &mut self.tenants {
            if std::mem::take(&mut active.dirty) {
                changed.insert(tenant.clone());
            }
        }
        changed.into_iter().map(|tenant| (tenant.clone(), self.tenants.get(&tenant))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub(super) fn mark_all_dirty(&mut self) {
        self.tenants.values_mut().for_each(|active| active.dirty = true);
    }

    /// Takes one back.
    pub(super) fn restore(&mut self, tenant: Box<str>, mut active: Active) {
        active.carried = active.previous.iter().filter(|run| !active.current.contains(*run)).count();
        self.tenants.insert(tenant, active);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_this_minute_and_the_last_count_once_each_also_after_a_crash() {
        let mut activity = Activity::default();
        let take = |activity: &mut Activity, run: &str, second: i64| activity.take("t", run, second * SECOND);
        assert_eq!(
            [take(&mut activity, "a", 0), take(&mut activity, "b", 59), take(&mut activity, "a", 59)],
            [1, 2, 2]
        );
        assert_eq!(take(&mut activity, "c", 60), 3);
        activity.mark_all_dirty();
        let mut back = Activity::default();
        for (tenant, active) in activity.take_changes() {
            let text = serde_json::to_string(active.unwrap()).unwrap();
            back.restore(tenant, serde_json::from_str(&text).unwrap());
        }
        assert_eq!([take(&mut back, "a", 61), take(&mut back, "late", 5)], [3, 4]);
        assert_eq!(take(&mut back, "d", 120), 4, "b is gone, a, c and late are of the last minute");
        assert_eq!(take(&mut back, "e", 600), 1);
    }
}
