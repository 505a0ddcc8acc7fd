//! The rows around a decision.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::clock::{Micros, Wall};
use crate::pipeline::clocks::Clocks;
use crate::pipeline::happenings::Happening;
use crate::pipeline::intake::Rows;
use crate::pipeline::judge::Item;
use crate::pipeline::runs::{Run, RunKey};
use crate::telemetry::Batch;

/// What an item's `at` refers to.
pub(in crate::pipeline) struct Around {
    pub(super) now: Wall,
    pub(super) batch: Option<Batch>,
    /// Each row's tenant clock after it.
    pub(in crate::pipeline) clocks: Vec<Micros>,
    /// Each row's run's limit set.
    pub(super) run_sets: Vec<u32>,
    /// How many runs of each row's tenant are active with it, where some policy may hold runs.
    pub(super) active: Vec<u32>,
    /// Each row's run's agent.
    pub(super) run_agents: Vec<Option<Arc<str>>>,
    /// With the event clock: the step's clock at each row.
    pub(in crate::pipeline) row_now: Vec<Micros>,
    /// Runs whose terms changed inside the batch.
    pub(super) changed: HashSet<(Box<str>, Box<str>)>,
    /// What those runs were before the rows that changed them.
    pub(super) history: HashMap<RunKey, Vec<(u32, Box<Run>)>>,
    /// What rows say beside their values; by row.
    pub(in crate::pipeline) happenings: VecDeque<Happening>,
    pub(super) tenants: BTreeSet<Arc<str>>,
}

impl Around {
    pub(in crate::pipeline) fn none(now: Wall) -> Self {
        Self {
            now,
            batch: None,
            clocks: Vec::new(),
            run_sets: Vec::new(),
            active: Vec::new(),
            run_agents: Vec::new(),
            row_now: Vec::new(),
            changed: HashSet::new(),
            history: HashMap::new(),
            happenings: VecDeque::new(),
            tenants: BTreeSet::new(),
        }
    }

    /// The run as it was when its window closed, if later rows of the batch changed it.
    pub(super) fn as_of(&self, item: &Item) -> Option<&Run> {
        self.run_as_of(item.at, &item.tenant, &item.scope_id)
    }

    /// A run as it was at a row, if later rows of the batch changed it.
    pub(in crate::pipeline) fn run_as_of(&self, at: u32, tenant: &str, run: &str) -> Option<&Run> {
        if self.history.is_empty() {
            return None;
        }
        let changes = self.history.get(&(Box::from(tenant), Box::from(run)))?;
        changes.iter().find(|(row, _)| *row > at).map(|(_, run)| &**run)
    }

    /// The step's clock when the item was decided.
    pub(in crate::pipeline) fn now(&self, item: Option<&Item>) -> Wall {
        item.map_or(self.now, |i| self.now_at(i.at))
    }

    /// The step's clock at a row.
    pub(in crate::pipeline) fn now_at(&self, row: u32) -> Wall {
        self.row_now.get(row as usize).map_or(self.now, |at| Wall(*at))
    }

    pub(in crate::pipeline) fn time(&self, item: &Item) -> Option<Micros> {
        let batch = self.batch.as_ref()?;
        let row = item.at as usize;
        (row < batch.rows.num_rows()).then(|| Rows::new(&batch.rows).time.value(row))
    }

    /// Of the row that crossed; at close of the window as its metric says, since the row that closed it is any.
    pub(in crate::pipeline) fn synthetic(&self, item: &Item) -> bool {
        if item.closed {
            return item.is_synthetic.unwrap_or(false);
        }
        let Some(batch) = self.batch.as_ref() else { return false };
        let row = item.at as usize;
        row < batch.rows.num_rows() && Rows::new(&batch.rows).synthetic(row)
    }

    /// How many runs of a row's tenant were active at it.
    pub(in crate::pipeline) fn active_at(&self, row: u32) -> usize {
        self.active.get(row as usize).map_or(0, |active| *active as usize)
    }

    /// The agent of a row's run, as it was at the row.
    pub(in crate::pipeline) fn agent_at(&self, row: u32) -> Option<&Arc<str>> {
        self.run_agents.get(row as usize)?.as_ref()
    }

    /// A row's tenant's clock at it; `otherwise` where there is no such row.
    pub(in crate::pipeline) fn clock_at(&self, row: u32, otherwise: Micros) -> Micros {
        self.clocks.get(row as usize).copied().unwrap_or(otherwise)
    }

    /// The tenant's clock when the item was decided.
    pub(super) fn clock(&self, item: &Item, clocks: &Clocks) -> Micros {
        let then = self.clocks.get(item.at as usize).copied();
        then.or_else(|| clocks.highest(&item.tenant).map(|h| h.max(item.window.1))).unwrap_or(item.window.1)
    }
}
